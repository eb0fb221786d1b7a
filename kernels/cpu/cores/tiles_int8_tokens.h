// Activations of 16 tokens as int8 tiles, with one scale for 256 columns of a token: max|x| / 127.
//
// `pack` makes them from rows of float32; `seal` makes them from what GLU wrote, which lies by columns. Both round to
// nearest, in the order of columns that the weights' format unpacks to (F::arrange, F::column in tile_formats_int8.h). A NaN
// is the scale of its group.
#pragma once

#include "cores/tiles.h"
#include "formats/tile_formats_int8.h"

namespace headrace {
namespace {

inline int groups_of(int cols) { return (cols + GROUP - 1) / GROUP; }

// Activations of 16 tokens: [groups][steps] tiles, then the scales [groups][16 tokens].
inline size_t int8_tiles_bytes(int cols) { return size_t(groups_of(cols)) * GROUP_STEPS * TILE_BYTES; }
inline size_t int8_stride(int cols) { return int8_tiles_bytes(cols) + size_t(groups_of(cols)) * TILE_SIDE * 4; }
inline float* int8_scales(uint8_t* tiles, int cols) { return reinterpret_cast<float*>(tiles + int8_tiles_bytes(cols)); }

// The hidden values of 16 tokens: their tiles, and before those are made, [width][16 tokens] floats.
inline size_t int8_hidden_stride(int width) { return int8_stride(width) + size_t(width) * TILE_SIDE * 4; }

// One token's columns [0, n) of a group as int8; returns their scale.
inline float quantise_group(const float* x, int n, uint8_t* out) {
  V top = zero();
  for (int i = 0; i < n; i += W) top = larger(top, vabs(load_n(x + i, least(W, n - i))));
  const float largest = largest_lane(top);  // NaN if one is
  const V inverse = set1(largest > 0 ? 127.0f / largest : 0.0f);
  for (int i = 0; i < GROUP; i += W) {
    const V v = i < n ? mul(load_n(x + i, least(W, n - i)), inverse) : zero();
    store_low_bytes(out + i, v);
  }
  return largest / 127.0f;
}

template <class F>
void int8_pack(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles) {
  alignas(64) uint8_t rows[TILE_SIDE][GROUP] = {};
  float* scales = int8_scales(tiles, cols);
  for (int g = 0; g < groups_of(cols); g++) {
    store(scales + g * TILE_SIDE, zero());
    for (int i = 0; i < count; i++) {
      const float* token = x + (index ? index[i] : i) * stride + g * GROUP;
      scales[g * TILE_SIDE + i] = quantise_group(token, least(GROUP, cols - g * GROUP), rows[i]) / F::FULL;
    }
    for (int step = 0; step < GROUP_STEPS; step++, tiles += TILE_BYTES) {
      V fours[TILE_SIDE];
#pragma GCC unroll 16
      for (int i = 0; i < TILE_SIDE; i++) fours[i] = _mm512_castsi512_ps(F::arrange(rows[i], step));
      transpose(fours);
#pragma GCC unroll 16
      for (int i = 0; i < TILE_SIDE; i++) store(reinterpret_cast<float*>(tiles + i * 64), fours[i]);
    }
  }
}

// Low bytes of four vectors side by side.
inline __m512i join_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  constexpr int WHERE_THIRD_IS_SET = 0xCA;  // third ? second : first, by bits
  const auto select = [](__m512i high, __m512i low, int mask) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), low, high, WHERE_THIRD_IS_SET);
  };
  const __m512i ab = select(_mm512_slli_epi32(b, 8), a, 0xFF);
  return select(_mm512_slli_epi32(d, 24), select(_mm512_slli_epi32(c, 16), ab, 0xFFFF), 0xFFFFFF);
}

// Makes the tiles of 16 tokens out of their hidden values.
template <class F>
void int8_seal(uint8_t* hidden, int, int width) {
  const float* values = reinterpret_cast<const float*>(hidden + int8_stride(width));
  float* scales = int8_scales(hidden, width);
  for (int g = 0; g < groups_of(width); g++, values += GROUP * TILE_SIDE) {
    const int n = least(GROUP, width - g * GROUP);
    V top = zero();
    for (int k = 0; k < n; k++) top = larger(top, vabs(load(values + k * TILE_SIDE)));
    store(scales + g * TILE_SIDE, mul(top, set1(1.0f / (127 * F::FULL))));
    const V inverse = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(top, zero(), _CMP_NEQ_UQ), set1(127.0f), top);
    const auto column = [&](int k) {
      return _mm512_cvtps_epi32(k < n ? mul(load(values + k * TILE_SIDE), inverse) : zero());
    };
    for (int step = 0; step < GROUP_STEPS; step++)
      for (int i = 0; i < STEP; i += 4, hidden += 64)
        _mm512_store_si512(hidden, join_bytes(column(F::column(step, i)), column(F::column(step, i + 1)),
                                              column(F::column(step, i + 2)), column(F::column(step, i + 3))));
  }
}

}  // namespace
}  // namespace headrace
