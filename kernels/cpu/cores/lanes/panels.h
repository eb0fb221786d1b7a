// Weights of 16 rows turned so that a lane holds a row: what products of many tokens without matrix instructions take
// (tiles_vnni.h, tiles_dpbf16.h).
//
// Planes of codes are turned as they lie in memory, words of 32 bits, and unpacked then: turning bytes would be twice the work
// for 4 bits. Factors are turned after they became floats. Any format's codes and scales will do.
#pragma once

#include "formats/blocks.h"

namespace headrace {
namespace {

// 16 rows of a run; where fewer are left, the last one fills the place: its products are not used.
struct Rows16 {
  const uint8_t* at[W];
  size_t stride;  // from each row to the next; 0: fewer are left

  Rows16(const uint8_t* first, size_t row_bytes, int n) : stride(n >= W ? row_bytes : 0) {
    for (int i = 0; i < W; i++) at[i] = first + size_t(least(i, n - 1)) * row_bytes;
  }
};

// A line of each of 16 rows. With an address for every row the compiler fetches them from memory or from vectors.
inline __attribute__((always_inline)) void load_lines(const uint8_t* first, size_t stride, V (&a)[W]) {
#pragma GCC unroll 4
  for (int i = 0; i < W; i += 4) {
    const uint8_t* four = first + i * stride;
    asm("" : "+r"(four));
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) a[i + j] = load(reinterpret_cast<const float*>(four + j * stride));
  }
}

// Words [0, words) of every row from byte `from` on, words <= W; word d of all rows in a[d].
inline __attribute__((always_inline)) void load_words(const Rows16& rows, size_t from, int words, V (&a)[W]) {
  if (words >= W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) a[i] = load(reinterpret_cast<const float*>(rows.at[i] + from));
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) a[i] = load_n(reinterpret_cast<const float*>(rows.at[i] + from), words);
  }
  transpose(a);
}

// The codes of a group of n blocks, which begins at byte `from`: save(block of the group, q).
template <class C, class Save>
inline __attribute__((always_inline)) void unpack_group(const Rows16& rows, size_t from, int n, const Save& save) {
  constexpr int HIGH = C::HIGH, LOW = C::LOW, EACH = W / LOW;
  alignas(64) float high[HIGH ? HIGH * W : 1][W];
  for (int i = 0; i < HIGH && i * W < HIGH * n; i++) {
    V a[W];
    load_words(rows, from + i * 64, HIGH * n - i * W, a);
#pragma GCC unroll 16
    for (int d = 0; d < W; d++) store(high[i * W + d], a[d]);
  }
  for (int b = 0; b < n; b += EACH) {
    V a[W];
    load_words(rows, from + size_t(n * HIGH + b * LOW) * 4, (n - b) * LOW, a);
#pragma GCC unroll 8
    for (int i = 0; i < EACH; i++) {
      if (b + i >= n) break;
      I low[LOW], more[HIGH ? HIGH : 1];
#pragma GCC unroll 8
      for (int d = 0; d < LOW; d++) low[d] = as_ints(a[i * LOW + d]);
#pragma GCC unroll 2
      for (int d = 0; d < HIGH; d++) more[d] = as_ints(load(high[(b + i) * HIGH + d]));
      Step q;
      C::join(low, more, q);
      save(b + i, q);
    }
  }
}

// The codes of blocks first .. first + n, a group, of 16 rows: save(block of the group, q), where q[j] holds weights
// 4 j .. 4 j + 3 of each row.
template <class F, class Save>
inline __attribute__((always_inline)) void unpack_codes(const Rows16& rows, int blocks, int first, int n, const Save& save) {
  using C = typename F::Codes;
  unpack_group<C>(rows, F::Scales::bytes(blocks) + size_t(first) * BLOCK_BYTES<C>, n, save);
}

// Quarters 0 and 2 of a, then those of b; or 1 and 3.
inline I even_quarters(I a, I b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
inline I odd_quarters(I a, I b) { return _mm512_shuffle_i32x4(a, b, 0xDD); }

// The same of a format with one plane of four words a block, as they lie in memory: save(block of the group, word, that of all
// rows). A word of four blocks at a time, so that none waits in a register: 1.3 times as fast as turning all 16 first.
template <class F, class Save>
inline __attribute__((always_inline)) void turn_codes(const Rows16& rows, int blocks, int first, int n, const Save& save) {
  using C = typename F::Codes;
  static_assert(C::HIGH == 0 && C::LOW == 4, "a quarter of a line is a block");
  const size_t from = F::Scales::bytes(blocks) + size_t(first) * BLOCK_BYTES<C>;
  for (int b = 0; b < n; b += 4) {
    I a[4][4];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
      const uint8_t* at = rows.at[i] + from + size_t(b) * 16;
      a[i / 4][i % 4] = b + 4 <= n ? int_load(at) : int_load_n(at, (n - b) * 4);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) turn(a[i]);
#pragma GCC unroll 4
    for (int d = 0; d < 4; d++) {
      const I even[2] = {even_quarters(a[0][d], a[1][d]), even_quarters(a[2][d], a[3][d])};
      const I odd[2] = {odd_quarters(a[0][d], a[1][d]), odd_quarters(a[2][d], a[3][d])};
      save(b, d, even_quarters(even[0], even[1])), save(b + 1, d, even_quarters(odd[0], odd[1]));
      save(b + 2, d, odd_quarters(even[0], even[1])), save(b + 3, d, odd_quarters(odd[0], odd[1]));
    }
  }
}

// Factors of a block, one after the other: for each part its factor, and its minimum where there are any.
template <class F>
constexpr int FACTORS = F::PARTS * (F::Scales::MIN ? 2 : 1);

// Eight words of each of 16 rows, put together by fill(row, place of its words); word d of all rows in a[d].
template <class Fill>
inline __attribute__((always_inline)) void gather_eight(const Fill& fill, I (&a)[8]) {
  alignas(64) uint32_t staged[W][8];
#pragma GCC unroll 16
  for (int r = 0; r < W; r++) fill(r, reinterpret_cast<uint8_t*>(staged[r]));
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const auto quarter = [&](int row) { return _mm_load_si128(reinterpret_cast<const __m128i*>(staged[row] + half)); };
      I all = _mm512_castsi128_si512(quarter(i));
      all = _mm512_inserti32x4(all, quarter(4 + i), 1);
      all = _mm512_inserti32x4(all, quarter(8 + i), 2);
      a[half + i] = _mm512_inserti32x4(all, quarter(12 + i), 3);
    }
    turn(a + half);
  }
}

// Factors and minimums of SixMinScales, of 8 or 16 blocks: the bits of 16 rows are turned, not the floats made of them.
template <class Save>
void unpack_sixes(const Rows16& rows, int blocks, int first, int n, const Save& save) {
  const size_t halves = SixMinScales::halves(blocks), at = size_t(first) / SUPER_BLOCKS;
  const size_t low = 2 * halves + first, high = 2 * halves + blocks + at * 4;
  const bool both = n > SUPER_BLOCKS;
  I a[8];  // four words of the low bits, two of the high ones, two halves of either kind
  gather_eight([&](int r, uint8_t* to) __attribute__((always_inline)) {
    const uint8_t* row = rows.at[r];
    if (both) {
      __builtin_memcpy(to, row + low, 16), __builtin_memcpy(to + 16, row + high, 8);
      __builtin_memcpy(to + 24, row + at * 2, 4), __builtin_memcpy(to + 28, row + halves + at * 2, 4);
    } else {
      __builtin_memcpy(to, row + low, 8), __builtin_memcpy(to + 16, row + high, 4);
      __builtin_memcpy(to + 24, row + at * 2, 2), __builtin_memcpy(to + 28, row + halves + at * 2, 2);
    }
  }, a);
  const auto floats = [](I halves_) { return from_f16(_mm512_cvtepi32_epi16(halves_)); };
#pragma GCC unroll 2
  for (int super = 0; super < 2; super++) {
    if (super == 1 && !both) break;
    const V d = floats(super ? shift_right<16>(a[6]) : a[6]), d_min = floats(super ? shift_right<16>(a[7]) : a[7]);
#pragma GCC unroll 8
    for (int i = 0; i < SUPER_BLOCKS; i++) {
      const I bytes = _mm512_srli_epi32(a[2 * super + i / 4], i % 4 * 8), fifteen = int_set1(15);
      const I top = _mm512_srli_epi32(a[4 + super], i % 4 * 8 + i / 4 * 4), three = int_set1(0x30);
      const I scale = bit_or(bit_and(bytes, fifteen), bit_and(shift_left<4>(top), three));
      const I min = bit_or(bit_and(shift_right<4>(bytes), fifteen), bit_and(shift_left<2>(top), three));
      save(super * SUPER_BLOCKS + i, 0, mul(d, to_float(scale)));
      save(super * SUPER_BLOCKS + i, 1, mul(d_min, to_float(min)));
    }
  }
}

// The factors of blocks first .. first + n, at most W of them, of 16 rows: save(block after first, which of FACTORS, values).
template <class F, class Save>
inline __attribute__((always_inline)) void unpack_factors(const Rows16& rows, int blocks, int first, int n, const Save& save) {
  using S = typename F::Scales;
  if constexpr (std::is_same<S, SixMinScales>::value) return unpack_sixes(rows, blocks, first, n, save);
  constexpr int EACH = S::MIN ? 2 : 1;
  V all[FACTORS<F>][W];
  for (int r = 0; r < W; r++) {
    Factors<F::PARTS> f;
    S::template load<false>(rows.at[r], blocks, first, n, f);
    for (int part = 0; part < F::PARTS; part++) {
      all[part * EACH][r] = f.scale[part];
      if (S::MIN) all[part * EACH + EACH - 1][r] = f.min[part];
    }
  }
  for (int which = 0; which < FACTORS<F>; which++) {
    transpose(all[which]);
    for (int lane = 0; lane < W; lane++)
      if (block_of_lane(lane) < n) save(block_of_lane(lane), which, all[which][lane]);
  }
}

}  // namespace
}  // namespace headrace
