// Scores of an indexer: what some keys give to one query's heads, over any vec_*.h. The formula is in kernels/sparse/choose.py.
//
// Keys lie turned over, number by number, so that a vector has one number of several keys: a head's products with them are
// sums that no lane shares, and a key's score has one order of additions whatever is beside it.
#pragma once

#include "isa/math.h"

namespace headrace {
namespace {

// R heads from `head` on against U vectors of keys from key j on: adds what is above 0, times the heads' weights.
template <int R, int U>
inline void index_tile(const IndexRun& run, int head, int j, V (&scores)[U]) {
  V acc[R][U];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) acc[r][u] = zero();
  const float* q = run.q + size_t(head) * run.d;
  for (int i = 0; i < run.d; i++) {
    V k[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) k[u] = load(run.keys + size_t(i) * INDEX_KEYS + j + u * W);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) acc[r][u] = fma(set1(q[size_t(r) * run.d + i]), k[u], acc[r][u]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) scores[u] = fma(set1(run.weights[head + r]), vmax(acc[r][u], zero()), scores[u]);
}

void index_scores(const IndexRun& run) {
  constexpr int U = INDEX_KEYS / W < 2 ? 1 : 2;
  for (int j = 0; j < run.n; j += U * W) {
    V scores[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) scores[u] = zero();
    int head = 0;
    for (; head + 4 <= run.heads; head += 4) index_tile<4, U>(run, head, j, scores);
    for (; head < run.heads; head++) index_tile<1, U>(run, head, j, scores);
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) store_n(run.scores + j + u * W, scores[u], most(0, least(W, run.n - j - u * W)));
  }
}

}  // namespace
}  // namespace headrace
