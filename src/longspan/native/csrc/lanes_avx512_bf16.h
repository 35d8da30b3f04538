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

    // See Quants in quantized_linear.h. Both inputs of a step are the pair of a lane. A table holds sixteen numbers in
    // bf16, twice: the index is five bits, of which the upper one is the next quant's. Of eight bits the lower four
    // and the upper four, times sixteen and with the sign, are operands of their own, to be multiplied and summed
    // alike; for several rows it pays to convert them into one.
    template <int kBits, int kRows>
    static constexpr int kOperands = kBits == 8 && kRows <= 2 ? 2 : 1;
    template <int kBits, int kCount, int kPart>
    static void unpack_operands(const uint32_t* words, Operand* operands) {
        const __m512i table = _mm512_load_si512(kPart == 0 ? kLowerFourBits : kUpperFourBits);
        if constexpr (kBits == 4) {
            const __m512i x = _mm512_loadu_si512(words);
            operands[0] = _mm512_permutexvar_epi16(x, table);
            operands[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 4), table);
            operands[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 8), table);
            operands[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 12), table);
        } else if constexpr (kCount == 2) {
#pragma GCC unroll 16
            for (int word = 0; word < 2; ++word) {
                const __m512i x = _mm512_srli_epi16(_mm512_loadu_si512(words + 16 * word), 4 * kPart);
                operands[2 * word] = _mm512_permutexvar_epi16(x, table);
                operands[2 * word + 1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 8), table);
            }
        } else {
            Floats even[4], odd[4];
            unpack<8, 0>(words, even);
            unpack<8, 1>(words, odd);
#pragma GCC unroll 16
            for (int v = 0; v < 4; ++v) operands[v] = pairs(even[v], odd[v]);
        }
    }
    // Lane i: even[i] and odd[i], rounded.
    static Operand pairs(Floats even, Floats odd) {
        const __m512i apart = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
        return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleaved), apart);
    }

private:
    alignas(64) static constexpr uint16_t kPairs[64] = {
        0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
        16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
        24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    alignas(64) static constexpr uint16_t kInterleaved[32] = {
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    // 0 .. 15
    alignas(64) static constexpr uint16_t kLowerFourBits[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
    // 0, 16 .. 112, -128, -112 .. -16
    alignas(64) static constexpr uint16_t kUpperFourBits[32] = {
        0x0000, 0x4180, 0x4200, 0x4240, 0x4280, 0x42a0, 0x42c0, 0x42e0,
        0xc300, 0xc2e0, 0xc2c0, 0xc2a0, 0xc280, 0xc240, 0xc200, 0xc180,
        0x0000, 0x4180, 0x4200, 0x4240, 0x4280, 0x42a0, 0x42c0, 0x42e0,
        0xc300, 0xc2e0, 0xc2c0, 0xc2a0, 0xc280, 0xc240, 0xc200, 0xc180};
};

}  // namespace longspan
