// The C interface. One library for each instruction set; see lanes.h.
#include "attend.h"
#include "decoder.h"
#include "elementwise.h"
#include "lanes.h"
#include "linear.h"
#include "mail.h"
#include "merge.h"
#include "quantized_linear.h"
#include "slots.h"

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

// Whether all slots of the segments are in a pool of so many.
LONGSPAN_EXPORT int longspan_slots_within(const Segment* segments, int64_t num_segments, int64_t pool_slots) {
    for (int64_t i = 0; i < num_segments; ++i) {
        if (!slots_within(segments[i].slots, segments[i].keys, pool_slots)) return 0;
    }
    return 1;
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

// Lanes of four bytes that a packed quantised weight takes; bits: 4 or 8.
LONGSPAN_EXPORT int64_t longspan_quantized_lanes(int64_t outputs, int64_t inputs, int bits, int is_bf16) {
    const auto count = [&](auto lanes) {
        using L = decltype(lanes);
        return bits == 4 ? quantized_lanes<L, 4>(outputs, inputs) : quantized_lanes<L, 8>(outputs, inputs);
    };
    return is_bf16 ? count(Pairs{}) : count(Floats{});
}

// See pack_quantized in quantized_linear.h; minima: null for 8 bits.
LONGSPAN_EXPORT void longspan_pack_quantized(const uint8_t* quants, const uint16_t* scales, const uint16_t* minima,
                                             uint32_t* packed, int64_t outputs, int64_t inputs, int bits, int is_bf16) {
    const auto run = [&](auto lanes) {
        using L = decltype(lanes);
        bits == 4 ? pack_quantized<L, 4>(quants, scales, minima, packed, outputs, inputs)
                  : pack_quantized<L, 8>(quants, scales, minima, packed, outputs, inputs);
    };
    is_bf16 ? run(Pairs{}) : run(Floats{});
}

// As longspan_linear, with what longspan_pack_quantized packed.
LONGSPAN_EXPORT void longspan_quantized_linear(const void* x, int64_t x_row, const void* packed, const void* bias,
                                               void* y, int y_is_fp32, int64_t rows, int64_t outputs, int64_t inputs,
                                               int bits, int is_bf16, int threads) {
    const auto run = [&](auto lanes, auto element) {
        using L = decltype(lanes);
        using T = decltype(element);
        const Linear<T> job{static_cast<const uint32_t*>(x), x_row / L::kPair, static_cast<const uint32_t*>(packed),
                            static_cast<const T*>(bias), y, y_is_fp32 != 0, rows, outputs, inputs};
        bits == 4 ? quantized_linear<L, T, 4>(job, threads) : quantized_linear<L, T, 8>(job, threads);
    };
    is_bf16 ? run(Pairs{}, BFloat16{}) : run(Floats{}, 0.0f);
}

// Not 0: a slot is outside the pool, and nothing was written.
LONGSPAN_EXPORT int longspan_write_slots(const void* x, int64_t x_row, int64_t x_head, const int64_t* slots,
                                         void* pool, int64_t pool_head, int64_t pool_slot, int64_t pool_slots,
                                         int64_t tokens, int64_t heads, int64_t dim, int is_bf16) {
    if (!slots_within(slots, tokens, pool_slots)) return 1;
    const auto run = [&](auto element) {
        using T = decltype(element);
        write_slots<T>(static_cast<const T*>(x), x_row, x_head, slots, static_cast<T*>(pool), pool_head, pool_slot,
                       tokens, heads, dim);
    };
    is_bf16 ? run(BFloat16{}) : run(0.0f);
    return 0;
}

// See DecodeStep in decoder.h. 1: there was no memory. 2: the work is void. 3: a letter was not as long as expected.
LONGSPAN_EXPORT int longspan_decode(const DecodeStep* step, int is_bf16) {
    try {
        const bool ended = is_bf16 ? Decoder<Pairs, BFloat16>(*step).run() : Decoder<Floats, float>(*step).run();
        return ended ? 0 : 2;
    } catch (const std::bad_alloc&) {
        return 1;
    } catch (const std::length_error&) {
        return 3;
    }
}

// See Merge in merge.h.
LONGSPAN_EXPORT void longspan_merge_rows(float* out, float* lse, const float* part_out, const float* part_lse,
                                         const int64_t* rows, int64_t first, int64_t count, int64_t heads, int64_t dim,
                                         int threads) {
    merge_rows(Merge{out, lse, part_out, part_lse, rows, first, count, heads, dim}, threads);
}

// See mail.h. A rank's mail lives as long as its process.
LONGSPAN_EXPORT void* longspan_mail_new(const Work* work) { return new Mail(work); }

LONGSPAN_EXPORT void longspan_mail_connect(void* mail, int64_t rank, uint64_t* written, uint64_t* read, uint8_t* buffer,
                                           int64_t capacity, int outgoing) {
    const bool out = outgoing != 0;
    static_cast<Mail*>(mail)->connect(rank, std::make_unique<RingChannel>(written, read, buffer, capacity, out), out);
}

LONGSPAN_EXPORT void longspan_mail_connect_socket(void* mail, int64_t rank, int socket, int outgoing) {
    const bool out = outgoing != 0;
    static_cast<Mail*>(mail)->connect(rank, std::make_unique<SocketChannel>(socket, out), out);
}

LONGSPAN_EXPORT void longspan_mail_post(void* mail, Message* messages, int64_t count) {
    static_cast<Mail*>(mail)->post(messages, count);
}

// As longspan_decode, without 1.
LONGSPAN_EXPORT int longspan_mail_wait(void* mail, const Message* messages, int64_t count) {
    try {
        return static_cast<Mail*>(mail)->wait(messages, count) ? 0 : 2;
    } catch (const std::length_error&) {
        return 3;
    }
}

LONGSPAN_EXPORT void longspan_mail_drop(void* mail) { static_cast<Mail*>(mail)->drop(); }
}
