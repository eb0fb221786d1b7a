// The function table for AVX-512 F/BW/VL/DQ + VNNI: see vec_avx512.h and ints_avx512.h.
#include "isa/ints_avx512.h"

#include "dispatch/fill_table.h"

namespace headrace {
namespace {

constexpr Kernels with_peak(Kernels table) {
  table.int8_peak = int8_peak;
  return table;
}

}  // namespace

const Kernels kernels_avx512 = with_peak(fill_table("avx512"));
}  // namespace headrace
