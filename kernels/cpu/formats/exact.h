// Dot products of block formats without rounding the activations: codes are unpacked to floats in registers.
//
//   out[r][t] = sum over blocks b of (scale[r][b] * (sum of code[r][k] * x[t][k]) + min[r][b] * (sum of x[t][k]))
//
// all in float32. Chosen at run time (context.h, exact). Slower than int8 activations (blocks.h) by what the unpacking
// costs. As there, a lane holds a block; activations are laid in that order, with the sums of the halves of their blocks
// behind. Every (row, token) has the running vectors of its block's parts, whatever the tile's size, so a token's result
// does not depend on the tokens beside it.
#pragma once

#include "formats/blocks.h"

namespace headrace {
namespace {

template <class F>
struct ExactFormat {
  using S = typename F::Scales;
  static constexpr int PARTS = F::PARTS;
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = W == 16 ? 4 : 2;

  static size_t acts_bytes(int cols) { return size_t(padded_blocks(cols)) * (BLOCK + 2) * sizeof(float); }

  // Byte I of every word as a float.
  template <int I_>
  static inline V byte_of(I words) {
    return to_float(shift_right_signed<24>(shift_left<24 - 8 * I_>(words)));
  }

  template <int T, int I_>
  static inline __attribute__((always_inline)) void add_byte(I words, const float* const* x, int at, V (&sums)[T][PARTS],
                                                             int part) {
    const V w = byte_of<I_>(words);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) sums[t][part] = fma(w, load(x[t] + at + I_ * W), sums[t][part]);
  }

  template <int R, int T, bool FULL>
  static inline __attribute__((always_inline)) void step(const uint8_t* const* w, const float* const* x, int blocks, int b,
                                                         int padded, V (&acc)[R][T]) {
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
      Step q;
      Factors<PARTS> f;
      F::template load_step<FULL>(w[r], blocks, b, q, f);
      signed_codes<typename F::Codes>(q);
      V sums[T][PARTS];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) sums[t][part] = zero();
#pragma GCC unroll 8
      for (int j = 0; j < WORDS; j++) {
        const int at = b * BLOCK + j * 4 * W, part = PARTS == 1 ? 0 : j / 4;
        add_byte<T, 0>(q[j], x, at, sums, part);
        add_byte<T, 1>(q[j], x, at, sums, part);
        add_byte<T, 2>(q[j], x, at, sums, part);
        add_byte<T, 3>(q[j], x, at, sums, part);
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) acc[r][t] = fma(f.scale[part], sums[t][part], acc[r][t]);
        if (S::MIN) add_minimum(f, x[t] + size_t(padded) * BLOCK + b, padded, acc[r][t]);
      }
    }
  }

  static inline __attribute__((always_inline)) void add_minimum(const Factors<PARTS>& f, const float* sums, int padded, V& acc) {
    const V first = load(sums), second = load(sums + padded);
    if (PARTS == 1)
      acc = fma(f.min[0], add(first, second), acc);
    else
      acc = fma(f.min[PARTS - 1], second, fma(f.min[0], first, acc));
  }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    const int blocks = cols / BLOCK, padded = padded_blocks(cols);
    const float* x[T];
    V acc[R][T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      x[t] = reinterpret_cast<const float*>(acts[t]);
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) acc[r][t] = zero();
    }
    int b = 0;
    for (; b + W <= blocks; b += W) step<R, T, true>(w, x, blocks, b, padded, acc);
    if (b < blocks) step<R, T, false>(w, x, blocks, b, padded, acc);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(acc[r][t]);
  }

  static void prepare(const float* x, int cols, uint8_t* acts) {
    const int blocks = cols / BLOCK, padded = padded_blocks(cols);
    float *to = reinterpret_cast<float*>(acts), *sums = to + size_t(padded) * BLOCK;
    for (int b = 0; b < padded; b += W)
      for (int lane = 0; lane < W; lane++) {
        const int block = b + block_of_lane(lane);
        float halves[2] = {0.0f, 0.0f};
        for (int k = 0; k < BLOCK; k++) {
          const float value = block < blocks ? x[block * BLOCK + k] : 0.0f;
          to[size_t(b) * BLOCK + k * W + lane] = value;
          halves[k / 16] += value;
        }
        sums[b + lane] = halves[0], sums[padded + b + lane] = halves[1];
      }
  }
};

}  // namespace
}  // namespace headrace
