// The float formats f32, f16 and bf16 over any vec_*.h, and the dot tile that they share.
//
//   out[r][t] = sum over c of widen(w[r][c]) * x[t][c]
//
// Weights are widened to float32 exactly, activations stay float32. Every (row, token) has two running vectors (even
// and odd steps), whatever the tile's size: a token's result does not depend on the tokens beside it. Any number of
// columns. bf16 is widened pairwise (a shift and a mask for 2 W weights), so its activations are first sorted by even
// and odd place.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

struct F32Row {
  static constexpr int SIZE = 4;
  static constexpr bool PAIRS = false;
  static V load(const uint8_t* p) { return headrace::load(reinterpret_cast<const float*>(p)); }
  static V load_n(const uint8_t* p, int n) { return headrace::load_n(reinterpret_cast<const float*>(p), n); }
  static void store_n(uint8_t* p, V v, int n) { headrace::store_n(reinterpret_cast<float*>(p), v, n); }
};

struct F16Row {
  static constexpr int SIZE = 2;
  static constexpr bool PAIRS = false;
  static V load(const uint8_t* p) { return load_f16(p); }
  static V load_n(const uint8_t* p, int n) { return load_f16_n(p, n); }
  static void store_n(uint8_t* p, V v, int n) { store_f16_n(p, v, n); }
};

struct BF16Row {
  static constexpr int SIZE = 2;
  static constexpr bool PAIRS = true;
  static V load(const uint8_t* p) { return load_bf16(p); }
  static V load_n(const uint8_t* p, int n) { return load_bf16_n(p, n); }
  static void store_n(uint8_t* p, V v, int n) { store_bf16_n(p, v, n); }
};

template <class F>
struct FloatFormat {
  static constexpr int TILE_ROWS = W == 16 ? 4 : 2;
  static constexpr int TILE_TOKENS = W == 16 ? 3 : 2;

  static size_t row_bytes(int cols) { return size_t(cols) * F::SIZE; }
  static size_t acts_bytes(int cols) { return size_t(cols) * sizeof(float); }

  // Two vectors of weights from column c on, in the order of the prepared activations.
  static void load_two(const uint8_t* row, int c, V* first, V* second) {
    const uint8_t* p = row + size_t(c) * F::SIZE;
    prefetch_weights(p);
    if (F::SIZE == 4) prefetch_weights(p + W * F::SIZE);
    if (F::PAIRS) return load_bf16_pairs(p, first, second);
    *first = F::load(p);
    *second = F::load(p + W * F::SIZE);
  }

  template <int R, int T>
  static inline __attribute__((always_inline)) void step(const uint8_t* const* w, const float* const* x, int c,
                                                         V (&acc)[R][T][2]) {
    V wv[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) load_two(w[r], c, &wv[r][0], &wv[r][1]);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int u = 0; u < 2; u++) {
        V xv = load(x[t] + c + u * W);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r][t][u] = fma(wv[r][u], xv, acc[r][t][u]);
      }
  }

  // The last n <= W columns from c on.
  template <int R, int T>
  static void last_step(const uint8_t* const* w, const float* const* x, int c, int n, V (&acc)[R][T][2]) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      V wv = F::load_n(w[r] + size_t(c) * F::SIZE, n);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) acc[r][t][0] = fma(wv, load_n(x[t] + c, n), acc[r][t][0]);
    }
  }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    const float* x[T];
    V acc[R][T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      x[t] = reinterpret_cast<const float*>(acts[t]);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[r][t][0] = acc[r][t][1] = zero();
    }
    int c = 0;
    for (; c + 2 * W <= cols; c += 2 * W) step<R, T>(w, x, c, acc);
    for (; c < cols; c += W) last_step<R, T>(w, x, c, least(W, cols - c), acc);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(add(acc[r][t][0], acc[r][t][1]));
  }

  // Sorts whole steps into even and odd places, as load_bf16_pairs does with the weights.
  static void prepare_pairs(const float* x, int cols, uint8_t* acts) {
    float* out = reinterpret_cast<float*>(acts);
    int c = 0;
    for (; c + 2 * W <= cols; c += 2 * W)
      for (int i = 0; i < W; i++) out[c + i] = x[c + 2 * i], out[c + W + i] = x[c + 2 * i + 1];
    for (; c < cols; c++) out[c] = x[c];
  }

  static void unpack(const uint8_t* row, int cols, float scale, float* out) {
    const V by = set1(scale);
    int c = 0;
    for (; c + W <= cols; c += W) store(out + c, mul(F::load(row + size_t(c) * F::SIZE), by));
    if (c < cols) store_n(out + c, mul(F::load_n(row + size_t(c) * F::SIZE, cols - c), by), cols - c);
  }

  static void pack(const float* x, int cols, uint8_t* row) {
    for (int c = 0; c < cols; c += W) {
      int n = least(W, cols - c);
      F::store_n(row + size_t(c) * F::SIZE, n == W ? load(x + c) : load_n(x + c, n), n);
    }
  }
};

}  // namespace
}  // namespace headrace
