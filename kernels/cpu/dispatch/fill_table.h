// Fills a function table from whatever vec_*.h and ints_*.h the including ISA file chose. A new
// block format is a row in formats/blocks.h.
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

struct NoTiles {
  template <class F>
  static constexpr const TileKernels* of() {
    return nullptr;
  }
};

// A block format: its activations rounded to int8, or (EXACT) as they are.
template <bool EXACT, class Tiles, class Format>
constexpr FormatKernels block_format() {
  using Exact = ExactFormat<Format>;
  if (EXACT)
    return {Format::row_bytes, Exact::acts_bytes, Dot<Exact>::run, Exact::prepare, Format::unpack, nullptr, nullptr};
  return {Format::row_bytes, Format::acts_bytes, Dot<Format>::run, Format::prepare, Format::unpack, nullptr,
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
  each_block_format([&](int code, auto format) { formats[code] = block_format<EXACT, Tiles, decltype(format)>(); });
  formats[Q8_0].pack = pack_row<Q8Rounding>;
  formats[Q4_0].pack = pack_row<Q4Rounding>;
  formats[FP8] = EXACT ? fp8_format<Fp8Format>() : fp8_format<Fp8Fast>();
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
      {any_attend_rows, attend_query, attend, attend_finish},
      nullptr,
      attend_merge,
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
      nullptr,
      nullptr};
  fill_formats<false, Tiles>(table.formats);
  return table;
}

}  // namespace
}  // namespace headrace
