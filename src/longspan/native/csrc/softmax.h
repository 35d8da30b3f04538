// The online softmax of one query row (FlashAttention): the largest score so far, and the sum of the weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace longspan {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// 2^x for x <= 126, by a polynomial on the fraction of x; minimax in relative error. 2^-inf is 0.
template <class L, int kDegree = L::kExpDegree>
typename L::Floats exp2(typename L::Floats x) {
    constexpr float k3[] = {0.9999252204669377f, 0.6958335288684241f, 0.22606716778370542f, 0.07802452306699523f};
    constexpr float k5[] = {0.9999999250665427f, 0.6931530731468769f,  0.24015361728412732f,
                            0.055826317671219344f, 0.008989340283246956f, 0.001877576680333575f};
    const float* c = kDegree == 3 ? k3 : k5;
    const auto fraction = L::fraction(x);
    auto sum = L::all(c[kDegree]);
#pragma GCC unroll 5
    for (int i = kDegree - 1; i >= 0; --i) sum = L::mul_add(sum, fraction, L::all(c[i]));
    return L::times_exp2_floor(sum, x);
}

// Scores are multiplied by log2(e) on the way, so that everything is in powers of two.
struct SoftmaxRow {
    float largest = kMinusInfinity;
    float sum = 0.0f;

    float lse() const { return sum > 0.0f ? (largest + std::log2(sum)) * kLn2 : kMinusInfinity; }
};

// Turns `visible` scores into weights (0 for those up to `padded`, a multiple of the width), and returns by what
// earlier results must be multiplied.
template <class L>
float soften(SoftmaxRow& row, float* scores, int64_t visible, int64_t padded, float scale_log2, uint32_t* weights) {
    for (int64_t i = visible; i < padded; ++i) scores[i] = kMinusInfinity;
    auto largest = L::load(scores);
    for (int64_t i = L::kWidth; i < padded; i += L::kWidth) largest = L::max(largest, L::load(scores + i));
    const float before = row.largest;
    row.largest = std::fmax(before, L::largest(largest) * scale_log2);
    // A row that sees no key yet: weights 2^-inf = 0, never -inf - -inf.
    const float shift = row.largest == kMinusInfinity ? 0.0f : row.largest;

    const auto scale = L::all(scale_log2), minus = L::all(shift);
    auto sum = L::zero();
    for (int64_t i = 0; i < padded / L::kWidth; ++i) {
        const auto weight = exp2<L>(L::mul_sub(L::load(scores + i * L::kWidth), scale, minus));
        sum = L::add(sum, weight);
        L::store_weights(weights, i, weight);
    }
    const float factor = before == shift ? 1.0f : L::first(exp2<L>(L::all(before - shift)));
    row.sum = row.sum * factor + L::sum(sum);
    return factor;
}

}  // namespace longspan
