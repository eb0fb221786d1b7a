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
  void values(int first, int r) const {  // of rows first + r .. first + r + R
    const uint8_t* weights = reinterpret_cast<const uint8_t*>(run.scores(first)) + r * (ROWS == 8 ? 4 : 8);
    const int from = seen.from[first + r], n = seen.to[least(first + r + R, item().rows) - 1], d = item().v.d;
    const int lines = d / LINE_NUMBERS, each = KEYS / lines;
    int c = 0;
    for (; c + U <= lines; c += U)
      pair_values<ROWS, R, U, ASK>(weights, step.v, from, n, c * LINE_NUMBERS, {(ASK ? next->v : step.v).at + c * each, d},
                                   run.acc(first + r), item().v.dp);
    for (; c < lines; c++)
      pair_values<ROWS, R, 1, ASK>(weights, step.v, from, n, c * LINE_NUMBERS, {(ASK ? next->v : step.v).at + c * each, d},
                                   run.acc(first + r), item().v.dp);
  }

  template <bool ASK>
  void few_values(int first, int rows) const {
    rows > 2 ? values<4, 4, 2, ASK>(first, 0) : rows == 2 ? values<4, 2, 4, ASK>(first, 0) : values<4, 1, 4, ASK>(first, 0);
  }

  void block(int first) const {
    const int left = item().rows - first;
    const bool many = block_rows(left) == PAIR_ROWS, keys = asks_keys(first), values_too = asks_values(first);
    if (many) {
      keys ? scores<2, true>(first) : scores<2, false>(first);
      pair_weigh<8>(run, seen, first, least(PAIR_ROWS, left));
      values_too ? values<8, 8, 1, true>(first, 0) : values<8, 8, 1, false>(first, 0);
    } else {
      keys ? scores<1, true>(first) : scores<1, false>(first);
      pair_weigh<4>(run, seen, first, left);
      values_too ? few_values<true>(first, left) : few_values<false>(first, left);
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
