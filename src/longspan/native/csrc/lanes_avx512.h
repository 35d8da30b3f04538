// AVX-512 in fp32: an operand's lane is one number.
#pragma once

#include <immintrin.h>

#include "types.h"

namespace longspan {

// What both AVX-512 variants do with fp32 vectors.
struct Avx512Floats {
    static constexpr int kWidth = 16;      // fp32 lanes in a vector
    static constexpr int kTileVectors = 4;  // a tile is 6 rows x 4 vectors: 24 of the 32 registers accumulate
    static constexpr int kQuadRows = 4;     // 4 rows x 4 keys, likewise
    using Floats = __m512;

    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats all(float x) { return _mm512_set1_ps(x); }
    static Floats load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
    static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
    static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
    static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
    static Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats mul_sub(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
    static float largest(Floats x) { return _mm512_reduce_max_ps(x); }
    static float sum(Floats x) { return _mm512_reduce_add_ps(x); }
    static float first(Floats x) { return _mm512_cvtss_f32(x); }

    // 2^floor(x) and x - floor(x); 0 for -inf.
    static Floats fraction(Floats x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); }
    static Floats times_exp2_floor(Floats a, Floats x) { return _mm512_scalef_ps(a, x); }

    static Floats load_as_floats(const float* p) { return load(p); }
    static Floats load_as_floats(const BFloat16* p) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static void store_floats(float* p, Floats x) { store(p, x); }
    static void store_floats(BFloat16* p, Floats x) {
        // Round to nearest even by hand: plain AVX-512 has no conversion. NaN stays NaN.
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }

    // See Quants in quantized_linear.h: the numbers of input kInput of a step, for all four vectors of the panel.
    template <int kBits, int kInput>
    static void unpack(const uint32_t* words, Floats* numbers) {
        if constexpr (kBits == 4) {
            const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            const __m512i x = _mm512_srli_epi32(_mm512_loadu_si512(words), 16 * kInput);
            numbers[0] = _mm512_permutexvar_ps(x, table);  // an index is four bits; those above do not count
            numbers[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(x, 4), table);
            numbers[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(x, 8), table);
            numbers[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(x, 12), table);
        } else {
#pragma GCC unroll 16
            for (int word = 0; word < 2; ++word) {
                const __m512i x = _mm512_slli_epi32(_mm512_loadu_si512(words + 16 * word), 16 - 16 * kInput);
                numbers[2 * word] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x, 8), 24));
                numbers[2 * word + 1] = _mm512_cvtepi32_ps(_mm512_srai_epi32(x, 24));
            }
        }
    }
    static Floats load_halves(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }

    // Lane 4 p + i of the result is the sum of part p (128 bits) of x[i], for four x.
    static Floats quad_sums(const Floats* x) {
        const Floats a = add(_mm512_mask_blend_ps(0xcccc, x[0], x[2]), _mm512_shuffle_ps(x[0], x[2], 0x4e));
        const Floats b = add(_mm512_mask_blend_ps(0xcccc, x[1], x[3]), _mm512_shuffle_ps(x[1], x[3], 0x4e));
        return add(_mm512_mask_moveldup_ps(a, 0xaaaa, b), _mm512_mask_movehdup_ps(b, 0x5555, a));
    }
    // Lane 4 i + j of the result is the sum of the lanes j of all parts of x[i].
    static Floats part_sums(const Floats* x) {
        const Floats a = add(_mm512_mask_blend_ps(0xff00, x[0], x[1]), _mm512_shuffle_f32x4(x[0], x[1], 0x4e));
        const Floats b = add(_mm512_mask_blend_ps(0xff00, x[2], x[3]), _mm512_shuffle_f32x4(x[2], x[3], 0x4e));
        return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }

    // x[i] lane j becomes x[j] lane i.
    static void transpose(__m512i* x) {
        __m512i y[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 16
            for (int j = 0; j < 2; ++j) {
                x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
                x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
            }
        }
        // x[4a + b], 128-bit quarter c: column 4c + b of rows 4a .. 4a + 3.
#pragma GCC unroll 16
        for (int b = 0; b < 4; ++b) {
            const __m512i low01 = _mm512_shuffle_i32x4(x[b], x[4 + b], 0x88);
            const __m512i high01 = _mm512_shuffle_i32x4(x[b], x[4 + b], 0xdd);
            const __m512i low23 = _mm512_shuffle_i32x4(x[8 + b], x[12 + b], 0x88);
            const __m512i high23 = _mm512_shuffle_i32x4(x[8 + b], x[12 + b], 0xdd);
            y[b] = _mm512_shuffle_i32x4(low01, low23, 0x88);
            y[8 + b] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
            y[4 + b] = _mm512_shuffle_i32x4(high01, high23, 0x88);
            y[12 + b] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = y[i];
    }
};

struct Avx512 : Avx512Floats {
    static constexpr int kPair = 1;       // numbers in a lane of an operand
    static constexpr int kExpDegree = 5;  // relative error 2e-7
    using Operand = __m512;

    static Operand load_operand(const uint32_t* p) { return _mm512_loadu_ps(p); }
    static void store_operand(uint32_t* p, Operand x) { _mm512_storeu_ps(p, x); }
    static Operand broadcast(const uint32_t* p) { return _mm512_set1_ps(*reinterpret_cast<const float*>(p)); }
    static Floats multiply_add(Floats sum, Operand a, Operand b) { return _mm512_fmadd_ps(a, b, sum); }

    // Lanes [16 j, 16 j + 16) of a row.
    template <class T>
    static Operand row_lanes(const T* row, int64_t j) {
        return load_as_floats(row + 16 * j);
    }
    // Columns [32 j, 32 j + 32) of row a; b is only for variants whose lanes hold pairs.
    template <class T>
    static void column_lanes(const T* a, const T*, int64_t j, Operand& low, Operand& high) {
        low = load_as_floats(a + 32 * j);
        high = load_as_floats(a + 32 * j + 16);
    }
    // Weights of keys [16 j, 16 j + 16).
    static void store_weights(uint32_t* p, int64_t j, Floats x) { _mm512_storeu_ps(p + 16 * j, x); }

    template <int kBits, int kRows>
    static constexpr int kOperands = 2;
    template <int kBits, int kCount, int kPart>
    static void unpack_operands(const uint32_t* words, Operand* operands) {
        unpack<kBits, kPart>(words, operands);
    }

    static void transpose(Operand* x) {
        __m512i y[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) y[i] = _mm512_castps_si512(x[i]);
        Avx512Floats::transpose(y);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = _mm512_castsi512_ps(y[i]);
    }
};

}  // namespace longspan
