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
// q4_0 has only 16 values to a block: they are computed once, rounded by adding half a unit, and one vpermb picks 32
// weights out of them, their bytes 2 and 3 each. A byte of the index is nibble * 4 + 2 or + 3: one vpmultishiftqb brings
// the right nibble, with bits of its neighbours around it, and one vpternlogd sets the lower two. Five operations for the
// two vector ports where vpermw takes six, since it counts twice: 315 against 325 us for an expert of 32 tokens. Tried
// before: bytes widened to words in order and a table rounded by vcvtne2ps2bf16, slower, because both go through one port.
//
// q8_0 with vpdpbusd adding single bytes to 1.5 * 2^23, and one multiply-add that takes the constant away again: fewer
// operations, no faster.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

// cvtne2ps: 16 + 16 floats to 32 bf16, rounded to nearest even.
inline __m512i to_bf16_pair(V low, V high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Words 0 .. 15 and 16 .. 31 by turns.
alignas(64) constexpr int16_t INTERLEAVE[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

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

  static size_t quants(int cols) { return halves_bytes(cols / BLOCK); }

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

// At which bit of its 8 bytes the index for each byte of the tile row begins, two bits below its nibble. A quarter of the
// row takes 4 nibbles of either 8 bytes: the first low four, the last low four, the first high four, the last high four.
struct alignas(64) Q4Shifts {
  uint8_t at[64];
};
constexpr Q4Shifts Q4_SHIFTS = [] {
  Q4Shifts shifts{};
  for (int i = 0; i < 64; i++) {
    const int quarter = i / 16, word = i / 2 % 4, nibble = 2 * (quarter % 2 * 4 + word) + quarter / 2;
    shifts.at[i] = uint8_t((4 * nibble + 62) % 64);
  }
  return shifts;
}();

struct Q4Block {
  static constexpr int BYTES = 16;

  static constexpr StepOrder order() {
    StepOrder order{};
    for (int i = 0; i < BLOCK; i++) order.at[i] = int8_t(i / 4 % 2 * 8 + i / 8 % 2 * 4 + i % 4 + i / 16 * 16);
    return order;
  }

  static __m512i block(const uint8_t* p, V scale) {
    constexpr int LOW_BITS_OF_THIRD = 0xBA;  // (first and not second) or third
    const __m512i values = _mm512_castps_si512(mul(load(Q4_VALUES), scale));
    const __m512i table = _mm512_add_epi32(values, _mm512_set1_epi32(0x8000));
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i turned = _mm512_multishift_epi64_epi8(_mm512_load_si512(Q4_SHIFTS.at), bytes);
    const __m512i index = _mm512_ternarylogic_epi32(turned, _mm512_set1_epi8(3), _mm512_set1_epi16(0x0302),
                                                    LOW_BITS_OF_THIRD);
    return _mm512_permutexvar_epi8(index, table);
  }
};

using Q8Rows = BlockRows<Q8Block>;
using Q4Rows = BlockRows<Q4Block>;

}  // namespace
}  // namespace headrace
