// The function table for AVX2 + FMA + F16C: see vec_avx2.h and ints_avx2.h.
#include "isa/ints_avx2.h"

#include "dispatch/fill_table.h"

namespace headrace {
constexpr Kernels kernels_avx2 = fill_table<>("avx2", exact_avx2);
}
