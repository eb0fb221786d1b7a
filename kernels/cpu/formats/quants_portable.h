// Integer dot products of block formats in plain C++: one block into each of the four lanes.
//
// Activations keep their order, weights are signed as they are: no offset. The loops over 16 bytes are for the compiler
// to vectorise.
#pragma once

#include "isa/vec_portable.h"
#include "formats/quants.h"

namespace headrace {
namespace {

inline int dot_q8(const uint8_t* w, const int8_t* x) {
  int total = 0;
  for (int i = 0; i < BLOCK; i++) total += int(int8_t(w[i])) * x[i];
  return total;
}

inline int dot_q4(const uint8_t* w, const int8_t* x) {
  uint8_t q[BLOCK];
  for (int i = 0; i < 16; i++) {
    q[i] = uint8_t((w[i] & 15) - 8);
    q[i + 16] = uint8_t((w[i] >> 4) - 8);
  }
  return dot_q8(q, x);
}

template <class CodecT, int BYTES_PER_BLOCK, int (*DOT)(const uint8_t*, const int8_t*)>
struct PortableQuant {
  using Codec = CodecT;
  static constexpr int BLOCK_BYTES = BYTES_PER_BLOCK, GROUP = 4, OFFSET = 0, HALF_STEP = 32, HALF_GAP = 16;
  struct Weights {
    const uint8_t* p;
    int blocks;
  };

  static Weights load(const uint8_t* p, int blocks) { return {p, least(blocks, 4)}; }

  static V step(V acc, const Weights& w, const uint8_t* x, V scale, int) {
    float dots[4] = {};
    for (int i = 0; i < w.blocks; i++)
      dots[i] = float(DOT(w.p + i * BLOCK_BYTES, reinterpret_cast<const int8_t*>(x) + i * BLOCK));
    return fma(headrace::load(dots), scale, acc);
  }
};

using Q4 = PortableQuant<Q4Codec, 16, dot_q4>;
using Q8 = PortableQuant<Q8Codec, 32, dot_q8>;

template <class Q>
using Quantised = QuantFormat<Q>;

}  // namespace
}  // namespace headrace
