// Memory of a thread that outlives a call: nothing is allocated in a step once the largest shape was seen.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace longspan {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least so many bytes, on a cache line's boundary; what was there is lost.
    void* reserve(int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = (bytes + 4095) / 4096 * 4096;
            memory_ = std::aligned_alloc(64, static_cast<size_t>(size_));
            if (!memory_) throw std::bad_alloc();
        }
        return memory_;
    }

private:
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

// Hands out parts of one reservation.
class Arena {
public:
    explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}

    template <class T>
    T* take(int64_t count) {
        T* part = reinterpret_cast<T*>(next_);
        next_ += padded<T>(count);
        return part;
    }
    template <class T>
    static int64_t padded(int64_t count) {
        return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    }

private:
    char* next_;
};

}  // namespace longspan
