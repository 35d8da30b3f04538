// What crosses the C interface. Shapes: T query rows, S keys, N slots, H query heads, G KV heads, K head_dim.
#pragma once

#include <cstdint>

namespace longspan {

struct BFloat16 {
    uint16_t bits;
};

// Query rows [start, stop) against `keys` keys: slots[i] says where key i is; null means that it is at i.
struct Segment {
    int64_t start;
    int64_t stop;
    int64_t keys;
    const int64_t* slots;
};

// Strides are in elements; the last dimension of q, k and v is contiguous, out and lse wholly so.
struct Attention {
    const void* q;  // [T, H, K]
    const void* k;  // [S, G, K] or [G, N, K]: only the strides tell
    const void* v;
    float* out;  // [T, H, K]
    float* lse;  // [T, H]
    int64_t q_row, q_head;
    int64_t k_key, k_head;
    int64_t v_key, v_head;
    int64_t heads, kv_heads, head_dim;
    const Segment* segments;
    int64_t num_segments;
    bool causal;  // row i of a segment sees its keys 0..i
    float scale;
    int threads;

    int64_t group() const { return heads / kv_heads; }
};

}  // namespace longspan
