// Attention on a cache of bf16 by vdpbf16ps, for CPUs with AVX512-BF16: queries and weights rounded to bf16, keys and values
// as they lie, sums and softmax in float32. Steps, windows and states are those of attend.h.
//
// Rows go by eights, or by fours where no more are left. Queries lie in chunks of 8 numbers, rows of four in 128 bits each:
// a chunk of a key is broadcast to all of them, so no key is widened or turned. A score is four sums, of pairs at places 0 ..
// 3 of every chunk, joined as (0 + 2) + (1 + 3); of eight rows or of four, with any number of keys beside them: the same bits.
//
//   lane l of score vector i:  row l / (16 / rows),  key (16 / rows) i + l % (16 / rows)
//
// so two neighbouring lanes are a pair of keys of one row: as bf16 they are the 32 bits that multiply two rows of values, whose
// numbers are interleaved in registers. Sums of values lie as `unpack` leaves columns, until `pairs_finish`.
//
// A step asks for the rows of the next one, two lines for every 16 products. More care costs more than it gives: asked for
// by counting evenly over the step, branches took a quarter of the time.
#pragma once

#include "cores/attend/run.h"
#include "formats/tile_formats_bf16.h"

namespace headrace {
namespace {

constexpr int PIECE_NUMBERS = 8;  // numbers of a key that are broadcast together
constexpr int LINE_NUMBERS = 32;  // of a row in a line: two vectors of sums of values
constexpr int TILE_KEYS = 8;      // of a tile of scores
constexpr int PAIR_ROWS = 8;      // of a block; its last may have four

// Rows of a block, of `left` rows.
inline int block_rows(int left) { return left > PAIR_ROWS / 2 ? PAIR_ROWS : PAIR_ROWS / 2; }

// Whether rows can be read so: whole lines of bf16.
bool pairs_take(const AttendRows& k, const AttendRows& v, int format) {
  return format == BF16 && k.d % LINE_NUMBERS == 0 && v.d % LINE_NUMBERS == 0;
}

// Row r of `rows` goes to its block, times `scale`; q null: zeros.
void pairs_query(const float* q, const AttendRows& keys, int, float scale, int r, int rows, float* all) {
  const int first = r / PAIR_ROWS * PAIR_ROWS, in = r - first, of = block_rows(rows - first), fours = of / 4;
  uint16_t* out = reinterpret_cast<uint16_t*>(all) + size_t(first) * keys.dp + (in % fours * 4 + in / fours) * PIECE_NUMBERS;
  for (int c = 0; c < keys.d; c += PIECE_NUMBERS, out += of * PIECE_NUMBERS) {
    const V x = q ? mul(load_n(q + c, PIECE_NUMBERS), set1(scale)) : zero();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(to_bf16_pair(x, zero())));
  }
}

inline __m512bh four_times(const uint8_t* p) {
  return (__m512bh)_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m512bh sixteen_times(const uint8_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

inline V join_low(V a, V b) { return add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE)); }
inline V join_even(V a, V b) { return add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD)); }

// Lines of rows, one row after the other.
struct Lines {
  const uint8_t* const* row;
  size_t bytes, in = 0;

  Lines(const uint8_t* const* first, int d) : row(first), bytes(size_t(d) * sizeof(uint16_t)) {}

  inline __attribute__((always_inline)) void ask() {
    __builtin_prefetch(*row + in);
    in += 64;
    if (in >= bytes) in = 0, row++;
  }
};

// Scores of 4 F rows with TILE_KEYS keys.
template <int F, bool ASK>
__attribute__((noinline)) void pair_scores(const uint8_t* q, const uint8_t* const* keys, int d, Lines next, float* out) {
  V acc[TILE_KEYS][F];
  const uint8_t* key[TILE_KEYS];
#pragma GCC unroll 8
  for (int j = 0; j < TILE_KEYS; j++) {
    key[j] = keys[j];
#pragma GCC unroll 2
    for (int f = 0; f < F; f++) acc[j][f] = zero();
  }
  for (int c = 0; c < d; c += LINE_NUMBERS, q += LINE_NUMBERS / PIECE_NUMBERS * F * 64) {
#pragma GCC unroll 4
    for (int i = 0; i < LINE_NUMBERS / PIECE_NUMBERS; i++) {
      __m512bh rows[F];
#pragma GCC unroll 2
      for (int f = 0; f < F; f++) rows[f] = (__m512bh)_mm512_loadu_si512(q + (i * F + f) * 64);
#pragma GCC unroll 8
      for (int j = 0; j < TILE_KEYS; j++) {
        const __m512bh chunk = four_times(key[j] + size_t(c + i * PIECE_NUMBERS) * sizeof(uint16_t));
#pragma GCC unroll 2
        for (int f = 0; f < F; f++) acc[j][f] = _mm512_dpbf16_ps(acc[j][f], chunk, rows[f]);
      }
      if (ASK) next.ask(), next.ask();
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < TILE_KEYS; j += 4 / F, out += W) {
    if (F == 2)
      store(out, join_even(join_low(acc[j][0], acc[j + 1][0]), join_low(acc[j][F - 1], acc[j + 1][F - 1])));
    else
      store(out, join_even(join_low(acc[j][0], acc[j + 1][0]), join_low(acc[j + 2][0], acc[j + 3][0])));
  }
}

// e^x of x <= 0 within 2^-18 of itself, far more than is left when it is rounded; NaN stays.
inline V small_exp(V x) {
  const V t = vmax(set1(-200.0f), mul(x, set1(1.44269504f))), n = round_even(t), r = sub(t, n);
  V p = set1(1.33335581e-3f);
  p = fma(p, r, set1(9.61812911e-3f));
  p = fma(p, r, set1(5.55041087e-2f));
  p = fma(p, r, set1(2.40226507e-1f));
  p = fma(p, r, set1(6.93147182e-1f));
  p = fma(p, r, set1(1.0f));
  return scale2(p, n);
}

// The lanes of a block of ROWS rows.
template <int ROWS>
struct Lanes {
  static constexpr int EACH = W / ROWS, VECTORS = KEYS / EACH;  // keys of a vector, vectors of a step

  static __m512i row() {  // of each lane
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_srli_epi32(lane, EACH == 2 ? 1 : 2);
  }
  static __m512i key() {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_and_si512(lane, _mm512_set1_epi32(EACH - 1));
  }
  static V spread(V rows) { return _mm512_permutexvar_ps(row(), rows); }
  static V gather(V lanes) {  // the first lane of each row
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_permutexvar_ps(_mm512_slli_epi32(lane, EACH == 2 ? 1 : 2), lanes);
  }

  // Lanes of a row joined, in all of them: keys that lie two apart first.
  template <class Fn>
  static V joined(V lanes, const Fn& fn) {
    if (EACH == 4) lanes = fn(lanes, _mm512_permute_ps(lanes, 0x4E));
    return fn(lanes, _mm512_permute_ps(lanes, 0xB1));
  }
};

// Rows [first, first + n) of a block of ROWS: scores turn into weights of bf16, and states come up to the new largest scores.
// Sums join keys that lie 16 apart, then 8, 4, 2 and 1, whatever ROWS is.
template <int ROWS, bool WHOLE>
inline void weigh_block(const AttendRun& run, const Seen& seen, int first, int n) {
  using L = Lanes<ROWS>;
  float *scores = run.scores(first), *m = run.state->m + first, *l = run.state->l + first;
  V s[L::VECTORS];
  __mmask16 mask[L::VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < L::VECTORS; i++) s[i] = load(scores + i * W);
  if (!WHOLE) {
    const __m512i from = _mm512_permutexvar_epi32(L::row(), _mm512_maskz_loadu_epi32(headrace::first(n), seen.from + first));
    const __m512i to = _mm512_permutexvar_epi32(L::row(), _mm512_maskz_loadu_epi32(headrace::first(n), seen.to + first));
#pragma GCC unroll 16
    for (int i = 0; i < L::VECTORS; i++) {
      const __m512i key = _mm512_add_epi32(L::key(), _mm512_set1_epi32(i * L::EACH));
      mask[i] = _mm512_cmple_epi32_mask(from, key) & _mm512_cmplt_epi32_mask(key, to);
      s[i] = _mm512_mask_mov_ps(set1(-__builtin_inff()), mask[i], s[i]);
    }
  }
  V top = s[0];
#pragma GCC unroll 16
  for (int i = 1; i < L::VECTORS; i++) top = vmax(top, s[i]);
  const V before = L::spread(load_n(m, n)), now = vmax(before, L::joined(top, vmax));
#pragma GCC unroll 16
  for (int i = 0; i < L::VECTORS; i++) {
    s[i] = small_exp(sub(s[i], now));
    if (!WHOLE) s[i] = _mm512_maskz_mov_ps(mask[i], s[i]);
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(s[i]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores) + i, rounded);
  }
#pragma GCC unroll 4
  for (int half = L::VECTORS / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) s[i] = add(s[i], s[i + half]);
  const __mmask16 rises = _mm512_cmp_ps_mask(now, before, _CMP_GT_OQ);
  const V shrink = _mm512_mask_mov_ps(set1(1.0f), rises, small_exp(sub(before, now)));
  store_n(m, L::gather(now), n);
  store_n(l, fma(load_n(l, n), L::gather(shrink), L::gather(L::joined(s[0], add))), n);
  if (!rises) return;
  float by[W];
  store(by, L::gather(shrink));
  for (int r = 0; r < n; r++)
    if (const V factor = set1(by[r]); by[r] != 1.0f)
      map(run.acc(first + r), run.item->v.dp, run.acc(first + r), [=](V a) { return mul(a, factor); });
}

template <int ROWS>
inline void pair_weigh(const AttendRun& run, const Seen& seen, int first, int n) {
  bool whole = true;
  for (int r = first; r < first + n; r++) whole &= seen.from[r] <= 0 && seen.to[r] >= KEYS;
  (whole ? weigh_block<ROWS, true> : weigh_block<ROWS, false>)(run, seen, first, n);
}

// Where the weights of a pair of keys lie in a block of ROWS rows, from the first row's on, and how far it is to the next row's.
template <int ROWS>
inline const uint8_t* pair_weights(const uint8_t* weights, int pair) {
  return ROWS == 8 ? weights + pair * 32 : weights + pair / 2 * 32 + pair % 2 * 4;
}

// acc[r] += p[r] * values of keys [from, n), for R rows of a block of ROWS and the columns of U lines.
template <int ROWS, int R, int U, bool ASK>
__attribute__((noinline)) void pair_values(const uint8_t* weights, const RowPlaces& v, int from, int n, int column, Lines next,
                                           float* acc, size_t acc_stride) {
  constexpr int STEP = ROWS == 8 ? 4 : 8;
  V a[R][2 * U];
  acc += column;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int u = 0; u < 2 * U; u++) a[r][u] = load(acc + r * acc_stride + u * W);
  for (int j = from / 2; j < (n + 1) / 2; j++) {
    const uint8_t *even = v.at[2 * j] + column * sizeof(uint16_t), *odd = v.at[2 * j + 1] + column * sizeof(uint16_t);
    const uint8_t* p = pair_weights<ROWS>(weights, j);
    __m512bh pairs[2 * U];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) {
      const __m512i x = _mm512_loadu_si512(even + u * 64), y = _mm512_loadu_si512(odd + u * 64);
      pairs[2 * u] = (__m512bh)_mm512_unpacklo_epi16(x, y), pairs[2 * u + 1] = (__m512bh)_mm512_unpackhi_epi16(x, y);
      if (ASK) next.ask(), next.ask();
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512bh weight = sixteen_times(p + r * STEP);
#pragma GCC unroll 8
      for (int u = 0; u < 2 * U; u++) a[r][u] = _mm512_dpbf16_ps(a[r][u], pairs[u], weight);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int u = 0; u < 2 * U; u++) store(acc + r * acc_stride + u * W, a[r][u]);
}

// Sums of values times `scale` in their own order.
void pairs_finish(const AttendState& total, int row, const AttendRows& values, int, float* out) {
  const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  const float* acc = total.acc + size_t(row) * values.dp;
  const V scale = set1(1.0f / total.l[row]);
  for (int c = 0; c < values.d; c += LINE_NUMBERS) {
    const V low = mul(load(acc + c), scale), high = mul(load(acc + c + W), scale);
    store(out + c, _mm512_permutex2var_ps(low, first, high));
    store(out + c + W, _mm512_permutex2var_ps(low, second, high));
  }
}

}  // namespace
}  // namespace headrace
