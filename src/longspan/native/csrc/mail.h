// Exchange between processes of one machine: a stream of bytes for each ordered pair of ranks, in shared memory.
// The twin, and the layout of the memory, are in distributed/shared_memory.py.
#pragma once

#include <immintrin.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

namespace longspan {

struct Message {
    int64_t rank;
    int64_t outgoing;
    uint8_t* data;
    int64_t bytes;
    int64_t number;  // set when posted: the messages of its channel that are done once this one is
};

class Channel {
public:
    Channel(uint64_t* written, uint64_t* read, uint8_t* buffer, int64_t capacity, bool outgoing)
        : written_(written), read_(read), buffer_(buffer), capacity_(static_cast<uint64_t>(capacity)),
          outgoing_(outgoing) {}

    // Messages of a channel move in the order in which they were posted.
    int64_t post(uint8_t* data, int64_t bytes) {
        waiting_.push_back({data, static_cast<uint64_t>(bytes)});
        return ++posted_;
    }
    int64_t done() const { return posted_ - static_cast<int64_t>(waiting_.size()); }

    // Moves what can be moved; whether anything was. A counter is written after the bytes that it counts.
    bool step() {
        if (waiting_.empty()) return false;
        const uint64_t written = __atomic_load_n(written_, outgoing_ ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE);
        const uint64_t read = __atomic_load_n(read_, outgoing_ ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
        const uint64_t limit = outgoing_ ? capacity_ - (written - read) : written - read;
        const uint64_t moved = move(outgoing_ ? written : read, limit);
        if (moved) __atomic_store_n(outgoing_ ? written_ : read_, (outgoing_ ? written : read) + moved, __ATOMIC_RELEASE);
        return moved > 0;
    }

private:
    struct Stretch {
        uint8_t* data;
        uint64_t left;
    };

    uint64_t move(uint64_t at, uint64_t limit) {
        uint64_t moved = 0;
        while (!waiting_.empty() && (moved < limit || !waiting_.front().left)) {
            Stretch& stretch = waiting_.front();
            const uint64_t place = (at + moved) % capacity_;
            const uint64_t count = std::min({limit - moved, capacity_ - place, stretch.left});
            outgoing_ ? std::memcpy(buffer_ + place, stretch.data, count)
                      : std::memcpy(stretch.data, buffer_ + place, count);
            stretch.data += count;
            stretch.left -= count;
            moved += count;
            if (!stretch.left) waiting_.pop_front();
        }
        return moved;
    }

    uint64_t *written_, *read_;
    uint8_t* buffer_;
    const uint64_t capacity_;
    const bool outgoing_;
    std::deque<Stretch> waiting_;
    int64_t posted_ = 0;
};

// All channels of one rank; used by one thread.
class Mail {
public:
    Channel* add(Channel channel) {
        channels_.push_back(std::move(channel));
        return &channels_.back();
    }
    void connect(int64_t rank, uint64_t* written, uint64_t* read, uint8_t* buffer, int64_t capacity, bool outgoing) {
        auto& side = outgoing ? outgoing_ : incoming_;
        if (static_cast<size_t>(rank) >= side.size()) side.resize(static_cast<size_t>(rank) + 1, nullptr);
        side[static_cast<size_t>(rank)] = add(Channel(written, read, buffer, capacity, outgoing));
    }

    void post(Message* messages, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            Channel& to = channel(messages[i]);
            messages[i].number = to.post(messages[i].data, messages[i].bytes);
            if (messages[i].outgoing) to.step();
        }
    }

    // A peer is usually microseconds away; if not, the core is somebody else's: first in turns, then in naps.
    void wait(const Message* messages, int64_t count) {
        constexpr int kPauses = 1000, kYields = 2000;
        constexpr timespec kNap{0, 20'000};
        for (int idle = 0; !done(messages, count);) {
            if (step()) {
                idle = 0;
            } else if (++idle <= kPauses) {
                _mm_pause();
            } else if (idle <= kYields) {
                sched_yield();
            } else {
                nanosleep(&kNap, nullptr);
            }
        }
    }

private:
    Channel& channel(const Message& message) {
        return *(message.outgoing ? outgoing_ : incoming_)[static_cast<size_t>(message.rank)];
    }
    bool done(const Message* messages, int64_t count) {
        return std::all_of(messages, messages + count, [&](const Message& m) { return channel(m).done() >= m.number; });
    }
    bool step() {
        bool moved = false;
        for (Channel& channel : channels_) moved |= channel.step();
        return moved;
    }

    std::deque<Channel> channels_;  // addresses stay
    std::vector<Channel*> outgoing_, incoming_;
};

}  // namespace longspan
