// Attention of a few query rows over a run of pages, with the softmax kept up to date (online), over any vec_*.h.
//
//   for every 32 keys:  s = q . k    m' = max(m, s)    p = e^(s - m')    shrink = e^(m - m')
//                       l = l * shrink + sum p         acc = acc * shrink + p . v
//
// A step does one thing for all its rows (one group of heads x a block of queries) before the next: scores, weights, values.
// Few rows, with AVX-512 all, read keys and values as they lie; for others, and of Q8_0, they are widened to float32 once; values
// that are the first numbers of their keys are those. A row sees its own keys only, in the order of their positions, and
// each of its sums has one fixed order: results do not depend on the rows beside it, nor on which way rows were read. Values
// that a row does not see are not multiplied for it, not by 0 either: what is none in one token stays with those who see it.
// Pages before the windows of all rows are not touched. attend_merge joins two
// runs of pages the same way. Knows nothing of heads, sequences or threads.
#pragma once

#include <type_traits>

#include "cores/attend/run.h"
#include "cores/attend/tiles.h"

namespace headrace {
namespace {

// Up to so many rows, widening a key again for each tile costs less than a detour through memory: always, where other units
// than those that multiply do it.
constexpr int FEW_ROWS = W == 16 ? ATTEND_ROWS : 8;

// fn(number of rows as a type, first row) for all rows, in tiles of 4, 2 and 1.
template <class Fn>
inline void by_tiles(int rows, const Fn& fn) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) fn(RowCount<4>{}, r);
  for (; r + 2 <= rows; r += 2) fn(RowCount<2>{}, r);
  for (; r < rows; r++) fn(RowCount<1>{}, r);
}

template <class Row>
void score_step(const AttendRun& run, const KeyStep& step, const Seen& seen, AskAhead ahead) {
  const AttendItem& item = *run.item;
  const int cols = (item.k.d + W - 1) / W * W;
  by_tiles(item.rows, [&](auto rows, int r) {
    constexpr int R = decltype(rows)::value;
    constexpr auto score = JOINED ? joined_rows<Row, R> : score_rows<Row, R>;
    if (seen.any<R>(r))
      score(item.q + size_t(r) * item.k.dp, item.k.dp, step.k, seen.from[r], seen.to[r + R - 1], cols, run.scores(r), ahead);
  });
}

// The largest of scores [from, n), lane by lane; places without a key count as none.
inline V largest_scores(float* scores, int from, int n) {
  for (int j = 0; j < from; j++) scores[j] = -__builtin_inff();
  for (int j = n; j < KEYS; j++) scores[j] = -__builtin_inff();
  V top = load(scores);
#pragma GCC unroll 8
  for (int j = W; j < KEYS; j += W) top = vmax(top, load(scores + j));
  return top;
}

// Scores [from, n) of a row turn into weights, the rest into zeros: their sums. `now` is the largest so far.
inline V weigh(float* scores, int from, int n, float now) {
  V total = zero();
  if (from == 0 && n == KEYS) {
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; j += W) {
      const V p = exp_(sub(load(scores + j), set1(now)));
      store(scores + j, p);
      total = add(total, p);
    }
    return total;
  }
  for (int j = 0; j < KEYS; j += W) {
    store(scores + j, exp_(sub(load(scores + j), set1(now))));
    for (int i = j; i < j + W; i++)
      if (i < from || i >= n) scores[i] = 0.0f;  // e^-inf is not quite that
    total = add(total, load(scores + j));
  }
  return total;
}

// Scores of rows [first, first + n) turn into weights, and their states come up to the new largest scores: n <= W rows at
// once, whose lanes are joined together.
inline void weigh_rows(const AttendRun& run, const Seen& seen, int first, int n) {
  float *m = run.state->m + first, *l = run.state->l + first;
  float now[W], shrink[W];
  V of[W];
#pragma GCC unroll 16
  for (int r = 0; r < W; r++) of[r] = set1(-__builtin_inff());
  for (int r = 0; r < n; r++)
    if (seen.any<1>(first + r)) of[r] = largest_scores(run.scores(first + r), seen.from[first + r], seen.to[first + r]);
  const V before = load_n(m, n), top = vmax(before, join_lanes(of, vmax));
  store(now, top), store(shrink, exp_(sub(before, top)));
  for (int r = 0; r < n; r++) {
    float* scores = run.scores(first + r);
    if (seen.any<1>(first + r))
      of[r] = weigh(scores, seen.from[first + r], seen.to[first + r], now[r]);
    else
      __builtin_memset(scores, 0, KEYS * sizeof(float)), of[r] = zero();
    if (!(now[r] > m[r])) continue;
    const V by = set1(shrink[r]);
    m[r] = now[r], l[r] *= shrink[r];
    map(run.acc(first + r), run.item->v.dp, run.acc(first + r), [=](V a) { return mul(a, by); });
  }
  store_n(l, add(load_n(l, n), sum_lanes(of)), n);
}

inline void weigh_step(const AttendRun& run, const Seen& seen) {
  for (int r = 0; r < run.item->rows; r += W) weigh_rows(run, seen, r, least(W, run.item->rows - r));
}

// Vectors [first, first + U) of all rows' values.
template <class Row, int U, int ODD>
void value_columns(const AttendRun& run, const KeyStep& step, const Seen& seen, int first, AskAhead& ahead) {
  by_tiles(run.item->rows, [&](auto rows, int r) {
    seen.by_seen<decltype(rows)::value>(r, [&](auto some, int row, int from, int to) {
      constexpr int R = decltype(some)::value;
      value_tile<Row, R, U, ODD>(run.scores(row), step.v, from, to, first, run.acc(row), run.item->v.dp, ahead);
    });
  });
}

template <class Row, int U>
void value_columns(const AttendRun& run, const KeyStep& step, const Seen& seen, int first, AskAhead& ahead) {
  (first % 2 ? value_columns<Row, U, 1> : value_columns<Row, U, 0>)(run, step, seen, first, ahead);
}

template <class Row>
void value_step(const AttendRun& run, const KeyStep& step, const Seen& seen, AskAhead ahead) {
  const int vectors = run.value_vectors();
  int first = 0;
  if (run.item->rows == 1)
    for (; first + 8 <= vectors; first += 8)
      value_tile<Row, 1, 8, 0>(run.scores(0), step.v, seen.from[0], seen.to[0], first, run.acc(0), run.item->v.dp, ahead);
  while (first < vectors) {
    const int left = vectors - first, u = left == 4 && WIDE == 3 ? 2 : least(left, WIDE);  // 2 + 2, not 3 + 1
    (u > 3    ? value_columns<Row, WIDE>
     : u == 3 ? value_columns<Row, 3>
     : u == 2 ? value_columns<Row, 2>
              : value_columns<Row, 1>)(run, step, seen, first, ahead);
    first += u;
  }
}

// In how many turns the tiles of a step ask for what comes next: for little at a time, or it comes late.
inline int score_turns(const AttendItem& item) {
  if (JOINED && item.rows == 1) return KEYS / W * most(1, item.k.d / PAIR);
  return item.rows * KEYS / (JOINED || item.rows > 1 ? SUMS : 4);
}

inline int value_turns(const AttendRun& run) {
  const int tiles = run.item->rows / 4 * ((run.value_vectors() + WIDE - 1) / WIDE);
  return run.item->rows == 1 ? KEYS : most(1, tiles) * KEYS / ASK_EVERY;
}

// One step; `next` null: nothing to ask for. While keys are multiplied the next ones are asked for, and values beside values.
template <class Stored, bool WIDEN>
void attend_step(const AttendRun& run, KeyStep& step, const Seen& seen, const KeyStep* next) {
  using Row = std::conditional_t<WIDEN, F32Cached, Stored>;
  const AttendItem& item = *run.item;
  if (WIDEN) widen_rows<Stored>(item, item.k, step.key0, &step.k);
  score_step<Row>(run, step, seen, AskAhead(next ? &next->k : nullptr, item.k.row_bytes, score_turns(item)));
  weigh_step(run, seen);
  if (WIDEN && run.within) step.v = step.k;
  if (WIDEN && !run.within) widen_rows<Stored>(item, item.v, step.key0, &step.v);
  const RowPlaces* values = next && !run.within ? &next->v : nullptr;
  value_step<Row>(run, step, seen, AskAhead(values, item.v.row_bytes, value_turns(run)));
}

template <class Stored, bool WIDEN>
void attend_steps(const AttendItem* items, int count, int begin, int end, const AttendState* states) {
  by_steps(items, count, begin, end, states, [](const AttendRun& run, KeyStep& step, const Seen& seen, const KeyStep* next) {
    attend_step<Stored, WIDEN>(run, step, seen, next);
  });
}

void attend(const AttendItem* items, int count, int begin, int end, const AttendState* states) {
  with_rows(items->format, [&](auto row) {
    using Stored = decltype(row);
    const bool whole = items->k.d % PAIR == 0 && items->v.d % PAIR == 0;
    if constexpr (Stored::LOADS)
      if (whole && (std::is_same_v<Stored, F32Cached> || items->rows <= FEW_ROWS))
        return attend_steps<Stored, false>(items, count, begin, end, states);
    attend_steps<Stored, true>(items, count, begin, end, states);
  });
}

void attend_merge(const AttendState& total, const AttendState& part, int rows, int dp) {
  for (int r = 0; r < rows; r++) {
    if (part.l[r] == 0.0f) continue;  // none of its keys in this run
    const float m = part.m[r] > total.m[r] ? part.m[r] : total.m[r];
    const float a = total.l[r] == 0.0f ? 0.0f : exp1(total.m[r] - m), b = exp1(part.m[r] - m);
    total.m[r] = m;
    total.l[r] = total.l[r] * a + part.l[r] * b;
    map2(total.acc + size_t(r) * dp, part.acc + size_t(r) * dp, dp, total.acc + size_t(r) * dp,
         [=](V x, V y) { return fma(y, set1(b), mul(x, set1(a))); });
  }
}

bool any_attend_rows(const AttendRows&, const AttendRows&, int) { return true; }

void attend_finish(const AttendState& total, int row, const AttendRows& values, int format, float* out) {
  take_values(total.acc + size_t(row) * values.dp, values, format, 1.0f / total.l[row], out);
}

}  // namespace
}  // namespace headrace
