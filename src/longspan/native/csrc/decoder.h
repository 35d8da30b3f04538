// All decoder layers of a decode step in one call: what models/llama.py and attention/elastic.py do layer by layer, from
// the same kernels and with the same messages, without going back to Python in between.
#pragma once

#include <vector>

#include "attend.h"
#include "elementwise.h"
#include "linear.h"
#include "mail.h"
#include "merge.h"
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

// The queries of `count` rows, rows[i] or first + i where rows is null, go to a peer that holds some of their context.
struct Asks {
    int64_t rank;
    const int64_t* rows;
    int64_t first, count;
};

// A peer sends `count` queries; they attend to these segments of the local pool.
struct Answers {
    int64_t rank, count;
    const Segment* segments;
    int64_t num_segments;
};

// T tokens, each of a request of its own; none where this instance only answers.
struct DecodeStep {
    float* x;       // the residual stream [T, D], in place; without the last layer's mlp
    void* mlp;      // [T, D]: that
    const float *cosines, *sines;  // [T, K / 2]
    const int64_t* slots;          // where each token's KV goes
    const Segment* segments;       // what each token attends to here, itself included
    const DecoderLayer* layers;
    Mail* mail;  // null, if there is nobody to ask or to answer
    const Asks* asks;
    const Answers* answers;
    int64_t num_asks, num_answers;
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

// Rows that travel: queries one way, their partial results the other.
template <class T>
struct Travelling {
    int64_t count;
    T* queries;       // [count, H, K]
    float *out, *lse;  // [count, H, K], [count, H]
};

template <class L, class T>
class Decoder {
public:
    explicit Decoder(const DecodeStep& step) : s_(step) {
        const int64_t tokens = s_.tokens, heads = s_.heads + s_.kv_heads, dim = s_.head_dim;
        int64_t travelling = 0;
        for (int64_t i = 0; i < s_.num_asks; ++i) travelling += bytes_of(s_.asks[i].count);
        for (int64_t i = 0; i < s_.num_answers; ++i) travelling += bytes_of(s_.answers[i].count);
        static thread_local Scratch scratch;
        Arena arena(scratch.reserve(
            2 * Arena::padded<T>(tokens * s_.hidden) + Arena::padded<T>(tokens * (heads + s_.kv_heads) * dim) +
            2 * Arena::padded<T>(tokens * heads * dim) + Arena::padded<float>(tokens * s_.heads * (dim + 1)) +
            Arena::padded<T>(tokens * s_.heads * dim) + Arena::padded<T>(3 * tokens * s_.intermediate) + travelling));
        normed_ = arena.take<T>(tokens * s_.hidden);
        attended_ = arena.take<T>(tokens * s_.hidden);
        qkv_ = arena.take<T>(tokens * (heads + s_.kv_heads) * dim);
        qk_ = arena.take<T>(tokens * heads * dim);
        rotated_ = arena.take<T>(tokens * heads * dim);
        exact_ = arena.take<float>(tokens * s_.heads * (dim + 1));
        heads_ = arena.take<T>(tokens * s_.heads * dim);
        gate_up_ = arena.take<T>(3 * tokens * s_.intermediate);
        for (int64_t i = 0; i < s_.num_asks; ++i) asked_.push_back(travelling_rows(arena, s_.asks[i].count));
        for (int64_t i = 0; i < s_.num_answers; ++i) answered_.push_back(travelling_rows(arena, s_.answers[i].count));
    }

    // Whether it came to its end; if not, the work is void.
    bool run() {
        if (!s_.tokens) {
            for (int64_t i = 0; i < s_.num_layers; ++i) {
                if (!exchange(s_.layers[i])) return false;
            }
            return true;
        }
        T* mlp = static_cast<T*>(s_.mlp);
        normalise(nullptr, s_.layers[0].attention_norm);
        for (int64_t i = 0; i < s_.num_layers; ++i) {
            const DecoderLayer& layer = s_.layers[i];
            if (!attend_to_pool(layer)) return false;
            multiply<L, T>(layer.attention_out, heads_, attended_, s_.tokens, s_.threads);
            normalise(attended_, layer.mlp_norm);
            T* gated = gate_up_ + 2 * s_.tokens * s_.intermediate;
            multiply<L, T>(layer.gate_up, normed_, gate_up_, s_.tokens, s_.threads);
            silu_and_mul<L, T>(gate_up_, 2 * s_.intermediate, gated, s_.tokens, s_.intermediate, s_.threads);
            multiply<L, T>(layer.down, gated, mlp, s_.tokens, s_.threads);
            if (i + 1 < s_.num_layers) normalise(mlp, s_.layers[i + 1].attention_norm);
        }
        return true;
    }

private:
    // x += delta, and its norm.
    void normalise(const T* delta, const void* weight) {
        rms_norm<L, float, T>(Norm<float, T>{s_.x, s_.hidden, 0, delta, s_.x, static_cast<const T*>(weight), 0, normed_,
                                             s_.tokens, 1, s_.hidden, s_.eps}, s_.threads);
    }

    bool attend_to_pool(const DecoderLayer& layer) {
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
        if (!exchange(layer)) return false;
        const int64_t outputs = s_.tokens * s_.heads * dim;
        for (int64_t i = 0; i < outputs; i += L::kWidth) L::store_floats(heads_ + i, L::load(exact_ + i));
        return true;
    }

    // Own rows attend to what is here, while their queries travel; then those of the peers do; then partial results come
    // back and are merged.
    bool exchange(const DecoderLayer& layer) {
        messages_.clear();
        for (int64_t i = 0; i < s_.num_asks; ++i) {
            gather_queries(s_.asks[i], asked_[i].queries);
            messages_.push_back(message(s_.asks[i].rank, true, asked_[i].queries, query_floats(asked_[i].count)));
        }
        for (int64_t i = 0; i < s_.num_answers; ++i) {
            const Travelling<T>& rows = answered_[i];
            messages_.push_back(message(s_.answers[i].rank, false, rows.queries, query_floats(rows.count)));
        }
        post();
        if (s_.tokens) {
            const int64_t row = (s_.heads + s_.kv_heads) * s_.head_dim;
            attend_here(layer, rotated_, row, s_.segments, s_.tokens, exact_, lse_of_own());
        }
        if (!s_.mail) return true;
        if (!wait()) return false;
        messages_.clear();
        for (int64_t i = 0; i < s_.num_answers; ++i) {
            const Travelling<T>& rows = answered_[i];
            attend_here(layer, rows.queries, s_.heads * s_.head_dim, s_.answers[i].segments, s_.answers[i].num_segments,
                        rows.out, rows.lse);
            messages_.push_back(message(s_.answers[i].rank, true, rows.out, query_floats(rows.count)));
            messages_.push_back(message(s_.answers[i].rank, true, rows.lse, rows.count * s_.heads));
        }
        for (int64_t i = 0; i < s_.num_asks; ++i) {
            messages_.push_back(message(s_.asks[i].rank, false, asked_[i].out, query_floats(asked_[i].count)));
            messages_.push_back(message(s_.asks[i].rank, false, asked_[i].lse, asked_[i].count * s_.heads));
        }
        post();
        if (!wait()) return false;
        for (int64_t i = 0; i < s_.num_asks; ++i) {
            merge_rows(Merge{exact_, lse_of_own(), asked_[i].out, asked_[i].lse, s_.asks[i].rows, s_.asks[i].first,
                             s_.asks[i].count, s_.heads, s_.head_dim}, s_.threads);
        }
        return true;
    }

    void attend_here(const DecoderLayer& layer, const T* q, int64_t q_row, const Segment* segments, int64_t count,
                     float* out, float* lse) {
        attend<L, T>(Attention{q, layer.k, layer.v, out, lse, q_row, s_.head_dim, s_.pool_slot, s_.pool_head, s_.pool_slot,
                               s_.pool_head, s_.heads, s_.kv_heads, s_.head_dim, segments, count, false, s_.scale,
                               s_.threads});
    }

    void gather_queries(const Asks& asks, T* to) {
        const int64_t size = s_.heads * s_.head_dim, row = (s_.heads + s_.kv_heads) * s_.head_dim;
        for (int64_t i = 0; i < asks.count; ++i) {
            const int64_t from = asks.rows ? asks.rows[i] : asks.first + i;
            std::memcpy(to + i * size, rotated_ + from * row, static_cast<size_t>(size) * sizeof(T));
        }
    }

    int64_t query_floats(int64_t rows) const { return rows * s_.heads * s_.head_dim; }
    float* lse_of_own() { return exact_ + query_floats(s_.tokens); }

    template <class E>
    static Message message(int64_t rank, bool outgoing, E* data, int64_t count) {
        return {rank, outgoing, reinterpret_cast<uint8_t*>(data), count * static_cast<int64_t>(sizeof(E)), 0};
    }
    void post() {
        if (s_.mail) s_.mail->post(messages_.data(), static_cast<int64_t>(messages_.size()));
    }
    bool wait() { return s_.mail->wait(messages_.data(), static_cast<int64_t>(messages_.size())); }

    int64_t bytes_of(int64_t rows) const {
        return Arena::padded<T>(query_floats(rows)) + Arena::padded<float>(query_floats(rows)) +
               Arena::padded<float>(rows * s_.heads);
    }
    Travelling<T> travelling_rows(Arena& arena, int64_t rows) const {
        T* queries = arena.take<T>(query_floats(rows));
        float* out = arena.take<float>(query_floats(rows));
        return {rows, queries, out, arena.take<float>(rows * s_.heads)};
    }

    const DecodeStep& s_;
    T *normed_, *attended_, *qkv_, *qk_, *rotated_, *heads_, *gate_up_;
    float* exact_;  // attention of the own rows [T, H, K], and their log-sum-exp [T, H]
    std::vector<Travelling<T>> asked_, answered_;
    std::vector<Message> messages_;
};

}  // namespace longspan
