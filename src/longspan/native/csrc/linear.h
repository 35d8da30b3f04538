// y = x W^T + b. The weight is packed once into panels of outputs, which one pass of the inner kernel reads in order:
// a decode step streams every weight from memory once, and a prefill finds each panel in the cache for many rows.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "parallel.h"
#include "product.h"
#include "types.h"

namespace longspan {

constexpr int64_t kRowsInBlock = 96;  // rows that meet one panel after the other while they stay in the L2 cache

// Outputs in a panel.
template <class L>
constexpr int64_t kPanel = L::kTileVectors * L::kWidth;

// Lanes (uint32) of a packed weight: [panels, depth, kPanel], a lane being kPair neighbours of one output's weights.
template <class L>
int64_t packed_lanes(int64_t outputs, int64_t inputs) {
    return (outputs + kPanel<L> - 1) / kPanel<L> * kPanel<L> * (inputs / L::kPair);
}

template <class L>
void pack_linear(const uint32_t* weight, uint32_t* packed, int64_t outputs, int64_t inputs) {
    const int64_t depth = inputs / L::kPair;
    std::memset(packed, 0, static_cast<size_t>(packed_lanes<L>(outputs, inputs)) * sizeof(uint32_t));
    for (int64_t o = 0; o < outputs; ++o) {
        uint32_t* column = packed + o / kPanel<L> * kPanel<L> * depth + o % kPanel<L>;
        for (int64_t i = 0; i < depth; ++i) column[i * kPanel<L>] = weight[o * depth + i];
    }
}

template <class T>
struct Linear {
    const uint32_t* x;  // lanes [rows, depth]
    int64_t x_row;      // in lanes
    const uint32_t* packed;
    const T* bias;  // [outputs], or null
    void* y;        // [rows, outputs], T or fp32
    bool y_is_fp32;
    int64_t rows, outputs, inputs;
};

template <class L, class T>
void store_outputs(const Linear<T>& job, const float* sums, int64_t row, int64_t first) {
    const int64_t count = std::min(kPanel<L>, job.outputs - first);
    float* as_fp32 = static_cast<float*>(job.y) + row * job.outputs + first;
    T* as_t = static_cast<T*>(job.y) + row * job.outputs + first;
    int64_t o = 0;
    for (; o + L::kWidth <= count; o += L::kWidth) {
        auto sum = L::load(sums + o);
        if (job.bias) sum = L::add(sum, L::load_as_floats(job.bias + first + o));
        job.y_is_fp32 ? L::store_floats(as_fp32 + o, sum) : L::store_floats(as_t + o, sum);
    }
    if (o == count) return;
    // The last, partial vector of a width that is no multiple of it.
    alignas(64) T bias[L::kWidth] = {}, stored[L::kWidth];
    if (job.bias) std::memcpy(bias, job.bias + first + o, static_cast<size_t>(count - o) * sizeof(T));
    alignas(64) float exact[L::kWidth];
    const auto sum = L::add(L::load(sums + o), L::load_as_floats(bias));
    L::store_floats(stored, sum);
    L::store_floats(exact, sum);
    if (job.y_is_fp32) {
        std::memcpy(as_fp32 + o, exact, static_cast<size_t>(count - o) * sizeof(float));
    } else {
        std::memcpy(as_t + o, stored, static_cast<size_t>(count - o) * sizeof(T));
    }
}

template <class L, class T>
void linear(const Linear<T>& job, int threads) {
    const int64_t depth = job.inputs / L::kPair;
    const int64_t panels = (job.outputs + kPanel<L> - 1) / kPanel<L>;
    const int64_t tasks = (job.rows + kRowsInBlock - 1) / kRowsInBlock * panels;
    std::atomic<int64_t> next{0};
    auto work = [&] {
        alignas(64) float sums[kTileRows * kPanel<L>];
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const int64_t panel = task % panels, begin = task / panels * kRowsInBlock;
            const int64_t end = std::min(job.rows, begin + kRowsInBlock);
            const uint32_t* weights = job.packed + panel * kPanel<L> * depth;
            for (int64_t row = begin; row < end; row += kTileRows) {
                const int64_t count = std::min<int64_t>(kTileRows, end - row);
                product<L>(count, L::kTileVectors, {job.x + row * job.x_row, job.x_row, weights, kPanel<L>, depth, sums,
                                                    kPanel<L>, nullptr});
                for (int64_t r = 0; r < count; ++r) {
                    store_outputs<L, T>(job, sums + r * kPanel<L>, row + r, panel * kPanel<L>);
                }
            }
        }
    };
    in_parallel(static_cast<int>(std::min<int64_t>(threads, tasks)), work);
}

}  // namespace longspan
