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

// Where a token's activations lie; minus and scaled: of whole blocks, of first halves, of second halves.
struct Acts {
  const uint8_t *codes, *scales, *minus[3], *scaled[3];
};

inline Acts view_acts(const uint8_t* acts, int padded) {
  const uint8_t* scales = acts + size_t(padded) * BLOCK;
  const size_t words = size_t(padded) * 4;
  return {acts, scales, {scales + words, scales + 2 * words, scales + 3 * words},
          {scales + 4 * words, scales + 5 * words, scales + 6 * words}};
}

// The largest magnitude of a block; a NaN comes out as NaN, and becomes the block's scale.
inline float peak_or_nan(const float* x) {
  V m = vabs(load(x));
#pragma GCC unroll 8
  for (int i = W; i < BLOCK; i += W) m = larger(m, vabs(load(x + i)));
  return largest_lane(m);
}

constexpr int lane_of_block(int block) {
  int lane = 0;
  while (block_of_lane(lane) != block) lane++;
  return lane;
}

// Blocks b .. b + W of the activations: those at x[i], padding where that is null.
inline void prepare_step(const float* const* x, int b, uint8_t* acts, int padded) {
  alignas(64) uint8_t codes[W][BLOCK] = {};
  alignas(64) float scale[W] = {};
  for (int i = 0; i < W; i++) {
    if (!x[i]) continue;
    const float peak = peak_or_nan(x[i]), inverse = peak > 0 ? 127.0f / peak : 0.0f;
    scale[lane_of_block(i)] = peak / 127.0f;
#pragma GCC unroll 8
    for (int k = 0; k < BLOCK; k += W) store_low_bytes(codes[i] + k, round_even(mul(load(x[i] + k), set1(inverse))));
  }
  I words[WORDS], sums[2] = {int_zero(), int_zero()};
  load_plane<WORDS, false>(codes[0], W, words);
#pragma GCC unroll 8
  for (int j = 0; j < WORDS; j++) {
    uint8_t* at = acts + size_t(b) * BLOCK + j * W * 4;
    int_store(at, words[j]);
    sums[j / 4] = dot(sums[j / 4], int_set1(0x01010101), at);
  }
  const Acts to = view_acts(acts, padded);
  const auto save = [&](const uint8_t* array, I values) { int_store(const_cast<uint8_t*>(array) + size_t(b) * 4, values); };
  const V by = load(scale);
  save(to.scales, as_ints(by));
  const I all[3] = {int_add(sums[0], sums[1]), sums[0], sums[1]};
  for (int i = 0; i < 3; i++) {
    save(to.minus[i], int_sub(int_zero(), all[i]));
    save(to.scaled[i], as_ints(mul(by, to_float(all[i]))));
  }
}

constexpr int log2_of(int n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

// The codes of W blocks less what they are offset by, as signed bytes.
template <class C>
inline __attribute__((always_inline)) void signed_codes(Step& q) {
  if (C::OFFSET == 0) return;
#pragma GCC unroll 8
  for (int j = 0; j < WORDS; j++) q[j] = byte_sub(q[j], int_set1(0x01010101u * uint8_t(C::OFFSET)));
}

template <int BYTES>
void join_bytes(const uint8_t* a, const uint8_t* b, uint8_t* to);  // where PAIR_TAILS is true

template <class C, class S>
struct BlockFormat {
  using Codes = C;
  using Scales = S;
  static constexpr int PARTS = S::PARTS;
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = W == 16 ? 8 : 2;
  static constexpr int SIDE = 4;  // tokens side by side

  static size_t row_bytes(int cols) { return S::bytes(cols / BLOCK) + size_t(cols / BLOCK) * BLOCK_BYTES<C>; }
  // Where a row ends in half a step, its last blocks stand in the activations once more, twice side by side: two rows then
  // end in one step.
  static constexpr bool PAIR_TAILS = W == BLOCK_GROUP;
  static bool has_tail(int blocks) { return PAIR_TAILS && blocks % W == W / 2; }
  static int act_blocks(int cols) { return padded_blocks(cols) + (has_tail(cols / BLOCK) ? W : 0); }
  static size_t acts_bytes(int cols) { return size_t(act_blocks(cols)) * (BLOCK + 28); }

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
  static inline I start(const uint8_t* minus) {
    return C::OFFSET ? shift_left<log2_of(C::OFFSET)>(int_load(minus)) : int_zero();
  }

  // acc += the products of W blocks from b on with T tokens, side by side: one after the other, each would wait for itself.
  template <int T>
  static inline __attribute__((always_inline)) void products(const Step& q, const Factors<PARTS>& f, const Acts* x, int b,
                                                             V* acc) {
    I dots[T][CHAINS<T>];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int i = 0; i < CHAINS<T>; i++)
        dots[t][i] = PARTS == 1 && i ? int_zero() : start(x[t].minus[PARTS == 1 ? 0 : 1 + i] + size_t(b) * 4);
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        const uint8_t* at = x[t].codes + size_t(b) * BLOCK + j * W * 4;
        I& sum = dots[t][CHAINS<T> == 1 ? 0 : j / 4];
        sum = C::WIDE ? dot_wide(sum, q[j], at) : dot(sum, q[j], at);
      }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      if (PARTS == 1 && CHAINS<T> == 2) dots[t][0] = int_add(dots[t][0], dots[t][CHAINS<T> - 1]);
      V total = mul(to_float(dots[t][0]), f.scale[0]);
      if (PARTS == 2) total = fma(to_float(dots[t][CHAINS<T> - 1]), f.scale[PARTS - 1], total);
      acc[t] = fma(total, load_floats(x[t].scales + size_t(b) * 4), acc[t]);
#pragma GCC unroll 2
      for (int part = 0; S::MIN && part < PARTS; part++)
        acc[t] = fma(f.min[part], load_floats(x[t].scaled[PARTS == 1 ? 0 : 1 + part] + size_t(b) * 4), acc[t]);
    }
  }
  template <int T>
  static constexpr int CHAINS = PARTS == 2 || T == 1 ? 2 : 1;

  static inline V load_floats(const uint8_t* p) { return headrace::load(reinterpret_cast<const float*>(p)); }

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

  // The scales of the last W / 2 blocks of two rows, from array I on, as those of one row of W.
  template <int I_>
  static inline __attribute__((always_inline)) void join_scales(const uint8_t* a, const uint8_t* b, int blocks, int first,
                                                                uint8_t* to) {
    if constexpr (I_ < sizeof(S::EIGHT) / sizeof(int)) {
      constexpr int BYTES = S::EIGHT[I_];
      if constexpr (BYTES > 0) join_bytes<BYTES>(a + size_t(first / 8) * BYTES, b + size_t(first / 8) * BYTES, to);
      const size_t next = size_t(blocks / 8) * BYTES;
      join_scales<I_ + 1>(a + next, b + next, blocks, first, to + 2 * BYTES);
    }
  }

  static inline __attribute__((always_inline)) void join_tails(const uint8_t* a, const uint8_t* b, int blocks, int first,
                                                               uint8_t* to) {
    join_scales<0>(a, b, blocks, first, to);
    constexpr int HIGH = C::HIGH * 32, LOW = C::LOW * 32;  // bytes of 8 blocks
    const size_t group = S::bytes(blocks) + size_t(first) * BLOCK_BYTES<C>;
    to += S::bytes(W);
    prefetch_lines(a + group, HIGH + LOW), prefetch_lines(b + group, HIGH + LOW);
    if constexpr (HIGH > 0) join_bytes<HIGH>(a + group, b + group, to);
    join_bytes<LOW>(a + group + HIGH, b + group + HIGH, to + 2 * HIGH);
  }

  // The last half steps of two rows, as one step.
  template <int R, int T>
  static inline __attribute__((always_inline)) void tails(const uint8_t* const* w, const Acts* x, int blocks, int b, int twice,
                                                          V (&acc)[R][T]) {
    alignas(64) uint8_t both[64 + W * (BLOCK_BYTES<C> + 4)];
    join_tails(w[0], w[1], blocks, b, both);
    Step q;
    Factors<PARTS> f;
    load_step<true>(both, W, 0, q, f);
#pragma GCC unroll 2
    for (int t = 0; t < T; t += SIDE) {
      V sums[least(SIDE, T)];
#pragma GCC unroll 4
      for (int i = 0; i < least(SIDE, T); i++) sums[i] = join_halves(acc[0][t + i], acc[1][t + i]);
      products<least(SIDE, T)>(q, f, x + t, twice, sums);
#pragma GCC unroll 4
      for (int i = 0; i < least(SIDE, T); i++) split_halves(sums[i], &acc[0][t + i], &acc[1][t + i]);
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
      x[t] = view_acts(acts[t], act_blocks(cols));
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) acc[r][t] = zero();
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) prefetch_scales(w[r], S::bytes(blocks));
    int b = 0;
    for (; b + W <= blocks; b += W) step<R, T, true>(w, x, blocks, b, acc);
    if constexpr (PAIR_TAILS && S::EIGHT[0] > 0 && R == 2) {
      if (has_tail(blocks)) {
        tails(w, x, blocks, b, padded_blocks(cols), acc);
        b = blocks;
      }
    }
    if (b < blocks) step<R, T, false>(w, x, blocks, b, acc);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(acc[r][t]);
  }

  static void prepare(const float* x, int cols, uint8_t* acts) {
    const int blocks = cols / BLOCK, padded = padded_blocks(cols), all = act_blocks(cols);
    for (int b = 0; b < all; b += W) {
      const float* from[W];
      for (int i = 0; i < W; i++) {
        const int block = b < padded ? b + i : blocks - W / 2 + i % (W / 2);
        from[i] = block < blocks ? x + block * BLOCK : nullptr;
      }
      prepare_step(from, b, acts, all);
    }
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

// Every block format: visit(code, format).
template <class Visit>
constexpr void each_block_format(const Visit& visit) {
  visit(Q8_0, BlockFormat<Bytes8, HalfScales>());
  visit(Q4_0, BlockFormat<Planes<0, 4, 8>, HalfScales>());
  visit(Q4_1, BlockFormat<Planes<0, 4, 0>, HalfMinScales>());
  visit(Q5_0, BlockFormat<Planes<1, 4, 16>, HalfScales>());
  visit(Q5_1, BlockFormat<Planes<1, 4, 0>, HalfMinScales>());
  visit(Q2_K, BlockFormat<Planes<0, 2, 0>, NibbleMinScales>());
  visit(Q3_K, BlockFormat<Planes<1, 2, 4>, ByteScales<2>>());
  visit(Q4_K, BlockFormat<Planes<0, 4, 0>, SixMinScales>());
  visit(Q5_K, BlockFormat<Planes<1, 4, 0>, SixMinScales>());
  visit(Q6_K, BlockFormat<Planes<2, 4, 32>, ByteScales<2>>());
  visit(IQ4_NL, BlockFormat<Table<Iq4Values>, HalfScales>());
  visit(IQ4_XS, BlockFormat<Table<Iq4Values>, ByteScales<1>>());
  visit(MXFP4, BlockFormat<Table<E2m1Values>, PowerScales>());
  visit(IQ3_S, BlockFormat<Table<Iq3sValues>, ByteScales<1>>());
  visit(IQ3_XXS, BlockFormat<Table<Iq3xxsValues>, ByteScales<1, 4>>());
  visit(IQ2_XXS, BlockFormat<Table<Iq2Values, 1, 2>, ByteScales<1, 8>>());
  visit(IQ2_XS, BlockFormat<Table<Iq2Values, 1, 2>, ByteScales<2, 8>>());
  visit(IQ1_S, BlockFormat<Table<Iq1Values, 1, 2>, ByteScales<1, 8>>());
  visit(IQ1_M, BlockFormat<Table<Iq1Values, 1, 2>, ByteScales<2, 8>>());
  visit(Q4_0_BF16, BlockFormat<Planes<0, 4, 8>, Bf16Scales>());
  visit(INT4_G32, BlockFormat<Planes<0, 4, 0>, ZeroScales<F16Row, 32>>());
  visit(INT4_G32_BF16, BlockFormat<Planes<0, 4, 0>, ZeroScales<BF16Row, 32>>());
  visit(INT4_G128, BlockFormat<Planes<0, 4, 0>, ZeroScales<F16Row, 128>>());
  visit(INT4_G128_BF16, BlockFormat<Planes<0, 4, 0>, ZeroScales<BF16Row, 128>>());
  visit(NVFP4, BlockFormat<Table<E2m1Values>, E4m3Scales>());
}

}  // namespace
}  // namespace headrace
