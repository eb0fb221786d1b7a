// Activations for products of many tokens by vpdpbusd (tiles_vnni.h): int8 with a scale for 32 columns, as formats/blocks.h
// has them, eight tokens side by side.
#pragma once

#include "cores/lanes/eights.h"

namespace headrace {
namespace {

// Lines of 8 values that eight tokens have for a block: WORDS of codes, a scale, and what a format of so many PARTS needs of
// each part: scale times the sum of the codes where it has minimums, else minus that sum. With all of these for every format it
// would be 16 lines: tokens of 2048 columns then no longer lie in the second cache while rows go by, and a quarter more time.
enum TokenLine { SCALE = WORDS, OF_PART };
template <int PARTS_, bool SCALED_>
struct TokenLines {
  static constexpr int PARTS = PARTS_;
  static constexpr bool SCALED = SCALED_;
  static constexpr size_t BYTES = (OF_PART + PARTS) * EIGHT * 4;
  // Behind the blocks: whether all scales of the eight are medium.
  static size_t medium(int cols) { return size_t(cols / BLOCK) * BYTES; }
  static size_t half(int cols) { return round_up(medium(cols) + 1, 64); }
  static size_t stride(int cols) { return 2 * half(cols); }
};

// Hidden values: as activations of whatever lines `down` wants, and before those are made, as floats.
inline size_t vnni_hidden_floats(int width) { return TokenLines<2, false>::stride(width); }
inline size_t vnni_hidden_stride(int width) { return vnni_hidden_floats(width) + hidden_row(width) * TILE_SIDE * 4; }

// A scale is medium where it is within this factor of 1: the product of a token's and a weight's is then a normal number.
constexpr float MEDIUM_TOKEN = 0x1p40f, MEDIUM_WEIGHT = 0x1p80f;

// The largest magnitude of a block of each of eight tokens; a NaN counts as the largest.
inline __attribute__((always_inline)) __m256 peaks_of(const float* const* x) {
  __m256i a[EIGHT];
#pragma GCC unroll 8
  for (int t = 0; t < EIGHT; t++) {
    const __m512i m = as_ints(larger(vabs(load(x[t])), vabs(load(x[t] + W))));
    a[t] = _mm256_max_epu32(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
  }
  transpose8(a);
#pragma GCC unroll 3
  for (int n = 4; n; n /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) a[i] = _mm256_max_epu32(a[i], a[i + n]);
  return _mm256_castsi256_ps(a[0]);
}

// A block of eight tokens at x[0 .. 7]; tells whose scales are medium. Where all is 0 any scale will do, and 1 is medium.
template <class L>
inline __mmask8 vnni_pack_block(const float* const* x, uint8_t* to) {
  const __m256 peak = peaks_of(x), full = _mm256_set1_ps(127.0f);
  const __mmask8 none = _mm256_cmp_ps_mask(peak, _mm256_setzero_ps(), _CMP_EQ_OQ);
  const __m256 scale = _mm256_mask_mov_ps(_mm256_div_ps(peak, full), none, _mm256_set1_ps(1.0f));
  const __mmask8 some = _mm256_cmp_ps_mask(peak, _mm256_setzero_ps(), _CMP_GT_OQ);
  alignas(32) float inverse[EIGHT];
  _mm256_store_ps(inverse, _mm256_maskz_div_ps(some, full, peak));
  __m256i codes[EIGHT];
#pragma GCC unroll 8
  for (int t = 0; t < EIGHT; t++) {
    const V by = set1(inverse[t]);
    const __m128i low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(mul(load(x[t]), by)));
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(mul(load(x[t] + W), by)));
    codes[t] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  transpose8(codes);
  const auto line = [&](int i) { return reinterpret_cast<__m256i*>(to + i * EIGHT * 4); };
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
  for (int j = 0; j < WORDS; j++) {
    _mm256_storeu_si256(line(j), codes[j]);
    sums[j / 4] = _mm256_dpbusd_epi32(sums[j / 4], _mm256_set1_epi8(1), codes[j]);
  }
  _mm256_storeu_ps(reinterpret_cast<float*>(line(SCALE)), scale);
  if (L::PARTS == 1) sums[0] = _mm256_add_epi32(sums[0], sums[1]);
#pragma GCC unroll 2
  for (int part = 0; part < L::PARTS; part++)
    if (L::SCALED)
      _mm256_storeu_ps(reinterpret_cast<float*>(line(OF_PART + part)), _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums[part])));
    else
      _mm256_storeu_si256(line(OF_PART + part), _mm256_sub_epi32(_mm256_setzero_si256(), sums[part]));
  return _mm256_cmp_ps_mask(scale, _mm256_set1_ps(1 / MEDIUM_TOKEN), _CMP_GE_OQ) &
         _mm256_cmp_ps_mask(scale, _mm256_set1_ps(MEDIUM_TOKEN), _CMP_LE_OQ);
}

constexpr int PACK_AHEAD = 256;  // values of a token that are asked for ahead

// Up to 16 tokens; where an eight has fewer, its last one fills the place.
template <class L>
void vnni_pack(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles) {
  for (int first = 0; first < count; first += EIGHT, tiles += L::half(cols)) {
    EightTokens token(x, stride, index, first, count);
    __mmask8 medium = 0xFF;
    for (int b = 0; b < cols / BLOCK; b++) {
      medium &= vnni_pack_block<L>(token.at, tiles + size_t(b) * L::BYTES);
      for (const float*& at : token.at) {
        for (int i = 0; i < BLOCK; i += W) __builtin_prefetch(at + PACK_AHEAD + i, 0, 3);
        at += BLOCK;
      }
    }
    tiles[L::medium(cols)] = medium == 0xFF;
  }
}

template <class L>
void vnni_seal(uint8_t* hidden, int count, int width) {
  const float* values = reinterpret_cast<const float*>(hidden + vnni_hidden_floats(width));
  vnni_pack<L>(values, hidden_row(width), nullptr, count, width, hidden);
}

}  // namespace
}  // namespace headrace
