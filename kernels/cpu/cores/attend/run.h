// What attention of any kind does with a run of pages: 32 positions at a time, one head of keys beside the other.
//
// Pages hold the rows of all heads side by side, so heads that are attended step by step together read memory in its order,
// which the hardware sees coming.
#pragma once

#include <type_traits>

#include "cores/attend/rows.h"

namespace headrace {
namespace {

// Whether values are the first numbers of their keys.
inline bool within_keys(const AttendItem& item) {
  const AttendRows &k = item.k, &v = item.v;
  return k.first == v.first && k.page_bytes == v.page_bytes && k.row_bytes == v.row_bytes;
}

// A number of rows, as a type.
template <int R>
using RowCount = std::integral_constant<int, R>;

// What rows see of a step: row r places [from[r], to[r]). Rows are of rising positions: the first sees the earliest keys,
// the last one the latest.
struct Seen {
  int from[ATTEND_ROWS], to[ATTEND_ROWS];

  // Whether rows [r, r + R) see any, and between where.
  template <int R>
  bool any(int r) const {
    return from[r] < to[r + R - 1];
  }

  // fn(number of rows as a type, first row, from, to) for the places that rows [r, r + R) see: first those that only some see,
  // row by row, then those that all see, then the rest. A row's own stay in their order, and nothing else is read for it:
  // 0 times a value that is none, as a token's of a damaged model, would be none in rows that do not see it.
  template <int R, class Fn>
  void by_seen(int r, const Fn& fn) const {
    const int first = from[r + R - 1], last = to[r];
    if (R == 1 || (first == from[r] && last == to[r + R - 1])) {
      if (from[r] < last) fn(RowCount<R>{}, r, from[r], last);
      return;
    }
    const bool all = first < last;
    for (int i = r; i < r + R; i++)
      if (const int end = all ? first : to[i]; from[i] < end) fn(RowCount<1>{}, i, from[i], end);
    if (all) fn(RowCount<R>{}, r, first, last);
    for (int i = r; all && i < r + R; i++)
      if (last < to[i]) fn(RowCount<1>{}, i, last, to[i]);
  }
};

// The keys and values of the step at position key0.
struct KeyStep {
  int key0;
  RowPlaces k, v;
};

// What one run of pages is asked for, and what the steps share: of the head that was taken last.
struct AttendRun {
  const AttendItem* item = nullptr;
  const AttendState* state = nullptr;
  const bool within;
  int end, ahead, low;   // positions: behind the last one, behind those that are asked for, and the first that is seen
  int own[ATTEND_ROWS];  // behind a row's own key

  AttendRun(const AttendItem& any, int begin, int end_) : within(within_keys(any)) {
    for (int r = 0, query = 0; r < any.rows; query++)
      for (const int last = r + any.group; r < last; r++) own[r] = any.first + query + 1;
    const int last = any.first + (any.rows - 1) / any.group + 1;
    end = least(end_, last), ahead = any.read_on ? last : end;
    low = most(begin, any.first + 1 - any.window);
  }

  void take(const AttendItem& item_, const AttendState& state_) { item = &item_, state = &state_; }

  int value_vectors() const { return (item->v.d + (within ? PAIR : W) - 1) / (within ? PAIR : W) * (within ? 2 : 1); }
  float* scores(int r) const { return item->scores + size_t(r) * KEYS; }
  float* acc(int r) const { return state->acc + size_t(r) * item->v.dp; }

  void clear() const {
    for (int r = 0; r < item->rows; r++) state->m[r] = -__builtin_inff(), state->l[r] = 0.0f;
    __builtin_memset(state->acc, 0, size_t(item->rows) * item->v.dp * sizeof(float));
  }

  // A step behind the run is asked for, not attended to.
  void find(int key0, KeyStep* step) const {
    const int from = most(0, low - key0), n = least(KEYS, (key0 < end ? end : ahead) - key0);
    step->key0 = key0;
    find_rows(*item, item->k, key0, from, n, &step->k);
    if (within)
      step->v = step->k;
    else
      find_rows(*item, item->v, key0, from, n, &step->v);
  }

  void see(const KeyStep& step, Seen* seen) const {
    for (int r = 0; r < item->rows; r++) {
      const int to = own[r] - step.key0;
      seen->from[r] = most(step.k.from, to - item->window);
      seen->to[r] = least(step.k.n, to);
    }
  }
};

// step(run, what it reads, what its rows see, what comes next or null) of every head for every 32 positions of [begin, end).
// Items are heads of one sequence, with the same queries: they see the same positions.
template <class Step>
inline void by_steps(const AttendItem* items, int count, int begin, int end, const AttendState* states, const Step& step) {
  AttendRun run(items[0], begin, end);
  for (int i = 0; i < count; i++) run.take(items[i], states[i]), run.clear();
  const int first = begin + (run.low - begin) / KEYS * KEYS;
  if (first >= run.end) return;
  KeyStep steps[2];
  Seen seen;
  run.take(items[0], states[0]), run.find(first, steps);
  for (int key0 = first, now = 0; key0 < run.end; key0 += KEYS)
    for (int i = 0; i < count; i++, now ^= 1) {
      const bool last = i + 1 == count, more = !last || key0 + KEYS < run.ahead;
      const int next = last ? 0 : i + 1;
      if (more) run.take(items[next], states[next]), run.find(last ? key0 + KEYS : key0, steps + (now ^ 1));
      run.take(items[i], states[i]);
      if (i == 0) run.see(steps[now], &seen);
      step(run, steps[now], seen, more ? steps + (now ^ 1) : nullptr);
    }
}

}  // namespace
}  // namespace headrace
