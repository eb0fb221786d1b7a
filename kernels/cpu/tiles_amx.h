// Products of many tokens by AMX: bf16 tiles, float32 sums.
//
//   out[r][t] = sum over k of bf16(w[r][k]) * bf16(x[t][k])
//
// tdpbf16ps multiplies a tile of weights [16 rows][32 k] (unpacked by tile_formats.h: one block is one tile row) by a
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
// Measured on one core of a 2-core server CPU, weights from the third cache, minima of many turns. What 32 blocks (a step
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

#include "layout.h"
#include "math.h"
#include "tile_formats.h"

namespace headrace {
namespace {

// All eight tiles are 16 rows of 64 bytes. Constant on purpose: _tile_loadconfig of GCC 12 declares 8 bytes as its
// input, so stores into a local config can be dropped.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig TILE_CONFIG;

inline void tiles_begin() { _tile_loadconfig(&TILE_CONFIG); }
inline void tiles_end() { _tile_release(); }

inline double tiles_peak(int rounds) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  return double(rounds) * 4 * TILE_SIDE * TILE_SIDE * BLOCK * 2;
}

// Tile loads and stores are opaque to the compiler: what they read must have been stored, what they wrote be read anew.
inline void fence() { asm volatile("" ::: "memory"); }

// Rows become columns: 16 x 16 values of 32 bits.
inline void transpose(V (&a)[TILE_SIDE]) {
  const auto pair = [](V x, V y, bool high) {
    const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(p, q) : _mm512_unpacklo_pd(p, q));
  };
  V b[TILE_SIDE];
#pragma GCC unroll 4
  for (int i = 0; i < TILE_SIDE; i += 4) {  // lane l of b[i + j]: rows i .. i + 3 of column 4 l + j
    V low01 = _mm512_unpacklo_ps(a[i], a[i + 1]), high01 = _mm512_unpackhi_ps(a[i], a[i + 1]);
    V low23 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), high23 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
    b[i] = pair(low01, low23, false), b[i + 1] = pair(low01, low23, true);
    b[i + 2] = pair(high01, high23, false), b[i + 3] = pair(high01, high23, true);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    V even01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xDD);
    V even23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88), odd23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xDD);
    a[j] = _mm512_shuffle_f32x4(even01, even23, 0x88), a[8 + j] = _mm512_shuffle_f32x4(even01, even23, 0xDD);
    a[4 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0x88), a[12 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0xDD);
  }
}

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
void tiles_pack(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles) {
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

constexpr size_t ACTS_ROOM = size_t(1) << 20;  // of the second cache
constexpr int TOKEN_TILES = 3;                 // of a pass
constexpr int AHEAD = 2, RING = 4;             // steps: weights are unpacked so early; and kept in the first cache

using TileSums = float[TILE_SIDE][TILE_SIDE];     // [rows][tokens]
using TilePair = uint8_t[2][TILE_BYTES];          // weights of one step: run a, run b
using TileScales = float[TILE_SIDE][CHUNK];

// What a thread needs besides: the scales of CHUNK steps, the sums of 16 rows of both runs, weights as tiles. One pass
// of tokens needs a RING of them, more passes find those of a whole slice there.
struct alignas(64) TileScratch {
  TileScales scales[2];
  TileSums sums[2][TOKEN_TILES];
  TilePair ring[1];  // ring_places of them; behind them a copy of the last rows of both runs
};

inline int ring_places(int cols) { return most(RING, tile_steps(cols) + AHEAD); }

// 16 rows of a run, at one distance: addresses are then computed, which is faster than loading 16 pointers.
struct Slice {
  const uint8_t* first;
  size_t row_bytes;
};

// Where fewer than 16 rows are left they are copied, and the last one fills the place: its products are not used.
inline Slice slice_of(const uint8_t* first, size_t row_bytes, int n, uint8_t* copy) {
  if (n >= TILE_SIDE) return {first, row_bytes};
  for (int i = 0; i < TILE_SIDE; i++)
    __builtin_memcpy(copy + i * row_bytes, first + least(i, n - 1) * row_bytes, row_bytes);
  return {copy, row_bytes};
}

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

// Sums += two tiles of weights times T tiles of tokens; between the products, eight times, something else is done.
template <int T, class Other>
inline __attribute__((always_inline)) void multiply_step(const uint8_t* wa, const uint8_t* wb, size_t w_stride,
                                                         const uint8_t* x, size_t x_stride, const Other& other) {
  if (T == 1) {
    _tile_loadd(6, wa, w_stride);
    other(0, 1);
    _tile_loadd(7, x, 64);
    other(1, 2);
    _tile_dpbf16ps(0, 6, 7);
    other(2, 3);
    _tile_loadd(5, wb, w_stride);
    other(3, 4);
    other(4, 5);
    _tile_dpbf16ps(1, 5, 7);
    other(5, 6);
    other(6, 7);
    other(7, 8);
  } else if (T == 2) {
    _tile_loadd(4, wa, w_stride);
    other(0, 1);
    _tile_loadd(6, x, 64);
    other(1, 2);
    _tile_dpbf16ps(0, 4, 6);
    other(2, 3);
    _tile_loadd(5, wb, w_stride);
    other(3, 4);
    _tile_dpbf16ps(1, 5, 6);
    other(4, 5);
    _tile_loadd(7, x + x_stride, 64);
    other(5, 6);
    _tile_dpbf16ps(2, 4, 7);
    other(6, 7);
    _tile_dpbf16ps(3, 5, 7);
    other(7, 8);
  } else {
    _tile_loadd(6, wa, w_stride);
    _tile_loadd(7, x, 64);
    _tile_dpbf16ps(0, 6, 7);
    other(0, 2);
    _tile_loadd(6, wb, w_stride);
    _tile_dpbf16ps(1, 6, 7);
    other(2, 3);
    _tile_loadd(7, x + x_stride, 64);
    _tile_dpbf16ps(3, 6, 7);
    other(3, 4);
    _tile_loadd(6, wa, w_stride);
    _tile_dpbf16ps(2, 6, 7);
    other(4, 5);
    _tile_loadd(7, x + 2 * x_stride, 64);
    _tile_dpbf16ps(4, 6, 7);
    other(5, 6);
    _tile_loadd(6, wb, w_stride);
    _tile_dpbf16ps(5, 6, 7);
    other(6, 8);
  }
}

// n steps with weights from the ring; meanwhile, if UNPACK, n steps from `later` on are unpacked to its place `to`.
template <int T, bool UNPACK, class F>
inline __attribute__((always_inline)) void multiply_steps(int n, const Ring& ring_, int from, int to, const uint8_t* x,
                                                          size_t stride, PairUnpacking<F> unpacking, int later) {
  const Ring ring = ring_;
  for (int s = 0; s < n; s++, later++, x += TILE_BYTES, from = ring.next(from), to = ring.next(to)) {
    const uint8_t* w = ring.tiles[from][0];
    uint8_t* out = ring.tiles[to][0];
    if (UNPACK) unpacking.begin(later);
    multiply_step<T>(w, w + TILE_BYTES, 64, x, stride, [&](int first, int end) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int q = first; UNPACK && q < end; q++) unpacking.quarter(q, later, out);
    });
  }
}

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
}

template <int T>
inline void store_sums(TileSums (*sums)[TOKEN_TILES]) {
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[1][0], 64);
  if (T > 1) _tile_stored(2, sums[0][1], 64);
  if (T > 1) _tile_stored(3, sums[1][1], 64);
  if (T > 2) _tile_stored(4, sums[0][2], 64);
  if (T > 2) _tile_stored(5, sums[1][2], 64);
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
    multiply_step<T>(wa + at, wb + at, row_bytes, x, stride, [&](int first, int end) __attribute__((always_inline)) {
#pragma GCC unroll 32
      for (int i = 4 * first; FIRST && i < 4 * end; i++) {  // the lines of the next slices
        const uint8_t* row = (i < TILE_SIDE ? wa : wb) + size_t(TILE_SIDE + i % TILE_SIDE) * row_bytes;
        __builtin_prefetch(row + at, 0, 2);
      }
    });
  fence();
  store_sums<T>(sums);
}

// Products of up to 16 rows and 16 tokens to out[t * stride + row]. Whole lines go past the caches: nobody reads them
// soon, and they need not be fetched first.
inline void store_rows(const TileSums& sums, int rows, int tokens, float* out, size_t stride) {
  V v[TILE_SIDE];
#pragma GCC unroll 16
  for (int i = 0; i < TILE_SIDE; i++) v[i] = load(sums[i]);
  transpose(v);
#pragma GCC unroll 16
  for (int t = 0; t < TILE_SIDE; t++) {
    if (t >= tokens) continue;
    if (rows == TILE_SIDE && uintptr_t(out + t * stride) % 64 == 0)
      _mm512_stream_ps(out + t * stride, v[t]);
    else
      store_n(out + t * stride, v[t], rows);
  }
}

struct StorePair {
  const PairOut& out;

  void operator()(const TileSums& a, const TileSums& b, const RowPair& w, int row, int token, int tokens) const {
    store_rows(a, least(TILE_SIDE, w.na - row), tokens, out.a + token * out.a_stride + row, out.a_stride);
    if (row < w.nb)
      store_rows(b, least(TILE_SIDE, w.nb - row), tokens, out.b + token * out.b_stride + row, out.b_stride);
  }
};

alignas(64) constexpr int16_t INTERLEAVE[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

// silu(gate) * up of 16 rows and 16 tokens is half a tile for the next matrix, and lies right: rows are its k.
template <class F>
struct StoreHidden {
  const TileHidden& h;

  void operator()(const TileSums& gate, const TileSums& up, const RowPair& w, int row, int token, int) const {
    const int k = h.first + row, rows = least(TILE_SIDE, w.na - row), base = k % BLOCK;
    uint8_t* tile = h.base + token / TILE_SIDE * h.stride + k / BLOCK * TILE_BYTES;
    const bool odd_end = k + TILE_SIDE >= h.width && base == 0;  // the tile's second half has no rows: zeros
    const auto hidden = [&](int i) { return i < rows ? mul(silu(load(gate[i])), load(up[i])) : zero(); };
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
  const RowPair& w;
  const TileTokens& x;
  int cols;
  TileScratch& scratch;
  const Store& save;

  // Rows from `row` on of both runs; where run b has none, it is run a again.
  Slice slice(bool second, int row) const {
    uint8_t* copy = scratch.ring[ring_places(cols)][0] + second * TILE_SIDE * w.row_bytes;
    second = second && row < w.nb;
    return slice_of((second ? w.b : w.a) + size_t(row) * w.row_bytes, w.row_bytes, (second ? w.nb : w.na) - row, copy);
  }

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

  // Rows row .. row + 16 of both runs with tokens [begin, end), in passes of equal size: products(first?, tiles, token).
  template <class Products>
  void passes(int row, int begin, int end, const Products& products) const {
    const int tiles = (end - begin + TILE_SIDE - 1) / TILE_SIDE, n = (tiles + TOKEN_TILES - 1) / TOKEN_TILES;
    const int each = (tiles + n - 1) / n * TILE_SIDE;
    for (int t = begin; t < end; t += each) {
      const int count = least(each, end - t);
      products(t == begin, (count + TILE_SIDE - 1) / TILE_SIDE, x.base + t / TILE_SIDE * x.stride);
      for (int i = 0; i < count; i += TILE_SIDE)
        save(scratch.sums[0][i / TILE_SIDE], scratch.sums[1][i / TILE_SIDE], w, row, t + i, least(TILE_SIDE, count - i));
    }
  }

  void plain_block(int begin, int end) const {
    for (int row = 0; row < w.na; row += TILE_SIDE)
      passes(row, begin, end, [&](bool first, int tiles, const uint8_t* acts) {
        const size_t at = size_t(row) * w.row_bytes;
        multiply_plain_(first, tiles)(w.a + at, w.b + at, w.row_bytes, acts, x.stride, scratch.sums);
      });
  }

  // All rows with tokens [begin, end): pair after pair of slices, each unpacked once.
  void block(int begin, int end) const {
    const int steps = tile_steps(cols), early = least(AHEAD, steps);
    const Ring ring{scratch.ring, end - begin > TOKEN_TILES * TILE_SIDE ? steps + early : RING};
    Slice now[2] = {slice(false, 0), slice(true, 0)};
    int place = 0;
    for (int s = 0; s < early; s++) unpacking(now).whole(s, ring.tiles[s][0]);
    for (int row = 0; row < w.na; row += TILE_SIDE, place = ring.after(place, steps)) {
      const int later = row + TILE_SIDE < w.na ? row + TILE_SIDE : row;
      const Slice next[2] = {slice(false, later), slice(true, later)};
      passes(row, begin, end, [&](bool first, int tiles, const uint8_t* acts) {
        multiply(first, tiles)(unpacking(now), unpacking(next), ring, place, acts, x.stride, scratch.sums);
      });
      now[0] = next[0], now[1] = next[1];
    }
  }

  // So many tokens at a time that the second cache keeps them.
  void run() const {
    const int room = most(1, int(ACTS_ROOM / x.stride) / TOKEN_TILES) * TOKEN_TILES * TILE_SIDE;
    for (int t = 0; t < x.count; t += room)
      plain() ? plain_block(t, least(x.count, t + room)) : block(t, least(x.count, t + room));
  }
};

template <class F>
void tiles_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  const StorePair save{out};
  TileRun<F, StorePair>{w, x, cols, *reinterpret_cast<TileScratch*>(scratch), save}.run();
  _mm_sfence();  // lines that went past the caches are there before anybody is told so
}

template <class F>
void tiles_swiglu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  const StoreHidden<F> save{h};
  TileRun<F, StoreHidden<F>>{w, x, cols, *reinterpret_cast<TileScratch*>(scratch), save}.run();
}

template <class F>
size_t tiles_scratch(int cols) {
  const size_t row_bytes = F::quants(cols) + size_t(tile_steps(cols)) * F::BYTES;
  return offsetof(TileScratch, ring) + sizeof(TilePair) * size_t(ring_places(cols)) + 2 * TILE_SIDE * row_bytes;
}

template <class F>
constexpr TileKernels tile_kernels(int min_tokens) {
  return {min_tokens, tiles_scratch<F>, tiles_pack<F>, tiles_multiply<F>, tiles_swiglu<F>};
}

}  // namespace
}  // namespace headrace
