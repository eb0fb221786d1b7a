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
inline I as_ints(V v) { return _mm512_castps_si512(v); }

inline I widen_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// A byte for each of W blocks, in lanes. Sorted as bytes: that takes half of what sorting words takes.
inline __m128i sort_bytes(__m128i blocks) {
  return _mm_shuffle_epi8(blocks, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}
inline __m128i load_bytes(const uint8_t* p) { return sort_bytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline I lanes_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(load_bytes(p)); }
inline I lanes_s8(const uint8_t* p) { return _mm512_cvtepi8_epi32(load_bytes(p)); }

// Pairs of 6 bits for each of W blocks, whose low halves share a byte at `low`; of their high bits 4 bytes for each 8
// blocks, of which byte i has both of block i and of block i + 4.
inline void lanes_sixes(const uint8_t* low, const uint8_t* high, int, I* first, I* second) {
  constexpr int WHERE_FIRST_IS_SET = 0xCA;  // first ? second : third, by bits
  const auto select = [](int mask, __m128i a, __m128i b) {
    return _mm_ternarylogic_epi32(_mm_set1_epi16(short(mask)), a, b, WHERE_FIRST_IS_SET);
  };
  const __m128i four = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(high)),
                                        _mm_setr_epi8(0, 0, 4, 4, 1, 1, 5, 5, 2, 2, 6, 6, 3, 3, 7, 7));
  const __m128i top = select(0x00FF, four, _mm_srli_epi16(four, 4)), bytes = load_bytes(low), six = _mm_set1_epi8(63);
  *first = _mm512_cvtepu8_epi32(_mm_and_si128(select(0x0F0F, bytes, _mm_slli_epi16(top, 4)), six));
  *second = _mm512_cvtepu8_epi32(
      _mm_and_si128(select(0x0F0F, _mm_srli_epi16(bytes, 4), _mm_slli_epi16(_mm_srli_epi16(top, 2), 4)), six));
}

// values[index] of every byte; indices below 16.
inline I lookup(I index, const int8_t* values) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))), index);
}

// Adds, per lane, the products of four bytes: unsigned weights with signed activations at x.
inline I dot(I sum, I w, const uint8_t* x) { return _mm512_dpbusd_epi32(sum, w, _mm512_loadu_si512(x)); }
inline I dot_wide(I sum, I w, const uint8_t* x) { return dot(sum, w, x); }

inline I in_lanes(I blocks) { return _mm512_permutexvar_epi32(_mm512_load_si512(LANES.at), blocks); }

// The halves of W blocks, n of which are there (W if FULL).
template <bool FULL>
inline V lanes_f16(const uint8_t* p, int n) {
  const __m256i order = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return from_f16(_mm256_permutexvar_epi16(order, FULL ? load_half(p) : load_half_n(p, n)));
}

// The half for each lane's block, of those for 8 blocks each: n blocks from b on, a multiple of W.
template <bool FULL>
inline V spread_halves(const uint8_t* halves, int b, int n) {
  uint32_t two;
  __builtin_memcpy(&two, halves + b / 8 * 2, 4);
  if (!FULL && n <= 8) two &= 0xFFFF;
  const __m128 floats = _mm_cvtph_ps(_mm_cvtsi32_si128(int(two)));
  return _mm512_permutexvar_ps(_mm512_load_si512(EIGHTHS.at), _mm512_castps128_ps512(floats));
}

// BYTES from a and from b, side by side, in one store: a load that spans two stores would wait for both.
template <int BYTES>
void join_bytes(const uint8_t* a, const uint8_t* b, uint8_t* to) {
  if constexpr (BYTES <= 4) {
    uint64_t first = 0, second = 0;
    __builtin_memcpy(&first, a, BYTES), __builtin_memcpy(&second, b, BYTES);
    first |= second << 8 * BYTES;
    __builtin_memcpy(to, &first, 2 * BYTES);
  } else if constexpr (BYTES == 8) {
    const auto load8 = [](const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); };
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(load8(a), load8(b)));
  } else if constexpr (BYTES == 16) {
    const auto load16 = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_inserti128_si256(_mm256_castsi128_si256(load16(a)), load16(b), 1));
  } else if constexpr (BYTES == 32) {
    int_store(to, _mm512_inserti64x4(_mm512_castsi256_si512(load_half(a)), load_half(b), 1));
  } else {
    for (int i = 0; i < BYTES; i += 64) int_store(to + i, int_load(a + i)), int_store(to + BYTES + i, int_load(b + i));
  }
}

// One step for two half ones: the lanes of the first 8 blocks keep what is a's, the others take what b has in those; and back.
inline V join_halves(V a, V b) { return _mm512_mask_permute_ps(a, 0xCCCC, b, 0x4E); }
inline void split_halves(V both, V* a, V* b) {
  *a = _mm512_mask_mov_ps(*a, 0x3333, both);
  *b = _mm512_mask_permute_ps(*b, 0x3333, both, 0x4E);
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
