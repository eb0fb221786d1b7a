// Vectors of 8 floats, AVX2 + FMA + F16C. The same names exist in vec_avx512.h and vec_portable.h.
//
// *_n variants touch the first n lanes only (0 <= n <= W), loads fill the rest with zeros.
// Knows nothing of formats or ops.
#pragma once

#include <immintrin.h>

#include "isa/table.h"

namespace headrace {
namespace {

using V = __m256;
constexpr int W = 8;

alignas(64) constexpr int32_t LANE_MASK[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline __m256i first(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(LANE_MASK + 8 - n)); }

inline V zero() { return _mm256_setzero_ps(); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline V load_n(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline void store_n(float* p, V v, int n) { _mm256_maskstore_ps(p, first(n), v); }

inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V vmax(V a, V b) { return _mm256_max_ps(a, b); }  // either is NaN: b
inline V vmin(V a, V b) { return _mm256_min_ps(a, b); }
// The larger of two magnitudes, bit by bit: a NaN is larger than infinity, so it is not lost.
inline V larger(V a, V b) {
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
inline V vabs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline V round_even(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V floor_(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

// p * 2^n for -126 <= n <= 127
inline V scale2(V p, V n) {
  __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

inline float sum(V v) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}

inline float max_lane(V v) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
inline float largest_lane(V v) {  // of magnitudes, as `larger`
  const __m256i bits = _mm256_castps_si256(v);
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4E));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xB1))));
}

// Lane i of the result is the lanes of a[i] joined by `fn`, of each in the same order.
template <class Fn>
inline V join_lanes(const V (&a)[W], const Fn& fn) {
  V t[4], u[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    t[i] = fn(_mm256_blend_ps(a[i], a[i + 4], 0xF0), _mm256_permute2f128_ps(a[i], a[i + 4], 0x21));
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    u[i] = fn(_mm256_blend_ps(t[2 * i], t[2 * i + 1], 0xCC), _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x4E));
  return fn(_mm256_shuffle_ps(u[0], u[1], 0x88), _mm256_shuffle_ps(u[0], u[1], 0xDD));
}

inline V from_f16(__m128i h) { return _mm256_cvtph_ps(h); }
inline V from_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
inline __m128i to_f16(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

inline __m128i to_bf16(V v) {
  __m256i bits = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i high = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  high = _mm256_blendv_epi8(high, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline __m128i load_half(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

inline __m128i load_half_n(const uint8_t* p, int n) {
  alignas(16) uint8_t lanes[16] = {};
  __builtin_memcpy(lanes, p, size_t(n) * 2);
  return load_half(lanes);
}

inline void store_half_n(uint8_t* p, __m128i h, int n) {
  alignas(16) uint8_t lanes[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), h);
  __builtin_memcpy(p, lanes, size_t(n) * 2);
}

inline V load_f16(const uint8_t* p) { return from_f16(load_half(p)); }
inline V load_f16_n(const uint8_t* p, int n) { return from_f16(load_half_n(p, n)); }
inline float half_at(const uint8_t* p) {
  uint16_t half;
  __builtin_memcpy(&half, p, 2);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}
inline V load_bf16(const uint8_t* p) { return from_bf16(load_half(p)); }
inline V load_bf16_n(const uint8_t* p, int n) { return from_bf16(load_half_n(p, n)); }
inline void store_f16_n(uint8_t* p, V v, int n) { store_half_n(p, to_f16(v), n); }
inline void store_bf16_n(uint8_t* p, V v, int n) { store_half_n(p, to_bf16(v), n); }

// 2 W values of bf16: those at even places and those at odd places. Half the work of widening them in order.
inline void load_bf16_pairs(const uint8_t* p, V* even, V* odd) {
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
  *odd = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000))));
}

// One of both; NO_MASK: by shifts alone, which take no register for a mask.
template <int ODD, bool NO_MASK>
inline V load_bf16_part(const uint8_t* p) {
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if (!ODD) return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
  if (NO_MASK) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(v, 16), 16));
  return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000))));
}

inline V load_i8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// The low byte of every lane, which holds a whole number.
inline void store_low_bytes(uint8_t* p, V v) {
  const __m256i pick = _mm256_set_epi32(-1, -1, -1, 0x0c080400, -1, -1, -1, 0x0c080400);
  __m256i bytes = _mm256_shuffle_epi8(_mm256_cvtps_epi32(v), pick);
  __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
}

// Adds 32 bytes to a running sum of 64-bit lanes: the cheapest use of a load that cannot be dropped.
using Bytes = __m256i;
constexpr int BYTES = 32;
inline Bytes bytes_zero() { return _mm256_setzero_si256(); }
inline Bytes bytes_add(Bytes sum, const uint8_t* p) {
  return _mm256_add_epi64(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline uint64_t bytes_sum(Bytes sum) {
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace
}  // namespace headrace
