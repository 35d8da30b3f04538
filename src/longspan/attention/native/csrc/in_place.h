// Few query rows against keys and values where they lie: a decode step reads each of them once, and packs nothing.
#pragma once

#include "kv_rows.h"
#include "product.h"

namespace longspan {

constexpr int kInPlaceRows = 4;  // query rows up to which this beats packing
constexpr int64_t kAtOnce = 64;  // rows of V that stay in the L1 cache between passes

// sum[i] += query x row[i], for kVectors vectors from vector j on. Row by row, as they lie in memory: the processor
// then sees a stream, and fetches ahead by itself.
template <class L, int kVectors, class T>
void multiply_rows(typename L::Floats* sum, const uint32_t* query, const T* const* row, int64_t j) {
    typename L::Operand part[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) part[v] = L::load_operand(query + (j + v) * L::kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < L::kWidth; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[i] = L::multiply_add(sum[i], part[v], L::row_lanes(row[i], j + v));
    }
}

template <class L, class T>
typename L::Floats score_rows(const uint32_t* query, const T* const* row, int64_t vectors) {
    typename L::Floats sum[L::kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < L::kWidth; ++i) sum[i] = L::zero();
    int64_t j = 0;
    for (; j + 4 <= vectors; j += 4) multiply_rows<L, 4>(sum, query, row, j);
    if (j + 2 <= vectors) {
        multiply_rows<L, 2>(sum, query, row, j);
        j += 2;
    }
    if (j < vectors) multiply_rows<L, 1>(sum, query, row, j);
    return L::sums(sum);
}

// scores [num_rows, kBlockKeys] = queries (lanes) x rows of K.
template <class L, class T>
void score_in_place(const uint32_t* queries, int64_t num_rows, const KVRows<T>& keys, int64_t head_dim, float* scores) {
    const int64_t depth = head_dim / L::kPair, vectors = depth / L::kWidth;
    for (int64_t key = 0; key < keys.count; key += L::kWidth) {
        const T* row[L::kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < L::kWidth; ++i) row[i] = keys[key + i];
        for (int64_t r = 0; r < num_rows; ++r) {
            L::store(scores + r * kBlockKeys + key, score_rows<L>(queries + r * depth, row, vectors));
        }
    }
}

// Columns of kSteps * 2 vectors, beginning with step `first`.
template <class L, class T, int kRows, int kSteps>
void add_columns_in_place(const uint32_t* weights, const KVRows<T>& values, int64_t first, int64_t head_dim,
                          const float* factor, float* out) {
    constexpr int kVectors = 2 * kSteps;
    float* columns = out + first * 2 * L::kWidth;
    typename L::Floats sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
            sum[r][v] = L::mul(L::load(columns + r * head_dim + v * L::kWidth), L::all(factor[r]));
        }
    }
    for (int64_t key = 0; key < values.count; key += L::kPair, ++weights) {
        const T *a = values[key], *b = values[key + L::kPair - 1];
        typename L::Operand lanes[kVectors];
#pragma GCC unroll 16
        for (int s = 0; s < kSteps; ++s) L::column_lanes(a, b, first + s, lanes[2 * s], lanes[2 * s + 1]);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
            const typename L::Operand weight = L::broadcast(weights + r * (kBlockKeys / L::kPair));
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sum[r][v] = L::multiply_add(sum[r][v], weight, lanes[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) L::store(columns + r * head_dim + v * L::kWidth, sum[r][v]);
    }
}

// As many rows at once as registers hold their results, then the rest.
template <class L, class T, int kSteps>
void add_steps_in_place(const uint32_t* weights, int64_t num_rows, const KVRows<T>& values, int64_t first,
                        int64_t head_dim, const float* factor, float* out) {
    constexpr int64_t kMost = std::min(kInPlaceRows, kTileRows * L::kTileVectors / (2 * kSteps));
    const int64_t passes = (num_rows + kMost - 1) / kMost;
    for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t begin = num_rows * pass / passes, count = num_rows * (pass + 1) / passes - begin;
        const uint32_t* w = weights + begin * (kBlockKeys / L::kPair);
        const float* f = factor + begin;
        float* o = out + begin * head_dim;
        if (count == 1) add_columns_in_place<L, T, 1, kSteps>(w, values, first, head_dim, f, o);
        if (count == 2) add_columns_in_place<L, T, 2, kSteps>(w, values, first, head_dim, f, o);
        if constexpr (kMost >= 3) {
            if (count == 3) add_columns_in_place<L, T, 3, kSteps>(w, values, first, head_dim, f, o);
        }
        if constexpr (kMost >= 4) {
            if (count == 4) add_columns_in_place<L, T, 4, kSteps>(w, values, first, head_dim, f, o);
        }
    }
}

// out [rows, head_dim] = factor * out + weights x rows of V. Whole rows where the registers allow it, for the same
// reason as above; some keys at a time, so that a second pass finds them in the L1 cache.
template <class L, class T>
void add_in_place(const uint32_t* weights, int64_t num_rows, const KVRows<T>& values, int64_t head_dim,
                  const float* factor, float* out) {
    constexpr float kOnes[kInPlaceRows] = {1.0f, 1.0f, 1.0f, 1.0f};
    const int64_t steps = head_dim / (2 * L::kWidth);
    for (int64_t key = 0; key < values.count; key += kAtOnce) {
        const KVRows<T> some = values.from(key, std::min(kAtOnce, values.count - key));
        const uint32_t* w = weights + key / L::kPair;
        const float* f = key ? kOnes : factor;
        for (int64_t first = 0; first < steps;) {
            const int64_t now = std::min<int64_t>(L::kTileVectors, steps - first);
            if (now == 1) add_steps_in_place<L, T, 1>(w, num_rows, some, first, head_dim, f, out);
            if (now == 2) add_steps_in_place<L, T, 2>(w, num_rows, some, first, head_dim, f, out);
            if constexpr (L::kTileVectors == 4) {
                if (now == 3) add_steps_in_place<L, T, 3>(w, num_rows, some, first, head_dim, f, out);
                if (now == 4) add_steps_in_place<L, T, 4>(w, num_rows, some, first, head_dim, f, out);
            }
            first += now;
        }
    }
}

}  // namespace longspan
