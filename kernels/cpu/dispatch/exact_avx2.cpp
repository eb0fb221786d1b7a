// What products take of formats whose activations stay as they are, for AVX2 + FMA + F16C.
#include "isa/ints_avx2.h"

#include "dispatch/fill_table.h"

namespace headrace {
constexpr ExactTable exact_avx2 = fill_exact();
}
