// Integer dot products of block formats with AVX-512 VNNI: vpdpbusd adds, per 32-bit lane, four products u8 * s8.
//
// 16 blocks of a row are taken at a time and turned so that a lane holds one block: 8 vectors, each with 4 of a block's 32
// weights. Scaling to float is then three instructions for 16 blocks and a token, where blocks as they lie in memory
// need them for 4 blocks (q4_0) or 2 (q8_0). The turning is paid once for all tokens.
//
//   q4_0   4 x 64 bytes: 4 x 4 words change places, then nibbles are cut. Lane 4 i + j holds block 4 j + i.
//   q8_0   8 x 64 bytes: the same twice, then the halves of blocks are put together. xor 128 makes the weights unsigned.
//
// Activations are laid in the same order. The surplus of unsigned weights, OFFSET * sum(x), is an integer that the sum
// begins with: it is taken away exactly, and costs nothing.
//
// A matrix of 65536 x 2048 on two threads, milliseconds with 1 / 2 / 4 / 8 / 16 tokens, best of 36, against blocks scaled
// as they lie:
//   q4_0   1.31 / 1.33 / 2.07 / 3.97 / 8.0 (1.63 / 2.20 / 3.13 / 6.42 / 12.1)
//   q8_0   2.63 / 2.65 / 2.89 / 4.59 / 8.9 (3.72 / 3.25 / 4.20 / 8.40 / 16.8)
// Tokens go side by side, four chains of sums at a time: one after the other, up to 15 % slower.
#pragma once

#include "isa/vec_avx512.h"
#include "formats/quants.h"

namespace headrace {
namespace {

using Turned = __m512i[8];  // j: weights 4 j .. 4 j + 3 of 16 blocks

struct alignas(64) Lanes {
  int32_t at[W];
};

inline __m512i load_words(const uint8_t* p, int words) {
  return words >= W ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(first(most(0, words)), p);
}

// Of every 128-bit quarter: word d of a[0] .. a[3] go to a[d].
inline __attribute__((always_inline)) void turn_words(__m512i* a) {
  const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  a[0] = _mm512_unpacklo_epi64(low01, low23), a[1] = _mm512_unpackhi_epi64(low01, low23);
  a[2] = _mm512_unpacklo_epi64(high01, high23), a[3] = _mm512_unpackhi_epi64(high01, high23);
}

struct Q4 {
  using Codec = Q4Codec;
  static constexpr int BLOCK_BYTES = 16, OFFSET = 8;

  static constexpr int lane_of(int block) { return block % 4 * 4 + block / 4; }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* p, int blocks, Turned& q) {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      if (FULL) prefetch_weights(p + 64 * i);
      q[i] = load_words(p + 64 * i, FULL ? W : 4 * blocks - W * i);
    }
    turn_words(q);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      q[4 + i] = _mm512_and_si512(_mm512_srli_epi16(q[i], 4), low);
      q[i] = _mm512_and_si512(q[i], low);
    }
  }
};

struct Q8 {
  using Codec = Q8Codec;
  static constexpr int BLOCK_BYTES = 32, OFFSET = 128;

  static constexpr int lane_of(int block) { return (block / 8 * 2 + block % 2) * 4 + block % 8 / 2; }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* p, int blocks, Turned& q) {
    Turned a;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      if (FULL) prefetch_weights(p + 64 * i);
      a[i] = load_words(p + 64 * i, FULL ? W : 8 * blocks - W * i);
    }
    turn_words(a), turn_words(a + 4);
    const __m512i sign = _mm512_set1_epi8(char(0x80));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {  // quarters 0 and 2 hold words 0 .. 3 of blocks, 1 and 3 words 4 .. 7
      q[i] = _mm512_xor_si512(_mm512_shuffle_i64x2(a[i], a[4 + i], 0x88), sign);
      q[4 + i] = _mm512_xor_si512(_mm512_shuffle_i64x2(a[i], a[4 + i], 0xDD), sign);
    }
  }
};

template <class Q>
struct TurnedFormat : QuantFormat<Q> {
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = 8;
  static constexpr int SIDE = 4;  // tokens side by side

  // Which block a lane holds.
  static constexpr Lanes blocks_of_lanes() {
    Lanes lanes{};
    for (int b = 0; b < W; b++) lanes.at[Q::lane_of(b)] = b;
    return lanes;
  }

  // Blocks b .. b + n of R rows; n is W in all steps but a last, not FULL one.
  template <int R, int T, bool FULL>
  static inline __attribute__((always_inline)) void step(const uint8_t* const* w, const uint8_t* const* x, size_t scales,
                                                         size_t quants, int b, int n, V (&acc)[R][T]) {
    static constexpr Lanes block_of_lane = blocks_of_lanes();
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
      if (FULL) prefetch_weights(w[r] + b * 2);
      const V ws = _mm512_permutexvar_ps(_mm512_load_si512(block_of_lane.at),
                                         FULL ? load_f16(w[r] + b * 2) : load_f16_n(w[r] + b * 2, n));
      Turned q;
      Q::template load<FULL>(w[r] + quants + size_t(b) * Q::BLOCK_BYTES, n, q);
#pragma GCC unroll 2
      for (int t = 0; t < T; t += SIDE) products<least(SIDE, T)>(q, ws, x + t, b, scales, &acc[r][t]);
    }
  }

  // acc += the products of 16 blocks with T tokens, side by side: one after the other, each would wait for itself.
  template <int T>
  static inline __attribute__((always_inline)) void products(const Turned& q, V ws, const uint8_t* const* x, int b,
                                                             size_t scales, V* acc) {
    const size_t more = scales / BLOCK * sizeof(float);  // bytes from scales to offsets
    __m512i dots[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dots[t] = _mm512_loadu_si512(x[t] + scales + more + size_t(b) * 4);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
        dots[t] = _mm512_dpbusd_epi32(dots[t], q[j], _mm512_loadu_si512(x[t] + size_t(b) * BLOCK + 64 * j));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const V both = mul(ws, load(reinterpret_cast<const float*>(x[t] + scales + size_t(b) * 4)));
      acc[t] = fma(_mm512_cvtepi32_ps(dots[t]), both, acc[t]);
    }
  }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    const int blocks = cols / BLOCK;
    const size_t quants = scales_bytes(blocks), scales = size_t(padded_blocks(cols)) * BLOCK;
    V acc[R][T];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) acc[r][t] = zero();
    int b = 0;
    for (; b + W <= blocks; b += W) step<R, T, true>(w, acts, scales, quants, b, W, acc);
    if (b < blocks) step<R, T, false>(w, acts, scales, quants, b, blocks - b, acc);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(acc[r][t]);
  }

  static void prepare(const float* x, int cols, uint8_t* acts) {
    const int blocks = cols / BLOCK, padded = padded_blocks(cols);
    const ActsView view = view_acts(acts, padded);
    float* scales = const_cast<float*>(view.scales);
    int32_t* starts = reinterpret_cast<int32_t*>(const_cast<float*>(view.offsets));
    for (int b = 0; b < padded; b++) {
      alignas(64) uint8_t quants[BLOCK] = {};
      const float peak = b < blocks ? peak_or_nan(x + b * BLOCK) : 0.0f;
      float total = 0.0f;
      if (b < blocks) total = QuantFormat<Q>::prepare_block(x + b * BLOCK, peak > 0 ? 127.0f / peak : 0.0f, quants, quants + 16);
      const int lane = Q::lane_of(b % W), group = b / W * W;
      for (int j = 0; j < 8; j++) __builtin_memcpy(acts + group * BLOCK + j * 64 + lane * 4, quants + 4 * j, 4);
      scales[group + lane] = peak / 127.0f;
      starts[group + lane] = -Q::OFFSET * int32_t(total);
    }
  }
};

template <class Q>
using Quantised = TurnedFormat<Q>;

// vpdpbusd on registers, ten chains so that its latency does not show: what the instruction can do at best.
inline double int8_peak(int rounds) {
  constexpr int CHAINS = 10;
  __m512i sums[CHAINS], ones = _mm512_set1_epi8(1);
#pragma GCC unroll 10
  for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_setzero_si512();
  for (int r = 0; r < rounds; r++)
#pragma GCC unroll 10
    for (int i = 0; i < CHAINS; i++) {
      sums[i] = _mm512_dpbusd_epi32(sums[i], ones, ones);
      asm volatile("" : "+v"(sums[i]));  // its value counts
    }
  return double(rounds) * CHAINS * 64 * 2;
}

}  // namespace
}  // namespace headrace
