// Merge of partial attention results; the twin is `merge` in attention/partial.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "elementwise.h"

namespace longspan {

// A result over some of the keys of T rows takes in a part over other keys of `count` of them: rows[i], or first + i
// where rows is null. out: [T, H, K] and [count, H, K], lse: [T, H] and [count, H].
struct Merge {
    float *out, *lse;
    const float *part_out, *part_lse;
    const int64_t* rows;
    int64_t first, count, heads, dim;
};

inline void merge_rows(const Merge& m, int threads) {
    over_rows(m.count, m.heads * m.dim, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * m.heads; i < end * m.heads; ++i) {
            const int64_t row = m.rows ? m.rows[i / m.heads] : m.first + i / m.heads, at = row * m.heads + i % m.heads;
            const float a = m.lse[at], b = m.part_lse[i], largest = a > b ? a : b;
            if (b == -INFINITY) continue;  // it has seen no keys
            const float wa = std::exp(a - largest), wb = std::exp(b - largest), sum = wa + wb;
            m.lse[at] = largest + std::log(sum);
            const float fa = wa / sum, fb = wb / sum;
            float* x = m.out + at * m.dim;
            const float* y = m.part_out + i * m.dim;
            for (int64_t d = 0; d < m.dim; ++d) x[d] = x[d] * fa + y[d] * fb;
        }
    });
}

}  // namespace longspan
