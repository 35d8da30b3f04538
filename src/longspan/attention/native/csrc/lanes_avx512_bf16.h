// AVX-512 with bf16 products: an operand's lane is a pair of numbers, and `vdpbf16ps` adds both products in fp32.
#pragma once

#include "lanes_avx512.h"

namespace longspan {

struct Avx512Bf16 : Avx512Floats {
    static constexpr int kPair = 2;
    static constexpr int kExpDegree = 3;  // relative error 1e-4; the weights are rounded to bf16 (4e-3) anyway
    using Operand = __m512i;

    static Operand load_operand(const uint32_t* p) { return _mm512_loadu_si512(p); }
    static void store_operand(uint32_t* p, Operand x) { _mm512_storeu_si512(p, x); }
    static Operand broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
    static Floats multiply_add(Floats sum, Operand a, Operand b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }

    static Operand row_lanes(const BFloat16* row, int64_t j) { return _mm512_loadu_si512(row + 32 * j); }
    // Lane c pairs column c of row a with column c of row b.
    static void column_lanes(const BFloat16* a, const BFloat16* b, int64_t j, Operand& low, Operand& high) {
        const __m512i x = _mm512_loadu_si512(a + 32 * j), y = _mm512_loadu_si512(b + 32 * j);
        low = _mm512_permutex2var_epi16(x, _mm512_load_si512(kPairs), y);
        high = _mm512_permutex2var_epi16(x, _mm512_load_si512(kPairs + 32), y);
    }
    static void store_weights(uint32_t* p, int64_t j, Floats x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8 * j), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
    }
    using Avx512Floats::store_floats;
    static void store_floats(BFloat16* p, Floats x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
    }
    static void transpose(Operand* x) { Avx512Floats::transpose(x); }

private:
    alignas(64) static constexpr uint16_t kPairs[64] = {
        0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
        16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
        24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
};

}  // namespace longspan
