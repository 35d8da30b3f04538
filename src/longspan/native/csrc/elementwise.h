// What lies between the matrix products of a layer, each in one pass over its input. Every function rounds where its
// plain twin in layers/ rounds, so that both give the same numbers but for the order of sums.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "softmax.h"
#include "types.h"

namespace longspan {

constexpr int64_t kRowsElementsPerThread = 1 << 17;  // less than this is done before another thread has begun

// body(first, last) over rows, on as many threads as the elements are worth.
template <class Body>
void over_rows(int64_t rows, int64_t elements_in_a_row, int threads, const Body& body) {
    const int64_t most = std::min<int64_t>(threads, 1 + rows * elements_in_a_row / kRowsElementsPerThread);
    const int64_t parts = std::max<int64_t>(1, std::min(most, rows));
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
            body(rows * part / parts, rows * (part + 1) / parts);
        }
    };
    in_parallel(static_cast<int>(parts), work);
}

// What is left of x once it was stored as a T.
template <class L, class T>
typename L::Floats rounded(typename L::Floats x) {
    T stored[L::kWidth];
    L::store_floats(stored, x);
    return L::load_as_floats(stored);
}

// T tokens of h heads (1 where there are none) of D elements. X is the type of the residual stream, fp32 or T itself.
template <class X, class T>
struct Norm {
    const X* x;  // strides in elements
    int64_t x_row, x_head;
    const T* delta;  // null, or [T, h D]: x + delta is normalised, and written to `sum`
    X* sum;
    const T* weight;
    int64_t weight_head;  // 0: one weight for all heads
    T* out;               // [T, h, D]
    int64_t tokens, heads, dim;
    float eps;
};

template <class L, class X, class T>
void rms_norm(const Norm<X, T>& n, int threads) {
    over_rows(n.tokens, n.heads * n.dim, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * n.heads; i < end * n.heads; ++i) {
            const X* x = n.x + i / n.heads * n.x_row + i % n.heads * n.x_head;
            if (n.delta) {
                for (int64_t d = 0; d < n.dim; d += L::kWidth) {
                    const auto sum = L::add(L::load_as_floats(x + d), L::load_as_floats(n.delta + i * n.dim + d));
                    L::store_floats(n.sum + i * n.dim + d, sum);
                }
                x = n.sum + i * n.dim;
            }
            auto squares = L::zero();
            for (int64_t d = 0; d < n.dim; d += L::kWidth) {
                const auto part = L::load_as_floats(x + d);
                squares = L::mul_add(part, part, squares);
            }
            const auto factor = L::all(1.0f / std::sqrt(L::sum(squares) / static_cast<float>(n.dim) + n.eps));
            const T* weight = n.weight + i % n.heads * n.weight_head;
            for (int64_t d = 0; d < n.dim; d += L::kWidth) {
                const auto normed = L::mul(L::load_as_floats(x + d), factor);
                L::store_floats(n.out + i * n.dim + d, L::mul(normed, L::load_as_floats(weight + d)));
            }
        }
    });
}

// Dimension i turns together with i + dim / 2, by the angle whose cos and sin are [T, dim / 2].
template <class L, class T>
void rotate(const T* x, int64_t x_row, int64_t x_head, const float* cosines, const float* sines, T* out, int64_t tokens,
            int64_t heads, int64_t dim, int threads) {
    const int64_t half = dim / 2;
    over_rows(tokens, heads * dim, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * heads; i < end * heads; ++i) {
            const T* from = x + i / heads * x_row + i % heads * x_head;
            T* to = out + i * dim;
            for (int64_t d = 0; d < half; d += L::kWidth) {
                const auto cosine = L::load(cosines + i / heads * half + d);
                const auto sine = L::load(sines + i / heads * half + d);
                const auto first = L::load_as_floats(from + d), second = L::load_as_floats(from + half + d);
                L::store_floats(to + d, L::mul_sub(first, cosine, L::mul(second, sine)));
                L::store_floats(to + half + d, L::mul_add(second, cosine, L::mul(first, sine)));
            }
        }
    });
}

// out [T, width] = silu(gate) * up of rows [gate | up].
template <class L, class T>
void silu_and_mul(const T* gate_up, int64_t row, T* out, int64_t tokens, int64_t width, int threads) {
    const auto one = L::all(1.0f), minus_log2e = L::all(-kLog2E), most = L::all(126.0f), none = L::zero();
    over_rows(tokens, 4 * width, threads, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const T* gates = gate_up + t * row;
            for (int64_t d = 0; d < width; d += L::kWidth) {
                const auto gate = L::load_as_floats(gates + d);
                // e^-gate, up to 2^126: beyond it the result is 0 in any case.
                const auto power = L::sub(none, L::max(L::sub(none, L::mul(gate, minus_log2e)), L::sub(none, most)));
                const auto silu = rounded<L, T>(L::div(gate, L::add(one, exp2<L, 5>(power))));
                L::store_floats(out + t * width + d, L::mul(silu, L::load_as_floats(gates + width + d)));
            }
        }
    });
}

// Row t of x (all of its heads) goes to slot slots[t] of the pool's [G, N, dim].
template <class T>
void write_slots(const T* x, int64_t x_row, int64_t x_head, const int64_t* slots, T* pool, int64_t pool_head,
                 int64_t pool_slot, int64_t tokens, int64_t heads, int64_t dim) {
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t g = 0; g < heads; ++g) {
            std::memcpy(pool + g * pool_head + slots[t] * pool_slot, x + t * x_row + g * x_head,
                        static_cast<size_t>(dim) * sizeof(T));
        }
    }
}

}  // namespace longspan
