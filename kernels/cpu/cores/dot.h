// Dot products of two runs of rows with any number of tokens, over any format's tile.
//
// Rows go in blocks that stay in the first caches while all tokens pass (a row is read from memory once, whatever the
// batch); inside a block, a tile of up to 4 rows (2 of each run) x 4 tokens, or 2 x 8, stays in registers. A single token takes
// one row of each run at a time: two long streams, the fastest read measured here (four rows at a time were no faster).
// Knows nothing of threads or experts.
#pragma once

#include "formats/floats.h"
#include "formats/blocks.h"

namespace headrace {
namespace {

constexpr int BLOCK_ROWS = 16;  // of each run

template <class F>
struct Dot {
  const RowPair& w;
  const Tokens& x;
  int cols;
  const PairOut& out;

  const uint8_t* token(int t) const { return x.base + size_t(x.index ? x.index[t] : t) * x.stride; }

  // Rows [r, r + R/2) of both runs (R = 1: of run a alone) x tokens [t, t + T).
  template <int R, int T>
  void tile(int r, int t) const {
    const uint8_t *rows[R], *acts[T];
    float* y[R];
    size_t stride[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      const bool second = i >= (R + 1) / 2;
      const int row = r + (second ? i - R / 2 : i);
      rows[i] = (second ? w.b : w.a) + size_t(row) * w.row_bytes;
      stride[i] = second ? out.b_stride : out.a_stride;
      y[i] = (second ? out.b : out.a) + size_t(t) * stride[i] + row;
    }
#pragma GCC unroll 4
    for (int i = 0; i < T; i++) acts[i] = token(t + i);
    F::template tile<R, T>(rows, acts, cols, y, stride);
  }

  template <int T>
  void rows(int r, int end, int end_b, int t) const {
    if (T > 1)
      for (; F::TILE_ROWS == 4 && r + 2 <= end_b; r += 2) tile<4, T>(r, t);
    for (; r < end_b; r++) tile<2, T>(r, t);
    for (; r < end; r++) tile<1, T>(r, t);
  }

  void block(int r, int end, int end_b) const {
    int t = 0;
    for (; t + F::TILE_TOKENS <= x.count; t += F::TILE_TOKENS) rows<F::TILE_TOKENS>(r, end, end_b, t);
    if (F::TILE_TOKENS > 4 && x.count - t >= 4) rows<4>(r, end, end_b, t), t += 4;
    if (F::TILE_TOKENS > 2 && x.count - t == 2) rows<2>(r, end, end_b, t), t += 2;
    if (F::TILE_TOKENS > 3 && x.count - t == 3) rows<3>(r, end, end_b, t), t += 3;
    for (; t < x.count; t++) rows<1>(r, end, end_b, t);
  }

  static void run(const RowPair& w, const Tokens& x, int cols, const PairOut& out) {
    const Dot dot{w, x, cols, out};
    for (int r = 0; r < w.na; r += BLOCK_ROWS) dot.block(r, least(w.na, r + BLOCK_ROWS), least(w.nb, r + BLOCK_ROWS));
  }
};

}  // namespace
}  // namespace headrace
