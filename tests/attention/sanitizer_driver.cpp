// Attention of random shapes, for a build with sanitizers: every buffer is exactly as large as it must be, so that any
// step outside is seen. Results are compared with the plain formula. Arguments: seed, number of cases.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "attend.h"
#include "lanes.h"
#include "slots.h"

using namespace longspan;

namespace {

std::mt19937_64 generator;

int64_t draw(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(generator); }

int64_t one_of(std::initializer_list<int64_t> choices) {
    return choices.begin()[draw(0, static_cast<int64_t>(choices.size()) - 1)];
}

float as_float(float x) { return x; }
float as_float(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    return number;
}
void set(float& to, float x) { to = x; }
void set(BFloat16& to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    to.bits = static_cast<uint16_t>(bits >> 16);
}

template <class T>
std::unique_ptr<T[]> numbers(int64_t count) {
    std::unique_ptr<T[]> made(new T[static_cast<size_t>(count)]);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) set(made[i], normal(generator));
    return made;
}

// Of a pool: all scattered, or runs of consecutive ones; its first and last slot are among them where there is room.
std::unique_ptr<int64_t[]> draw_slots(int64_t count, int64_t pool_slots) {
    std::vector<int64_t> all(static_cast<size_t>(pool_slots));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), generator);
    std::unique_ptr<int64_t[]> slots(new int64_t[static_cast<size_t>(count)]);
    const int64_t run = one_of({1, 2, 15, 48, 100});
    for (int64_t i = 0; i < count; ++i) {
        const bool goes_on = i % run && slots[i - 1] + 1 < pool_slots;
        slots[i] = goes_on ? slots[i - 1] + 1 : all[static_cast<size_t>(i)];
    }
    if (count) slots[draw(0, count - 1)] = pool_slots - 1;
    if (count > 1) slots[0] = 0;
    return slots;
}

bool fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    return false;
}

// What row `token`, head `head` must be, in double.
template <class T>
bool agrees(const Attention& job, const Segment& segment, int64_t token, int64_t head) {
    const T* q = static_cast<const T*>(job.q) + token * job.q_row + head * job.q_head;
    const T* k = static_cast<const T*>(job.k) + head / job.group() * job.k_head;
    const T* v = static_cast<const T*>(job.v) + head / job.group() * job.v_head;
    const int64_t seen = job.causal ? token - segment.start + 1 : segment.keys;
    std::vector<double> out(static_cast<size_t>(job.head_dim)), scores(static_cast<size_t>(seen));
    double largest = -INFINITY, sum = 0.0;
    const auto at = [&](int64_t i) { return segment.slots ? segment.slots[i] : i; };
    for (int64_t i = 0; i < seen; ++i) {
        double score = 0.0;
        for (int64_t d = 0; d < job.head_dim; ++d) score += as_float(q[d]) * as_float(k[at(i) * job.k_key + d]);
        scores[static_cast<size_t>(i)] = score * job.scale;
        largest = std::max(largest, score * job.scale);
    }
    for (int64_t i = 0; i < seen; ++i) {
        const double weight = std::exp(scores[static_cast<size_t>(i)] - largest);
        sum += weight;
        for (int64_t d = 0; d < job.head_dim; ++d) {
            out[static_cast<size_t>(d)] += weight * as_float(v[at(i) * job.v_key + d]);
        }
    }
    const int64_t row = token * job.heads + head;
    const double lse = seen ? largest + std::log(sum) : -INFINITY;
    if (seen ? std::abs(job.lse[row] - lse) > 1e-3 : job.lse[row] != lse) return fail("wrong log-sum-exp");
    for (int64_t d = 0; d < job.head_dim; ++d) {
        const double expected = seen ? out[static_cast<size_t>(d)] / sum : 0.0;
        if (!(std::abs(job.out[row * job.head_dim + d] - expected) < 2e-2)) return fail("wrong output");
    }
    return true;
}

template <class L, class T>
bool check_case() {
    const int64_t kv_heads = draw(1, 3), heads = kv_heads * one_of({1, 2, 3, 4, 5, 7, 8, 9});
    const int64_t head_dim = one_of({32, 64, 64, 96, 128, 128, 160, 256});
    const bool paged = draw(0, 2) > 0, causal = !paged && draw(0, 1);
    const bool long_context = draw(0, 3) == 0;
    const int64_t pool_slots = long_context ? draw(2000, 5000) : draw(1, 300);

    std::vector<Segment> segments;
    std::vector<std::unique_ptr<int64_t[]>> slots;
    int64_t rows = 0;
    if (paged) {
        for (int64_t left = draw(0, 3); left > 0; --left) {
            const int64_t keys = draw(0, 9) ? draw(1, pool_slots) : 0, tokens = one_of({0, 1, 1, 1, 2, 7, 60});
            slots.push_back(draw_slots(keys, pool_slots));
            if (!slots_within(slots.back().get(), keys, pool_slots)) return fail("slots within the pool are refused");
            if (keys && slots_within(slots.back().get(), keys, pool_slots - 1)) return fail("a slot outside passes");
            segments.push_back({rows, rows + tokens, keys, slots.back().get()});
            rows += tokens;
        }
    } else {
        rows = causal ? std::min<int64_t>(pool_slots, 700) : draw(1, 70);
        segments.push_back({0, rows, causal ? rows : pool_slots, nullptr});
    }
    const int64_t keys = paged || !causal ? pool_slots : rows;
    const auto q = numbers<T>(rows * heads * head_dim);
    const auto k = numbers<T>(kv_heads * keys * head_dim), v = numbers<T>(kv_heads * keys * head_dim);
    std::unique_ptr<float[]> out(new float[static_cast<size_t>(rows * heads * head_dim)]);
    std::unique_ptr<float[]> lse(new float[static_cast<size_t>(rows * heads)]);
    const bool head_first = draw(0, 1);  // [G, N, K] or [N, G, K]
    const int64_t key_step = head_first ? head_dim : kv_heads * head_dim;
    const int64_t head_step = head_first ? keys * head_dim : head_dim;
    const auto count = static_cast<int64_t>(segments.size());
    const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    const Attention job{q.get(),   k.get(),   v.get(),   out.get(), lse.get(), heads * head_dim, head_dim,
                        key_step,  head_step, key_step,  head_step, heads,     kv_heads,         head_dim,
                        segments.data(), count, causal, scale, static_cast<int>(draw(1, 3))};
    attend<L, T>(job);
    for (const Segment& segment : segments) {
        for (int64_t token = segment.start; token < segment.stop; token += draw(1, 20)) {
            if (!agrees<T>(job, segment, token, draw(0, heads - 1))) return false;
        }
    }
    return true;
}

}  // namespace

int main(int, char** arguments) {
    generator.seed(std::strtoull(arguments[1], nullptr, 10));
    for (int64_t left = std::atoll(arguments[2]); left > 0; --left) {
        if (!(draw(0, 1) ? check_case<Pairs, BFloat16>() : check_case<Floats, float>())) return 1;
    }
    return 0;
}
