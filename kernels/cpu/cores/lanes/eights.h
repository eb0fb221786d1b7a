// What products of many tokens without matrix instructions have in common, whatever is multiplied (tiles_vnni.h,
// tiles_dpbf16.h): a lane is a row of weights, tokens go by eights.
//
// 16 rows of both runs are unpacked to a panel, once for all tokens. An eight's activations lie by columns, four bytes of
// each token side by side, each broadcast to all rows. No sum is ever turned, and none goes from lane to lane.
#pragma once

#include "cores/lanes/panels.h"

namespace headrace {
namespace {

constexpr int EIGHT = 8;  // tokens that lie together
constexpr int RUNS = 2;

using EightSums = float[EIGHT][RUNS][W];

constexpr int eights_of(int tokens) { return (tokens + EIGHT - 1) / EIGHT; }

// Eights of tokens over which the asking for lines ahead is spread: with all of it in the first one, experts of 32 and 64 tokens
// take 1.05 to 1.2 times as long where a weight has 6 bits or more.
constexpr int ASKING = 4;
constexpr int PASS_TOKENS = 512;  // for which a panel is unpacked, and whose sums wait
constexpr size_t PASS_SUMS = sizeof(EightSums) * (PASS_TOKENS / EIGHT);

// What is asked for meanwhile: for each step so many bytes from a and from b on.
struct Ahead {
  const uint8_t *a, *b;
  size_t bytes;

  Ahead from(int step) const { return {a + step * bytes, b + step * bytes, bytes}; }

  inline __attribute__((always_inline)) void ask(int step) const {
    for (size_t i = (step * bytes + 63) & ~size_t(63); i < (step + 1) * bytes; i += 64) {
      __builtin_prefetch(a + i, 0, 2);
      __builtin_prefetch(b + i, 0, 2);
    }
  }
};

// Eight vectors of 8 values: rows become columns.
inline __attribute__((always_inline)) void transpose8(__m256i (&a)[EIGHT]) {
  __m256i b[EIGHT];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256i low01 = _mm256_unpacklo_epi32(a[i], a[i + 1]), high01 = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    const __m256i low23 = _mm256_unpacklo_epi32(a[i + 2], a[i + 3]), high23 = _mm256_unpackhi_epi32(a[i + 2], a[i + 3]);
    b[i] = _mm256_unpacklo_epi64(low01, low23), b[i + 1] = _mm256_unpackhi_epi64(low01, low23);
    b[i + 2] = _mm256_unpacklo_epi64(high01, high23), b[i + 3] = _mm256_unpackhi_epi64(high01, high23);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    a[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    a[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
}

// Of up to 16 tokens those from `first` on; where an eight has fewer, the last one fills the place.
struct EightTokens {
  const float* at[EIGHT];

  EightTokens(const float* x, size_t stride, const int32_t* index, int first, int count) {
    for (int i = 0; i < EIGHT; i++) {
      const int t = least(first + i, count - 1);
      at[i] = x + size_t(index ? index[t] : t) * stride;
    }
  }
};

// A line that will be written.
inline void ask_to_write(const void* p) { asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p))); }

// The products of up to eight tokens with 16 rows of both runs from `row` on, to where they belong.
struct SaveProducts {
  const RowPair& w;
  const PairOut& out;

  void ask(int row, int token, int n) const {
    const float *a = out.a + token * out.a_stride + row, *b = out.b + token * out.b_stride + row;
    for (int t = 0; t < n; t++, a += out.a_stride, b += out.b_stride) ask_to_write(a), ask_to_write(b);
  }

  void operator()(const EightSums& sums, int row, int token, int n) const {
    float *a = out.a + token * out.a_stride + row, *b = out.b + token * out.b_stride + row;
    for (int t = 0; t < n; t++, a += out.a_stride, b += out.b_stride) {
      store_n(a, load(sums[t][0]), least(W, w.na - row));
      if (row < w.nb) store_n(b, load(sums[t][1]), least(W, w.nb - row));
    }
  }
};

// The hidden values of one token from row `row` on.
inline V hidden_lanes(V gate, V up, const TileHidden& h, int row, int lanes) {
  if (!h.glu) return mul(silu(gate), up);
  const Glu& how = *h.glu;
  if (how.gate_bias) gate = add(gate, load_n(how.gate_bias + row, lanes)), up = add(up, load_n(how.up_bias + row, lanes));
  return activate(gate, up, how.activation);
}

// Floats of a token's hidden values are a line longer than `width`, which is often a power of two, so that those of 16 tokens
// do not all go to one set of the cache.
inline size_t hidden_row(int width) { return size_t(width) + TILE_SIDE; }

// The hidden values that gate and up give, as floats [16 tokens][hidden_row] behind the room for activations.
struct SaveHidden {
  const RowPair& w;
  const TileHidden& h;
  size_t acts_bytes;  // of 16 tokens

  void ask(int row, int token, int n) const {
    const float* values = reinterpret_cast<float*>(h.base + token / TILE_SIDE * h.stride + acts_bytes);
    const size_t each = hidden_row(h.width);
    values += size_t(token % TILE_SIDE) * each + h.first + row;
    for (int t = 0; t < n; t++, values += each) ask_to_write(values);
  }

  void operator()(const EightSums& sums, int row, int token, int n) const {
    float* values = reinterpret_cast<float*>(h.base + token / TILE_SIDE * h.stride + acts_bytes);
    const size_t each = hidden_row(h.width);
    values += size_t(token % TILE_SIDE) * each + h.first + row;
    const int lanes = least(W, w.na - row);
    for (int t = 0; t < n; t++, values += each)
      store_n(values, hidden_lanes(load(sums[t][0]), load(sums[t][1]), h, h.first + row, lanes), lanes);
  }
};

}  // namespace
}  // namespace headrace
