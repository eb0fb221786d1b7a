// What AMX adds to the function table of isa_avx512.cpp: tiles for many tokens (tiles_bf16.h, tiles_int8.h) of the formats
// that have them. All the rest is that table's, and not compiled a second time.
#include "isa/ints_avx512.h"

#include "cores/tiles_bf16.h"
#include "cores/tiles_int8.h"

namespace headrace {
namespace {

// From how many tokens on tiles win where nobody has measured it on the machine (engine/tiles.py does at the first start):
// median of time by dot products over time by tiles, 5 rounds in turns, two threads, 8 experts 2048 x 1024 with so many
// tokens each:
//
//   tokens     2      3      4      6      8     10     12     16
//   bf16    0.95   1.07   1.32   1.49   1.69   2.18   2.50   3.05
//   q8_0    0.33   0.42   0.44   0.92   1.07   1.30   1.46   1.51
//   q4_0    0.32   0.25   0.28   0.49   0.63   1.00   1.29   1.00
constexpr TileKernels BF16_TILES = bf16_kernels<BF16Rows>(4);
constexpr TileKernels Q8_EXACT_TILES = bf16_kernels<Q8Rows>(8);
constexpr TileKernels Q4_EXACT_TILES = bf16_kernels<Q4Rows>(8);
constexpr TileKernels Q8_TILES = int8_kernels<Q8Groups>(8);
constexpr TileKernels Q4_TILES = int8_kernels<Q4Groups>(8);

ExactTable copy_of(const FormatKernels* formats) {
  ExactTable table;
  for (int i = 0; i < FORMAT_COUNT; i++) table.formats[i] = formats[i];
  return table;
}

}  // namespace

Kernels with_amx(const Kernels& avx512) {
  static ExactTable exact = copy_of(avx512.exact);
  Kernels table = avx512;
  table.exact = exact.formats;
  table.name = "amx";
  table.formats[BF16].tiles = exact.formats[BF16].tiles = &BF16_TILES;
  table.formats[Q8_0].tiles = &Q8_TILES, exact.formats[Q8_0].tiles = &Q8_EXACT_TILES;
  table.formats[Q4_0].tiles = &Q4_TILES, exact.formats[Q4_0].tiles = &Q4_EXACT_TILES;
  table.tiles_begin = tiles_begin;
  table.tiles_end = tiles_end;
  table.bf16_tiles_peak = tiles_peak<false>;
  table.int8_tiles_peak = tiles_peak<true>;
  return table;
}

}  // namespace headrace
