// The rows of a small block where they lie, and asking for those of later blocks while this one is worked on.
#pragma once

#include "kv_rows.h"

namespace longspan {

// Keys of a block: fewer cost more in softmax, more come in bursts that disturb the processor's own fetching.
constexpr int64_t kInPlaceKeys = 48;
constexpr int64_t kLineBytes = 64;

// Pointers to rows, found once: each is used by one pass over the block and by two requests before that.
template <class T>
struct BlockRows {
    const T* row[kInPlaceKeys];  // those past `count` are zero
    int64_t count;

    // Keys [key, key + kInPlaceKeys) of those before `end`; there may be none.
    void find(const KVRows<T>& rows, int64_t key, int64_t end) {
        count = std::max<int64_t>(0, std::min(kInPlaceKeys, end - key));
        const KVRows<T> mine = rows.from(std::min(key, end), count);
        for (int64_t i = 0; i < kInPlaceKeys; ++i) row[i] = mine[i];
    }
};

// What to ask for meanwhile, row by row with the rows at hand. Into the L2 cache: a request to L1 holds one of its few
// miss buffers until the row comes. Requests beyond what L2 can have under way are dropped, so that each row is asked
// for twice: `far` two places ahead in the order of use, and `near` at the next place. A plain read of rows at random
// slots on a Zen 4: 9 GB/s without requests, 14 with one for each row, 27 with two.
template <class T>
struct Ahead {
    const BlockRows<T>& far;
    const BlockRows<T>& near;

    // Lines [first, last) of rows [i, i + kRows). Inlined by force: GCC 12 takes a function of nothing but prefetches
    // for one without effect, and drops its calls.
    template <int kRows>
    __attribute__((always_inline)) void ask(int64_t i, int64_t first, int64_t last) const {
        for (int64_t line = first; line < last; ++line) {
#pragma GCC unroll 16
            for (int n = 0; n < kRows; ++n) ask_line(far.row[i + n], line);
#pragma GCC unroll 16
            for (int n = 0; n < kRows; ++n) ask_line(near.row[i + n], line);
        }
    }

private:
    __attribute__((always_inline)) static void ask_line(const T* row, int64_t line) {
        __builtin_prefetch(reinterpret_cast<const char*>(row) + line * kLineBytes, 0, 2);
    }
};

template <class T>
int64_t lines_of_a_row(int64_t head_dim) {
    return (head_dim * static_cast<int64_t>(sizeof(T)) + kLineBytes - 1) / kLineBytes;
}

}  // namespace longspan
