// Integer dot products of block formats with AVX-512 VNNI: vpdpbusd adds, per 32-bit lane, four products u8 * s8.
//
//   q4_0   64 bytes of nibbles are 4 blocks. Low halves against [first halves of 4 blocks], high halves against
//          [second halves]: lanes 4i .. 4i+3 then hold block i. Nibbles are unsigned: offset 8.
//   q8_0   64 bytes are 2 blocks, lanes 0-7 and 8-15. xor 128 makes the weights unsigned: offset 128.
//
// A permutation of the vector of W = 16 block scales spreads each scale over the lanes of its block.
#pragma once

#include "vec_avx512.h"
#include "quants.h"

namespace headrace {
namespace {

// Lane numbers / 4, and / 8: which block of a group a lane belongs to.
alignas(64) constexpr int32_t BLOCK_OF_4[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
alignas(64) constexpr int32_t BLOCK_OF_8[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};

inline V spread(V scales, const int32_t* block_of, int g) {
  __m512i lanes = _mm512_add_epi32(_mm512_load_si512(block_of), _mm512_set1_epi32(g));
  return _mm512_permutexvar_ps(lanes, scales);
}

struct Q4 {
  using Codec = Q4Codec;
  static constexpr int BLOCK_BYTES = 16, GROUP = 4, OFFSET = 8, HALF_STEP = 16, HALF_GAP = 64;
  struct Weights {
    __m512i lo, hi;
  };

  static Weights load(const uint8_t* p, int blocks) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i v = blocks >= 4 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi64(__mmask8((1u << 2 * blocks) - 1), p);
    return {_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16(v, 4), low)};
  }

  static V step(V acc, const Weights& w, const uint8_t* x, V scale, int g) {
    __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.lo, _mm512_loadu_si512(x));
    dots = _mm512_dpbusd_epi32(dots, w.hi, _mm512_loadu_si512(x + 64));
    return fma(_mm512_cvtepi32_ps(dots), spread(scale, BLOCK_OF_4, g), acc);
  }
};

struct Q8 {
  using Codec = Q8Codec;
  static constexpr int BLOCK_BYTES = 32, GROUP = 2, OFFSET = 128, HALF_STEP = 32, HALF_GAP = 16;
  using Weights = __m512i;

  static Weights load(const uint8_t* p, int blocks) {
    __m512i v = blocks >= 2 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi64(0x0f, p);
    return _mm512_xor_si512(v, _mm512_set1_epi8(char(0x80)));
  }

  static V step(V acc, Weights w, const uint8_t* x, V scale, int g) {
    __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, _mm512_loadu_si512(x));
    return fma(_mm512_cvtepi32_ps(dots), spread(scale, BLOCK_OF_8, g), acc);
  }
};

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
