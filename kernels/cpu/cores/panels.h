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

  Rows16(const uint8_t* first, size_t row_bytes, int n) {
    for (int i = 0; i < W; i++) at[i] = first + size_t(least(i, n - 1)) * row_bytes;
  }
};

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
  alignas(64) float high[HIGH ? HIGH : 1][W][W];
  for (int i = 0; i < HIGH && i * W < HIGH * n; i++) {
    V a[W];
    load_words(rows, from + i * 64, HIGH * n - i * W, a);
#pragma GCC unroll 16
    for (int d = 0; d < W; d++) store(high[i][d], a[d]);
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
      for (int d = 0; d < HIGH; d++) more[d] = as_ints(load(high[0][(b + i) * HIGH + d]));
      Step q;
      C::join(low, more, q);
      save(b + i, q);
    }
  }
}

// The codes of blocks first .. first + n, a group of 16 rows: save(block of the group, q), where q[j] holds weights 4 j .. 4 j + 3
// of each row.
template <class F, class Save>
inline __attribute__((always_inline)) void unpack_codes(const Rows16& rows, int blocks, int first, int n, const Save& save) {
  using C = typename F::Codes;
  unpack_group<C>(rows, F::Scales::bytes(blocks) + size_t(first) * BLOCK_BYTES<C>, n, save);
}

// Factors of a block, one after the other: for each part its factor, and its minimum where there are any.
template <class F>
constexpr int FACTORS = F::PARTS * (F::Scales::MIN ? 2 : 1);

// The factors of blocks first .. first + n, at most W of them, of 16 rows: save(block after first, which of FACTORS, values).
template <class F, class Save>
inline __attribute__((always_inline)) void unpack_factors(const Rows16& rows, int blocks, int first, int n, const Save& save) {
  using S = typename F::Scales;
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
