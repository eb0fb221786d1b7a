// Fills a function table from whatever vec_*.h and quants_*.h the including ISA file chose. A new format is a row here.
#pragma once

#include "cores/attend.h"
#include "cores/dot.h"
#include "cores/map.h"
#include "formats/exact.h"

namespace headrace {
namespace {

template <class F>
constexpr FormatKernels float_format() {
  using Format = FloatFormat<F>;
  return {Dot<Format>::run, F::PAIRS ? Format::prepare_pairs : nullptr, Format::unpack, Format::pack, nullptr};
}

template <class Q>
constexpr FormatKernels quant_format() {
  using Format = Quantised<Q>;
  return {Dot<Format>::run, Format::prepare, Format::unpack, Format::pack, nullptr};
}

template <class Q>
constexpr FormatKernels exact_format() {
  using Format = QuantFormat<Q>;
  return {Dot<ExactFormat<Q>>::run, nullptr, Format::unpack, Format::pack, nullptr};
}

constexpr Kernels fill_table(const char* name) {
  return {
      name,
      {float_format<F32Row>(), float_format<F16Row>(), float_format<BF16Row>(), quant_format<Q8>(), quant_format<Q4>()},
      {float_format<F32Row>(), float_format<F16Row>(), float_format<BF16Row>(), exact_format<Q8>(), exact_format<Q4>()},
      rmsnorm,
      add_scaled,
      rope,
      silu_mul,
      gated_add,
      softmax,
      largest,
      weighted_sum,
      attend,
      attend_merge,
      attend_finish,
      stream_sum,
      nullptr,
      nullptr,
      nullptr,
      nullptr};
}

}  // namespace
}  // namespace headrace
