// The lanes of the instruction set that LONGSPAN_ISA names (native/isa.py): Floats for fp32, Pairs for bf16.
#pragma once

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
