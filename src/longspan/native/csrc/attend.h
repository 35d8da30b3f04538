// Attention of a batch: cut into items, run on all threads, splits merged by whoever finishes last.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "item.h"
#include "parallel.h"

namespace longspan {

constexpr int64_t kMaxTileRows = 384;  // packed K and V are used by so many rows while they are in the L2 cache
constexpr int64_t kMinTileRows = 48;
constexpr int64_t kMinSplitKeys = 512;
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kWorthAThread = 1 << 16;  // of `cost`: about 20 microseconds

class Schedule {
public:
    explicit Schedule(const Attention& job) : job_(job) {
        const int64_t rows = tile_rows();
        int64_t total = 0;
        for (int64_t i = 0; i < job.num_segments; ++i) add_tiles(job.segments[i], rows, total);
        threads_ = static_cast<int>(std::min<int64_t>(job.threads, 1 + total / kWorthAThread));
        for (int64_t i = 0; i < static_cast<int64_t>(tiles.size()); ++i) add_items(i, total);
        threads_ = static_cast<int>(std::min<int64_t>(threads_, static_cast<int64_t>(items.size())));
    }

    int threads() const { return threads_; }
    int64_t partial_floats() const { return partial_floats_; }
    int64_t rows(const Tile& tile) const { return tile.tokens * job_.group(); }
    int64_t floats_of_a_split(const Tile& tile) const { return rows(tile) * (job_.head_dim + 2); }

    std::vector<Tile> tiles;
    std::vector<Item> items;

private:
    int64_t keys_of(const Tile& tile) const {
        return job_.causal ? std::min(tile.segment->keys, tile.first_token + tile.tokens) : tile.segment->keys;
    }

    // Packing or reading a key costs about as much as 8 rows that meet it.
    int64_t cost(const Tile& tile) const { return (rows(tile) + 8) * keys_of(tile) * job_.head_dim / 16; }

    // As many rows as keep every thread busy.
    int64_t tile_rows() const {
        int64_t all = 0;
        for (int64_t i = 0; i < job_.num_segments; ++i) {
            all += (job_.segments[i].stop - job_.segments[i].start) * job_.heads;
        }
        if (job_.threads <= 1) return kMaxTileRows;
        const int64_t even = all / (job_.threads * kItemsPerThread) / kTileRows * kTileRows;
        return std::max(kMinTileRows, std::min(kMaxTileRows, even));
    }

    // The last tokens first: of a causal block they cost most.
    void add_tiles(const Segment& segment, int64_t rows, int64_t& total) {
        const int64_t tokens = segment.stop - segment.start, step = std::max<int64_t>(1, rows / job_.group());
        for (int64_t first = (tokens - 1) / step * step; first >= 0; first -= step) {
            for (int64_t head = 0; head < job_.kv_heads; ++head) {
                tiles.push_back({&segment, head, first, std::min(step, tokens - first), 1, -1, 1});
                total += cost(tiles.back());
            }
        }
    }

    void add_items(int64_t index, int64_t total) {
        Tile& tile = tiles[static_cast<size_t>(index)];
        const int64_t keys = keys_of(tile), share = total / (threads_ * kItemsPerThread) + 1;
        if (threads_ > 1 && cost(tile) > 2 * share) {
            tile.splits = std::max<int64_t>(1, std::min(cost(tile) / share, keys / kMinSplitKeys));
        }
        if (tile.splits > 1) {
            tile.unfinished = tile.splits;
            tile.partials = partial_floats_;
            partial_floats_ += tile.splits * floats_of_a_split(tile);
        }
        for (int64_t split = 0; split < tile.splits; ++split) {
            items.push_back({index, split, keys * split / tile.splits, keys * (split + 1) / tile.splits});
        }
    }

    const Attention& job_;
    int threads_ = 1;
    int64_t partial_floats_ = 0;
};

// Splits of a tile, each [rows, head_dim] and then [rows] of softmax, one after the other.
class Partials {
public:
    Partials(const Attention& job, const Schedule& schedule, float* memory)
        : job_(job), schedule_(schedule), memory_(memory) {}

    PartialRows at(const Tile& tile, int64_t split) const {
        float* out = memory_ + tile.partials + split * schedule_.floats_of_a_split(tile);
        return {out, reinterpret_cast<SoftmaxRow*>(out + schedule_.rows(tile) * job_.head_dim)};
    }

    void store(const Tile& tile, int64_t split, const PartialRows& rows) const {
        const PartialRows to = at(tile, split);
        const int64_t count = schedule_.rows(tile);
        std::memcpy(to.out, rows.out, static_cast<size_t>(count * job_.head_dim) * sizeof(float));
        std::memcpy(to.softmax, rows.softmax, static_cast<size_t>(count) * sizeof(SoftmaxRow));
    }

    // Always in the order of the splits, so that the result does not depend on who was last.
    void merge(const Tile& tile) const {
        const PartialRows sum = at(tile, 0);
        const int64_t dim = job_.head_dim;
        for (int64_t split = 1; split < tile.splits; ++split) {
            const PartialRows next = at(tile, split);
            for (int64_t r = 0; r < schedule_.rows(tile); ++r) {
                SoftmaxRow &a = sum.softmax[r], &b = next.softmax[r];
                const float largest = std::max(a.largest, b.largest);
                if (largest == kMinusInfinity) continue;
                const float wa = std::exp2(a.largest - largest), wb = std::exp2(b.largest - largest);
                a = {largest, a.sum * wa + b.sum * wb};
                float *x = sum.out + r * dim, *y = next.out + r * dim;
                for (int64_t d = 0; d < dim; ++d) x[d] = x[d] * wa + y[d] * wb;
            }
        }
        write_rows(job_, tile, sum);
    }

private:
    const Attention& job_;
    const Schedule& schedule_;
    float* memory_;
};

template <class L, class T>
void attend(const Attention& job) {
    Schedule schedule(job);
    static thread_local Scratch scratch;
    const int64_t bytes = schedule.partial_floats() * static_cast<int64_t>(sizeof(float));
    const Partials partials(job, schedule, static_cast<float*>(scratch.reserve(bytes)));
    std::atomic<size_t> next{0};
    auto work = [&] {
        ItemRunner<L, T> runner(job);
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < schedule.items.size();) {
            const Item& item = schedule.items[i];
            Tile& tile = schedule.tiles[static_cast<size_t>(item.tile)];
            const size_t then = i + static_cast<size_t>(schedule.threads());
            const Item* following = then < schedule.items.size() ? &schedule.items[then] : nullptr;
            runner.run(tile, item, following ? &schedule.tiles[static_cast<size_t>(following->tile)] : nullptr, following);
            if (tile.splits == 1) {
                write_rows(job, tile, runner.rows());
                continue;
            }
            partials.store(tile, item.split, runner.rows());
            if (__atomic_sub_fetch(&tile.unfinished, 1, __ATOMIC_ACQ_REL) == 0) partials.merge(tile);
        }
    };
    in_parallel(schedule.threads(), work);
}

}  // namespace longspan
