// Trains lanes: one after the other, each as many steps as it is told, so that all that a lane needs stays in the nearest cache.

#include <stdint.h>
#include <string.h>

typedef void Program(const void *const *in, void *const *out);

constexpr int MOST = 256;  // arguments of one program

struct Lane {
    Program *update;
    int64_t seed, numbers, kept, fixed;
    const double *rates;          // of every step, or null
    const void *const *settings;  // the learning rate, and the plain numbers of optimizer and clip
    void *const *state;           // the weights, and all that a step leaves for the next
    const int64_t *bytes;         // of each of these
    const void *const *constants; // what is not trained
};

struct Batches {
    const char *inputs, *targets;  // steps × seeds
    int64_t input_bytes, target_bytes, seeds;
};

// Rows: steps × lanes × the loss and the products. Room: two places for every part of a state, and the gradient.
extern "C" void train(Program *gradient, const Lane *lanes, int64_t count, int64_t steps, const Batches *batches, int64_t products,
                      double *rows, char *const *room) {
    for (int64_t l = 0; l < count; ++l) {
        const Lane &lane = lanes[l];
        if (!lane.update) continue;
        const void *gradient_in[MOST], *update_in[MOST];
        void *gradient_out[2], *update_out[MOST];
        char *now[MOST], *next[MOST], *const grads = room[2 * MOST];
        for (int64_t n = 0; n < lane.kept; ++n) {
            now[n] = room[2 * n];
            next[n] = room[2 * n + 1];
            memcpy(now[n], lane.state[n], lane.bytes[n]);
        }
        for (int64_t n = 0; n < lane.fixed; ++n) gradient_in[3 + n] = lane.constants[n];
        for (int64_t k = 0; k < steps; ++k) {
            double *const row = rows + (k * count + l) * (1 + products);
            gradient_in[0] = now[0];
            gradient_in[1] = batches->inputs + (k * batches->seeds + lane.seed) * batches->input_bytes;
            gradient_in[2] = batches->targets + (k * batches->seeds + lane.seed) * batches->target_bytes;
            gradient_out[0] = grads;
            gradient_out[1] = row;
            gradient(gradient_in, gradient_out);
            int64_t in = 0, out = 0;
            update_in[in++] = now[0];
            update_in[in++] = grads;
            for (int64_t n = 0; n < lane.numbers; ++n) update_in[in++] = lane.settings[n];
            if (lane.rates) update_in[2] = lane.rates + k;
            for (int64_t n = 1; n < lane.kept; ++n) update_in[in++] = now[n];
            for (int64_t n = 0; n < products; ++n) update_out[out++] = row + 1 + n;
            for (int64_t n = 0; n < lane.kept; ++n) update_out[out++] = next[n];
            lane.update(update_in, update_out);
            for (int64_t n = 0; n < lane.kept; ++n) {
                char *const other = now[n];
                now[n] = next[n];
                next[n] = other;
            }
        }
        for (int64_t n = 0; n < lane.kept; ++n) memcpy(lane.state[n], now[n], lane.bytes[n]);
    }
}
