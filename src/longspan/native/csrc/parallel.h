// Threads: those of torch's own OpenMP runtime, so that no second team competes with it for the same cores.
#pragma once

#include <thread>
#include <vector>

namespace longspan {

// GOMP_parallel, which GNU's and LLVM's OpenMP runtimes both have. Null: none was found.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
inline OpenMpParallel openmp_parallel = nullptr;

// Calls body() on so many threads at once. With one thread it is a plain call.
template <class Body>
void in_parallel(int threads, Body& body) {
    if (threads <= 1) return body();
    if (openmp_parallel) {
        return openmp_parallel([](void* p) { (*static_cast<Body*>(p))(); }, &body, static_cast<unsigned>(threads), 0);
    }
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&body] { body(); });
    body();
    for (auto& other : others) other.join();
}

}  // namespace longspan
