// Integer dot products of block formats with AVX2: vpmaddubsw adds pairs u8 * s8 into 16 bits, vpmaddwd pairs of those.
//
//   q4_0   32 bytes of nibbles are 2 blocks; lanes 0-3 and 4-7 hold their dot products. Nibbles are unsigned: offset 8.
//          Largest pair sum over both halves: 2 * 2 * 15 * 127 = 7620, far from overflow.
//   q8_0   one block. |w| * (x with the sign of w): no offset. Largest pair sum: 2 * 128 * 127 = 32512, just fits.
#pragma once

#include "isa/vec_avx2.h"
#include "formats/quants.h"

namespace headrace {
namespace {

inline __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline V widen_pairs(__m256i pairs) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }

struct Q4 {
  using Codec = Q4Codec;
  static constexpr int BLOCK_BYTES = 16, GROUP = 2, OFFSET = 8, HALF_STEP = 16, HALF_GAP = 32;
  struct Weights {
    __m256i lo, hi;
  };

  static Weights load(const uint8_t* p, int blocks) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i v =
        blocks >= 2 ? load_bytes(p) : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_and_si256(v, low), _mm256_and_si256(_mm256_srli_epi16(v, 4), low)};
  }

  static V step(V acc, const Weights& w, const uint8_t* x, V scale, int g) {
    __m256i lo = _mm256_maddubs_epi16(w.lo, load_bytes(x)), hi = _mm256_maddubs_epi16(w.hi, load_bytes(x + 32));
    __m256i lanes = _mm256_set_epi32(g + 1, g + 1, g + 1, g + 1, g, g, g, g);
    return fma(widen_pairs(_mm256_add_epi16(lo, hi)), _mm256_permutevar8x32_ps(scale, lanes), acc);
  }
};

struct Q8 {
  using Codec = Q8Codec;
  static constexpr int BLOCK_BYTES = 32, GROUP = 1, OFFSET = 0, HALF_STEP = 32, HALF_GAP = 16;
  using Weights = __m256i;

  static Weights load(const uint8_t* p, int) { return load_bytes(p); }

  static V step(V acc, Weights w, const uint8_t* x, V scale, int g) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load_bytes(x), w));
    return fma(widen_pairs(pairs), _mm256_permutevar8x32_ps(scale, _mm256_set1_epi32(g)), acc);
  }
};

template <class Q>
using Quantised = QuantFormat<Q>;

}  // namespace
}  // namespace headrace
