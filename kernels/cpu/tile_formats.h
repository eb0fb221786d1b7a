// Weights as bf16 tiles [16 rows][32 k], one block a tile row, by AVX-512 with bf16 conversions.
//
//   F::scales(row, step, out)               scales of CHUNK steps of a row, widened; bf16 has none
//   F::block(row, quants, step, cols, s)    the 32 weights of one row and step; s points to its scale
//   F::LINE_STEPS                           steps that one cache line of a row holds
//   F::ORDER                                in which order the 32 weights of a step lie in the tile; activations are
//                                           laid in the same order
//
// bf16 is copied, the last columns padded with zeros; a block's weights are quant * scale, rounded to bf16 once.
//
// q4_0 has only 16 values to a block: they are computed once, and one vpermw picks 32 weights out of them. It takes the
// upper halves of 16 floats (odd words), rounded by adding half a unit, so an index is nibble * 2 + 1; of an index it
// looks at 5 bits only. The 16 bytes are loaded into all four quarters of the vector and turned so far that in each
// quarter another nibble of every word lies in bits 1 .. 4: even low, even high, odd low, odd high nibbles. Measured
// from L1: 3.9 cycles a block. Tried before: bytes widened to words in order and a table rounded by vcvtne2ps2bf16, 4.7
// cycles, because both go through one port.
#pragma once

#include "layout.h"
#include "math.h"

namespace headrace {
namespace {

// cvtne2ps: 16 + 16 floats to 32 bf16, rounded to nearest even.
inline __m512i to_bf16_pair(V low, V high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

constexpr int CHUNK = 8;  // steps (of 32 columns) whose scales are widened together

struct StepOrder {
  int8_t at[BLOCK];  // which of the step's columns lies here
};

constexpr StepOrder in_order() {
  StepOrder order{};
  for (int i = 0; i < BLOCK; i++) order.at[i] = int8_t(i);
  return order;
}

struct BF16Rows {
  static constexpr StepOrder ORDER = in_order();
  static constexpr int LINE_STEPS = 1;
  static constexpr bool SCALED = false;

  static size_t quants(int) { return 0; }
  static void scales(const uint8_t*, int, float*) {}

  static inline __attribute__((always_inline)) __m512i block(const uint8_t* row, size_t at, int left, const float*) {
    const __mmask32 there = left >= BLOCK ? ~0u : (1u << left) - 1;
    return _mm512_maskz_loadu_epi16(there, row + at);
  }
  static constexpr int BYTES = 2 * BLOCK;
};

// What block formats share: Q::block(quants, scale) gives the 32 bf16 of a block.
template <class Q>
struct BlockRows {
  static constexpr StepOrder ORDER = Q::order();
  static constexpr int BYTES = Q::BYTES, LINE_STEPS = 64 / Q::BYTES;
  static constexpr bool SCALED = true;

  static size_t quants(int cols) { return scales_bytes(cols / BLOCK); }

  static void scales(const uint8_t* row, int step, float* out) {  // 16 bytes: padding makes them whole
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + step * 2));
    _mm256_store_ps(out, _mm256_cvtph_ps(half));
  }

  static inline __attribute__((always_inline)) __m512i block(const uint8_t* row, size_t at, int, const float* scale) {
    return Q::block(row + at, set1(*scale));
  }
};

struct Q8Block {
  static constexpr int BYTES = 32;
  static constexpr StepOrder order() { return in_order(); }

  static V half(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static __m512i block(const uint8_t* p, V scale) {
    return to_bf16_pair(mul(half(p), scale), mul(half(p + 16), scale));
  }
};

alignas(64) constexpr float Q4_VALUES[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
alignas(64) constexpr int32_t Q4_TURNS[16] = {1, 1, 1, 1, 29, 29, 29, 29, 25, 25, 25, 25, 21, 21, 21, 21};

struct Q4Block {
  static constexpr int BYTES = 16;

  static constexpr StepOrder order() {
    StepOrder order{};
    for (int i = 0; i < BLOCK; i++) order.at[i] = int8_t(i % 8 * 2 + i / 16 + i / 8 % 2 * 16);
    return order;
  }

  static __m512i block(const uint8_t* p, V scale) {
    const __m512i values = _mm512_castps_si512(mul(load(Q4_VALUES), scale));
    const __m512i table = _mm512_add_epi32(values, _mm512_set1_epi32(0x8000));
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i turned = _mm512_rolv_epi32(bytes, _mm512_load_si512(Q4_TURNS));
    return _mm512_permutexvar_epi16(_mm512_or_si512(turned, _mm512_set1_epi16(1)), table);
  }
};

using Q8Rows = BlockRows<Q8Block>;
using Q4Rows = BlockRows<Q4Block>;

}  // namespace
}  // namespace headrace
