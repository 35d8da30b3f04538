// AVX2 with FMA, in fp32: an operand's lane is one number.
#pragma once

#include <immintrin.h>

#include "types.h"

namespace longspan {

struct Avx2 {
    static constexpr int kWidth = 8;
    static constexpr int kTileVectors = 2;  // 6 rows x 2 vectors: 12 of the 16 registers accumulate
    static constexpr int kQuadRows = 2;     // 2 rows x 4 keys, likewise
    static constexpr int kPair = 1;
    static constexpr int kExpDegree = 5;
    using Floats = __m256;
    using Operand = __m256;

    static Floats zero() { return _mm256_setzero_ps(); }
    static Floats all(float x) { return _mm256_set1_ps(x); }
    static Floats load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
    static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
    static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
    static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
    static Floats mul_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static Floats mul_sub(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }
    static float largest(Floats x) {
        __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_max_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
    }
    static float sum(Floats x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }
    static float first(Floats x) { return _mm256_cvtss_f32(x); }

    static Floats fraction(Floats x) {
        const Floats clamped = _mm256_max_ps(x, all(kLeastExponent));
        return _mm256_sub_ps(clamped, _mm256_floor_ps(clamped));
    }
    // a 2^floor(x); below the normal numbers 0, as AVX-512's scalef nearly does.
    static Floats times_exp2_floor(Floats a, Floats x) {
        const __m256i power = _mm256_cvtps_epi32(_mm256_floor_ps(_mm256_max_ps(x, all(kLeastExponent))));
        const __m256i biased = _mm256_add_epi32(power, _mm256_set1_epi32(127));
        const Floats factor = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
        return _mm256_and_ps(mul(a, factor), _mm256_cmp_ps(x, all(kLeastExponent), _CMP_GE_OQ));
    }

    static Floats load_as_floats(const float* p) { return load(p); }
    static Floats load_as_floats(const BFloat16* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static void store_floats(float* p, Floats x) { store(p, x); }
    static void store_floats(BFloat16* p, Floats x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }

    static Floats quad_sums(const Floats* x) {
        return _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    }
    static Floats part_sums(const Floats* x) {
        return add(_mm256_permute2f128_ps(x[0], x[1], 0x20), _mm256_permute2f128_ps(x[0], x[1], 0x31));
    }

    static Operand load_operand(const uint32_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
    static void store_operand(uint32_t* p, Operand x) { _mm256_storeu_ps(reinterpret_cast<float*>(p), x); }
    static Operand broadcast(const uint32_t* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
    static Floats multiply_add(Floats sum, Operand a, Operand b) { return _mm256_fmadd_ps(a, b, sum); }

    template <class T>
    static Operand row_lanes(const T* row, int64_t j) {
        return load_as_floats(row + 8 * j);
    }
    template <class T>
    static void column_lanes(const T* a, const T*, int64_t j, Operand& low, Operand& high) {
        low = load_as_floats(a + 16 * j);
        high = load_as_floats(a + 16 * j + 8);
    }
    static void store_weights(uint32_t* p, int64_t j, Floats x) { store(reinterpret_cast<float*>(p) + 8 * j, x); }

    static void transpose(Operand* x) {
        __m256 y[8];
#pragma GCC unroll 16
        for (int i = 0; i < 8; i += 2) {
            y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
            y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 8; i += 4) {
            x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
            x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
            x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
            x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 4; ++i) {
            y[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
            y[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 8; ++i) x[i] = y[i];
    }

    // See Quants in quantized_linear.h: the numbers of input kInput of a step, for both vectors of the panel.
    template <int kBits, int kInput>
    static void unpack(const uint32_t* words, Floats* numbers) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
#pragma GCC unroll 16
        for (int v = 0; v < 2; ++v) {
            constexpr int kSpare = 32 - kBits;
            const int above = kSpare - kBits * (2 * kInput + v);
            const __m256i top = _mm256_slli_epi32(x, above);
            const __m256i quant = kBits == 4 ? _mm256_srli_epi32(top, kSpare) : _mm256_srai_epi32(top, kSpare);
            numbers[v] = _mm256_cvtepi32_ps(quant);
        }
    }
    template <int kBits, int kRows>
    static constexpr int kOperands = 16 / kBits;
    template <int kBits, int kCount, int kPart>
    static void unpack_operands(const uint32_t* words, Operand* operands) {
        unpack<kBits, kPart>(words, operands);
    }
    static Floats load_halves(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }

private:
    static constexpr float kLeastExponent = -126.0f;
};

}  // namespace longspan
