// The function table for AVX-512 with AMX: the table of isa_avx512.cpp, and tiles for many tokens (tiles_amx.h).
#include "quants_avx512.h"

#include "fill_table.h"
#include "tile_formats.h"
#include "tiles_amx.h"

namespace headrace {
namespace {

// From how many tokens on tiles win. Time by dot products over time by tiles, first quartile of 13 calls in turns, two
// threads, weights from DRAM: experts 2048 x 1024, 8 of 16, each with so many tokens / linear 16384 x 2048:
//
//   tokens      2          4          6          8          9         10         12         16         32
//   bf16    1.11/1.06  1.42/1.34  1.52/1.40  1.79/1.59  1.83/1.63  2.04/1.84  2.17/1.95  2.71/2.50  4.29/3.63
//   q8_0    0.61/0.50  0.66/0.53  0.94/0.73  1.11/0.91  1.24/1.01  1.35/1.07  1.60/1.26  2.00/1.60  3.23/2.85
//   q4_0    0.60/0.51  0.63/0.53  0.95/0.79  1.12/0.95  1.20/1.11  1.22/1.18  1.46/1.31  1.84/1.82  2.82/2.65
//
// bf16 stays with float32 activations up to 3 tokens, where tiles gain little.
constexpr TileKernels BF16_TILES = tile_kernels<BF16Rows>(4);
constexpr TileKernels Q8_TILES = tile_kernels<Q8Rows>(8);
constexpr TileKernels Q4_TILES = tile_kernels<Q4Rows>(8);

constexpr Kernels with_tiles(Kernels table) {
  table.formats[BF16].tiles = table.exact[BF16].tiles = &BF16_TILES;
  table.formats[Q8_0].tiles = table.exact[Q8_0].tiles = &Q8_TILES;
  table.formats[Q4_0].tiles = table.exact[Q4_0].tiles = &Q4_TILES;
  table.tiles_begin = tiles_begin;
  table.tiles_end = tiles_end;
  table.tiles_peak = tiles_peak;
  table.int8_peak = int8_peak;
  return table;
}

}  // namespace

const Kernels kernels_amx = with_tiles(fill_table("amx"));
}  // namespace headrace
