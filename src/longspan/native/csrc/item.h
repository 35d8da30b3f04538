// One thread's piece of work: query rows of one KV head against a range of its keys.
#pragma once

#include <atomic>

#include "in_place.h"
#include "product.h"
#include "scratch.h"
#include "softmax.h"

namespace longspan {

// Query rows of the query heads that share a KV head: row r is token r / group, head r % group.
struct Tile {
    const Segment* segment;
    int64_t kv_head;
    int64_t first_token;  // of the segment
    int64_t tokens;
    int64_t splits;    // the keys' ranges
    int64_t partials;  // where the first split's result goes, in floats from the partials' begin; -1: no need
    int64_t unfinished;
};

struct Item {
    int64_t tile;
    int64_t split;
    int64_t key_begin, key_end;
};

// A split's unnormalised result.
struct PartialRows {
    float* out;  // [rows, head_dim]
    SoftmaxRow* softmax;
};

inline void write_rows(const Attention& job, const Tile& tile, const PartialRows& rows) {
    const int64_t group = job.group(), dim = job.head_dim;
    for (int64_t r = 0; r < tile.tokens * group; ++r) {
        const int64_t token = tile.segment->start + tile.first_token + r / group;
        const int64_t at = token * job.heads + tile.kv_head * group + r % group;
        const float weight = rows.softmax[r].sum > 0.0f ? 1.0f / rows.softmax[r].sum : 0.0f;
        for (int64_t d = 0; d < dim; ++d) job.out[at * dim + d] = rows.out[r * dim + d] * weight;
        job.lse[at] = rows.softmax[r].lse();
    }
}

// L: lanes of an instruction set. T: what q, k and v are made of.
template <class L, class T>
class ItemRunner {
public:
    explicit ItemRunner(const Attention& job) : job_(job), dim_(job.head_dim), depth_(job.head_dim / L::kPair) {}

    // The result is in rows() until the next call. `following` is what this thread will probably run next, or null:
    // its first keys are asked for while the last ones of this item are worked on.
    void run(const Tile& tile, const Item& item, const Tile* following_tile, const Item* following) {
        tile_ = &tile;
        num_rows_ = tile.tokens * job_.group();
        reserve();
        pack_queries();
        std::fill_n(rows_.out, num_rows_ * dim_, 0.0f);
        std::fill_n(rows_.softmax, num_rows_, SoftmaxRow{});

        const Source mine = source(tile, item);
        if (num_rows_ <= kInPlaceRows) {
            return run_in_place(mine, following ? source(*following_tile, *following) : Source{});
        }
        const int64_t step = block_keys(dim_);
        for (int64_t key = mine.begin; key < mine.end; key += step) {
            const int64_t count = std::min(step, mine.end - key);
            packed_block(key, mine.keys.from(key, count), mine.values.from(key, count));
        }
    }

    const PartialRows& rows() const { return rows_; }

private:
    static constexpr int64_t kPanel = L::kTileVectors * L::kWidth;
    static constexpr int64_t kMostRows = std::max(kTileRows, kInPlaceRows);  // whose scores are there at once

    // An item's keys [begin, end), among all of its tile's.
    struct Source {
        KVRows<T> keys, values;
        int64_t begin, end;
    };

    Source source(const Tile& tile, const Item& item) const {
        const Segment& segment = *tile.segment;
        const T* k = static_cast<const T*>(job_.k) + tile.kv_head * job_.k_head;
        const T* v = static_cast<const T*>(job_.v) + tile.kv_head * job_.v_head;
        return {{k, job_.k_key, segment.slots, segment.keys}, {v, job_.v_key, segment.slots, segment.keys},
                item.key_begin, item.key_end};
    }

    void reserve() {
        const int64_t panels = block_keys(dim_) * depth_;
        static thread_local Scratch scratch;
        Arena arena(scratch.reserve(Arena::padded<uint32_t>(num_rows_ * depth_) + 2 * Arena::padded<uint32_t>(panels) +
                                    Arena::padded<float>(num_rows_ * dim_) + Arena::padded<SoftmaxRow>(num_rows_) +
                                    2 * Arena::padded<float>(kMostRows * kBlockKeys)));
        queries_ = arena.take<uint32_t>(num_rows_ * depth_);
        keys_ = arena.take<uint32_t>(panels);
        values_ = arena.take<uint32_t>(panels);
        rows_.out = arena.take<float>(num_rows_ * dim_);
        rows_.softmax = arena.take<SoftmaxRow>(num_rows_);
        scores_ = arena.take<float>(kMostRows * kBlockKeys);
        weights_ = arena.take<uint32_t>(kMostRows * kBlockKeys);
    }

    void pack_queries() {
        const int64_t group = job_.group();
        const T* q = static_cast<const T*>(job_.q);
        for (int64_t r = 0; r < num_rows_; ++r) {
            const int64_t token = tile_->segment->start + tile_->first_token + r / group;
            const T* row = q + token * job_.q_row + (tile_->kv_head * group + r % group) * job_.q_head;
            for (int64_t j = 0; j < depth_ / L::kWidth; ++j) {
                L::store_operand(queries_ + r * depth_ + j * L::kWidth, L::row_lanes(row, j));
            }
        }
    }

    // How many of `count` keys from `key` on the row sees.
    int64_t visible(int64_t row, int64_t key, int64_t count) const {
        if (!job_.causal) return count;
        const int64_t seen = tile_->first_token + row / job_.group() + 1 - key;
        return std::max<int64_t>(0, std::min(seen, count));
    }

    // Scores of rows [first, first + count) become weights; factor: by what each row's result so far is multiplied.
    void soften_rows(int64_t first, int64_t count, int64_t key, int64_t keys, int64_t padded, float* factor) {
        for (int64_t r = 0; r < count; ++r) {
            factor[r] = soften<L>(rows_.softmax[first + r], scores_ + r * kBlockKeys, visible(first + r, key, keys),
                                  padded, job_.scale * kLog2E, weights_ + r * (kBlockKeys / L::kPair));
        }
    }

    // Of two blocks one is worked on, and the other one on its way. In the order of their use: keys, values, next keys,
    // next values; each asks for those two places after it, and once more for those that come next. After the last block
    // comes the first one of what follows.
    void run_in_place(const Source& mine, const Source& following) {
        BlockRows<T> keys[2], values[2];
        const auto find = [&](int which, int64_t key) {
            const Source& from = key < mine.end ? mine : following;
            const int64_t first = key < mine.end ? key : following.begin;
            keys[which].find(from.keys, first, from.end);
            values[which].find(from.values, first, from.end);
        };
        find(0, mine.begin);
        int now = 0;
        for (int64_t key = mine.begin; key < mine.end; key += kInPlaceKeys, now = 1 - now) {
            const int next = 1 - now;
            find(next, key + kInPlaceKeys);
            float factor[kInPlaceRows];
            score_in_place<L>(queries_, num_rows_, keys[now], Ahead<T>{keys[next], values[now]}, dim_, scores_);
            const int64_t count = keys[now].count;
            soften_rows(0, num_rows_, key, count, whole_vectors(count) * L::kWidth, factor);
            add_in_place<L>(weights_, num_rows_, values[now], Ahead<T>{values[next], keys[next]}, dim_, factor,
                            rows_.out);
        }
    }

    void packed_block(int64_t key, const KVRows<T>& keys, const KVRows<T>& values) {
        pack_keys<L>(keys, dim_, keys_);
        pack_values<L>(values, dim_, values_);
        for (int64_t first = 0; first < num_rows_; first += kTileRows) {
            const int64_t count = std::min<int64_t>(kTileRows, num_rows_ - first);
            const int64_t seen = visible(first + count - 1, key, keys.count);  // by the last row, which sees most
            if (seen) packed_tile(first, count, key, seen);
        }
    }

    void packed_tile(int64_t first, int64_t count, int64_t key, int64_t keys) {
        const int64_t vectors = whole_vectors(keys);
        for (int64_t v = 0; v < vectors; v += L::kTileVectors) {
            product<L>(count, std::min<int64_t>(L::kTileVectors, vectors - v),
                       {queries_ + first * depth_, depth_, keys_ + v * L::kWidth * depth_, kPanel, depth_,
                        scores_ + v * L::kWidth, kBlockKeys, nullptr});
        }
        float factor[kTileRows];
        soften_rows(first, count, key, keys, vectors * L::kWidth, factor);
        const int64_t column_vectors = dim_ / L::kWidth;
        // Passes over the columns as even as can be: 6 vectors are 3 and 3.
        const int64_t passes = (column_vectors + L::kTileVectors - 1) / L::kTileVectors;
        for (int64_t pass = 0; pass < passes; ++pass) {
            const int64_t begin = column_vectors * pass / passes, end = column_vectors * (pass + 1) / passes;
            product<L>(count, end - begin,
                       {weights_, kBlockKeys / L::kPair, values_ + begin * L::kWidth, dim_,
                        vectors * L::kWidth / L::kPair, rows_.out + first * dim_ + begin * L::kWidth, dim_, factor});
        }
    }

    static int64_t whole_vectors(int64_t keys) { return (keys + L::kWidth - 1) / L::kWidth; }

    const Attention& job_;
    const int64_t dim_, depth_;
    const Tile* tile_ = nullptr;
    int64_t num_rows_ = 0;
    uint32_t *queries_ = nullptr, *keys_ = nullptr, *values_ = nullptr, *weights_ = nullptr;
    float* scores_ = nullptr;
    PartialRows rows_{};
};

}  // namespace longspan
