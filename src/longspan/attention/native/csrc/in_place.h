// Few query rows against keys and values where they lie: a decode step reads each of them once, and packs nothing.
#pragma once

#include "kv_rows.h"

namespace longspan {

constexpr int kInPlaceRows = 4;  // query rows up to which this beats packing

// Keys of a block: their values are called up while scores are computed, and must stay in the L1 cache.
inline int64_t in_place_keys(int64_t head_dim) { return IPK / head_dim; }

// scores [kRows, kBlockKeys] = queries (lanes) x rows of K. `follow`: rows of K from this block on.
template <class L, class T>
void score_in_place(const uint32_t* queries, int64_t num_rows, const KVRows<T>& keys, const KVRows<T>& values,
                    int64_t follow, int64_t head_dim, float* scores) {
    const int64_t bytes = head_dim * static_cast<int64_t>(sizeof(T));
    const int64_t depth = head_dim / L::kPair, vectors = depth / L::kWidth;
    for (int64_t key = 0; key < keys.count; key += L::kWidth) {
        const T* row[L::kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < L::kWidth; ++i) {
            row[i] = keys[key + i];
            PV
            PK
        }
        for (int64_t r = 0; r < num_rows; ++r) {
            typename L::Floats sum[L::kWidth];
#pragma GCC unroll 16
            for (int i = 0; i < L::kWidth; ++i) sum[i] = L::zero();
            for (int64_t j = 0; j < vectors; ++j) {
                const typename L::Operand query = L::load_operand(queries + r * depth + j * L::kWidth);
#pragma GCC unroll 16
                for (int i = 0; i < L::kWidth; ++i) sum[i] = L::multiply_add(sum[i], query, L::row_lanes(row[i], j));
            }
            L::store(scores + r * kBlockKeys + key, L::sums(sum));
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

template <class L, class T, int kRows>
void add_rows_in_place(const uint32_t* weights, const KVRows<T>& values, int64_t head_dim, const float* factor,
                       float* out) {
    constexpr int kSteps = L::kTileVectors / 2;
    const int64_t steps = head_dim / (2 * L::kWidth);
    int64_t step = 0;
    for (; step + kSteps <= steps; step += kSteps) {
        add_columns_in_place<L, T, kRows, kSteps>(weights, values, step, head_dim, factor, out);
    }
    for (; step < steps; ++step) {
        add_columns_in_place<L, T, kRows, 1>(weights, values, step, head_dim, factor, out);
    }
}

// out [rows, head_dim] = factor * out + weights x rows of V.
template <class L, class T>
void add_in_place(const uint32_t* weights, int64_t num_rows, const KVRows<T>& values, int64_t head_dim,
                  const float* factor, float* out) {
    static_assert(kInPlaceRows == 4);
    switch (num_rows) {
        case 4: return add_rows_in_place<L, T, 4>(weights, values, head_dim, factor, out);
        case 3: return add_rows_in_place<L, T, 3>(weights, values, head_dim, factor, out);
        case 2: return add_rows_in_place<L, T, 2>(weights, values, head_dim, factor, out);
        default: return add_rows_in_place<L, T, 1>(weights, values, head_dim, factor, out);
    }
}

}  // namespace longspan
