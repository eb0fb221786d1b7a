// The steps of attention by products of bf16 pairs: pairs.h has the tiles.
#pragma once

#include "cores/attend/pairs.h"

namespace headrace {
namespace {

struct PairStep {
  const AttendRun& run;
  const KeyStep& step;
  const Seen& seen;
  const KeyStep* next;

  const AttendItem& item() const { return *run.item; }
  bool asks_keys(int first) const { return next && !first; }
  bool asks_values(int first) const { return asks_keys(first) && !run.within; }

  template <int F, bool ASK>
  void scores(int first) const {
    const RowPlaces& then = (ASK ? *next : step).k;
    const uint8_t* q = reinterpret_cast<const uint8_t*>(item().q) + size_t(first) * item().k.dp * sizeof(uint16_t);
    for (int j = 0; j < KEYS; j += TILE_KEYS)
      pair_scores<F, ASK>(q, step.k.at + j, item().k.d, {then.at + j, item().k.d}, run.scores(first) + j * 4 * F);
  }

  template <int ROWS, int R, int U, bool ASK>
  void values(int first, int r, const RowPlaces& v, int from, int n) const {  // of rows first + r .. first + r + R
    const uint8_t* weights = reinterpret_cast<const uint8_t*>(run.scores(first)) + r * (ROWS == 8 ? 4 : 8);
    const int d = item().v.d, lines = d / LINE_NUMBERS, each = KEYS / lines;
    int c = 0;
    for (; c + U <= lines; c += U)
      pair_values<ROWS, R, U, ASK>(weights, v, from, n, c * LINE_NUMBERS, {(ASK ? next->v : step.v).at + c * each, d},
                                   run.acc(first + r), item().v.dp);
    for (; c < lines; c++)
      pair_values<ROWS, R, 1, ASK>(weights, v, from, n, c * LINE_NUMBERS, {(ASK ? next->v : step.v).at + c * each, d},
                                   run.acc(first + r), item().v.dp);
  }

  template <int ROWS, int R, int U>
  void values(int first, const RowPlaces& v, int from, int n) const {
    asks_values(first) ? values<ROWS, R, U, true>(first, 0, v, from, n) : values<ROWS, R, U, false>(first, 0, v, from, n);
  }

  // Values for who sees places [from, n): the other half of a pair has a row of those.
  RowPlaces own_values(int from, int n) const {
    RowPlaces own = step.v;
    own.from = from, own.n = n;
    if (from > 0) own.at[from - 1] = own.at[from];
    if (n < KEYS) own.at[n] = own.at[n - 1];
    return own;
  }

  template <int ROWS>
  void one_row(int first, int r, int from, int n) const {
    if (from < n) values<ROWS, 1, 4, false>(first, r, own_values(from, n), from, n);
  }

  // n rows: whole pairs that all see together, others row by row, a row's own in their order. Nothing else is read for a
  // row: 0 times a value that is none, as a token's of a damaged model, would be none.
  template <int ROWS, int R, int U>
  void block_values(int first, int n) const {
    const int *from = seen.from + first, *to = seen.to + first;
    if (from[0] == from[n - 1] && to[0] == to[n - 1]) {
      if (from[0] >= to[0]) return;
      const bool whole = (from[0] % 2 == 0 || from[0] == step.v.from) && (to[0] % 2 == 0 || to[0] == step.v.n);
      return whole ? values<ROWS, R, U>(first, step.v, from[0], to[0])
                   : values<ROWS, R, U>(first, own_values(from[0], to[0]), from[0], to[0]);
    }
    const int low = (from[n - 1] + 1) / 2 * 2, high = to[0] / 2 * 2;
    const bool all = low < high;
    for (int r = 0; r < n; r++) one_row<ROWS>(first, r, from[r], all ? low : to[r]);
    if (!all) return;
    values<ROWS, R, U>(first, step.v, low, high);
    for (int r = 0; r < n; r++) one_row<ROWS>(first, r, high, to[r]);
  }

  void block(int first) const {
    const int left = item().rows - first, n = least(PAIR_ROWS, left);
    const bool many = block_rows(left) == PAIR_ROWS, keys = asks_keys(first);
    if (many) {
      keys ? scores<2, true>(first) : scores<2, false>(first);
      pair_weigh<8>(run, seen, first, n);
      block_values<8, 8, 1>(first, n);
    } else {
      keys ? scores<1, true>(first) : scores<1, false>(first);
      pair_weigh<4>(run, seen, first, n);
      n > 2 ? block_values<4, 4, 2>(first, n) : n == 2 ? block_values<4, 2, 4>(first, n) : block_values<4, 1, 4>(first, n);
    }
  }
};

void attend_pairs(const AttendItem* items, int count, int begin, int end, const AttendState* states) {
  by_steps(items, count, begin, end, states, [](const AttendRun& run, const KeyStep& step, const Seen& seen, const KeyStep* next) {
    const PairStep all{run, step, seen, next};
    for (int first = 0; first < run.item->rows; first += PAIR_ROWS) all.block(first);
  });
}

}  // namespace
}  // namespace headrace
