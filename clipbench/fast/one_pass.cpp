// Norms and clamps of many tensors in one call, and SGD by clamped or scaled gradients in one pass over memory: of each element the weight, the gradient and the momentum are read
// once, the weight and the momentum written once. Threads share every tensor; without OpenMP there is one.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t BLOCK = 1 << 15;  // elements of one sum, so that the norm is the same for every number of threads

// How many threads are worth waking: as in torch, one for every so many elements.
int team(int64_t count, const int64_t *sizes, int threads) {
    const int64_t blocks = std::accumulate(sizes, sizes + count, int64_t{0}) / BLOCK;
    return static_cast<int>(std::max(int64_t{1}, std::min(int64_t{threads}, blocks)));
}

// Infinite where the sum of squares leaves the range of the dtype, as torch's; but summed in double precision, so that nothing is lost
// of gradients whose squares are below it.
template <typename Real>
double norm(int64_t count, const int64_t *sizes, const Real *const *grads, int threads) {
    std::vector<int64_t> first(count + 1);
    for (int64_t tensor = 0; tensor < count; ++tensor) first[tensor + 1] = first[tensor] + (sizes[tensor] + BLOCK - 1) / BLOCK;
    std::vector<double> sums(first[count]);
    threads = team(count, sizes, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t tensor = 0; tensor < count; ++tensor) {
        const Real *__restrict__ grad = grads[tensor];
        const int64_t size = sizes[tensor], blocks = first[tensor + 1] - first[tensor];
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t end = block + 1 < blocks ? (block + 1) * BLOCK : size;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = block * BLOCK; i < end; ++i) sum += static_cast<double>(grad[i]) * grad[i];
            sums[first[tensor] + block] = sum;
        }
    }
    const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
    return total > std::numeric_limits<Real>::max() ? std::numeric_limits<double>::infinity() : std::sqrt(total);
}

// NaN compares false, and stays what it is.
template <typename Real>
inline Real clamped(Real value, Real limit) {
    return value < -limit ? -limit : (value > limit ? limit : value);
}

template <typename Real>
void clamp(int64_t count, const int64_t *sizes, Real *const *grads, Real limit, int threads) {
    threads = team(count, sizes, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t tensor = 0; tensor < count; ++tensor) {
        Real *__restrict__ grad = grads[tensor];
        const int64_t size = sizes[tensor];
#pragma omp for simd schedule(static) nowait
        for (int64_t i = 0; i < size; ++i) grad[i] = clamped(grad[i], limit);
    }
}

// a b + c, rounded once where the processor can, as torch's vectors do it.
template <typename Real>
inline Real fused(Real a, Real b, Real c) {
#ifdef FP_FAST_FMA
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

// torch.optim.SGD, rounded where its separate operations round:
//   d = scale clamp(g) + decay p;   b = momentum b + share d;   p -= lr b, and by Nesterov p -= lr (d + momentum b).
// What is not asked for is left out, not multiplied by 0, which would make NaN of infinity. Without momentum there are no buffers.
template <typename Real>
void step(int64_t count, const int64_t *sizes, Real *const *params, const Real *const *grads, Real *const *buffers, Real limit,
          Real lr, Real momentum, Real share, Real decay, Real scale, bool nesterov, int threads) {
    const bool decays = decay != 0;
    threads = team(count, sizes, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t tensor = 0; tensor < count; ++tensor) {
        Real *__restrict__ param = params[tensor];
        const Real *__restrict__ grad = grads[tensor];
        Real *__restrict__ buffer = buffers ? buffers[tensor] : nullptr;
        const int64_t size = sizes[tensor];
        if (buffer) {
#pragma omp for simd schedule(static) nowait
            for (int64_t i = 0; i < size; ++i) {
                const Real cut = scale * clamped(grad[i], limit);
                const Real along = decays ? fused(decay, param[i], cut) : cut;
                const Real kept = fused(share, along, momentum * buffer[i]);
                buffer[i] = kept;
                param[i] = fused(-lr, nesterov ? fused(momentum, kept, along) : kept, param[i]);
            }
        } else {
#pragma omp for simd schedule(static) nowait
            for (int64_t i = 0; i < size; ++i) {
                const Real cut = scale * clamped(grad[i], limit);
                param[i] = fused(-lr, decays ? fused(decay, param[i], cut) : cut, param[i]);
            }
        }
    }
}

}  // namespace

extern "C" {

double norm_float32(int64_t count, const int64_t *sizes, const float *const *grads, int threads) {
    return norm<float>(count, sizes, grads, threads);
}

double norm_float64(int64_t count, const int64_t *sizes, const double *const *grads, int threads) {
    return norm<double>(count, sizes, grads, threads);
}

void clamp_float32(int64_t count, const int64_t *sizes, float *const *grads, double limit, int threads) {
    clamp<float>(count, sizes, grads, static_cast<float>(limit), threads);
}

void clamp_float64(int64_t count, const int64_t *sizes, double *const *grads, double limit, int threads) {
    clamp<double>(count, sizes, grads, limit, threads);
}

void step_float32(int64_t count, const int64_t *sizes, float *const *params, const float *const *grads, float *const *buffers,
                  double limit, double lr, double momentum, double share, double decay, double scale, bool nesterov, int threads) {
    step<float>(count, sizes, params, grads, buffers, static_cast<float>(limit), static_cast<float>(lr), static_cast<float>(momentum),
                static_cast<float>(share), static_cast<float>(decay), static_cast<float>(scale), nesterov, threads);
}

void step_float64(int64_t count, const int64_t *sizes, double *const *params, const double *const *grads, double *const *buffers,
                  double limit, double lr, double momentum, double share, double decay, double scale, bool nesterov, int threads) {
    step<double>(count, sizes, params, grads, buffers, limit, lr, momentum, share, decay, scale, nesterov, threads);
}

}
