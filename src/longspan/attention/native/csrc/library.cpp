// The C interface. One library for each instruction set: which one, LONGSPAN_ISA says.
#include "attend.h"

#if LONGSPAN_ISA == 1
#include "lanes_avx2.h"
#elif LONGSPAN_ISA == 2
#include "lanes_avx512.h"
#elif LONGSPAN_ISA == 3
#include "lanes_avx512_bf16.h"
#endif

namespace longspan {

#if LONGSPAN_ISA == 1
using Floats = Avx2;
using Pairs = Avx2;
#elif LONGSPAN_ISA == 2
using Floats = Avx512;
using Pairs = Avx512;
#elif LONGSPAN_ISA == 3
using Floats = Avx512;
using Pairs = Avx512Bf16;
#endif

}  // namespace longspan

using namespace longspan;

#define LONGSPAN_EXPORT __attribute__((visibility("default")))

extern "C" {

// The address of GOMP_parallel, or null.
LONGSPAN_EXPORT void longspan_use_openmp(void* parallel) { openmp_parallel = reinterpret_cast<OpenMpParallel>(parallel); }

// See types.h. The pointers of `slots` and the other arrays have num_segments entries each.
LONGSPAN_EXPORT int longspan_attend(const void* q, const void* k, const void* v, float* out, float* lse, int64_t q_row, int64_t q_head,
                    int64_t k_key, int64_t k_head, int64_t v_key, int64_t v_head, int64_t heads, int64_t kv_heads,
                    int64_t head_dim, const Segment* segments, int64_t num_segments, int causal, int is_bf16,
                    float scale, int threads) {
    const Attention job{q,      k,      v,     out,      lse,      q_row,    q_head,       k_key,       k_head, v_key,
                        v_head, heads,  kv_heads, head_dim, segments, num_segments, causal != 0, scale, threads};
    try {
        if (is_bf16) {
            attend<Pairs, BFloat16>(job);
        } else {
            attend<Floats, float>(job);
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
}
