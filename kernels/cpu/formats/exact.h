// Dot products of the block formats without rounding the activations: weights are unpacked in registers.
//
//   out[r][t] = sum over blocks b of ws[r][b] * (sum over the block of quant[r][k] * x[t][k]),  all in float32
//
// Chosen at run time (isa.h, set_exact). Slower than int8 activations (quants.h) by what the unpacking costs: two threads
// with AVX-512 read q4_0 experts for one token at 14.7 GB/s, against 28.4 with int8 and 33 of a plain read; q8_0 at 22.0
// against 30.1. Every
// (row, token) has the running vectors of its block's parts, whatever the tile's size, so a token's result does not
// depend on the tokens beside it.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

template <class Q>
struct ExactFormat {
  static constexpr int PARTS = BLOCK / W;
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = W == 16 ? 4 : 2;

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    const int blocks = cols / BLOCK;
    const size_t quants = scales_bytes(blocks);
    V acc[R][T];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) acc[r][t] = zero();
    float scales[R][W];
    for (int b = 0; b < blocks; b++) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        if (b % W == 0) store(scales[r], load_f16_n(w[r] + b * 2, least(W, blocks - b)));
        const uint8_t* p = w[r] + quants + size_t(b) * Q::BLOCK_BYTES;
        if (b * Q::BLOCK_BYTES % 64 == 0) prefetch_weights(p);
        V q[PARTS];
        Q::Codec::values(p, q);
        const V scale = set1(scales[r][b % W]);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const float* x = reinterpret_cast<const float*>(acts[t]) + b * BLOCK;
          V sum = mul(q[0], load(x));
#pragma GCC unroll 8
          for (int i = 1; i < PARTS; i++) sum = fma(q[i], load(x + i * W), sum);
          acc[r][t] = fma(scale, sum, acc[r][t]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(acc[r][t]);
  }
};

}  // namespace
}  // namespace headrace
