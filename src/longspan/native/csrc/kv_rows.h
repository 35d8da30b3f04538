// Rows of K or V of one head, wherever they lie, and their packing for the inner kernel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "types.h"

namespace longspan {

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kBlockKeys = 512;  // at most so many keys are packed at a time
alignas(64) constexpr float kZeroRow[kMaxHeadDim] = {};

// Keys of a block: more of them amortise the rescaling of results; packed K and V must stay in the L2 cache.
inline int64_t block_keys(int64_t head_dim) { return head_dim <= 64 ? kBlockKeys : kBlockKeys / 2; }

// Row i is at `slots[i]`; those past `count` are zero.
template <class T>
struct KVRows {
    const T* base;
    int64_t stride;
    const int64_t* slots;  // null: row i is at i
    int64_t count;

    const T* operator[](int64_t i) const {
        if (i >= count) return reinterpret_cast<const T*>(kZeroRow);
        return base + (slots ? slots[i] : i) * stride;
    }
    KVRows from(int64_t i, int64_t n) const {
        return slots ? KVRows{base, stride, slots + i, n} : KVRows{base + i * stride, stride, nullptr, n};
    }
};

// Panels of kTileVectors * kWidth keys, each [head_dim / kPair, keys]: a query lane meets many keys at once.
template <class L, class T>
void pack_keys(const KVRows<T>& rows, int64_t head_dim, uint32_t* packed) {
    constexpr int64_t kPanel = L::kTileVectors * L::kWidth;
    const int64_t depth = head_dim / L::kPair;
    for (int64_t key = 0; key < rows.count; key += L::kWidth) {
        const T* row[L::kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < L::kWidth; ++i) row[i] = rows[key + i];
        uint32_t* column = packed + key / kPanel * kPanel * depth + key % kPanel;
        for (int64_t j = 0; j < depth / L::kWidth; ++j) {
            typename L::Operand lanes[L::kWidth];
#pragma GCC unroll 16
            for (int i = 0; i < L::kWidth; ++i) lanes[i] = L::row_lanes(row[i], j);
            L::transpose(lanes);
#pragma GCC unroll 16
            for (int i = 0; i < L::kWidth; ++i) L::store_operand(column + (j * L::kWidth + i) * kPanel, lanes[i]);
        }
    }
}

// [keys / kPair, head_dim], with zeros up to a whole vector of keys.
template <class L, class T>
void pack_values(const KVRows<T>& rows, int64_t head_dim, uint32_t* packed) {
    const int64_t padded = (rows.count + L::kWidth - 1) / L::kWidth * L::kWidth;
    for (int64_t key = 0; key < padded; key += L::kPair, packed += head_dim) {
        const T *a = rows[key], *b = rows[key + L::kPair - 1];
        for (int64_t j = 0; j < head_dim / (2 * L::kWidth); ++j) {
            typename L::Operand low, high;
            L::column_lanes(a, b, j, low, high);
            L::store_operand(packed + 2 * j * L::kWidth, low);
            L::store_operand(packed + (2 * j + 1) * L::kWidth, high);
        }
    }
}

}  // namespace longspan
