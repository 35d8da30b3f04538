// Slots come from outside. The kernels follow them unchecked, so that this is asked once, before they do.
#pragma once

#include <cstdint>

namespace longspan {

// Whether each of them is one of the pool's `pool_slots`.
inline bool slots_within(const int64_t* slots, int64_t count, int64_t pool_slots) {
    uint64_t outside = 0;
    for (int64_t i = 0; i < count; ++i) {
        outside |= static_cast<uint64_t>(slots[i]) >= static_cast<uint64_t>(pool_slots);  // negative ones are large
    }
    return !outside;
}

}  // namespace longspan
