// What one machine can do at most: multiply-adds out of registers, and a plain read of memory.
#include <atomic>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "parallel.h"

using longspan::Floats;
using longspan::Pairs;

namespace {

constexpr int kChains = 12;  // of dependent operations: more than the latency of one
constexpr int kStreams = 8;

// On torch's own threads: those of a second team would share the cores with the first one's, which spin for a while.
template <class Body>
void on_threads(int threads, const Body& body) {
    std::atomic<int> next{0};
    auto work = [&] {
        for (int i; (i = next.fetch_add(1)) < threads;) body(i);
    };
    longspan::in_parallel(threads, work);
}

void multiply(int64_t rounds) {
    const uint32_t one[16] = {};
    Pairs::Operand a = Pairs::load_operand(one);
    typename Pairs::Floats sum[kChains];
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = Pairs::zero();
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) {
            sum[i] = Pairs::multiply_add(sum[i], a, a);
            asm volatile("" : "+x"(sum[i]));  // so that no operation is left out
        }
    }
}

template <int kAhead>
float sum_of(const float* x, int64_t count) {
    typename Floats::Floats sum[kStreams];
#pragma GCC unroll 16
    for (int i = 0; i < kStreams; ++i) sum[i] = Floats::zero();
    for (int64_t at = 0; at + kStreams * Floats::kWidth <= count; at += kStreams * Floats::kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kStreams; ++i) {
            const float* p = x + at + i * Floats::kWidth;
            if (kAhead) __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
            sum[i] = Floats::add(sum[i], Floats::load(p));
        }
    }
    float total = 0.0f;
#pragma GCC unroll 16
    for (int i = 0; i < kStreams; ++i) total += Floats::sum(sum[i]);
    return total;
}

}  // namespace

#define LONGSPAN_EXPORT __attribute__((visibility("default")))

extern "C" {

LONGSPAN_EXPORT void longspan_peak_use_openmp(void* parallel) {
    longspan::openmp_parallel = reinterpret_cast<longspan::OpenMpParallel>(parallel);
}

// Floating-point operations of one round on one thread.
LONGSPAN_EXPORT int64_t longspan_peak_flops() { return int64_t{2} * kChains * Pairs::kPair * Pairs::kWidth; }

LONGSPAN_EXPORT void longspan_peak_multiply(int64_t rounds, int threads) {
    on_threads(threads, [=](int) { multiply(rounds); });
}

// Every thread sums its part of the numbers; prefetched: with requests half a kilobyte ahead.
LONGSPAN_EXPORT float longspan_peak_read(const float* x, int64_t count, int prefetched, int threads) {
    std::vector<float> sums(static_cast<size_t>(threads));
    on_threads(threads, [&](int i) {
        const int64_t begin = count * i / threads, end = count * (i + 1) / threads;
        const auto sum = prefetched ? sum_of<512> : sum_of<0>;
        sums[static_cast<size_t>(i)] = sum(x + begin, end - begin);
    });
    return sums[0];
}
}
