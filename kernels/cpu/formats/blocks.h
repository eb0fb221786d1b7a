// Block formats over any ints_*.h: their dot tile, their activations, unpacking.
//
//   out[r][t] = sum over blocks b of xs[t][b] * (scale[r][b] * (integer dot of block b) + min[r][b] * (sum of x's codes))
//
// A format is codes (codes.h) and scales (scales.h). Activations become int8 per 32 values, once per op, in one layout
// for all formats. One step takes W blocks of a row and turns them so that a lane holds a block: scaling to float is then
// a few instructions for W blocks and a token, where blocks as they lie in memory need them for 1, 2 or 4. The turning is
// paid once for all tokens. What codes are offset by is taken away as an integer with which the sum begins: exactly. The
// order of additions of a (row, token) is fixed.
//
// Tokens go side by side, four chains of sums at a time: one after the other, up to 15 % slower.
#pragma once

#include "formats/codes.h"
#include "formats/scales.h"

namespace headrace {
namespace {

// Where a token's activations lie.
struct Acts {
  const uint8_t *codes, *scales, *sums, *second_sums;
};

inline Acts view_acts(const uint8_t* acts, int padded) {
  const uint8_t* scales = acts + size_t(padded) * BLOCK;
  const size_t words = size_t(padded) * 4;
  return {acts, scales, scales + words, scales + 2 * words};
}

// The largest magnitude of a block; a NaN comes out as NaN, and becomes the block's scale.
inline float peak_or_nan(const float* x) {
  V m = vabs(load(x));
#pragma GCC unroll 8
  for (int i = W; i < BLOCK; i += W) m = larger(m, vabs(load(x + i)));
  return largest_lane(m);
}

// Block b of the activations, or of a padding of zeros (x null).
inline void prepare_block(const float* x, int b, uint8_t* acts, int padded) {
  alignas(64) uint8_t codes[BLOCK] = {};
  const float peak = x ? peak_or_nan(x) : 0.0f, inverse = peak > 0 ? 127.0f / peak : 0.0f;
  for (int i = 0; x && i < BLOCK; i += W) store_low_bytes(codes + i, round_even(mul(load(x + i), set1(inverse))));
  int lane = 0;
  while (block_of_lane(lane) != b % W) lane++;
  uint8_t* step = acts + size_t(b / W * W) * BLOCK + lane * 4;
  int32_t sums[2] = {0, 0};
  for (int j = 0; j < WORDS; j++) {
    __builtin_memcpy(step + j * W * 4, codes + 4 * j, 4);
    for (int i = 0; i < 4; i++) sums[j / 4] += int8_t(codes[4 * j + i]);
  }
  const float scale = peak / 127.0f;
  uint8_t* at = acts + size_t(padded) * BLOCK + size_t(b / W * W + lane) * 4;
  __builtin_memcpy(at, &scale, 4);
  __builtin_memcpy(at + size_t(padded) * 4, &sums[0], 4);
  __builtin_memcpy(at + size_t(padded) * 8, &sums[1], 4);
}

constexpr int log2_of(int n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

// The codes of W blocks less what they are offset by, as signed bytes.
template <class C>
inline __attribute__((always_inline)) void signed_codes(Step& q) {
  if (C::OFFSET == 0) return;
#pragma GCC unroll 8
  for (int j = 0; j < WORDS; j++) q[j] = byte_sub(q[j], int_set1(0x01010101u * uint8_t(C::OFFSET)));
}

template <class C, class S>
struct BlockFormat {
  using Codes = C;
  using Scales = S;
  static constexpr int PARTS = S::PARTS;
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = W == 16 ? 8 : 2;
  static constexpr int SIDE = 4;  // tokens side by side

  static size_t row_bytes(int cols) { return S::bytes(cols / BLOCK) + size_t(cols / BLOCK) * BLOCK_BYTES<C>; }
  static size_t acts_bytes(int cols) { return size_t(padded_blocks(cols)) * (BLOCK + 12); }

  // The W blocks from b on, or as many as are left: their codes and factors.
  template <bool FULL>
  static inline __attribute__((always_inline)) void load_step(const uint8_t* row, int blocks, int b, Step& q,
                                                              Factors<PARTS>& f) {
    const int group = b / BLOCK_GROUP * BLOCK_GROUP, n = least(W, blocks - b);
    S::template load<FULL>(row, blocks, b, n, f);
    load_codes<C, FULL>(row + S::bytes(blocks) + size_t(group) * BLOCK_BYTES<C>, least(BLOCK_GROUP, blocks - group),
                        b - group, n, q);
  }

  // What a sum of products begins with: the offset times the sum of the activations, taken away.
  static inline I start(const uint8_t* sums) {
    if (C::OFFSET == 0) return int_zero();
    return int_sub(int_zero(), shift_left<log2_of(C::OFFSET)>(int_load(sums)));
  }

  // acc += the products of W blocks from b on with T tokens, side by side: one after the other, each would wait for itself.
  template <int T>
  static inline __attribute__((always_inline)) void products(const Step& q, const Factors<PARTS>& f, const Acts* x, int b,
                                                             V* acc) {
    I dots[T][PARTS];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      if (PARTS == 1) {
        dots[t][0] = C::OFFSET ? start_whole(x[t], b) : int_zero();
      } else {
        dots[t][0] = start(x[t].sums + size_t(b) * 4);
        dots[t][PARTS - 1] = start(x[t].second_sums + size_t(b) * 4);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        const uint8_t* at = x[t].codes + size_t(b) * BLOCK + j * W * 4;
        I& sum = dots[t][PARTS == 1 ? 0 : j / 4];
        sum = C::WIDE ? dot_wide(sum, q[j], at) : dot(sum, q[j], at);
      }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = fma(scaled(dots[t], f, x[t], b), load_floats(x[t].scales + size_t(b) * 4), acc[t]);
  }

  static inline V load_floats(const uint8_t* p) { return headrace::load(reinterpret_cast<const float*>(p)); }
  static inline I start_whole(const Acts& x, int b) {
    const I both = int_add(int_load(x.sums + size_t(b) * 4), int_load(x.second_sums + size_t(b) * 4));
    return int_sub(int_zero(), shift_left<log2_of(C::OFFSET)>(both));
  }

  // scale * dot + min * sum, of one token.
  static inline __attribute__((always_inline)) V scaled(const I (&dots)[PARTS], const Factors<PARTS>& f, const Acts& x, int b) {
    V total = mul(to_float(dots[0]), f.scale[0]);
    if (PARTS == 2) total = fma(to_float(dots[PARTS - 1]), f.scale[PARTS - 1], total);
    if (!S::MIN) return total;
    const I first = int_load(x.sums + size_t(b) * 4), second = int_load(x.second_sums + size_t(b) * 4);
    if (PARTS == 1) return fma(to_float(int_add(first, second)), f.min[0], total);
    return fma(to_float(second), f.min[PARTS - 1], fma(to_float(first), f.min[0], total));
  }

  template <int R, int T, bool FULL>
  static inline __attribute__((always_inline)) void step(const uint8_t* const* w, const Acts* x, int blocks, int b,
                                                         V (&acc)[R][T]) {
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
      Step q;
      Factors<PARTS> f;
      load_step<FULL>(w[r], blocks, b, q, f);
#pragma GCC unroll 2
      for (int t = 0; t < T; t += SIDE) products<least(SIDE, T)>(q, f, x + t, b, &acc[r][t]);
    }
  }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    const int blocks = cols / BLOCK;
    Acts x[T];
    V acc[R][T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      x[t] = view_acts(acts[t], padded_blocks(cols));
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) acc[r][t] = zero();
    }
    int b = 0;
    for (; b + W <= blocks; b += W) step<R, T, true>(w, x, blocks, b, acc);
    if (b < blocks) step<R, T, false>(w, x, blocks, b, acc);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(acc[r][t]);
  }

  static void prepare(const float* x, int cols, uint8_t* acts) {
    const int blocks = cols / BLOCK, padded = padded_blocks(cols);
    for (int b = 0; b < padded; b++) prepare_block(b < blocks ? x + b * BLOCK : nullptr, b, acts, padded);
  }

  static void unpack(const uint8_t* row, int cols, float by, float* out) {
    const int blocks = cols / BLOCK;
    for (int b = 0; b < blocks; b += W) {
      Step q;
      Factors<PARTS> f;
      load_step<false>(row, blocks, b, q, f);
      signed_codes<C>(q);
      alignas(64) int8_t codes[WORDS][W][4];
      alignas(64) float scale[PARTS][W], min[PARTS][W];
      for (int j = 0; j < WORDS; j++) int_store(reinterpret_cast<uint8_t*>(codes[j]), q[j]);
      for (int part = 0; part < PARTS; part++) {
        store(scale[part], f.scale[part]);
        if (S::MIN) store(min[part], f.min[part]);
      }
      for (int lane = 0; lane < W; lane++) {
        if (b + block_of_lane(lane) >= blocks) continue;
        float* to = out + (b + block_of_lane(lane)) * BLOCK;
        for (int k = 0; k < BLOCK; k++) {
          const int part = PARTS == 1 ? 0 : k / 16;
          const float product = float(codes[k / 4][lane][k % 4]) * scale[part][lane];
          to[k] = (S::MIN ? product + min[part][lane] : product) * by;
        }
      }
    }
  }
};

}  // namespace
}  // namespace headrace
