// All decoder layers of a decode step in one call, where a token meets only KV that is here: what models/llama.py does
// layer by layer, from the same kernels, without going back to Python in between.
#pragma once

#include "attend.h"
#include "elementwise.h"
#include "linear.h"
#include "quantized_linear.h"

namespace longspan {

// A weight as pack_linear or, with 4 or 8 bits, pack_quantized packed it.
struct Matrix {
    const uint32_t* packed;
    const void* bias;  // or null
    int64_t outputs, inputs;
    int64_t bits;  // 0: not quantised
};

struct DecoderLayer {
    const void* attention_norm;  // [D]
    Matrix qkv;                  // D -> (H + 2 G) K
    const void* qk_norm;         // [H + G, K], or null
    Matrix attention_out;        // H K -> D
    const void* mlp_norm;        // [D]
    Matrix gate_up;              // D -> 2 I
    Matrix down;                 // I -> D
    void *k, *v;                 // the pool's [G, N, K] of this layer
};

// T tokens, each of a request of its own.
struct DecodeStep {
    float* x;       // the residual stream [T, D], in place; without the last layer's mlp
    void* mlp;      // [T, D]: that
    const float *cosines, *sines;  // [T, K / 2]
    const int64_t* slots;          // where each token's KV goes
    const Segment* segments;       // what each token attends to, itself included
    const DecoderLayer* layers;
    int64_t num_layers, tokens, hidden, heads, kv_heads, head_dim, intermediate;
    int64_t pool_head, pool_slot;  // strides in elements
    float eps, scale;
    int threads;
};

template <class L, class T>
void multiply(const Matrix& matrix, const T* x, T* y, int64_t rows, int threads) {
    const Linear<T> job{reinterpret_cast<const uint32_t*>(x), matrix.inputs / L::kPair, matrix.packed,
                        static_cast<const T*>(matrix.bias), y, false, rows, matrix.outputs, matrix.inputs};
    if (matrix.bits == 4) {
        quantized_linear<L, T, 4>(job, threads);
    } else if (matrix.bits == 8) {
        quantized_linear<L, T, 8>(job, threads);
    } else {
        linear<L, T>(job, threads);
    }
}

template <class L, class T>
class Decoder {
public:
    explicit Decoder(const DecodeStep& step) : s_(step) {
        const int64_t tokens = s_.tokens, heads = s_.heads + s_.kv_heads, dim = s_.head_dim;
        static thread_local Scratch scratch;
        Arena arena(scratch.reserve(
            2 * Arena::padded<T>(tokens * s_.hidden) + Arena::padded<T>(tokens * (heads + s_.kv_heads) * dim) +
            2 * Arena::padded<T>(tokens * heads * dim) + Arena::padded<float>(tokens * s_.heads * (dim + 1)) +
            Arena::padded<T>(tokens * s_.heads * dim) + Arena::padded<T>(3 * tokens * s_.intermediate)));
        normed_ = arena.take<T>(tokens * s_.hidden);
        attended_ = arena.take<T>(tokens * s_.hidden);
        qkv_ = arena.take<T>(tokens * (heads + s_.kv_heads) * dim);
        qk_ = arena.take<T>(tokens * heads * dim);
        rotated_ = arena.take<T>(tokens * heads * dim);
        exact_ = arena.take<float>(tokens * s_.heads * (dim + 1));
        heads_ = arena.take<T>(tokens * s_.heads * dim);
        gate_up_ = arena.take<T>(3 * tokens * s_.intermediate);
    }

    void run() {
        T* mlp = static_cast<T*>(s_.mlp);
        normalise(nullptr, s_.layers[0].attention_norm);
        for (int64_t i = 0; i < s_.num_layers; ++i) {
            const DecoderLayer& layer = s_.layers[i];
            attend_to_pool(layer);
            multiply<L, T>(layer.attention_out, heads_, attended_, s_.tokens, s_.threads);
            normalise(attended_, layer.mlp_norm);
            T* gated = gate_up_ + 2 * s_.tokens * s_.intermediate;
            multiply<L, T>(layer.gate_up, normed_, gate_up_, s_.tokens, s_.threads);
            silu_and_mul<L, T>(gate_up_, 2 * s_.intermediate, gated, s_.tokens, s_.intermediate, s_.threads);
            multiply<L, T>(layer.down, gated, mlp, s_.tokens, s_.threads);
            if (i + 1 < s_.num_layers) normalise(mlp, s_.layers[i + 1].attention_norm);
        }
    }

private:
    // x += delta, and its norm.
    void normalise(const T* delta, const void* weight) {
        rms_norm<L, float, T>(Norm<float, T>{s_.x, s_.hidden, 0, delta, s_.x, static_cast<const T*>(weight), 0, normed_,
                                             s_.tokens, 1, s_.hidden, s_.eps}, s_.threads);
    }

    void attend_to_pool(const DecoderLayer& layer) {
        const int64_t dim = s_.head_dim, h = s_.heads + s_.kv_heads, row = (h + s_.kv_heads) * dim;
        multiply<L, T>(layer.qkv, normed_, qkv_, s_.tokens, s_.threads);
        const T* qk = qkv_;
        int64_t qk_row = row;
        if (layer.qk_norm) {
            rms_norm<L, T, T>(Norm<T, T>{qkv_, row, dim, nullptr, nullptr, static_cast<const T*>(layer.qk_norm), dim, qk_,
                                         s_.tokens, h, dim, s_.eps}, s_.threads);
            qk = qk_;
            qk_row = h * dim;
        }
        rotate<L, T>(qk, qk_row, dim, s_.cosines, s_.sines, rotated_, s_.tokens, h, dim, s_.threads);
        T *k = static_cast<T*>(layer.k), *v = static_cast<T*>(layer.v);
        write_slots<T>(rotated_ + s_.heads * dim, h * dim, dim, s_.slots, k, s_.pool_head, s_.pool_slot, s_.tokens,
                       s_.kv_heads, dim);
        write_slots<T>(qkv_ + h * dim, row, dim, s_.slots, v, s_.pool_head, s_.pool_slot, s_.tokens, s_.kv_heads, dim);
        const int64_t outputs = s_.tokens * s_.heads * dim;
        attend<L, T>(Attention{rotated_, k, v, exact_, exact_ + outputs, h * dim, dim, s_.pool_slot, s_.pool_head,
                               s_.pool_slot, s_.pool_head, s_.heads, s_.kv_heads, dim, s_.segments, s_.tokens, false,
                               s_.scale, s_.threads});
        for (int64_t i = 0; i < outputs; i += L::kWidth) L::store_floats(heads_ + i, L::load(exact_ + i));
    }

    const DecodeStep& s_;
    T *normed_, *attended_, *qkv_, *qk_, *rotated_, *heads_, *gate_up_;
    float* exact_;
};

}  // namespace longspan
