// The inner kernel of both halves of attention: a small matrix product whose result stays in registers.
#pragma once

#include <cstdint>

namespace longspan {

constexpr int kTileRows = 6;

struct ProductArguments {
    const uint32_t* a;  // lanes [rows, depth], read one by one and broadcast
    int64_t a_row;
    const uint32_t* b;  // lanes [depth, vectors * kWidth]
    int64_t b_row;
    int64_t depth;
    float* c;  // fp32 [rows, vectors * kWidth]
    int64_t c_row;
    const float* factor;  // c = factor[row] * c + a b; null: c = a b
};

// A lane is a pair of bf16 numbers or one fp32 number: `multiply_add` is all that knows.
template <class L, int kRows, int kVectors>
void product(const ProductArguments& x) {
    typename L::Floats sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
            sum[r][v] = x.factor ? L::mul(L::load(x.c + r * x.c_row + v * L::kWidth), L::all(x.factor[r])) : L::zero();
        }
    }
    const uint32_t* a = x.a;
    const uint32_t* b = x.b;
    const int64_t a_row = x.a_row, b_row = x.b_row;
    for (int64_t i = 0; i < x.depth; ++i, ++a, b += b_row) {
        typename L::Operand columns[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) columns[v] = L::load_operand(b + v * L::kWidth);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
            const typename L::Operand row = L::broadcast(a + r * a_row);
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sum[r][v] = L::multiply_add(sum[r][v], row, columns[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) L::store(x.c + r * x.c_row + v * L::kWidth, sum[r][v]);
    }
}

template <class L, int kRows>
void product_of_vectors(int64_t vectors, const ProductArguments& x) {
    static_assert(L::kTileVectors <= 4);
    if constexpr (L::kTileVectors == 4) {
        if (vectors == 4) return product<L, kRows, 4>(x);
        if (vectors == 3) return product<L, kRows, 3>(x);
    }
    if (vectors == 2) return product<L, kRows, 2>(x);
    return product<L, kRows, 1>(x);
}

// rows: 1 .. kTileRows; vectors: 1 .. L::kTileVectors.
template <class L>
void product(int64_t rows, int64_t vectors, const ProductArguments& x) {
    static_assert(kTileRows == 6);
    switch (rows) {
        case 6: return product_of_vectors<L, 6>(vectors, x);
        case 5: return product_of_vectors<L, 5>(vectors, x);
        case 4: return product_of_vectors<L, 4>(vectors, x);
        case 3: return product_of_vectors<L, 3>(vectors, x);
        case 2: return product_of_vectors<L, 2>(vectors, x);
        default: return product_of_vectors<L, 1>(vectors, x);
    }
}

}  // namespace longspan
