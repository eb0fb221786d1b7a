// Weights of block formats as int8 tiles [16 rows][64 k], with one scale for each GROUP columns of a row.
//
//   w[r][k] = d[r][block] * quant   becomes   round(quant * d / D * F::FULL), with the scale D; tokens bear 1 / FULL
//
// D is the largest |d| of the group's 8 blocks, so a weight moves by at most about D / (2 FULL): in q8_0 by what rounding
// to q8_0 moved the weights of the group's coarsest block, in q4_0 by a sixteenth of that. quant * d / D is one vpmulhrsw: in
// q8_0 of the weights, in q4_0 of the 16 values that a block has, out of which vpshufb picks.
//
//   F::STEPS                        tile rows (of 64 weights) that 64 bytes of quants hold
//   F::line(quants, ratio, tile)    unpacks 64 bytes of quants, for a row of STEPS tiles; their blocks' ratios stand in
//                                   both halves of an int32 each
//   F::column(step, place)          which column of the group lies at this place of a tile row; activations follow
//   F::arrange(row, step)           64 int8 of a token's group in that order
#pragma once

#include <immintrin.h>

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

constexpr int GROUP = 256, GROUP_BLOCKS = GROUP / BLOCK;
constexpr int STEP = 64, GROUP_STEPS = GROUP / STEP;  // columns of a tile; tiles of a group

struct Q8Groups {
  static constexpr int STEPS = 1;
  // Where d = D the ratio is almost -2^15 (2^15 has no place in a word): less by 1.4e-4 of itself on average, since rcp14
  // may give 6e-5 too much.
  static constexpr int RATIO_BITS = int((15u << 23) + 0x80000000u - 0x600u);
  static constexpr float FULL = -(1.0f - 1.37e-4f);

  static size_t line_bytes(int cols) { return size_t(cols); }

  // Packing words to bytes takes 8 of either operand in turn.
  static constexpr int column(int step, int place) {
    return step * STEP + place % 16 / 8 * BLOCK + place / 16 * 8 + place % 8;
  }

  static inline __attribute__((always_inline)) void line(const uint8_t* quants, const int32_t* ratio, uint8_t* tile) {
    const auto scaled = [&](int block) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + block * BLOCK));
      return _mm512_mulhrs_epi16(_mm512_cvtepi8_epi16(bytes), _mm512_set1_epi32(ratio[block]));
    };
    _mm512_store_si512(tile, _mm512_packs_epi16(scaled(0), scaled(1)));
  }

  static __m512i arrange(const uint8_t* row, int step) {
    struct alignas(64) Order {
      uint8_t at[STEP];
    };
    static constexpr Order order = [] {
      Order made{};
      for (int i = 0; i < STEP; i++) made.at[i] = uint8_t(column(0, i));
      return made;
    }();
    return _mm512_permutexvar_epi8(_mm512_load_si512(order.at), _mm512_loadu_si512(row + step * STEP));
  }
};

// first .. first + 7, each times 127, in every lane.
inline __m512i times_127(int first) {
  const auto pair = [&](int i) { return int((unsigned(first + i + 1) * 127 << 16) | (unsigned(first + i) * 127 & 0xFFFF)); };
  return _mm512_broadcast_i32x4(_mm_set_epi32(pair(6), pair(4), pair(2), pair(0)));
}

struct Q4Groups {
  static constexpr int STEPS = 2;
  static constexpr int RATIO_BITS = 12 << 23;  // where d = D the ratio is 2^12
  static constexpr float FULL = 127.0f / 8;

  static size_t line_bytes(int cols) { return size_t(cols) / 2; }

  // 64 bytes are 4 blocks: low nibbles are their first 16 columns, high nibbles the other 16.
  static constexpr int column(int step, int place) {
    return step / 2 * 2 * STEP + place / 16 * BLOCK + step % 2 * 16 + place % 16;
  }

  static inline __attribute__((always_inline)) void line(const uint8_t* quants, const int32_t* ratio, uint8_t* tile) {
    const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(ratio));
    const __m512i ratios = _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(four));
    const __m512i values = _mm512_packs_epi16(_mm512_mulhrs_epi16(ratios, times_127(-8)),
                                              _mm512_mulhrs_epi16(ratios, times_127(0)));
    const __m512i bytes = _mm512_loadu_si512(quants), nibble = _mm512_set1_epi8(15);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
    _mm512_store_si512(tile, _mm512_shuffle_epi8(values, _mm512_and_si512(bytes, nibble)));
    _mm512_store_si512(tile + TILE_BYTES, _mm512_shuffle_epi8(values, high));
  }

  static __m512i arrange(const uint8_t* row, int step) {
    const uint8_t* blocks = row + step / 2 * 2 * STEP;
    const __m512i a = _mm512_loadu_si512(blocks), b = _mm512_loadu_si512(blocks + STEP);
    return step % 2 ? _mm512_shuffle_i32x4(a, b, 0xDD) : _mm512_shuffle_i32x4(a, b, 0x88);
  }
};

using PairRatios = int32_t[2 * TILE_SIDE][GROUP_BLOCKS];  // of the rows of both runs, one group
using PairScales = float[2 * TILE_SIDE][GROUP_BLOCKS];    // D of a row in all 8 places

// Ratios of a group of two rows, 8 lanes each, and their D; `first`: the group's `blocks` scales in the first of them.
template <class F>
inline __attribute__((always_inline)) void scale_rows(const uint8_t* first, size_t row_bytes, __mmask8 blocks,
                                                      int32_t* ratios, float* largest) {
  const __m512i low_words = _mm512_broadcast_i32x4(_mm_set_epi32(0x0d0c0d0c, 0x09080908, 0x05040504, 0x01000100));
  const __m128i a = _mm_maskz_loadu_epi16(blocks, first), b = _mm_maskz_loadu_epi16(blocks, first + row_bytes);
  const V d = _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
  V top = vabs(d);
  top = vmax(top, _mm512_permute_ps(top, 0xB1));
  top = vmax(top, _mm512_permute_ps(top, 0x4E));
  top = vmax(top, _mm512_shuffle_f32x4(top, top, 0xB1));
  store(largest, top);
  // The unit of the ratio is multiplied in, and its sign, by adding to exponent and sign: float arithmetic has one port
  // beside tiles. A group of zeros has ratios of no sense, which its D of 0 takes away again.
  const __m512i inverse = _mm512_castps_si512(_mm512_rcp14_ps(top));
  const V units = _mm512_castsi512_ps(_mm512_add_epi32(inverse, _mm512_set1_epi32(F::RATIO_BITS)));
  _mm512_store_si512(ratios, _mm512_shuffle_epi8(_mm512_cvtps_epi32(mul(d, units)), low_words));
}

}  // namespace
}  // namespace headrace
