// The C interface. One library for each instruction set: which one, LONGSPAN_ISA says.
#include "attend.h"
#include "elementwise.h"
#include "linear.h"

#if LONGSPAN_ISA == 1
#include "lanes_avx2.h"
#elif LONGSPAN_ISA == 2
#include "lanes_avx512.h"
#elif LONGSPAN_ISA == 3
#include "lanes_avx512_bf16.h"
#endif

namespace longspan {

#if LONGSPAN_ISA == 1
using Floats = Avx2;
using Pairs = Avx2;
#elif LONGSPAN_ISA == 2
using Floats = Avx512;
using Pairs = Avx512;
#elif LONGSPAN_ISA == 3
using Floats = Avx512;
using Pairs = Avx512Bf16;
#endif

}  // namespace longspan

using namespace longspan;

#define LONGSPAN_EXPORT __attribute__((visibility("default")))

extern "C" {

// The address of GOMP_parallel, or null.
LONGSPAN_EXPORT void longspan_use_openmp(void* parallel) {
    openmp_parallel = reinterpret_cast<OpenMpParallel>(parallel);
}

// See Attention in types.h. Not 0: there was no memory.
LONGSPAN_EXPORT int longspan_attend(const void* q, const void* k, const void* v, float* out, float* lse, int64_t q_row,
                                    int64_t q_head, int64_t k_key, int64_t k_head, int64_t v_key, int64_t v_head,
                                    int64_t heads, int64_t kv_heads, int64_t head_dim, const Segment* segments,
                                    int64_t num_segments, int causal, int is_bf16, float scale, int threads) {
    const Attention job{q,      k,      v,     out,      lse,      q_row,    q_head,       k_key,       k_head, v_key,
                        v_head, heads,  kv_heads, head_dim, segments, num_segments, causal != 0, scale, threads};
    try {
        if (is_bf16) {
            attend<Pairs, BFloat16>(job);
        } else {
            attend<Floats, float>(job);
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// See Norm in elementwise.h.
LONGSPAN_EXPORT void longspan_rms_norm(const void* x, int64_t x_row, int64_t x_head, const void* delta, void* sum,
                                       const void* weight, int64_t weight_head, void* out, int64_t tokens,
                                       int64_t heads, int64_t dim, float eps, int x_is_bf16, int is_bf16, int threads) {
    const auto run = [&](auto lanes, auto x_element, auto element) {
        using X = decltype(x_element);
        using T = decltype(element);
        const Norm<X, T> norm{static_cast<const X*>(x), x_row, x_head, static_cast<const T*>(delta), static_cast<X*>(sum),
                           static_cast<const T*>(weight), weight_head, static_cast<T*>(out), tokens, heads, dim, eps};
        rms_norm<decltype(lanes), X, T>(norm, threads);
    };
    if (x_is_bf16) {
        run(Pairs{}, BFloat16{}, BFloat16{});
    } else if (is_bf16) {
        run(Pairs{}, 0.0f, BFloat16{});
    } else {
        run(Floats{}, 0.0f, 0.0f);
    }
}

LONGSPAN_EXPORT void longspan_rotate(const void* x, int64_t x_row, int64_t x_head, const float* cosines,
                                     const float* sines, void* out, int64_t tokens, int64_t heads, int64_t dim,
                                     int is_bf16, int threads) {
    const auto run = [&](auto lanes, auto element) {
        using T = decltype(element);
        rotate<decltype(lanes), T>(static_cast<const T*>(x), x_row, x_head, cosines, sines, static_cast<T*>(out),
                                   tokens, heads, dim, threads);
    };
    is_bf16 ? run(Pairs{}, BFloat16{}) : run(Floats{}, 0.0f);
}

LONGSPAN_EXPORT void longspan_silu_and_mul(const void* gate_up, int64_t row, void* out, int64_t tokens, int64_t width,
                                           int is_bf16, int threads) {
    const auto run = [&](auto lanes, auto element) {
        using T = decltype(element);
        silu_and_mul<decltype(lanes), T>(static_cast<const T*>(gate_up), row, static_cast<T*>(out), tokens, width,
                                         threads);
    };
    is_bf16 ? run(Pairs{}, BFloat16{}) : run(Floats{}, 0.0f);
}

// Lanes of four bytes that a packed weight [outputs, inputs] takes.
LONGSPAN_EXPORT int64_t longspan_packed_lanes(int64_t outputs, int64_t inputs, int is_bf16) {
    return is_bf16 ? packed_lanes<Pairs>(outputs, inputs) : packed_lanes<Floats>(outputs, inputs);
}

// The weight is contiguous.
LONGSPAN_EXPORT void longspan_pack_linear(const void* weight, void* packed, int64_t outputs, int64_t inputs,
                                          int is_bf16) {
    const auto* from = static_cast<const uint32_t*>(weight);
    auto* to = static_cast<uint32_t*>(packed);
    is_bf16 ? pack_linear<Pairs>(from, to, outputs, inputs) : pack_linear<Floats>(from, to, outputs, inputs);
}

// See Linear in linear.h; x_row in elements.
LONGSPAN_EXPORT void longspan_linear(const void* x, int64_t x_row, const void* packed, const void* bias, void* y,
                                     int y_is_fp32, int64_t rows, int64_t outputs, int64_t inputs, int is_bf16,
                                     int threads) {
    const auto run = [&](auto lanes, auto element) {
        using L = decltype(lanes);
        using T = decltype(element);
        const Linear<T> job{static_cast<const uint32_t*>(x), x_row / L::kPair, static_cast<const uint32_t*>(packed),
                            static_cast<const T*>(bias), y, y_is_fp32 != 0, rows, outputs, inputs};
        linear<L, T>(job, threads);
    };
    is_bf16 ? run(Pairs{}, BFloat16{}) : run(Floats{}, 0.0f);
}

LONGSPAN_EXPORT void longspan_write_slots(const void* x, int64_t x_row, int64_t x_head, const int64_t* slots,
                                          void* pool, int64_t pool_head, int64_t pool_slot, int64_t tokens,
                                          int64_t heads, int64_t dim, int is_bf16) {
    const auto run = [&](auto element) {
        using T = decltype(element);
        write_slots<T>(static_cast<const T*>(x), x_row, x_head, slots, static_cast<T*>(pool), pool_head, pool_slot,
                       tokens, heads, dim);
    };
    is_bf16 ? run(BFloat16{}) : run(0.0f);
}
}
