// What products of many tokens by AMX have in common, whatever the tiles hold (tiles_bf16.h, tiles_int8.h).
//
// A tile of weights is 16 rows of 64 bytes of k, a tile of tokens the same k of 16 tokens, four bytes of each token side
// by side. Two slices of 16 rows (gate and up, or the halves of one matrix) go together: up to 3 tiles of tokens times 2
// of weights are 6 sums, which stay in tiles 0 .. 5; tiles 4 .. 7, as far as free, hold operands. A tile of tokens comes
// from the second cache, one of weights from the first, so that every line from the second cache serves two products.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <type_traits>

#include "formats/layout.h"
#include "isa/math.h"

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

// Tile loads and stores are opaque to the compiler: what they read must have been stored, what they wrote be read anew.
inline void fence() { asm volatile("" ::: "memory"); }

constexpr int TOKEN_TILES = 3;                  // of a pass
constexpr size_t ACTS_ROOM = size_t(1) << 20;   // of the second cache

using TileSums = float[TILE_SIDE][TILE_SIDE];   // [rows][tokens]

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

// The numbers of tiles are part of the instruction, so that they cannot be parameters.
#define HEADRACE_PRODUCT(sum, w, x) \
  if constexpr (INT8)               \
    _tile_dpbssd(sum, w, x);        \
  else                              \
    _tile_dpbf16ps(sum, w, x)

template <int I>
using Slot = std::integral_constant<int, I>;

// Sums += two tiles of weights times T tiles of tokens; between the products, eight times, something else is done. Tiles of
// tokens are loaded with the hint that keeps them out of the first cache: a pair of slices goes through all of them, and
// they would push out the weights that were just unpacked (int8 tiles take a fifth to a third less, bf16 tiles a tenth).
template <int T, bool INT8, class Other>
inline __attribute__((always_inline)) void multiply_step(const uint8_t* wa, const uint8_t* wb, size_t w_stride,
                                                         const uint8_t* x, size_t x_stride, const Other& other) {
  if (T == 1) {
    _tile_loadd(6, wa, w_stride);
    other(Slot<0>());
    _tile_stream_loadd(7, x, 64);
    other(Slot<1>());
    HEADRACE_PRODUCT(0, 6, 7);
    other(Slot<2>());
    _tile_loadd(5, wb, w_stride);
    other(Slot<3>());
    other(Slot<4>());
    HEADRACE_PRODUCT(1, 5, 7);
    other(Slot<5>());
    other(Slot<6>());
    other(Slot<7>());
  } else if (T == 2) {
    _tile_loadd(4, wa, w_stride);
    other(Slot<0>());
    _tile_stream_loadd(6, x, 64);
    other(Slot<1>());
    HEADRACE_PRODUCT(0, 4, 6);
    other(Slot<2>());
    _tile_loadd(5, wb, w_stride);
    other(Slot<3>());
    HEADRACE_PRODUCT(1, 5, 6);
    other(Slot<4>());
    _tile_stream_loadd(7, x + x_stride, 64);
    other(Slot<5>());
    HEADRACE_PRODUCT(2, 4, 7);
    other(Slot<6>());
    HEADRACE_PRODUCT(3, 5, 7);
    other(Slot<7>());
  } else {
    _tile_loadd(6, wa, w_stride);
    _tile_stream_loadd(7, x, 64);
    HEADRACE_PRODUCT(0, 6, 7);
    other(Slot<0>());
    other(Slot<1>());
    _tile_loadd(6, wb, w_stride);
    HEADRACE_PRODUCT(1, 6, 7);
    other(Slot<2>());
    _tile_stream_loadd(7, x + x_stride, 64);
    HEADRACE_PRODUCT(3, 6, 7);
    other(Slot<3>());
    _tile_loadd(6, wa, w_stride);
    HEADRACE_PRODUCT(2, 6, 7);
    other(Slot<4>());
    _tile_stream_loadd(7, x + 2 * x_stride, 64);
    HEADRACE_PRODUCT(4, 6, 7);
    other(Slot<5>());
    _tile_loadd(6, wb, w_stride);
    HEADRACE_PRODUCT(5, 6, 7);
    other(Slot<6>());
    other(Slot<7>());
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

// Products of tiles that are there already; returns operations.
template <bool INT8>
double tiles_peak(int rounds) {
  zero_sums();
  for (int r = 0; r < rounds; r++) {
    HEADRACE_PRODUCT(0, 4, 5);
    HEADRACE_PRODUCT(1, 4, 5);
    HEADRACE_PRODUCT(2, 4, 5);
    HEADRACE_PRODUCT(3, 4, 5);
  }
  return double(rounds) * 4 * TILE_SIDE * TILE_SIDE * (INT8 ? 64 : 32) * 2;
}

#undef HEADRACE_PRODUCT

template <int T>
inline void store_sums(TileSums (*sums)[TOKEN_TILES]) {
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[1][0], 64);
  if (T > 1) _tile_stored(2, sums[0][1], 64);
  if (T > 1) _tile_stored(3, sums[1][1], 64);
  if (T > 2) _tile_stored(4, sums[0][2], 64);
  if (T > 2) _tile_stored(5, sums[1][2], 64);
}

// Row `row` of the hidden values of 16 tokens.
inline V hidden_row(V gate, V up, const TileHidden& h, int row) {
  if (!h.glu) return mul(silu(gate), up);
  const Glu& how = *h.glu;
  if (how.gate_bias) gate = add(gate, set1(how.gate_bias[row])), up = add(up, set1(how.up_bias[row]));
  return activate(gate, up, how.activation);
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

// The rows of both runs, 16 of each at a time, and where their sums go: save(sums a, sums b, w, row, token, tokens).
template <class Store>
struct SlicePairs {
  const RowPair& w;
  const TileTokens& x;
  TileSums (*sums)[TOKEN_TILES];  // [2] of the runs
  uint8_t* copies;                // room for 2 x 16 rows
  const Store& save;

  // Rows from `row` on of a run; where run b has none, it is run a again.
  Slice slice(bool second, int row) const {
    uint8_t* copy = copies + second * TILE_SIDE * w.row_bytes;
    second = second && row < w.nb;
    return slice_of((second ? w.b : w.a) + size_t(row) * w.row_bytes, w.row_bytes, (second ? w.nb : w.na) - row, copy);
  }

  // Rows row .. row + 16 of both runs with tokens [begin, end), in passes of equal size: products(first?, tiles, token).
  template <class Products>
  void passes(int row, int begin, int end, const Products& products) const {
    const int tiles = (end - begin + TILE_SIDE - 1) / TILE_SIDE, n = (tiles + TOKEN_TILES - 1) / TOKEN_TILES;
    const int each = (tiles + n - 1) / n * TILE_SIDE;
    for (int t = begin; t < end; t += each) {
      const int count = least(each, end - t);
      products(t == begin, (count + TILE_SIDE - 1) / TILE_SIDE, x.base + t / TILE_SIDE * x.stride);
      for (int i = 0; i < count; i += TILE_SIDE)
        save(sums[0][i / TILE_SIDE], sums[1][i / TILE_SIDE], w, row, t + i, least(TILE_SIDE, count - i));
    }
  }

  // So many tokens at a time that the second cache keeps them; `bytes` are those of 16.
  template <class Block>
  void blocks(size_t bytes, const Block& block) const {
    const int room = most(1, int(ACTS_ROOM / bytes) / TOKEN_TILES) * TOKEN_TILES * TILE_SIDE;
    for (int t = 0; t < x.count; t += room) block(t, least(x.count, t + room));
  }
};

}  // namespace
}  // namespace headrace
