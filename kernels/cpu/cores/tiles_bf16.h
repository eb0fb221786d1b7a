// Products of many tokens by AMX: bf16 tiles, float32 sums.
//
//   out[r][t] = sum over k of bf16(w[r][k]) * bf16(x[t][k])
//
// tdpbf16ps multiplies a tile of weights [16 rows][32 k] (unpacked by tile_formats_bf16.h: one block is one tile row) by a
// tile of tokens [16 pairs of k][16 tokens][2] (packed once per op, layout.h). Two slices of 16 rows (gate and up, or
// the halves of one matrix) go together: up to 3 tiles of tokens times 2 of weights are 6 sums, which stay in tiles 0
// .. 5 over all columns; tiles 4 .. 7, as far as free, hold operands. A tile of tokens comes from the second cache, one
// of weights from the first, so that every line from the second cache serves two products.
//
// Weights are unpacked AHEAD steps ahead, 4 rows at a time between the products, so that vector work and products
// overlap. With up to 48 tokens they pass through a small ring in the first cache. More tokens take several passes over
// the same pair of slices: the first keeps all its unpacked tiles, the others find them in the second cache.
//
// Limits: a token's sum runs over k in one order, so its result depends on nothing beside it; subnormals count as zero.
//
// Measured on one core of a 2-core server CPU, weights from the third cache, minima of many turns, before tiles of tokens
// were loaded past the first cache, which took another tenth away. What 32 blocks (a step
// of both slices), two tiles of tokens and their four products take, in cycles, with weights in the first cache:
//
//             products and loads   unpacking alone   both by their ports   here (q4_0 and q8_0, 32 tokens)
//   q4_0              66                  85                106                      165 to 180
//   q8_0              66                 178                215                      270 to 290
//
// Near tile operations, loads included, float arithmetic on vectors of 512 bits issues to one port instead of two (128
// vmulps take 68 cycles alone, 135 with four tile loads among them); integer operations keep both. The distance that is
// left comes about evenly from the tiles of tokens in the second cache, weights read back just after they were stored,
// and prefetching; it is smallest with one tile operation for every 4 rows unpacked (with 16 or 32 tokens). Worse by 0 to
// 20 %: pairs of tile operations, all of a step together, loads half a step before their products, prefetches spread
// evenly over a step. Addresses computed from one distance instead of 16 pointers gained 5 % in q4_0.
//
// Tried before: panels of 32 rows unpacked first; chunks of 256 columns with sums in memory in between; one slice times up
// to 6 tiles of tokens; saving the sums of a pass while the next is computed (stores past the caches are then in the way
// of loads). All slower.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "formats/layout.h"
#include "isa/math.h"
#include "formats/tile_formats_bf16.h"
#include "cores/tiles.h"

namespace headrace {
namespace {

// Words of a step as F's tiles have them.
template <class F>
inline __m512i order_words(__m512i words) {
  struct alignas(64) Words {
    int16_t at[BLOCK];
  };
  static constexpr Words order = [] {
    Words made{};
    for (int i = 0; i < BLOCK; i++) made.at[i] = F::ORDER.at[i];
    return made;
  }();
  return _mm512_permutexvar_epi16(_mm512_load_si512(order.at), words);
}

// 32 floats of a token as 16 pairs of bf16; what is beyond `n` is zero.
template <class F>
inline V load_pairs(const float* x, int n) {
  const V low = n >= W ? load(x) : load_n(x, n);
  const V high = n >= 2 * W ? load(x + W) : load_n(x + W, most(0, n - W));
  return _mm512_castsi512_ps(order_words<F>(to_bf16_pair(low, high)));
}

template <class F>
void bf16_pack(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles) {
  for (int c = 0; c < cols; c += BLOCK, tiles += TILE_BYTES) {
    V pairs[TILE_SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_SIDE; i++)
      pairs[i] = i < count ? load_pairs<F>(x + (index ? index[i] : i) * stride + c, cols - c) : zero();
    transpose(pairs);
#pragma GCC unroll 16
    for (int i = 0; i < TILE_SIDE; i++) store(reinterpret_cast<float*>(tiles + i * 64), pairs[i]);
  }
}

constexpr int AHEAD = 2, RING = 4;  // steps: weights are unpacked so early; and kept in the first cache

using TilePair = uint8_t[2][TILE_BYTES];  // weights of one step: run a, run b
using TileScales = float[TILE_SIDE][CHUNK];

// What a thread needs besides: the scales of CHUNK steps, the sums of 16 rows of both runs, weights as tiles. One pass
// of tokens needs a RING of them, more passes find those of a whole slice there.
struct alignas(64) TileScratch {
  TileScales scales[2];
  TileSums sums[2][TOKEN_TILES];
  TilePair ring[1];  // ring_places of them; behind them a copy of the last rows of both runs
};

inline int ring_places(int cols) { return most(RING, tile_steps(cols) + AHEAD); }

// Unpacks one step of a slice, in quarters (4 rows each). Passed by value, so that its members stay in registers: a
// store through a pointer to bytes may change what memory holds.
template <class F>
struct Unpacking {
  const uint8_t* rows;
  float* scales;
  size_t row_bytes, quants, ahead;
  int cols;

  Unpacking(const Slice& slice, TileScales& scales_, size_t ahead_, int cols_)
      : rows(slice.first),
        scales(scales_[0]),
        row_bytes(slice.row_bytes),
        quants(F::quants(cols_)),
        ahead(ahead_),
        cols(cols_) {}

  // Before the quarters of a step: scales where they begin, and some of the lines 16 rows further on are asked for.
  inline __attribute__((always_inline)) void begin(int step) const {
    if (F::SCALED && step % CHUNK == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < TILE_SIDE; i++) F::scales(rows + i * row_bytes, step, scales + i * CHUNK);
      const int row = step / CHUNK % 4 * 4;  // a line holds the scales of 4 chunks
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) __builtin_prefetch(rows + (row + i) * row_bytes + step * 2 + ahead, 0, 2);
    }
    constexpr int EACH = TILE_SIDE / F::LINE_STEPS;
    const uint8_t* mine = rows + step % F::LINE_STEPS * EACH * row_bytes + quants + size_t(step) * F::BYTES + ahead;
#pragma GCC unroll 16
    for (int i = 0; i < EACH; i++) __builtin_prefetch(mine + i * row_bytes, 0, 2);
  }

  inline __attribute__((always_inline)) void quarter(int q, int step, uint8_t* tile) const {
    const float* scale = scales + 4 * q * CHUNK + step % CHUNK;
    const uint8_t* mine = rows + 4 * q * row_bytes;
    const size_t at = quants + size_t(step) * F::BYTES;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      _mm512_store_si512(tile + (4 * q + i) * 64,
                         F::block(mine + i * row_bytes, at, cols - step * BLOCK, scale + i * CHUNK));
  }
};

// The two slices of 16 rows that are multiplied together.
template <class F>
struct PairUnpacking {
  Unpacking<F> a, b;

  inline __attribute__((always_inline)) void begin(int step) const { a.begin(step), b.begin(step); }

  inline __attribute__((always_inline)) void quarter(int q, int step, uint8_t* tiles) const {
    if (q < 4)
      a.quarter(q, step, tiles);
    else
      b.quarter(q - 4, step, tiles + TILE_BYTES);
  }

  void whole(int step, uint8_t* tiles) const {
    begin(step);
    for (int q = 0; q < 8; q++) quarter(q, step, tiles);
  }
};

// A place in the ring of weight tiles.
struct Ring {
  TilePair* tiles;
  int size;

  int next(int place) const { return place + 1 == size ? 0 : place + 1; }
  int after(int place, int n) const { return (place + n) % size; }
};

// n steps with weights from the ring; meanwhile, if UNPACK, n steps from `later` on are unpacked to its place `to`.
template <int T, bool UNPACK, class F>
inline __attribute__((always_inline)) void multiply_steps(int n, const Ring& ring_, int from, int to, const uint8_t* x,
                                                          size_t stride, PairUnpacking<F> unpacking, int later) {
  const Ring ring = ring_;
  for (int s = 0; s < n; s++, later++, x += TILE_BYTES, from = ring.next(from), to = ring.next(to)) {
    const uint8_t* w = ring.tiles[from][0];
    uint8_t* out = ring.tiles[to][0];
    if (UNPACK) unpacking.begin(later);
    multiply_step<T, false>(w, w + TILE_BYTES, 64, x, stride, [&](int q) __attribute__((always_inline)) {
      if (UNPACK) unpacking.quarter(q, later, out);
    });
  }
}

// The products of a pair of slices with T tiles of tokens. Its first steps are in the ring at `place`; FIRST unpacks the
// others and those of the next slices, else they are there.
template <int T, bool FIRST, class F>
__attribute__((noinline)) void multiply_pair(const PairUnpacking<F>& now, const PairUnpacking<F>& next, const Ring& ring,
                                             int place, const uint8_t* x, size_t stride,
                                             TileSums (*sums)[TOKEN_TILES]) {
  const int steps = tile_steps(now.a.cols), early = least(AHEAD, steps), rest = steps - early;
  zero_sums();
  fence();
  multiply_steps<T, FIRST, F>(rest, ring, place, ring.after(place, early), x, stride, now, early);
  multiply_steps<T, FIRST, F>(early, ring, ring.after(place, rest), ring.after(place, steps), x + rest * TILE_BYTES,
                              stride, next, 0);
  fence();
  store_sums<T>(sums);
}

// The products of two full slices that are bf16 as they lie, row by row: nothing is unpacked.
template <int T, bool FIRST>
__attribute__((noinline)) void multiply_plain(const uint8_t* wa, const uint8_t* wb, size_t row_bytes, const uint8_t* x,
                                              size_t stride, TileSums (*sums)[TOKEN_TILES]) {
  zero_sums();
  for (size_t at = 0; at < row_bytes; at += 2 * BLOCK, x += TILE_BYTES)
    multiply_step<T, false>(wa + at, wb + at, row_bytes, x, stride, [&](int q) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int i = 4 * q; FIRST && i < 4 * q + 4; i++) {  // the lines of the next slices
        const uint8_t* row = (i < TILE_SIDE ? wa : wb) + size_t(TILE_SIDE + i % TILE_SIDE) * row_bytes;
        __builtin_prefetch(row + at, 0, 2);
      }
    });
  fence();
  store_sums<T>(sums);
}

// GLU of 16 rows and 16 tokens is half a tile for the next matrix, and lies right: rows are its k.
template <class F>
struct StoreHidden {
  const TileHidden& h;

  void operator()(const TileSums& gate, const TileSums& up, const RowPair& w, int row, int token, int) const {
    const int k = h.first + row, rows = least(TILE_SIDE, w.na - row), base = k % BLOCK;
    uint8_t* tile = h.base + token / TILE_SIDE * h.stride + k / BLOCK * TILE_BYTES;
    const bool odd_end = k + TILE_SIDE >= h.width && base == 0;  // the tile's second half has no rows: zeros
    const auto hidden = [&](int i) { return i < rows ? hidden_row(load(gate[i]), load(up[i]), h, k + i) : zero(); };
    for (int i = 0; i < TILE_SIDE; i++) {
      const int low = F::ORDER.at[2 * i] - base, high = F::ORDER.at[2 * i + 1] - base;
      if (!odd_end && (low < 0 || low >= TILE_SIDE)) continue;
      const __m512i both = to_bf16_pair(hidden(low), hidden(high));
      _mm512_store_si512(tile + i * 64, _mm512_permutexvar_epi16(_mm512_load_si512(INTERLEAVE), both));
    }
  }
};

template <class F, class Store>
struct TileRun {
  const SlicePairs<Store>& pairs;
  const RowPair& w;
  const TileTokens& x;
  int cols;
  TileScratch& scratch;

  PairUnpacking<F> unpacking(const Slice (&pair)[2]) const {
    const size_t ahead = TILE_SIDE * w.row_bytes;
    return {{pair[0], scratch.scales[0], ahead, cols}, {pair[1], scratch.scales[1], ahead, cols}};
  }

  using Multiply = void (*)(const PairUnpacking<F>&, const PairUnpacking<F>&, const Ring&, int, const uint8_t*, size_t,
                            TileSums (*)[TOKEN_TILES]);
  static Multiply multiply(bool first, int tiles) {
    constexpr Multiply by_count[2][TOKEN_TILES] = {
        {multiply_pair<1, false, F>, multiply_pair<2, false, F>, multiply_pair<3, false, F>},
        {multiply_pair<1, true, F>, multiply_pair<2, true, F>, multiply_pair<3, true, F>}};
    return by_count[first][tiles - 1];
  }

  using MultiplyPlain = void (*)(const uint8_t*, const uint8_t*, size_t, const uint8_t*, size_t,
                                 TileSums (*)[TOKEN_TILES]);
  static MultiplyPlain multiply_plain_(bool first, int tiles) {
    constexpr MultiplyPlain by_count[2][TOKEN_TILES] = {
        {multiply_plain<1, false>, multiply_plain<2, false>, multiply_plain<3, false>},
        {multiply_plain<1, true>, multiply_plain<2, true>, multiply_plain<3, true>}};
    return by_count[first][tiles - 1];
  }

  // Weights that tiles can be loaded from: whole steps, and rows for whole slices.
  bool plain() const { return !F::SCALED && cols % BLOCK == 0 && w.na % TILE_SIDE == 0 && w.nb == w.na; }

  void plain_block(int begin, int end) const {
    for (int row = 0; row < w.na; row += TILE_SIDE)
      pairs.passes(row, begin, end, [&](bool first, int tiles, const uint8_t* acts) {
        const size_t at = size_t(row) * w.row_bytes;
        multiply_plain_(first, tiles)(w.a + at, w.b + at, w.row_bytes, acts, x.stride, scratch.sums);
      });
  }

  // All rows with tokens [begin, end): pair after pair of slices, each unpacked once.
  void block(int begin, int end) const {
    const int steps = tile_steps(cols), early = least(AHEAD, steps);
    const Ring ring{scratch.ring, end - begin > TOKEN_TILES * TILE_SIDE ? steps + early : RING};
    Slice now[2] = {pairs.slice(false, 0), pairs.slice(true, 0)};
    int place = 0;
    for (int s = 0; s < early; s++) unpacking(now).whole(s, ring.tiles[s][0]);
    for (int row = 0; row < w.na; row += TILE_SIDE, place = ring.after(place, steps)) {
      const int later = row + TILE_SIDE < w.na ? row + TILE_SIDE : row;
      const Slice next[2] = {pairs.slice(false, later), pairs.slice(true, later)};
      pairs.passes(row, begin, end, [&](bool first, int tiles, const uint8_t* acts) {
        multiply(first, tiles)(unpacking(now), unpacking(next), ring, place, acts, x.stride, scratch.sums);
      });
      now[0] = next[0], now[1] = next[1];
    }
  }

};

template <class F, class Store>
void bf16_run(const RowPair& w, const TileTokens& x, int cols, uint8_t* scratch, const Store& save) {
  TileScratch& mine = *reinterpret_cast<TileScratch*>(scratch);
  const SlicePairs<Store> pairs{w, x, mine.sums, mine.ring[0][0] + sizeof(TilePair) * ring_places(cols), save};
  const TileRun<F, Store> run{pairs, w, x, cols, mine};
  pairs.blocks(tile_stride(cols), [&](int begin, int end) {
    run.plain() ? run.plain_block(begin, end) : run.block(begin, end);
  });
}

template <class F>
void bf16_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  bf16_run<F>(w, x, cols, scratch, StorePair{out});
  _mm_sfence();  // lines that went past the caches are there before anybody is told so
}

template <class F>
void bf16_glu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  bf16_run<F>(w, x, cols, scratch, StoreHidden<F>{h});
}

template <class F>
size_t bf16_scratch(int cols) {
  const size_t row_bytes = F::quants(cols) + size_t(tile_steps(cols)) * F::BYTES;
  return offsetof(TileScratch, ring) + sizeof(TilePair) * size_t(ring_places(cols)) + 2 * TILE_SIDE * row_bytes;
}

template <class F>
constexpr TileKernels bf16_kernels(int min_tokens) {
  return {min_tokens,   0,                tile_stride,    tile_stride, bf16_scratch<F>,
          bf16_pack<F>, bf16_multiply<F>, bf16_glu<F>, nullptr};
}

}  // namespace
}  // namespace headrace
