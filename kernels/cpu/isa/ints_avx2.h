// Vectors of 8 x 32 bits and of 32 bytes with AVX2: the names of ints_avx512.h.
//
// vpmaddubsw adds pairs of u8 * s8 into 16 bits, where codes of up to 6 bits are far from the limit (2 * 63 * 127); signed
// bytes are multiplied as |w| * (x with the sign of w), at most 2 * 128 * 127. Lane 4 c + i has block 2 i + c.
#pragma once

#include "isa/vec_avx2.h"

namespace headrace {
namespace {

using I = __m256i;
constexpr int BYTE_OFFSET = 0;  // dot_wide takes signed bytes as they are

constexpr int block_of_lane(int lane) { return lane % 4 * (W / 4) + lane / 4; }

inline I int_zero() { return _mm256_setzero_si256(); }
inline I int_set1(uint32_t x) { return _mm256_set1_epi32(int(x)); }
inline I int_load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
inline I int_load_n(const uint8_t* p, int words) {
  const int n = words < 0 ? 0 : words < W ? words : W;
  return _mm256_maskload_epi32(reinterpret_cast<const int*>(p), first(n));
}
inline void int_store(uint8_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<I*>(p), a); }
inline I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
inline I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
inline I bit_xor(I a, I b) { return _mm256_xor_si256(a, b); }
template <int N>
inline I shift_left(I a) {
  return _mm256_slli_epi32(a, N);
}
template <int N>
inline I shift_right(I a) {
  return _mm256_srli_epi32(a, N);
}
template <int N>
inline I shift_right_signed(I a) {
  return _mm256_srai_epi32(a, N);
}
inline I int_add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I int_sub(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I byte_sub(I a, I b) { return _mm256_sub_epi8(a, b); }
inline V to_float(I a) { return _mm256_cvtepi32_ps(a); }
inline V as_floats(I bits) { return _mm256_castsi256_ps(bits); }
inline I as_ints(V v) { return _mm256_castps_si256(v); }
inline I widen_u8(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline I widen_s8(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline I widen_fours(const uint8_t* p, int) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  const I by = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
  return bit_and(_mm256_srlv_epi32(_mm256_cvtepu8_epi32(_mm_set1_epi32(four)), by), int_set1(15));
}

inline I lookup(I index, const int8_t* values) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))), index);
}

inline I add_pairs(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
inline I dot(I sum, I w, const uint8_t* x) { return add_pairs(sum, _mm256_maddubs_epi16(w, int_load(x))); }
inline I dot_wide(I sum, I w, const uint8_t* x) {
  return add_pairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(int_load(x), w)));
}

inline I in_lanes(I blocks) { return _mm256_permutevar8x32_epi32(blocks, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)); }

inline I lanes_u8(const uint8_t* p) { return in_lanes(widen_u8(p)); }
inline I lanes_s8(const uint8_t* p) { return in_lanes(widen_s8(p)); }
inline void lanes_sixes(const uint8_t* low, const uint8_t* high, int b, I* first, I* second) {
  const I bytes = lanes_u8(low), top = in_lanes(widen_fours(high, b));
  *first = bit_or(bit_and(bytes, int_set1(15)), shift_left<4>(bit_and(top, int_set1(3))));
  *second = bit_or(shift_right<4>(bytes), shift_left<2>(bit_and(top, int_set1(12))));
}

template <bool FULL>
inline V lanes_f16(const uint8_t* p, int n) {
  return as_floats(in_lanes(as_ints(FULL ? load_f16(p) : load_f16_n(p, n))));
}
template <bool FULL>
inline V spread_halves(const uint8_t* halves, int b, int) {
  uint16_t half;
  __builtin_memcpy(&half, halves + b / 8 * 2, 2);
  return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

inline V spread_fours(V values) { return _mm256_permutevar8x32_ps(values, _mm256_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1)); }

inline __attribute__((always_inline)) void turn(I* a) {
  const I low01 = _mm256_unpacklo_epi32(a[0], a[1]), high01 = _mm256_unpackhi_epi32(a[0], a[1]);
  const I low23 = _mm256_unpacklo_epi32(a[2], a[3]), high23 = _mm256_unpackhi_epi32(a[2], a[3]);
  a[0] = _mm256_unpacklo_epi64(low01, low23), a[1] = _mm256_unpackhi_epi64(low01, low23);
  a[2] = _mm256_unpacklo_epi64(high01, high23), a[3] = _mm256_unpackhi_epi64(high01, high23);
}

inline __attribute__((always_inline)) void turn_pairs(I* a) {
  // Of blocks 0 .. 3 and 4 .. 7: their first words in the low half, their second ones in the high half.
  const I order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
  const I x = _mm256_permutevar8x32_epi32(a[0], order), y = _mm256_permutevar8x32_epi32(a[1], order);
  // x: first words of blocks 0 2 1 3, second words of 0 2 1 3; y: of 4 6 5 7.
  const I first = _mm256_permute2x128_si256(x, y, 0x20), second = _mm256_permute2x128_si256(x, y, 0x31);
  a[0] = _mm256_permute4x64_epi64(first, 0xD8), a[1] = _mm256_permute4x64_epi64(second, 0xD8);
}

inline __attribute__((always_inline)) void turn_eights(I* a) {
  I low[4], high[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    low[i] = _mm256_permute2x128_si256(a[2 * i], a[2 * i + 1], 0x20);
    high[i] = _mm256_permute2x128_si256(a[2 * i], a[2 * i + 1], 0x31);
  }
  turn(low), turn(high);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) a[i] = low[i], a[4 + i] = high[i];
}

}  // namespace
}  // namespace headrace
