// Products of many tokens by AMX: bf16 tiles, float32 sums.
//
//   out[r][t] = sum over k of bf16(w[r][k]) * bf16(x[t][k])
//
// tdpbf16ps multiplies a tile of weights [16 rows][32 k] (unpacked by tile_formats.h: one block is one tile row) by a
// tile of tokens [16 pairs of k][16 tokens][2] (packed once per op, layout.h). A pass takes 1 to 6 tiles of tokens:
// their sums stay in tiles 0 .. 5 over all columns, tile 6 holds weights, tile 7 tokens. Weights are unpacked AHEAD
// steps ahead into a ring of RING tiles in the first cache, a quarter tile between two products, so that vector work
// and products overlap. More tokens go in equal passes over groups of rows that the second cache keeps.
//
// Limits: a token's sum runs over k in one order, so its result depends on nothing beside it; subnormals count as zero.
// With few tokens unpacking decides (16 tokens cost 0.6 of 64), with many the reading of token tiles from the second
// cache: 16 lines a product, about 29 cycles where the product itself takes 16.
//
// Measured on one core of a 2-core server CPU (peak 3.07 TFLOP/s), q4_0, 128 rows x 2048 columns from the second cache,
// us for 16 / 64 / 128 / 256 tokens; this scheme takes 18 / 31 / 61 / 124:
//   panels of 32 rows unpacked first, then 2 x 2 tiles, both operands from the second cache     23 / 38 / 62 / 116
//   chunks of 256 columns, unpacked in turns into the first cache, sums in memory in between    23 / 45 / 67 / 119
//   the same, its unpacking after each step instead of between the products                     25 / 46 / 70 / 122
// The chunks lost because loading sums that were just stored waits for all the vector stores in between (353 cycles a
// step; 196 when sums were not loaded), and two chunks with the token tiles exceed 48 KB.
#pragma once

#include <immintrin.h>

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

constexpr size_t ACTS_ROOM = size_t(1) << 20, ROWS_ROOM = size_t(256) << 10;  // of the second cache
constexpr int TOKEN_TILES = 6, RING = 8, AHEAD = 4;  // of a pass; tiles of weights, unpacked so many steps ahead

using TileSums = float[TILE_SIDE][TILE_SIDE];  // [rows][tokens]

// What a thread needs besides: weights as tiles, the scales of CHUNK steps, the sums of 16 rows of both runs.
struct alignas(64) TileScratch {
  uint8_t ring[RING][TILE_BYTES];
  float scales[TILE_SIDE][CHUNK];
  TileSums a[TOKEN_TILES], b[TOKEN_TILES];
};
static_assert(sizeof(TileScratch) <= TILE_SCRATCH_BYTES, "layout.h");

// 16 rows of a run. Beyond the last row it is that again: its products are not used.
struct Slice {
  const uint8_t* rows[TILE_SIDE];
};

inline Slice slice_of(const uint8_t* first, size_t row_bytes, int n) {
  Slice slice;
  for (int i = 0; i < TILE_SIDE; i++) slice.rows[i] = first + least(i, n - 1) * row_bytes;
  return slice;
}

// Unpacks one step of a slice, in quarters.
template <class F>
struct Unpacking {
  const Slice& slice;
  TileScratch& scratch;
  size_t ahead;
  int cols;

  inline __attribute__((always_inline)) void scales(int step) const {
    if (step % CHUNK != 0) return;
    for (int i = 0; i < TILE_SIDE; i++) F::scales(slice.rows[i], ahead, step, scratch.scales[i]);
  }

  inline __attribute__((always_inline)) void quarter(int q, int step, uint8_t* tile) const {
    F::quarter(slice.rows + 4 * q, ahead, step, cols, &scratch.scales[4 * q][step % CHUNK], tile + 256 * q);
  }

  void whole(int step, uint8_t* tile) const {
    scales(step);
    for (int q = 0; q < 4; q++) quarter(q, step, tile);
  }
};

// Sums += ring tile times T tiles of tokens, for n steps; meanwhile the tiles of n steps from `later` on are unpacked.
template <int T, class F>
inline __attribute__((always_inline)) void multiply_steps(int n, int& place, const uint8_t*& x, size_t x_stride,
                                                          const Unpacking<F>& unpacking, int later, int early) {
  uint8_t(*ring)[TILE_BYTES] = unpacking.scratch.ring;
  for (int s = 0; s < n; s++, place++, later++, x += TILE_BYTES) {
    uint8_t* to = ring[(place + early) % RING];
    unpacking.scales(later);
    _tile_loadd(6, ring[place % RING], 64);
    _tile_loadd(7, x, 64);
    _tile_dpbf16ps(0, 6, 7);
    unpacking.quarter(0, later, to);
    if (T > 1) {
      _tile_loadd(7, x + x_stride, 64);
      _tile_dpbf16ps(1, 6, 7);
    }
    unpacking.quarter(1, later, to);
    if (T > 2) {
      _tile_loadd(7, x + 2 * x_stride, 64);
      _tile_dpbf16ps(2, 6, 7);
    }
    if (T > 3) {
      _tile_loadd(7, x + 3 * x_stride, 64);
      _tile_dpbf16ps(3, 6, 7);
    }
    unpacking.quarter(2, later, to);
    if (T > 4) {
      _tile_loadd(7, x + 4 * x_stride, 64);
      _tile_dpbf16ps(4, 6, 7);
    }
    unpacking.quarter(3, later, to);
    if (T > 5) {
      _tile_loadd(7, x + 5 * x_stride, 64);
      _tile_dpbf16ps(5, 6, 7);
    }
  }
}

// The products of a slice with T tiles of tokens. Its first steps are in the ring at `place`; those of the next slice
// will be.
template <int T, class F>
__attribute__((noinline)) void multiply_slice(const Unpacking<F>& now, const Unpacking<F>& next, int& at,
                                              const uint8_t* x, size_t x_stride, TileSums* sums) {
  const int steps = tile_steps(now.cols), early = least(AHEAD, steps);
  int place = at;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  fence();
  multiply_steps<T, F>(steps - early, place, x, x_stride, now, early, early);
  multiply_steps<T, F>(early, place, x, x_stride, next, 0, early);
  fence();
  _tile_stored(0, sums[0], 64);
  if (T > 1) _tile_stored(1, sums[1], 64);
  if (T > 2) _tile_stored(2, sums[2], 64);
  if (T > 3) _tile_stored(3, sums[3], 64);
  if (T > 4) _tile_stored(4, sums[4], 64);
  if (T > 5) _tile_stored(5, sums[5], 64);
  at = place;
}

// Products of up to 16 rows and 16 tokens to out[t * stride + row].
inline void store_rows(const TileSums& sums, int rows, int tokens, float* out, size_t stride) {
  V v[TILE_SIDE];
#pragma GCC unroll 16
  for (int i = 0; i < TILE_SIDE; i++) v[i] = load(sums[i]);
  transpose(v);
#pragma GCC unroll 16
  for (int t = 0; t < TILE_SIDE; t++)
    if (t < tokens) store_n(out + t * stride, v[t], rows);
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

  // Slice i of all: rows of run a, the rows of run b beside them, the next rows of run a, ...
  Slice slice(int i) const {
    const int row = i / 2 * TILE_SIDE;
    const bool second = i % 2 && row < w.nb;
    return slice_of((second ? w.b : w.a) + size_t(row) * w.row_bytes, w.row_bytes, (second ? w.nb : w.na) - row);
  }

  using Multiply = void (*)(const Unpacking<F>&, const Unpacking<F>&, int&, const uint8_t*, size_t, TileSums*);
  static Multiply multiply(int tiles) {
    constexpr Multiply by_count[TOKEN_TILES] = {multiply_slice<1, F>, multiply_slice<2, F>, multiply_slice<3, F>,
                                                multiply_slice<4, F>, multiply_slice<5, F>, multiply_slice<6, F>};
    return by_count[tiles - 1];
  }

  // Slices [first, end), an even number, with tokens [begin, begin + count), TOKEN_TILES at most.
  void pass(int first, int end, int begin, int count) const {
    const Multiply multiply_ = multiply((count + TILE_SIDE - 1) / TILE_SIDE);
    const int steps = tile_steps(cols);
    const uint8_t* acts = x.base + begin / TILE_SIDE * x.stride;
    const size_t ahead = TILE_SIDE * w.row_bytes;
    Slice now = slice(first);
    int place = 0;
    for (int s = 0; s < least(AHEAD, steps); s++) Unpacking<F>{now, scratch, ahead, cols}.whole(s, scratch.ring[s]);
    for (int i = first; i < end; i++) {
      const Slice next = slice(least(i + 1, end - 1));
      multiply_({now, scratch, ahead, cols}, {next, scratch, ahead, cols}, place, acts, x.stride,
                i % 2 ? scratch.b : scratch.a);
      now = next;
      for (int t = 0; i % 2 && t < count; t += TILE_SIDE)
        save(scratch.a[t / TILE_SIDE], scratch.b[t / TILE_SIDE], w, i / 2 * TILE_SIDE, begin + t,
             least(TILE_SIDE, count - t));
    }
  }

  // As many as fill so many bytes, in multiples of `grain`.
  static int fill(size_t room, size_t each, int grain) { return most(1, int(room / each) / grain) * grain; }

  // Rows in groups whose bytes the second cache keeps while the tokens of a block pass, in passes of equal size.
  void run() const {
    const int slices = (w.na + TILE_SIDE - 1) / TILE_SIDE * 2;
    const int block = fill(ACTS_ROOM, x.stride, TOKEN_TILES) * TILE_SIDE;
    const int group = fill(ROWS_ROOM, TILE_SIDE * w.row_bytes, 2);
    for (int from = 0; from < x.count; from += block) {
      const int to = least(x.count, from + block), tiles = (to - from + TILE_SIDE - 1) / TILE_SIDE;
      const int passes = (tiles + TOKEN_TILES - 1) / TOKEN_TILES, each = (tiles + passes - 1) / passes * TILE_SIDE;
      for (int first = 0; first < slices; first += group)
        for (int t = from; t < to; t += each) pass(first, least(slices, first + group), t, least(each, to - t));
    }
  }
};

template <class F>
void tiles_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  const StorePair save{out};
  TileRun<F, StorePair>{w, x, cols, *reinterpret_cast<TileScratch*>(scratch), save}.run();
}

template <class F>
void tiles_swiglu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  const StoreHidden<F> save{h};
  TileRun<F, StoreHidden<F>>{w, x, cols, *reinterpret_cast<TileScratch*>(scratch), save}.run();
}

template <class F>
constexpr TileKernels tile_kernels(int min_tokens) {
  return {min_tokens, tiles_pack<F>, tiles_multiply<F>, tiles_swiglu<F>};
}

}  // namespace
}  // namespace headrace
