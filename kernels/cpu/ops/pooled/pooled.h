// Several keys that become one, and turns of neighbouring numbers. Formulas and shapes are in kernels/compressed/twins.py and
// kernels/sparse/choose.py.
#pragma once

#include "ops/ops.h"

namespace headrace {

struct FoldArgs {
  const float *made, *weighed, *places;  // [T, series d] twice; [rate, series d]
  const float* norm;                     // [d]
  float eps;
  Rope rope;
  Cache cache;      // of entries
  float* state;     // [slots, series, 3, d]
  int series, rate, page;  // page: tokens of one
  const int64_t* slots;    // [T], of tokens
  Sequences all;
};
void fold_entries(const FoldArgs& args, Turn& turn);

// The last 2 r of d numbers of each head, neighbours by neighbours.
void rotate_pairs(const HeadRows& x, int d, const Rope& rope, const int32_t* positions, bool back, Turn& turn);

// The mean of `n` rows of d numbers, weighted number by number by the softmax of the d behind them plus `places` [n, d]:
// rows [R, n, 2 d], out [R, d].
void pool_runs(const float* rows, const float* places, int runs, int n, int d, float* out, Turn& turn);

struct ChooseBlocksArgs {
  const float* q;  // [T, groups, d]
  Cache cache;     // of one head
  const int32_t *tables, *starts, *contexts;  // as of attention
  int sequences, table_len, groups, size, top, local;
  int32_t* blocks;  // [T, groups, top]: their numbers, -1 behind the last
};
void choose_blocks(const ChooseBlocksArgs& args, Turn& turn);

}  // namespace headrace
