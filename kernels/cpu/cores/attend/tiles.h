// The products of attention as tiles in registers, over any vec_*.h: queries by keys, and weights by values.
//
// Every sum has one fixed order: a score is W sums over the columns, added up as `sum_lanes` does, and a row's value adds up
// key after key. Which tile a row or a key falls into changes nothing.
#pragma once

#include "cores/attend/rows.h"

namespace headrace {
namespace {

// Running vectors of a tile: what the registers hold beside its operands. JOINED: those of a tile of scores are as many as
// lanes, and are added up before they leave the registers.
constexpr int SUMS = W == 16 ? 16 : W == 8 ? 12 : 8;
constexpr bool JOINED = SUMS == W;
constexpr int WIDE = W == 16 ? 4 : 3;  // vectors of a value that a tile of four rows takes
constexpr int ASK_EVERY = 8;  // keys of a value tile between two calls of AskAhead

template <class Row, int R, int J, int PART>
inline __attribute__((always_inline)) void score_part(const float* q, size_t q_stride, const uint8_t* const* key, int c,
                                                      V* acc) {
  V k[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; j++) k[j] = Row::template load<PART, (R * J > 8)>(key[j], c);
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    const V qv = load(q + r * q_stride + c + PART * W);
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) acc[r * J + j] = fma(qv, k[j], acc[r * J + j]);
  }
}

inline V sum_lanes(const V (&a)[W]) { return join_lanes(a, add); }

// The W sums of q[r] . key[j] for R rows and J keys; fn is called for each two vectors of columns.
template <class Row, int R, int J, class Fn>
inline __attribute__((always_inline)) void score_sums(const float* q, size_t q_stride, const uint8_t* const* key, int cols,
                                                      V* acc, const Fn& fn) {
#pragma GCC unroll 16
  for (int i = 0; i < R * J; i++) acc[i] = zero();
  int c = 0;
  for (; c + PAIR <= cols; c += PAIR) {
    score_part<Row, R, J, 0>(q, q_stride, key, c, acc);
    score_part<Row, R, J, 1>(q, q_stride, key, c, acc);
    fn();
  }
  if (c < cols) score_part<Row, R, J, 0>(q, q_stride, key, c, acc);
}

// scores[r][j] = q[r] . key[j] for R rows and W / R keys.
template <class Row, int R>
__attribute__((noinline)) void joined_tile(const float* q, size_t q_stride, const uint8_t* const* keys, int cols,
                                           float* scores, AskAhead& ahead) {
  constexpr int J = W / R;
  const uint8_t* key[J];
  V acc[W];
#pragma GCC unroll 16
  for (int j = 0; j < J; j++) key[j] = keys[j];
  score_sums<Row, R, J>(q, q_stride, key, cols, acc, [&] {
    if (R == 1) ahead.some();
  });
  if (R > 1) ahead.some();
  float lanes[W];
  store(lanes, sum_lanes(acc));
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) __builtin_memcpy(scores + r * KEYS, lanes + r * J, J * sizeof(float));
}

// The W sums of q[r] . key[j] for R rows and J keys, to sums[r * KEYS + j]. A function of its own, as a tile of values is:
// beside other loops its registers went to memory.
template <class Row, int R, int J>
__attribute__((noinline)) void score_tile(const float* q, size_t q_stride, const uint8_t* const* keys, int cols,
                                          float* sums) {
  const uint8_t* key[J];
  V acc[R * J];
#pragma GCC unroll 16
  for (int j = 0; j < J; j++) key[j] = keys[j];
  score_sums<Row, R, J>(q, q_stride, key, cols, acc, [] {});
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) store(sums + (r * KEYS + j) * W, acc[r * J + j]);
}

// The W sums of each of n scores, added up.
inline void add_up(const float* sums, int n, float* scores) {
  int j = 0;
  V a[W];
  for (; j + W <= n; j += W, sums += W * W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) a[i] = load(sums + i * W);
    store(scores + j, sum_lanes(a));
  }
  const int left = n - j;
  if (left <= 0) return;
#pragma GCC unroll 16
  for (int i = 0; i < W; i++) a[i] = i < left ? load(sums + i * W) : zero();
  store_n(scores + j, sum_lanes(a), left);
}

// scores[r][j] = q[r] . key[j] for R rows and keys [from, n), and some numbers beside them.
template <class Row, int R>
inline void joined_rows(const float* q, size_t q_stride, const RowPlaces& k, int from, int n, int cols, float* scores,
                        AskAhead& ahead) {
  constexpr int J = W / R;
  for (int j = from / J * J; j < n; j += J)
    joined_tile<Row, R>(q, q_stride, k.at + j, cols, scores + j, ahead);
}

// The same, added up when all tiles are done: those of one would be waited for.
template <class Row, int R>
inline void score_rows(const float* q, size_t q_stride, const RowPlaces& k, int from, int n, int cols, float* scores,
                       AskAhead& ahead) {
  constexpr int J = R <= 2 ? 4 : SUMS / R;
  alignas(64) float sums[R * KEYS * W];
  const uint8_t* const* key = k.at + from;
  const int count = n - from;
  int j = 0;
  for (; j + J <= count; j += J) score_tile<Row, R, J>(q, q_stride, key + j, cols, sums + j * W), ahead.some();
  if (J > 2)
    for (; j + 2 <= count; j += 2) score_tile<Row, R, 2>(q, q_stride, key + j, cols, sums + j * W), ahead.some();
  for (; j < count; j++) score_tile<Row, R, 1>(q, q_stride, key + j, cols, sums + j * W), ahead.some();
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) add_up(sums + r * KEYS * W, count, scores + r * KEYS + from);
}

// acc[r] += sum over keys [from, n) of p[r][j] * value[j], U vectors of columns from vector `first` on, ODD or even.
template <class Row, int R, int U, int ODD>
__attribute__((noinline)) void value_tile(const float* p, const RowPlaces& v, int from, int n, int first, float* acc,
                                          size_t acc_stride, AskAhead& ahead) {
  acc += first * W;
  const int c = first / 2 * PAIR;
  V a[R][U];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int u = 0; u < U; u++) a[r][u] = load(acc + r * acc_stride + u * W);
  for (int j = from; j < n; j++) {
    if (j % (R == 1 ? 1 : ASK_EVERY) == 0) ahead.some();
    V vv[U];
#pragma GCC unroll 16
    for (int u = 0; u < U; u++)
      vv[u] = (u + ODD) % 2 ? Row::template load<1, (R * U > 8)>(v.at[j], c + (u + ODD) / 2 * PAIR)
                            : Row::template load<0, (R * U > 8)>(v.at[j], c + (u + ODD) / 2 * PAIR);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const V weight = set1(p[r * KEYS + j]);
#pragma GCC unroll 16
      for (int u = 0; u < U; u++) a[r][u] = fma(weight, vv[u], a[r][u]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int u = 0; u < U; u++) store(acc + r * acc_stride + u * W, a[r][u]);
}

}  // namespace
}  // namespace headrace
