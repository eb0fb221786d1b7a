// The function table for AVX-512 F/BW/VL/DQ + VNNI: see vec_avx512.h and quants_avx512.h.
#include "quants_avx512.h"

#include "fill_table.h"

namespace headrace {
const Kernels kernels_avx512 = fill_table("avx512");
}
