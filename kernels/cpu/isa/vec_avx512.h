// Vectors of 16 floats, AVX-512 F/BW/VL/DQ. The same names exist in vec_avx2.h and vec_portable.h.
//
// *_n variants touch the first n lanes only (0 <= n <= W), loads fill the rest with zeros.
// Knows nothing of formats or ops.
#pragma once

#include <immintrin.h>

#include "isa/table.h"

namespace headrace {
namespace {

using V = __m512;
constexpr int W = 16;

inline __mmask16 first(int n) { return __mmask16((1u << n) - 1); }

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline V load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline void store_n(float* p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }

inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V vmax(V a, V b) { return _mm512_max_ps(a, b); }  // either is NaN: b
inline V vmin(V a, V b) { return _mm512_min_ps(a, b); }
// The larger of two magnitudes, bit by bit: a NaN is larger than infinity, so it is not lost.
inline V larger(V a, V b) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
inline V vabs(V a) { return _mm512_abs_ps(a); }
inline V round_even(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V floor_(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline V scale2(V p, V n) { return _mm512_scalef_ps(p, n); }  // p * 2^n

inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline float max_lane(V v) { return _mm512_reduce_max_ps(v); }
inline float largest_lane(V v) {  // of magnitudes, as `larger`
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(_mm512_reduce_max_epu32(_mm512_castps_si512(v))))));
}

// Lane i of the result is the lanes of a[i] joined by `fn`, of each in the same order.
template <class Fn>
inline V join_lanes(const V (&a)[W], const Fn& fn) {
  V t[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    V x = a[i % 4 + i / 4 * 8], y = a[i % 4 + i / 4 * 8 + 4];
    t[i] = fn(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    u[i] = fn(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), _mm512_shuffle_f32x4(t[i], t[i + 4], 0xDD));
  V p = fn(_mm512_shuffle_ps(u[0], u[1], 0x44), _mm512_shuffle_ps(u[0], u[1], 0xEE));
  V q = fn(_mm512_shuffle_ps(u[2], u[3], 0x44), _mm512_shuffle_ps(u[2], u[3], 0xEE));
  return fn(_mm512_shuffle_ps(p, q, 0x88), _mm512_shuffle_ps(p, q, 0xDD));
}

// Rows become columns: W x W values of 32 bits.
inline void transpose(V (&a)[W]) {
  const auto pair = [](V x, V y, bool high) {
    const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(p, q) : _mm512_unpacklo_pd(p, q));
  };
  V b[W];
#pragma GCC unroll 4
  for (int i = 0; i < W; i += 4) {  // lane l of b[i + j]: rows i .. i + 3 of column 4 l + j
    V low01 = _mm512_unpacklo_ps(a[i], a[i + 1]), high01 = _mm512_unpackhi_ps(a[i], a[i + 1]);
    V low23 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), high23 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
    b[i] = pair(low01, low23, false), b[i + 1] = pair(low01, low23, true);
    b[i + 2] = pair(high01, high23, false), b[i + 3] = pair(high01, high23, true);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    V even01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xDD);
    V even23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88), odd23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xDD);
    a[j] = _mm512_shuffle_f32x4(even01, even23, 0x88), a[8 + j] = _mm512_shuffle_f32x4(even01, even23, 0xDD);
    a[4 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0x88), a[12 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0xDD);
  }
}

inline V from_f16(__m256i h) { return _mm512_cvtph_ps(h); }
inline V from_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
inline __m256i to_f16(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

inline __m256i to_bf16(V v) {
  __m512i bits = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i high = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(high, nan, _mm512_set1_epi32(0x7fc0)));
}

inline __m256i load_half(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i load_half_n(const uint8_t* p, int n) { return _mm256_maskz_loadu_epi16(first(n), p); }
inline V load_f16(const uint8_t* p) { return from_f16(load_half(p)); }
inline V load_f16_n(const uint8_t* p, int n) { return from_f16(load_half_n(p, n)); }
inline float half_at(const uint8_t* p) {
  uint16_t half;
  __builtin_memcpy(&half, p, 2);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}
inline V load_bf16(const uint8_t* p) { return from_bf16(load_half(p)); }
inline V load_bf16_n(const uint8_t* p, int n) { return from_bf16(load_half_n(p, n)); }
inline void store_f16_n(uint8_t* p, V v, int n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(v)); }
inline void store_bf16_n(uint8_t* p, V v, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(v)); }

// 2 W values of bf16: those at even places and those at odd places. Half the work of widening them in order.
inline void load_bf16_pairs(const uint8_t* p, V* even, V* odd) {
  __m512i v = _mm512_loadu_si512(p);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000))));
}

// One of both. There is always a register for the mask.
template <int ODD, bool NO_MASK>
inline V load_bf16_part(const uint8_t* p) {
  __m512i v = _mm512_loadu_si512(p);
  if (!ODD) return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
  return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000))));
}

inline V load_i8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// The low byte of every lane, which holds a whole number.
inline void store_low_bytes(uint8_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

// Adds 64 bytes to a running sum of 64-bit lanes: the cheapest use of a load that cannot be dropped.
using Bytes = __m512i;
constexpr int BYTES = 64;
inline Bytes bytes_zero() { return _mm512_setzero_si512(); }
inline Bytes bytes_add(Bytes sum, const uint8_t* p) { return _mm512_add_epi64(sum, _mm512_loadu_si512(p)); }
// Not _mm512_reduce_add_epi64, whose numbers have a sign: beyond 2^63 anything may come of them.
inline uint64_t bytes_sum(Bytes sum) {
  uint64_t lanes[BYTES / 8], total = 0;
  _mm512_storeu_si512(lanes, sum);
  for (uint64_t lane : lanes) total += lane;
  return total;
}

}  // namespace
}  // namespace headrace
