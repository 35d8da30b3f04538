// Few query rows against keys and values where they lie: a decode step reads each of them once, and packs nothing.
#pragma once

#include <type_traits>

#include "block_rows.h"
#include "product.h"

namespace longspan {

constexpr int kInPlaceRows = 16;  // query rows up to which this beats packing
constexpr int kQuad = 4;          // keys whose scores are summed side by side

// scores of kRows query rows and kWidth keys from `key` on, summed over lanes only when four keys are through: the
// query is loaded once for the four, and each key once for all rows.
template <class L, int kRows, class T>
void score_keys(const uint32_t* queries, int64_t depth, const BlockRows<T>& keys, int64_t key, const Ahead<T>& ahead,
                int64_t lines, float* scores) {
    constexpr int kQuads = L::kWidth / kQuad;
    typename L::Floats parts[kRows][kQuads];
#pragma GCC unroll 16
    for (int quad = 0; quad < kQuads; ++quad) {
        const T* const* row = keys.row + key + quad * kQuad;
        ahead.template ask<kQuad>(key + quad * kQuad, 0, lines);
        typename L::Floats sum[kRows][kQuad];
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
            for (int i = 0; i < kQuad; ++i) sum[r][i] = L::zero();
        }
        for (int64_t j = 0; j < depth / L::kWidth; ++j) {
            typename L::Operand query[kRows];
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) query[r] = L::load_operand(queries + r * depth + j * L::kWidth);
#pragma GCC unroll 16
            for (int i = 0; i < kQuad; ++i) {
                const typename L::Operand lanes = L::row_lanes(row[i], j);
#pragma GCC unroll 16
                for (int r = 0; r < kRows; ++r) sum[r][i] = L::multiply_add(sum[r][i], query[r], lanes);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) parts[r][quad] = L::quad_sums(sum[r]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) L::store(scores + r * kBlockKeys + key, L::part_sums(parts[r]));
}

// Calls body(std::integral_constant<int, count>, begin) for passes over `rows` rows, kMost at most in each and as even
// as can be.
template <int kMost, class Body>
void in_passes(int64_t rows, const Body& body) {
    const int64_t passes = (rows + kMost - 1) / kMost;
    for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t begin = rows * pass / passes, count = rows * (pass + 1) / passes - begin;
        if (count == 1) body(std::integral_constant<int, 1>{}, begin);
        if (count == 2) body(std::integral_constant<int, 2>{}, begin);
        if constexpr (kMost >= 3) {
            if (count == 3) body(std::integral_constant<int, 3>{}, begin);
        }
        if constexpr (kMost >= 4) {
            if (count == 4) body(std::integral_constant<int, 4>{}, begin);
        }
        static_assert(2 <= kMost && kMost <= 4);
    }
}

// scores [num_rows, kBlockKeys] = queries (lanes) x rows of K.
template <class L, class T>
void score_in_place(const uint32_t* queries, int64_t num_rows, const BlockRows<T>& keys, const Ahead<T>& ahead,
                    int64_t head_dim, float* scores) {
    const int64_t depth = head_dim / L::kPair;
    for (int64_t key = 0; key < keys.count; key += L::kWidth) {
        in_passes<L::kQuadRows>(num_rows, [&](auto rows, int64_t begin) {
            const int64_t lines = begin ? 0 : lines_of_a_row<T>(head_dim);  // asked for in the first pass
            score_keys<L, rows.value>(queries + begin * depth, depth, keys, key, ahead, lines,
                                      scores + begin * kBlockKeys);
        });
    }
}

// Some lines of each row ahead, with which columns it has nothing to do.
struct Lines {
    int64_t first, last;
};

// Columns of kSteps * 2 vectors, beginning with step `first`.
template <class L, int kRows, int kSteps, class T>
void add_columns(const uint32_t* weights, const BlockRows<T>& values, const Ahead<T>& ahead, Lines lines,
                 int64_t first, int64_t head_dim, const float* factor, float* out) {
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
        const T *a = values.row[key], *b = values.row[key + L::kPair - 1];
        ahead.template ask<L::kPair>(key, lines.first, lines.last);
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

// out [num_rows, head_dim] = factor * out + weights x rows of V. As many rows at once as can be, since each pass over
// rows pairs up the values anew; then as many columns as registers are left for.
template <class L, class T>
void add_in_place(const uint32_t* weights, int64_t num_rows, const BlockRows<T>& values, const Ahead<T>& ahead,
                  int64_t head_dim, const float* factor, float* out) {
    const int64_t steps = head_dim / (2 * L::kWidth), lines = lines_of_a_row<T>(head_dim);
    in_passes<4>(num_rows, [&](auto rows, int64_t begin) {
        constexpr int kRows = rows.value;
        constexpr int kSteps = std::min(4, kTileRows * L::kTileVectors / (2 * kRows));
        const auto add = [&](auto now, int64_t first) {
            const Lines some = begin ? Lines{0, 0} : Lines{lines * first / steps, lines * (first + now.value) / steps};
            add_columns<L, kRows, now.value>(weights + begin * (kBlockKeys / L::kPair), values, ahead, some, first,
                                             head_dim, factor + begin, out + begin * head_dim);
        };
        if constexpr (kSteps == 1) {
            for (int64_t first = 0; first < steps; ++first) add(std::integral_constant<int, 1>{}, first);
        } else {
            in_passes<kSteps>(steps, add);
        }
    });
}

}  // namespace longspan
