// Trains lanes: one after the other, each as many steps as it is told, so that all that a lane needs stays in the nearest cache.
// Lanes of a model of a few numbers stand abreast, some of them as one: each of its numbers is then a row of one number a lane.

#include <stdint.h>
#include <string.h>

typedef void Program(const void *const *in, void *const *out);

constexpr int MOST = 256;         // arguments of one program
constexpr int MOST_ABREAST = 16;  // lanes

struct Lane {
    Program *update;
    int64_t numbers, kept, fixed;
    const int64_t *seeds;         // of each lane that stands here
    const double *rates;          // of every step, or null
    const void *const *settings;  // the learning rate, and the plain numbers of optimizer and clip
    void *const *state;           // the weights, and all that a step leaves for the next
    const int64_t *bytes;         // of each of these
    const void *const *constants; // what is not trained
};

// The inputs or the targets of all batches, steps × seeds.
struct Batches {
    const char *begin;
    int64_t bytes, item, seeds;  // of one batch, of one number; how many there are in a step
};

template <typename Item>
static void gather(const char *const *from, int64_t bytes, int64_t abreast, char *to) {
    for (int64_t n = 0; n < bytes / (int64_t)sizeof(Item); ++n)
        for (int64_t j = 0; j < abreast; ++j) ((Item *)to)[n * abreast + j] = ((const Item *)from[j])[n];
}

// The batch of a step for the lanes that stand abreast: where it lies, or what `room` is filled with.
static const void *batch(const Batches &all, int64_t step, const Lane &lane, int64_t abreast, char *room) {
    const char *from[MOST_ABREAST];
    for (int64_t j = 0; j < abreast; ++j) from[j] = all.begin + (step * all.seeds + lane.seeds[j]) * all.bytes;
    if (abreast == 1) return from[0];
    switch (all.item) {
        case 1: gather<int8_t>(from, all.bytes, abreast, room); break;
        case 2: gather<int16_t>(from, all.bytes, abreast, room); break;
        case 4: gather<int32_t>(from, all.bytes, abreast, room); break;
        default: gather<int64_t>(from, all.bytes, abreast, room);
    }
    return room;
}

// Rows: the loss and the products × steps × lanes, those abreast next to each other. Room: two places for every part of a state, the
// gradient, and a batch.
extern "C" void train(Program *gradient, const Lane *lanes, int64_t count, int64_t abreast, int64_t steps, const Batches *batches,
                      int64_t products, double *rows, char *const *room) {
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
            double *const row = rows + (k * count + l) * abreast;
            gradient_in[0] = now[0];
            for (int part = 0; part < 2; ++part)
                gradient_in[1 + part] = batch(batches[part], k, lane, abreast, room[2 * MOST + 1 + part]);
            gradient_out[0] = grads;
            gradient_out[1] = row;
            gradient(gradient_in, gradient_out);
            int64_t in = 0, out = 0;
            update_in[in++] = now[0];
            update_in[in++] = grads;
            for (int64_t n = 0; n < lane.numbers; ++n) update_in[in++] = lane.settings[n];
            if (lane.rates) update_in[2] = lane.rates + k * abreast;
            for (int64_t n = 1; n < lane.kept; ++n) update_in[in++] = now[n];
            for (int64_t n = 0; n < products; ++n) update_out[out++] = row + (1 + n) * steps * count * abreast;
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
