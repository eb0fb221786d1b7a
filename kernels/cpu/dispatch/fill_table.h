// Fills a function table from whatever vec_*.h and ints_*.h the including ISA file chose. A new format is a row here.
#pragma once

#include "cores/attend/attend.h"
#include "cores/dot.h"
#include "cores/index.h"
#include "cores/map.h"
#include "cores/recurrent.h"
#include "formats/exact.h"
#include "formats/fp8.h"
#include "formats/rounding.h"

namespace headrace {
namespace {

template <class F>
constexpr FormatKernels float_format() {
  using Format = FloatFormat<F>;
  return {Format::row_bytes, Format::acts_bytes, Dot<Format>::run, F::PAIRS ? Format::prepare_pairs : nullptr,
          Format::unpack, Format::pack, nullptr};
}

using Pack = void (*)(const float* x, int cols, uint8_t* row);

struct NoTiles {
  template <class F>
  static constexpr const TileKernels* of() {
    return nullptr;
  }
};

// A block format: its activations rounded to int8, or (EXACT) as they are.
template <bool EXACT, class Tiles, class C, class S>
constexpr FormatKernels block_format(Pack pack = nullptr) {
  using Format = BlockFormat<C, S>;
  using Exact = ExactFormat<Format>;
  if (EXACT)
    return {Format::row_bytes, Exact::acts_bytes, Dot<Exact>::run, Exact::prepare, Format::unpack, pack, nullptr};
  return {Format::row_bytes, Format::acts_bytes, Dot<Format>::run, Format::prepare, Format::unpack, pack,
          Tiles::template of<Format>()};
}

// Products by F; rows are those of every way.
template <class F>
constexpr FormatKernels fp8_format() {
  return {F::row_bytes, F::acts_bytes, Dot<F>::run, F::PREPARE, Fp8Format::unpack, nullptr, nullptr};
}

template <bool EXACT, class Tiles>
constexpr void fill_formats(FormatKernels* formats) {
  formats[F32] = float_format<F32Row>();
  formats[F16] = float_format<F16Row>();
  formats[BF16] = float_format<BF16Row>();
  formats[Q8_0] = block_format<EXACT, Tiles, Bytes8, HalfScales>(pack_row<Q8Rounding>);
  formats[Q4_0] = block_format<EXACT, Tiles, Planes<0, 4, 8>, HalfScales>(pack_row<Q4Rounding>);
  formats[Q4_1] = block_format<EXACT, Tiles, Planes<0, 4, 0>, HalfMinScales>();
  formats[Q5_0] = block_format<EXACT, Tiles, Planes<1, 4, 16>, HalfScales>();
  formats[Q5_1] = block_format<EXACT, Tiles, Planes<1, 4, 0>, HalfMinScales>();
  formats[Q2_K] = block_format<EXACT, Tiles, Planes<0, 2, 0>, NibbleMinScales>();
  formats[Q3_K] = block_format<EXACT, Tiles, Planes<1, 2, 4>, ByteScales<2>>();
  formats[Q4_K] = block_format<EXACT, Tiles, Planes<0, 4, 0>, SixMinScales>();
  formats[Q5_K] = block_format<EXACT, Tiles, Planes<1, 4, 0>, SixMinScales>();
  formats[Q6_K] = block_format<EXACT, Tiles, Planes<2, 4, 32>, ByteScales<2>>();
  formats[IQ4_NL] = block_format<EXACT, Tiles, Table<Iq4Values>, HalfScales>();
  formats[IQ4_XS] = block_format<EXACT, Tiles, Table<Iq4Values>, ByteScales<1>>();
  formats[MXFP4] = block_format<EXACT, Tiles, Table<E2m1Values>, PowerScales>();
  formats[IQ3_S] = block_format<EXACT, Tiles, Table<Iq3sValues>, ByteScales<1>>();
  formats[IQ3_XXS] = block_format<EXACT, Tiles, Table<Iq3xxsValues>, ByteScales<1, 4>>();
  formats[IQ2_XXS] = block_format<EXACT, Tiles, Table<Iq2Values, 1, 2>, ByteScales<1, 8>>();
  formats[IQ2_XS] = block_format<EXACT, Tiles, Table<Iq2Values, 1, 2>, ByteScales<2, 8>>();
  formats[IQ1_S] = block_format<EXACT, Tiles, Table<Iq1Values, 1, 2>, ByteScales<1, 8>>();
  formats[IQ1_M] = block_format<EXACT, Tiles, Table<Iq1Values, 1, 2>, ByteScales<2, 8>>();
  formats[FP8] = EXACT ? fp8_format<Fp8Format>() : fp8_format<Fp8Fast>();
  formats[Q4_0_BF16] = block_format<EXACT, Tiles, Planes<0, 4, 8>, Bf16Scales>();
  formats[INT4_G32] = block_format<EXACT, Tiles, Planes<0, 4, 0>, ZeroScales<F16Row, 32>>();
  formats[INT4_G32_BF16] = block_format<EXACT, Tiles, Planes<0, 4, 0>, ZeroScales<BF16Row, 32>>();
  formats[INT4_G128] = block_format<EXACT, Tiles, Planes<0, 4, 0>, ZeroScales<F16Row, 128>>();
  formats[INT4_G128_BF16] = block_format<EXACT, Tiles, Planes<0, 4, 0>, ZeroScales<BF16Row, 128>>();
  formats[NVFP4] = block_format<EXACT, Tiles, Table<E2m1Values>, E4m3Scales>();
}

// What exact_*.cpp has, and `fill_table` is given.
constexpr ExactTable fill_exact() {
  ExactTable table{};
  fill_formats<true, NoTiles>(table.formats);
  return table;
}

// Tiles: of block formats with activations as int8.
template <class Tiles = NoTiles>
constexpr Kernels fill_table(const char* name, const ExactTable& exact) {
  Kernels table{
      name,
      {},
      exact.formats,
      rmsnorm,
      layernorm,
      add_scaled,
      rope,
      silu_mul,
      glu,
      square_relu,
      gated_add,
      softmax,
      sigmoid,
      largest,
      weighted_sum,
      biased_sum,
      attend_query,
      attend,
      attend_merge,
      attend_finish,
      q8_pack,
      q8_unpack,
      unit_pair,
      delta_rule,
      conv,
      state_space,
      index_scores,
      stream_sum,
      float_peak,
      nullptr,
      nullptr,
      nullptr,
      nullptr,
      nullptr};
  fill_formats<false, Tiles>(table.formats);
  return table;
}

}  // namespace
}  // namespace headrace
