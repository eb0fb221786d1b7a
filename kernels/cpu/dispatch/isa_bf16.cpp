// What AVX512-BF16 and VBMI add to the function table of isa_avx512.cpp: fp8 by products of bf16, attention on a cache of bf16,
// and for many tokens tiles_dpbf16.h, of all that is not rounded to int8. isa.cpp asks the CPU; the table's name stays the same.
#include "isa/ints_avx512.h"

#include "cores/attend/attend_pairs.h"
#include "cores/dot.h"
#include "cores/lanes/tiles_dpbf16.h"

namespace headrace {
namespace {

// From how many tokens on they win where nobody has measured it on the machine (engine/measure/tile_thresholds.py does at the
// first start): time by dot products over time by these, processor time of one core of a Zen 5, medians in turns, 8 experts of
// 2048 x 768 with so many tokens each; the last three with activations in bf16:
//
//   tokens           2      4      6      8     16     32     64    512
//   bf16          1.22   1.60   1.67   1.77   1.86   2.16   2.35   2.60
//   f16                  0.54          0.86   1.00   1.09   1.20   1.30
//   fp8                  0.69          1.31   1.46   1.72   1.79   2.14
//   q4_0                 1.00          2.06   2.64          3.63   4.38
//   q4_k                 1.07          1.82   2.83          4.05   4.82
//   q6_k                 1.10          1.77   2.48          3.63   4.33
constexpr int OF_BF16 = 4, OF_OTHERS = 8, OF_F16 = 32;

template <class F>
constexpr TileKernels PAIR_KERNELS = pairs_kernels<F>(F::PARTS == 2 ? OF_F16 : OF_OTHERS);
constexpr TileKernels BF16_KERNELS = pairs_kernels<Bf16Pairs>(OF_BF16);

constexpr FormatKernels FP8_KERNELS{Fp8Bf16::row_bytes, Fp8Bf16::acts_bytes, Dot<Fp8Bf16>::run,       Fp8Bf16::prepare,
                                    Fp8Format::unpack,  nullptr,             &PAIR_KERNELS<Fp8Pairs>};

constexpr AttendKernels ATTEND{pairs_take, pairs_query, attend_pairs, pairs_finish};

ExactTable exact_bf16() {
  ExactTable table = exact_avx512;
  table.formats[F16].tiles = &PAIR_KERNELS<F16Pairs>;
  table.formats[BF16].tiles = &BF16_KERNELS;
  table.formats[FP8].tiles = &PAIR_KERNELS<Fp8Pairs>;
  each_block_format([&](int code, auto format) { table.formats[code].tiles = &PAIR_KERNELS<BlockPairs<decltype(format)>>; });
  return table;
}

}  // namespace

Kernels with_bf16(const Kernels& avx512) {
  static const ExactTable exact = exact_bf16();
  Kernels table = avx512;
  table.exact = exact.formats;
  table.formats[F16].tiles = exact.formats[F16].tiles;
  table.formats[BF16].tiles = exact.formats[BF16].tiles;
  table.formats[FP8] = FP8_KERNELS;
  table.attend_bf16 = &ATTEND;
  table.bf16_peak = bf16_peak;
  return table;
}

}  // namespace headrace
