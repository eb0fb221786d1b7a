// What products take of formats whose activations stay as they are, for AVX-512 F/BW/VL/DQ + VNNI.
#include "isa/ints_avx512.h"

#include "dispatch/fill_table.h"

namespace headrace {
constexpr ExactTable exact_avx512 = fill_exact();
}
