// Exchange between processes: a stream of letters for each ordered pair of ranks, in memory that both share where they are
// on one machine, over a socket where they are not. The twin, and the layout of the memory, are in distributed/.
#pragma once

#include <immintrin.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

namespace longspan {

struct Message {
    int64_t rank;
    int64_t outgoing;
    uint8_t* data;
    int64_t bytes;
    int64_t posted;  // set when posted: the messages of its channel that are done once this one is
};

// What the rank is at, as native/work.py has it. Another thread may make it void.
struct Work {
    int64_t number;
    int64_t is_void;
};

// Before each letter. Both ends number work in one order, so a receiver knows a letter of void work, which is older than
// what it awaits, and skips it.
struct Heading {
    int64_t work;
    uint64_t bytes;
};

// One end of a stream of letters from one rank to another. What it moves bytes over is a ring or a socket.
class Channel {
public:
    explicit Channel(bool outgoing) : outgoing_(outgoing) {}
    virtual ~Channel() = default;

    // Messages of a channel move in the order in which they were posted.
    int64_t post(uint8_t* data, int64_t bytes, int64_t work) {
        waiting_.push_back({data, static_cast<uint64_t>(bytes), work});
        return ++posted_;
    }
    int64_t done() const { return posted_ - static_cast<int64_t>(waiting_.size()); }

    // Moves what can be moved; whether anything was.
    bool step() {
        if (waiting_.empty()) return false;
        const uint64_t before = moved_;
        open();
        outgoing_ ? send() : receive();
        close();
        return moved_ != before;
    }

    // Forget what waits: its memory is not touched any more. A letter under way goes on to its end, of no content.
    void drop() {
        const bool begun = outgoing_ && headed_ > 0 && !waiting_.empty();
        waiting_.erase(waiting_.begin() + (begun ? 1 : 0), waiting_.end());
        if (begun) waiting_.front().data = nullptr;
        if (!outgoing_ && begun_) {
            skipped_ = left_;
            end();
        }
    }

protected:
    // Before and after a step.
    virtual void open() {}
    virtual void close() {}
    // Moves up to so many bytes out of `data` or into it, or of no content where it is null; how many they were.
    virtual uint64_t move(uint8_t* data, uint64_t count) = 0;

    const bool outgoing_;

private:
    struct Letter {
        uint8_t* data;  // null: it was dropped
        uint64_t bytes;
        int64_t work;
    };

    void send() {
        while (!waiting_.empty()) {
            Letter& letter = waiting_.front();
            if (!begun_) {
                if (headed_ == 0) heading_ = {letter.work, letter.bytes};
                if (!move_heading()) return;
                begin(letter.bytes);
            }
            if (!finish(letter)) return;
        }
    }

    void receive() {
        while (!waiting_.empty()) {
            skipped_ -= advance(nullptr, skipped_);
            if (skipped_) return;
            Letter& letter = waiting_.front();
            if (!begun_) {
                if (!move_heading()) return;
                if (heading_.work > letter.work) return;  // what is awaited here is void, as is about to be told
                if (heading_.work < letter.work) {
                    skipped_ = heading_.bytes;
                    end();
                    continue;
                }
                if (heading_.bytes != letter.bytes) throw std::length_error("a letter is not as long as its receiver expects");
                begin(letter.bytes);
            }
            if (!finish(letter)) return;
        }
    }

    // Whether all of it is through.
    bool move_heading() {
        headed_ += advance(reinterpret_cast<uint8_t*>(&heading_) + headed_, sizeof heading_ - headed_);
        return headed_ == sizeof heading_;
    }

    void begin(uint64_t bytes) {
        begun_ = true;
        left_ = bytes;
    }

    void end() {
        begun_ = false;
        headed_ = 0;
    }

    // Moves what can be moved of the letter at the front; whether that was the rest of it.
    bool finish(const Letter& letter) {
        left_ -= advance(letter.data ? letter.data + (letter.bytes - left_) : nullptr, left_);
        if (left_) return false;
        end();
        waiting_.pop_front();
        return true;
    }

    uint64_t advance(uint8_t* data, uint64_t count) {
        const uint64_t moved = count ? move(data, count) : 0;
        moved_ += moved;
        return moved;
    }

    std::deque<Letter> waiting_;
    int64_t posted_ = 0;
    uint64_t moved_ = 0;    // bytes, ever
    Heading heading_{};     // of the letter at the front, or of the next that has come:
    uint64_t headed_ = 0;   // so many bytes of it are through,
    bool begun_ = false;    // the letter at the front is the one that it is of,
    uint64_t left_ = 0;     // and so many bytes of that are not through
    uint64_t skipped_ = 0;  // bytes to come that nobody wants
};

// Over a ring buffer that both processes have mapped. A counter is written after the bytes that it counts.
class RingChannel final : public Channel {
public:
    RingChannel(uint64_t* written, uint64_t* read, uint8_t* buffer, int64_t capacity, bool outgoing)
        : Channel(outgoing), written_(written), read_(read), buffer_(buffer),
          capacity_(static_cast<uint64_t>(capacity)) {}

private:
    void open() override {
        const uint64_t written = __atomic_load_n(written_, outgoing_ ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE);
        const uint64_t read = __atomic_load_n(read_, outgoing_ ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
        begin_ = at_ = outgoing_ ? written : read;
        room_ = outgoing_ ? capacity_ - (written - read) : written - read;
    }

    void close() override {
        if (at_ != begin_) __atomic_store_n(outgoing_ ? written_ : read_, at_, __ATOMIC_RELEASE);
    }

    uint64_t move(uint8_t* data, uint64_t count) override {
        count = std::min(count, room_);
        if (data) {
            const uint64_t place = at_ % capacity_, first = std::min(count, capacity_ - place);
            if (outgoing_) {
                std::memcpy(buffer_ + place, data, first);
                std::memcpy(buffer_, data + first, count - first);
            } else {
                std::memcpy(data, buffer_ + place, first);
                std::memcpy(data + first, buffer_, count - first);
            }
        }
        at_ += count;
        room_ -= count;
        return count;
    }

    uint64_t *written_, *read_;
    uint8_t* buffer_;
    uint64_t capacity_;
    uint64_t begin_ = 0, at_ = 0, room_ = 0;  // of one step: where it began and is, and how many bytes can be moved
};

// Over a connection to a process of another machine. One that is broken moves nothing more: what its letters belong to is
// about to be declared void.
class SocketChannel final : public Channel {
public:
    SocketChannel(int socket, bool outgoing) : Channel(outgoing), socket_(socket) {}

private:
    uint64_t move(uint8_t* data, uint64_t count) override {
        constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
        uint8_t nothing[4096] = {};
        uint64_t moved = 0;
        while (moved < count) {
            uint8_t* at = data ? data + moved : nothing;
            const size_t most = data ? count - moved : std::min<uint64_t>(count - moved, sizeof nothing);
            const ssize_t now = outgoing_ ? ::send(socket_, at, most, kFlags) : ::recv(socket_, at, most, kFlags);
            if (now <= 0) break;
            moved += static_cast<uint64_t>(now);
        }
        return moved;
    }

    const int socket_;
};

// All channels of one rank; used by one thread.
class Mail {
public:
    explicit Mail(const Work* work) : work_(work) {}

    // Anew, where the rank has been replaced.
    void connect(int64_t rank, std::unique_ptr<Channel> channel, bool outgoing) {
        auto& side = outgoing ? outgoing_ : incoming_;
        if (static_cast<size_t>(rank) >= side.size()) side.resize(static_cast<size_t>(rank) + 1);
        side[static_cast<size_t>(rank)] = std::move(channel);
    }

    void post(Message* messages, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            Channel& to = channel(messages[i]);
            messages[i].posted = to.post(messages[i].data, messages[i].bytes, work_->number);
            if (messages[i].outgoing) to.step();
        }
    }

    // Whether they are done; if not, the work is void. A peer is usually microseconds away; if not, the core is somebody
    // else's: first in turns, then in naps.
    bool wait(const Message* messages, int64_t count) {
        constexpr int kPauses = 1000, kYields = 2000;
        constexpr timespec kNap{0, 20'000};
        for (int idle = 0; !done(messages, count);) {
            if (step()) {
                idle = 0;
            } else if (__atomic_load_n(&work_->is_void, __ATOMIC_RELAXED)) {
                return false;
            } else if (++idle <= kPauses) {
                _mm_pause();
            } else if (idle <= kYields) {
                sched_yield();
            } else {
                nanosleep(&kNap, nullptr);
            }
        }
        return true;
    }

    void drop() {
        for (auto* side : {&outgoing_, &incoming_}) {
            for (auto& channel : *side) {
                if (channel) channel->drop();
            }
        }
    }

private:
    Channel& channel(const Message& message) {
        return *(message.outgoing ? outgoing_ : incoming_)[static_cast<size_t>(message.rank)];
    }
    bool done(const Message* messages, int64_t count) {
        return std::all_of(messages, messages + count, [&](const Message& m) { return channel(m).done() >= m.posted; });
    }
    bool step() {
        bool moved = false;
        for (auto* side : {&outgoing_, &incoming_}) {
            for (auto& channel : *side) {
                if (channel) moved |= channel->step();
            }
        }
        return moved;
    }

    const Work* work_;
    std::vector<std::unique_ptr<Channel>> outgoing_, incoming_;  // by rank; null where there is none
};

}  // namespace longspan
