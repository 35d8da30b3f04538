// y = x W^T + b with the weight kept in groups of 32 inputs: w = scale * quant, or scale * quant + minimum. What a
// decode step reads is then 5 (q4_1) or 8.5 (q8_0) bits a weight.
//
// Few rows stream the weight: quants are small whole numbers, exact in bf16, so that a group's products are summed as
// they are, and scaled once. For many rows a panel is dequantised once, into the layout of linear.h, for them all.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "linear.h"
#include "parallel.h"
#include "product.h"
#include "scratch.h"

namespace longspan {

constexpr int64_t kGroup = 32;           // inputs that share a scale
constexpr int64_t kPrefetchLanes = 512;  // how far ahead a weight is fetched: hardware alone starts late in each matrix

// Rows that stream the weight; more are worth dequantising a panel.
template <int kBits>
constexpr int64_t kStreamedRows = kBits == 4 ? 36 : 18;
constexpr int64_t kRowsOfPanel = 384;    // rows that a dequantised panel meets
constexpr int64_t kInputsAtOnce = 2048;  // of a dequantised panel, so that it stays in the L2 cache

// A packed weight is [panels, groups, block]; a block is kGroup inputs of a panel of linear.h, in lanes of four bytes:
//   scales   fp16 [kPanel]
//   minima   fp16 [kPanel], if kHasMinima
//   quants   [kGroup / kStepInputs steps, kWords, kWidth]: a lane has kFields quants, of neighbouring vectors at its
//            place: those of input 0 of the step first, then those of input 1, and so on.
template <class L, int kBits>
struct Quants {
    static constexpr int kVectors = L::kTileVectors;
    static constexpr int kFields = 32 / kBits;
    static constexpr int kWords = std::max(1, 2 * kVectors / kFields);
    static constexpr int kStepInputs = kWords * kFields / kVectors;
    static constexpr int kWordVectors = kVectors / kWords;
    static constexpr bool kHasMinima = kBits == 4;

    static constexpr int64_t kMinima = kPanel<L> / 2;
    static constexpr int64_t kQuants = kHasMinima ? kPanel<L> : kPanel<L> / 2;
    static constexpr int64_t kStep = kWords * L::kWidth;
    static constexpr int64_t kBlock = kQuants + kGroup / kStepInputs * kStep;
    static constexpr int64_t kStepLanes = kStepInputs / L::kPair;  // of the activations
    static_assert(kWordVectors * kStepInputs == kFields);
};

template <class L, int kBits>
int64_t quantized_lanes(int64_t outputs, int64_t inputs) {
    return (outputs + kPanel<L> - 1) / kPanel<L> * (inputs / kGroup) * Quants<L, kBits>::kBlock;
}

// quants [outputs, inputs]: 0 .. 15, or -128 .. 127; scales, minima: fp16 [outputs, groups]. `packed` is zero before.
template <class L, int kBits>
void pack_quantized(const uint8_t* quants, const uint16_t* scales, const uint16_t* minima, uint32_t* packed,
                    int64_t outputs, int64_t inputs) {
    using Q = Quants<L, kBits>;
    const int64_t groups = inputs / kGroup;
    for (int64_t o = 0; o < outputs; ++o) {
        const int64_t in_panel = o % kPanel<L>, vector = in_panel / L::kWidth, lane = in_panel % L::kWidth;
        const int64_t place = vector / Q::kWordVectors * L::kWidth + lane, field = vector % Q::kWordVectors;
        uint32_t* block = packed + o / kPanel<L> * groups * Q::kBlock;
        for (int64_t g = 0; g < groups; ++g, block += Q::kBlock) {
            reinterpret_cast<uint16_t*>(block)[in_panel] = scales[o * groups + g];
            if (Q::kHasMinima) reinterpret_cast<uint16_t*>(block + Q::kMinima)[in_panel] = minima[o * groups + g];
            for (int64_t i = 0; i < kGroup; ++i) {
                uint32_t& word = block[Q::kQuants + i / Q::kStepInputs * Q::kStep + place];
                const int64_t shift = kBits * (i % Q::kStepInputs * Q::kWordVectors + field);
                word |= static_cast<uint32_t>(quants[o * inputs + g * kGroup + i]) << shift;
            }
        }
    }
}

// body(std::integral_constant<int, i>) for i of 0 .. kCount - 1.
template <int kCount, class Body>
void for_each_of(const Body& body) {
    if constexpr (kCount > 0) {
        for_each_of<kCount - 1>(body);
        body(std::integral_constant<int, kCount - 1>{});
    }
}

struct QuantizedTile {
    const uint32_t* x;  // lanes [rows, inputs / kPair]
    int64_t x_row;
    const float* x_sums;  // [rows, groups]: of each group's activations; only where there are minima
    const uint32_t* panel;
    int64_t groups;
    float* y;  // [rows, kPanel]
};

// A tile of rows meets a packed panel: y = x W^T. Quants go from memory into registers and no further.
template <class L, int kBits, int kRows>
void quantized_product(const QuantizedTile& tile) {
    using Q = Quants<L, kBits>;
    constexpr int kVectors = Q::kVectors, kParts = L::template kOperands<kBits, kRows>;
    constexpr int kChains = kRows == 1 ? 2 : 1;  // one row alone would wait for its own sums
    const uint32_t* x = tile.x;
    const uint32_t* block = tile.panel;
    for (int64_t g = 0; g < tile.groups; ++g, block += Q::kBlock) {
        typename L::Floats sum[kChains][kRows][kVectors];
        for_each_of<kChains>([&](auto chain) {
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
                for (int v = 0; v < kVectors; ++v) sum[chain()][r][v] = L::zero();
            }
        });
        const uint32_t* words = block + Q::kQuants;
#pragma GCC unroll 1
        for (int step = 0; step < kGroup / Q::kStepInputs; step += kChains) {
            for_each_of<kChains>([&](auto chain) {
                for (int w = 0; w < Q::kWords; ++w) __builtin_prefetch(words + w * L::kWidth + kPrefetchLanes);
                for_each_of<kParts>([&](auto part) {
                    typename L::Operand weights[kVectors];
                    L::template unpack_operands<kBits, kParts, part()>(words, weights);
                    const uint32_t* lane = x + (L::kPair == 1 ? part() : 0);
#pragma GCC unroll 16
                    for (int r = 0; r < kRows; ++r) {
                        const typename L::Operand row = L::broadcast(lane + r * tile.x_row);
#pragma GCC unroll 16
                        for (int v = 0; v < kVectors; ++v) {
                            sum[chain()][r][v] = L::multiply_add(sum[chain()][r][v], row, weights[v]);
                        }
                    }
                });
                words += Q::kStep;
                x += Q::kStepLanes;
            });
        }
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
            const auto* scales = reinterpret_cast<const uint16_t*>(block) + v * L::kWidth;
            const auto scale = L::load_halves(scales);
            const auto minimum = Q::kHasMinima ? L::load_halves(scales + 2 * Q::kMinima) : L::zero();
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
                float* y = tile.y + r * kPanel<L> + v * L::kWidth;
                auto all = g ? L::load(y) : L::zero();
                if (Q::kHasMinima) all = L::mul_add(minimum, L::all(tile.x_sums[r * tile.groups + g]), all);
                auto of_group = sum[0][r][v];
                if (kChains == 2) of_group = L::add(of_group, sum[kChains - 1][r][v]);
                L::store(y, L::mul_add(scale, of_group, all));
            }
        }
    }
}

template <class L, int kBits>
void quantized_product(int64_t rows, const QuantizedTile& tile) {
    static_assert(kTileRows == 6);
    switch (rows) {
        case 6: return quantized_product<L, kBits, 6>(tile);
        case 5: return quantized_product<L, kBits, 5>(tile);
        case 4: return quantized_product<L, kBits, 4>(tile);
        case 3: return quantized_product<L, kBits, 3>(tile);
        case 2: return quantized_product<L, kBits, 2>(tile);
        default: return quantized_product<L, kBits, 1>(tile);
    }
}

// A block in the layout of linear.h: lanes [kGroup / kPair, kPanel].
template <class L, int kBits>
void dequantise(const uint32_t* block, uint32_t* to) {
    using Q = Quants<L, kBits>;
    typename L::Floats scale[Q::kVectors], minimum[Q::kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < Q::kVectors; ++v) {
        const auto* scales = reinterpret_cast<const uint16_t*>(block) + v * L::kWidth;
        scale[v] = L::load_halves(scales);
        minimum[v] = Q::kHasMinima ? L::load_halves(scales + 2 * Q::kMinima) : L::zero();
    }
    const uint32_t* words = block + Q::kQuants;
    for (int step = 0; step < kGroup / Q::kStepInputs; ++step, words += Q::kStep) {
        for_each_of<Q::kStepInputs / L::kPair>([&](auto lane) {
            typename L::Floats numbers[L::kPair][Q::kVectors];
            for_each_of<L::kPair>([&](auto i) {
                L::template unpack<kBits, decltype(lane)::value * L::kPair + i()>(words, numbers[i()]);
#pragma GCC unroll 16
                for (int v = 0; v < Q::kVectors; ++v) {
                    numbers[i()][v] = L::mul_add(numbers[i()][v], scale[v], minimum[v]);
                }
            });
#pragma GCC unroll 16
            for (int v = 0; v < Q::kVectors; ++v) {
                if constexpr (L::kPair == 2) {
                    L::store_operand(to + v * L::kWidth, L::pairs(numbers[0][v], numbers[1][v]));
                } else {
                    L::store_operand(to + v * L::kWidth, numbers[0][v]);
                }
            }
            to += kPanel<L>;
        });
    }
}

// Of each group's activations: sums [rows, groups].
template <class L, class T>
void sum_groups(const Linear<T>& job, float* sums) {
    const int64_t groups = job.inputs / kGroup;
    for (int64_t r = 0; r < job.rows; ++r) {
        const T* x = reinterpret_cast<const T*>(job.x + r * job.x_row);
        for (int64_t g = 0; g < groups; ++g) {
            auto sum = L::zero();
            for (int64_t i = 0; i < kGroup; i += L::kWidth) sum = L::add(sum, L::load_as_floats(x + g * kGroup + i));
            sums[r * groups + g] = L::sum(sum);
        }
    }
}

template <class L, class T, int kBits>
void streamed_linear(const Linear<T>& job, int threads) {
    using Q = Quants<L, kBits>;
    const int64_t groups = job.inputs / kGroup, panels = (job.outputs + kPanel<L> - 1) / kPanel<L>;
    static thread_local Scratch scratch;
    float* x_sums = nullptr;
    if (Q::kHasMinima) {
        x_sums = static_cast<float*>(scratch.reserve(job.rows * groups * static_cast<int64_t>(sizeof(float))));
        sum_groups<L, T>(job, x_sums);
    }
    std::atomic<int64_t> next{0};
    auto work = [&] {
        alignas(64) float sums[kTileRows * kPanel<L>];
        for (int64_t panel; (panel = next.fetch_add(1, std::memory_order_relaxed)) < panels;) {
            for (int64_t row = 0; row < job.rows; row += kTileRows) {
                const int64_t count = std::min<int64_t>(kTileRows, job.rows - row);
                quantized_product<L, kBits>(
                    count, {job.x + row * job.x_row, job.x_row, x_sums + (Q::kHasMinima ? row * groups : 0),
                            job.packed + panel * groups * Q::kBlock, groups, sums});
                for (int64_t r = 0; r < count; ++r) {
                    store_outputs<L, T>(job, sums + r * kPanel<L>, row + r, panel * kPanel<L>);
                }
            }
        }
    };
    in_parallel(static_cast<int>(std::min<int64_t>(threads, panels)), work);
}

template <class L, class T, int kBits>
void dequantised_linear(const Linear<T>& job, int threads) {
    using Q = Quants<L, kBits>;
    const int64_t groups = job.inputs / kGroup, panels = (job.outputs + kPanel<L> - 1) / kPanel<L>;
    const int64_t tasks = (job.rows + kRowsOfPanel - 1) / kRowsOfPanel * panels;
    const int64_t panel_lanes = std::min(job.inputs, kInputsAtOnce) / L::kPair * kPanel<L>;
    const int64_t task_sums = std::min(job.rows, kRowsOfPanel) * kPanel<L>;
    std::atomic<int64_t> next{0};
    auto work = [&] {
        static thread_local Scratch scratch;
        Arena arena(scratch.reserve(Arena::padded<uint32_t>(panel_lanes) + Arena::padded<float>(task_sums)));
        auto* dequantised = arena.take<uint32_t>(panel_lanes);
        auto* sums = arena.take<float>(task_sums);
        const float ones[kTileRows] = {1, 1, 1, 1, 1, 1};
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const int64_t panel = task % panels, begin = task / panels * kRowsOfPanel;
            const int64_t end = std::min(job.rows, begin + kRowsOfPanel);
            for (int64_t input = 0; input < job.inputs; input += kInputsAtOnce) {
                const int64_t inputs = std::min(kInputsAtOnce, job.inputs - input);
                const uint32_t* block = job.packed + (panel * groups + input / kGroup) * Q::kBlock;
                for (int64_t g = 0; g < inputs / kGroup; ++g) {
                    dequantise<L, kBits>(block + g * Q::kBlock, dequantised + g * kGroup / L::kPair * kPanel<L>);
                }
                for (int64_t row = begin; row < end; row += kTileRows) {
                    const int64_t count = std::min<int64_t>(kTileRows, end - row);
                    const uint32_t* x = job.x + row * job.x_row + input / L::kPair;
                    product<L>(count, L::kTileVectors,
                               {x, job.x_row, dequantised, kPanel<L>, inputs / L::kPair,
                                sums + (row - begin) * kPanel<L>, kPanel<L>, input ? ones : nullptr});
                }
            }
            for (int64_t row = begin; row < end; ++row) {
                store_outputs<L, T>(job, sums + (row - begin) * kPanel<L>, row, panel * kPanel<L>);
            }
        }
    };
    in_parallel(static_cast<int>(std::min<int64_t>(threads, tasks)), work);
}

// `packed` of the job is what pack_quantized packed.
template <class L, class T, int kBits>
void quantized_linear(const Linear<T>& job, int threads) {
    job.rows <= kStreamedRows<kBits> ? streamed_linear<L, T, kBits>(job, threads)
                                     : dequantised_linear<L, T, kBits>(job, threads);
}

}  // namespace longspan
