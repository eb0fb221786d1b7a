// Vectors of 16 x 32 bits and of 64 bytes with AVX-512 VNNI: what codes of weights are unpacked and multiplied with. The
// same names exist in ints_avx2.h and ints_portable.h.
//
// Lanes: 16 blocks of a row are turned so that a lane holds one block, in the order that `turn` leaves them in: lane
// 4 c + i has block 4 i + c. in_lanes puts what lies in the order of blocks into that order.
#pragma once

#include "isa/vec_avx512.h"

namespace headrace {
namespace {

using I = __m512i;
constexpr int BYTE_OFFSET = 128;  // dot_wide takes signed bytes plus this: vpdpbusd multiplies unsigned by signed ones

struct alignas(64) Words {
  int32_t at[2 * W];
};

constexpr int block_of_lane(int lane) { return lane % 4 * (W / 4) + lane / 4; }

constexpr Words LANES = [] {
  Words words{};
  for (int lane = 0; lane < W; lane++) words.at[lane] = block_of_lane(lane);
  return words;
}();

// Of pairs of words, one pair a block: the first words of all blocks, the second ones.
constexpr Words PAIRS = [] {
  Words words{};
  for (int i = 0; i < 2 * W; i++) words.at[i] = 2 * block_of_lane(i % W) + i / W;
  return words;
}();

// Which of the halves for 8 blocks a lane needs.
constexpr Words EIGHTHS = [] {
  Words words{};
  for (int lane = 0; lane < W; lane++) words.at[lane] = block_of_lane(lane) / 8;
  return words;
}();

inline I int_zero() { return _mm512_setzero_si512(); }
inline I int_set1(uint32_t x) { return _mm512_set1_epi32(int(x)); }
inline I int_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline I int_load_n(const uint8_t* p, int words) {
  return _mm512_maskz_loadu_epi32(__mmask16((1u << (words < 0 ? 0 : words < W ? words : W)) - 1), p);
}
inline void int_store(uint8_t* p, I a) { _mm512_storeu_si512(p, a); }
inline I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
inline I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
inline I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
template <int N>
inline I shift_left(I a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
inline I shift_right(I a) {
  return _mm512_srli_epi32(a, N);
}
template <int N>
inline I shift_right_signed(I a) {
  return _mm512_srai_epi32(a, N);
}
inline I int_add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I int_sub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I byte_sub(I a, I b) { return _mm512_sub_epi8(a, b); }
inline V to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline V as_floats(I bits) { return _mm512_castsi512_ps(bits); }
inline I widen_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I widen_s8(const uint8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Fields of 4 bits from block b on, a multiple of W: of 8 blocks, 4 bytes, of which byte i has fields i and i + 4.
inline I widen_fours(const uint8_t* p, int) {
  const __m128i order = _mm_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
  const __m128i bytes = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), order);
  const I by = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
  return bit_and(_mm512_srlv_epi32(_mm512_cvtepu8_epi32(bytes), by), int_set1(15));
}

// values[index] of every byte; indices below 16.
inline I lookup(I index, const int8_t* values) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))), index);
}

// Adds, per lane, the products of four bytes: unsigned weights with signed activations at x.
inline I dot(I sum, I w, const uint8_t* x) { return _mm512_dpbusd_epi32(sum, w, _mm512_loadu_si512(x)); }
inline I dot_wide(I sum, I w, const uint8_t* x) { return dot(sum, w, x); }

inline I in_lanes(I blocks) { return _mm512_permutexvar_epi32(_mm512_load_si512(LANES.at), blocks); }
inline V in_lanes(V blocks) { return _mm512_permutexvar_ps(_mm512_load_si512(LANES.at), blocks); }

// The half for each lane's block, of those for 8 blocks each: n blocks from b on, a multiple of W.
inline V spread_halves(const uint8_t* halves, int b, int n) {
  return _mm512_permutexvar_ps(_mm512_load_si512(EIGHTHS.at), load_f16_n(halves + b / 8 * 2, n > 8 ? 2 : 1));
}

// Of values for 4 blocks each, the one for each lane's block.
inline V spread_fours(V values) { return _mm512_broadcast_f32x4(_mm512_castps512_ps128(values)); }

// Of every 128-bit quarter: word d of a[0] .. a[3] go to a[d].
inline __attribute__((always_inline)) void turn(I* a) {
  const I low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const I low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  a[0] = _mm512_unpacklo_epi64(low01, low23), a[1] = _mm512_unpackhi_epi64(low01, low23);
  a[2] = _mm512_unpacklo_epi64(high01, high23), a[3] = _mm512_unpackhi_epi64(high01, high23);
}

// Two words a block: the first ones and the second ones, in lanes.
inline __attribute__((always_inline)) void turn_pairs(I* a) {
  const I first = _mm512_permutex2var_epi32(a[0], _mm512_load_si512(PAIRS.at), a[1]);
  a[1] = _mm512_permutex2var_epi32(a[0], _mm512_load_si512(PAIRS.at + W), a[1]);
  a[0] = first;
}

// Eight words a block: word j of all blocks in a[j]. The halves of blocks are sorted first, then each is turned.
inline __attribute__((always_inline)) void turn_eights(I* a) {
  I low[4], high[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    low[i] = _mm512_shuffle_i64x2(a[2 * i], a[2 * i + 1], 0x88);
    high[i] = _mm512_shuffle_i64x2(a[2 * i], a[2 * i + 1], 0xDD);
  }
  turn(low), turn(high);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) a[i] = low[i], a[4 + i] = high[i];
}

// vpdpbusd on registers, ten chains so that its latency does not show: what the instruction can do at best.
inline double int8_peak(int rounds) {
  constexpr int CHAINS = 10;
  I sums[CHAINS], ones = _mm512_set1_epi8(1);
#pragma GCC unroll 10
  for (int i = 0; i < CHAINS; i++) sums[i] = int_zero();
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
