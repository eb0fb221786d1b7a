// The function table for AVX-512 F/BW/VL/DQ + VNNI: see vec_avx512.h, ints_avx512.h and, for many tokens,
// tiles_vnni.h.
#include "isa/ints_avx512.h"

#include "cores/lanes/tiles_vnni.h"
#include "dispatch/fill_table.h"

namespace headrace {
namespace {

void nothing() {}  // no state of a thread needs to be set up

constexpr Kernels with_tiles(Kernels table) {
  table.tiles_begin = table.tiles_end = nothing;
  table.int8_peak = int8_peak;
  return table;
}

}  // namespace

constexpr Kernels kernels_avx512 = with_tiles(fill_table<VnniTiles>("avx512", exact_avx512));
}  // namespace headrace
