// Products of many tokens by AMX with block formats: int8 tiles, int32 sums for 256 columns, float32 sums of those.
//
//   out[r][t] = sum over groups g of ws[r][g] * xs[t][g] * sum over k of g of wq[r][k] * xq[t][k]
//
// Weights get one scale for 256 columns of a row while they are unpacked (tile_formats_int8.h); activations have one for
// 256 columns of a token (tiles_int8_tokens.h). An int8 tile holds twice the columns of one of bf16, and unpacking to it
// takes a third of the vector work (q8_0: 5 operations for 64 weights, q4_0: 9 for 128), which is what bounds prompts of few
// tokens an expert. Who wants activations rounded to nothing coarser than bf16 takes those tiles (tiles_bf16.h).
//
// A pipeline of four, in groups of 256 columns: while one is multiplied, the next is unpacked, the scales of the one after
// it are made, and the sums of the one before are scaled and added; a row of each between any two tile operations. With
// up to 48 tokens two groups are kept in the first cache. More take several passes over the same pair of slices: the
// first keeps all unpacked groups, the others find them in the second cache.
//
// A token's sum runs over groups in order, so its result depends on nothing beside it.
//
// What made it fast, on one core of a server CPU, 32 tokens, time of a group against the step before:
//   tiles of tokens loaded past the first cache   0.66 in q4_0, 0.82 in q8_0: it is too small for them and the rest
//   loops instead of one long body                0.9: its 13 KB came from behind the cache of decoded instructions
//   scales made a group early                     what a row's ratios are read for must have been stored long before
//   conversion by adding, exponents by integers   beside tiles float arithmetic has one port, but additions have two
#pragma once

#include <type_traits>

#include "cores/tiles.h"
#include "cores/tiles_int8_tokens.h"
#include "formats/tile_formats_int8.h"

namespace headrace {
namespace {

using GroupTiles = uint8_t[2][GROUP_STEPS][TILE_BYTES];  // an unpacked group of both runs

struct alignas(64) Int8Scratch {
  PairRatios ratios[2];  // of the group that is unpacked, and of the one after
  TileSums sums[2][TOKEN_TILES];
  TileSums group_sums[2][TOKEN_TILES];  // of the group before
  GroupTiles ring[1];  // RingSizes::tiles of them, RingSizes::scales of PairScales, a copy of the last rows of both runs
};

// Groups that are kept: one pass needs the one that is multiplied and the one that is unpacked, several passes all of a
// slice and the first of the next; scales are made one group earlier and needed one longer.
struct RingSizes {
  int tiles, scales;
};
inline RingSizes ring_sizes(int groups) { return {groups + 1, groups + 3}; }
constexpr RingSizes ONE_PASS{2, 4};

// Groups are numbered through all slices.
struct Ring8 {
  GroupTiles* tiles;
  PairScales* scales;
  PairRatios* ratios;
  RingSizes size;

  GroupTiles& tiles_at(int number) const { return tiles[number % size.tiles]; }
  PairScales& scales_at(int number) const { return scales[number % size.scales]; }
  PairRatios& ratios_at(int number) const { return ratios[number % 2]; }
};

// A group of a pair of slices, as it lies in memory.
template <class F>
struct Source {
  const uint8_t *a, *b;  // scales of the first row of either run
  size_t row_bytes, quants;  // from one row to the next; from a row's scales to its quants
  int columns;               // fewer than GROUP in a row's last group

  Source(const Slice (&pair)[2], int group, int cols)
      : a(pair[0].first + size_t(group) * GROUP_BLOCKS * 2),
        b(pair[1].first + size_t(group) * GROUP_BLOCKS * 2),
        row_bytes(pair[0].row_bytes),
        quants(halves_bytes(cols / BLOCK) + F::line_bytes(group * GROUP) - size_t(group) * GROUP_BLOCKS * 2),
        columns(least(GROUP, cols - group * GROUP)) {}

  bool is_full() const { return columns == GROUP; }
  __mmask8 blocks() const { return __mmask8((1u << columns / BLOCK) - 1); }

  void make_scales(PairRatios& ratios, PairScales& scales) const {
    for (int i = 0; i < 2 * TILE_SIDE; i += 2)
      scale_rows<F>((i < TILE_SIDE ? a : b) + i % TILE_SIDE * row_bytes, row_bytes, blocks(), ratios[i], scales[i]);
  }

  // By itself; lines are copied first, so that nothing beyond the row is read.
  void unpack(const PairRatios& ratios, GroupTiles& out) const {
    for (int i = 0; i < 2 * TILE_SIDE; i++) {
      alignas(64) uint8_t copy[GROUP] = {};
      __builtin_memcpy(copy, (i < TILE_SIDE ? a : b) + i % TILE_SIDE * row_bytes + quants, F::line_bytes(columns));
      for (int step = 0; step < GROUP_STEPS; step += F::STEPS)
        F::line(copy + step / F::STEPS * 64, ratios[i] + step * 2, out[i / TILE_SIDE][step] + i % TILE_SIDE * 64);
    }
  }
};

// Unpacks a full group row by row, those of run a and then those of run b, and makes the scales of the group after it,
// two rows at a time: what a row's ratios are read for must have been stored long before. All that stays the same is a
// constant or in a register, and distances are added, since 32 addresses would not fit there.
template <class F>
struct RowByRow {
  static constexpr int LINES = GROUP_STEPS / F::STEPS;  // of a row's group
  const uint8_t *row_, *second_;       // quants of this row; of run b's first
  const uint8_t *scaled, *second_scaled;  // scales of two rows of the group after
  size_t row_bytes, ahead;  // ahead: to the row 16 further on, which is asked for
  const int32_t* ratios;
  uint8_t* tiles;
  int32_t* later_ratios;
  float* later_scales;
  __mmask8 blocks;

  RowByRow(const Source<F>& now, const Source<F>& later, const Ring8& ring, int number)
      : row_(now.a + now.quants),
        second_(now.b + now.quants),
        scaled(later.a),
        second_scaled(later.b),
        row_bytes(now.row_bytes),
        ahead(TILE_SIDE * row_bytes),
        ratios(ring.ratios_at(number)[0]),
        tiles(ring.tiles_at(number)[0][0]),
        later_ratios(ring.ratios_at(number + 1)[0]),
        later_scales(ring.scales_at(number + 1)[0]),
        blocks(later.blocks()) {}

  // Row I of the next 8.
  template <int I>
  inline __attribute__((always_inline)) void row() {
    if (I % 2 == 0) {
      scale_rows<F>(scaled, row_bytes, blocks, later_ratios + I * GROUP_BLOCKS, later_scales + I * GROUP_BLOCKS);
      __builtin_prefetch(scaled + ahead, 0, 2);
      __builtin_prefetch(scaled + ahead + row_bytes, 0, 2);
      scaled += 2 * row_bytes;
    }
#pragma GCC unroll 4
    for (int line = 0; line < LINES; line++) {
      __builtin_prefetch(row_ + line * 64 + ahead, 0, 2);
      F::line(row_ + line * 64, ratios + I * GROUP_BLOCKS + line * (GROUP_BLOCKS / LINES),
              tiles + line * F::STEPS * TILE_BYTES + I * 64);
    }
    row_ += row_bytes;
  }

  inline __attribute__((always_inline)) void next_8() {
    ratios += 8 * GROUP_BLOCKS, later_ratios += 8 * GROUP_BLOCKS, later_scales += 8 * GROUP_BLOCKS;
    tiles += 8 * 64;
  }

  // From the end of run a to run b.
  inline __attribute__((always_inline)) void next_run() {
    row_ = second_, scaled = second_scaled, tiles += (GROUP_STEPS - 1) * TILE_BYTES;
  }
};

// Integer sums begin with the bits of 1.5 * 2^23 instead of 0: as long as they stay below 2^22 (256 x 127 x 128 does), what
// they are then is the float 1.5 * 2^23 + sum. Taking that away is an addition, which beside tiles has two ports;
// conversions have one.
constexpr float MAGIC = 12582912.0f;
alignas(64) constexpr float MAGIC_ROW[TILE_SIDE] = {MAGIC, MAGIC, MAGIC, MAGIC, MAGIC, MAGIC, MAGIC, MAGIC,
                                                    MAGIC, MAGIC, MAGIC, MAGIC, MAGIC, MAGIC, MAGIC, MAGIC};

template <int T>
inline void begin_group_sums() {
  _tile_loadd(0, MAGIC_ROW, 0);
  _tile_loadd(1, MAGIC_ROW, 0);
  if (T > 1) _tile_loadd(2, MAGIC_ROW, 0);
  if (T > 1) _tile_loadd(3, MAGIC_ROW, 0);
  if (T > 2) _tile_loadd(4, MAGIC_ROW, 0);
  if (T > 2) _tile_loadd(5, MAGIC_ROW, 0);
}

// Adds the sums of a group, scaled, to those of the groups before, run after run.
template <int T>
struct SumByRow {
  const float *group, *weights;  // weights: PairScales
  float* all;
  const float* tokens;  // scales of the first tile of tokens
  size_t stride;        // floats to those of the next
  __mmask16 keep;       // none: they are the first sums

  SumByRow(Int8Scratch& s, const PairScales& scales, const float* tokens_, size_t stride_, bool first)
      : group(s.group_sums[0][0][0]),
        weights(scales[0]),
        all(s.sums[0][0][0]),
        tokens(tokens_),
        stride(stride_),
        keep(first ? 0 : 0xFFFF) {}

  inline __attribute__((always_inline)) void row(int r) const {
    const V w = set1(weights[r * GROUP_BLOCKS]);
#pragma GCC unroll 3
    for (int t = 0; t < T; t++) {
      const V scale = mul(w, load(tokens + t * stride));
      const int at = (t * TILE_SIDE + r) * TILE_SIDE;
      store(all + at, fma(sub(load(group + at), set1(MAGIC)), scale, _mm512_maskz_load_ps(keep, all + at)));
    }
  }

  inline __attribute__((always_inline)) void next_run() {
    constexpr int SUMS = TOKEN_TILES * TILE_SIDE * TILE_SIDE;
    group += SUMS, all += SUMS, weights += TILE_SIDE * GROUP_BLOCKS;
  }

  void both_runs() {
    for (int run = 0; run < 2; run++, next_run())
      for (int r = 0; r < TILE_SIDE; r++) row(r);
  }
};

// One step of a group's products; meanwhile 8 rows are unpacked, and a run's sums of the group before are added.
template <int T, bool UNPACK, bool ADD, class F>
inline __attribute__((always_inline)) void group_step(const uint8_t* w, const uint8_t* x, size_t stride, RowByRow<F>& rows,
                                                      SumByRow<T>& sums) {
  multiply_step<T, true>(w, w + GROUP_STEPS * TILE_BYTES, 64, x, stride, [&](auto q) __attribute__((always_inline)) {
    constexpr int I = decltype(q)::value;
    if constexpr (UNPACK) rows.template row<I>();
    if constexpr (ADD) sums.row(2 * I), sums.row(2 * I + 1);
  });
  if (UNPACK) rows.next_8();
  if (ADD) sums.next_run();
}

// All steps. Sums are added in the second half only: right after they were stored, they would have to be waited for.
// Loops on purpose: without, the code of a group is read from the second level of instruction caches, at half the speed.
template <int T, bool UNPACK, bool ADD, class F>
inline __attribute__((always_inline)) void multiply_group(const GroupTiles& w_, const uint8_t* x, size_t stride,
                                                          RowByRow<F> rows, SumByRow<T> sums) {
  const uint8_t* w = w_[0][0];
#pragma GCC unroll 1
  for (int step = 0; step < GROUP_STEPS / 2; step++, w += TILE_BYTES, x += TILE_BYTES)
    group_step<T, UNPACK, false>(w, x, stride, rows, sums);
  rows.next_run();
#pragma GCC unroll 1
  for (int step = 0; step < GROUP_STEPS / 2; step++, w += TILE_BYTES, x += TILE_BYTES)
    group_step<T, UNPACK, ADD>(w, x, stride, rows, sums);
}

// Three pairs of slices in a row, the first of which is multiplied.
template <class F>
struct Sources {
  const Slice (&pairs)[3][2];
  int groups, cols;

  // So many groups on from the first pair's first, at most twice as many as a pair has.
  Source<F> at(int group) const { return {pairs[group / groups], group % groups, cols}; }
};

// The products of the first pair with T tiles of tokens. Its first group, number `number`, is in the ring, with the
// scales of the one after; FIRST unpacks the others and the first one of the next pair, else they are there.
template <int T, bool FIRST, class F>
__attribute__((noinline)) void int8_pair(const Sources<F>& sources, const Ring8& ring, int number, const uint8_t* x,
                                         size_t stride, Int8Scratch& s) {
  const float* token_scales = reinterpret_cast<const float*>(x + int8_tiles_bytes(sources.cols));
  const auto sums_of = [&](int g) -> SumByRow<T> {
    return {s, ring.scales_at(number + g), token_scales + g * TILE_SIDE, stride / sizeof(float), g == 0};
  };
  for (int g = 0; g < sources.groups; g++, x += GROUP_STEPS * TILE_BYTES) {
    const GroupTiles& w = ring.tiles_at(number + g);
    const Source<F> next = sources.at(g + 1), after = sources.at(g + 2);
    const RowByRow<F> rows(next, after, ring, number + g + 1);
    if (FIRST && !next.is_full()) {
      next.unpack(ring.ratios_at(number + g + 1), ring.tiles_at(number + g + 1));
      after.make_scales(ring.ratios_at(number + g + 2), ring.scales_at(number + g + 2));
    }
    const SumByRow<T> sums = sums_of(most(g - 1, 0));
    begin_group_sums<T>();
    fence();
    if (FIRST && next.is_full())
      g ? multiply_group<T, FIRST, true>(w, x, stride, rows, sums)
        : multiply_group<T, FIRST, false>(w, x, stride, rows, sums);
    else
      g ? multiply_group<T, false, true>(w, x, stride, rows, sums)
        : multiply_group<T, false, false>(w, x, stride, rows, sums);
    fence();
    store_sums<T>(s.group_sums);
    fence();
  }
  sums_of(sources.groups - 1).both_runs();
}

// GLU of 16 rows and 16 tokens: a line of 16 tokens for each of 16 columns of `down`.
struct StoreValues {
  const TileHidden& h;

  void operator()(const TileSums& gate, const TileSums& up, const RowPair& w, int row, int token, int) const {
    float* values = reinterpret_cast<float*>(h.base + token / TILE_SIDE * h.stride + int8_stride(h.width));
    values += size_t(h.first + row) * TILE_SIDE;
    for (int i = 0; i < least(TILE_SIDE, w.na - row); i++)
      store(values + i * TILE_SIDE, hidden_row(load(gate[i]), load(up[i]), h, h.first + row + i));
  }
};

template <class F, class Store>
struct Int8Run {
  const SlicePairs<Store>& pairs;
  int cols;
  Int8Scratch& scratch;

  using Multiply = void (*)(const Sources<F>&, const Ring8&, int, const uint8_t*, size_t, Int8Scratch&);
  static Multiply multiply(bool first, int tiles) {
    constexpr Multiply by_count[2][TOKEN_TILES] = {{int8_pair<1, false, F>, int8_pair<2, false, F>, int8_pair<3, false, F>},
                                                   {int8_pair<1, true, F>, int8_pair<2, true, F>, int8_pair<3, true, F>}};
    return by_count[first][tiles - 1];
  }

  // All rows with tokens [begin, end): pair after pair of slices, each unpacked once.
  void block(int begin, int end) const {
    const int groups = groups_of(cols), rows = pairs.w.na, last = (rows - 1) / TILE_SIDE * TILE_SIDE;
    const RingSizes sizes = ring_sizes(groups);
    const Ring8 ring{scratch.ring, reinterpret_cast<PairScales*>(scratch.ring + sizes.tiles), scratch.ratios,
                     end - begin > TOKEN_TILES * TILE_SIDE ? sizes : ONE_PASS};
    for (int row = 0, number = 0; row < rows; row += TILE_SIDE, number += groups) {
      const int next = least(row + TILE_SIDE, last), after = least(row + 2 * TILE_SIDE, last);
      const Slice three[3][2] = {{pairs.slice(false, row), pairs.slice(true, row)},
                                 {pairs.slice(false, next), pairs.slice(true, next)},
                                 {pairs.slice(false, after), pairs.slice(true, after)}};
      const Sources<F> sources{three, groups, cols};
      if (row == 0) {
        for (int g = 0; g < 2; g++) sources.at(g).make_scales(ring.ratios_at(g), ring.scales_at(g));
        sources.at(0).unpack(ring.ratios_at(0), ring.tiles_at(0));
      }
      pairs.passes(row, begin, end, [&](bool first, int tiles, const uint8_t* acts) {
        multiply(first, tiles)(sources, ring, number, acts, pairs.x.stride, scratch);
      });
    }
  }
};

// Scratch without the copies of rows.
inline size_t int8_fixed(int cols) {
  const RingSizes sizes = ring_sizes(groups_of(cols));
  return offsetof(Int8Scratch, ring) + sizeof(GroupTiles) * sizes.tiles + sizeof(PairScales) * sizes.scales;
}

template <class F, class Store>
void int8_run(const RowPair& w, const TileTokens& x, int cols, uint8_t* scratch, const Store& save) {
  Int8Scratch& mine = *reinterpret_cast<Int8Scratch*>(scratch);
  const SlicePairs<Store> pairs{w, x, mine.sums, scratch + int8_fixed(cols), save};
  const Int8Run<F, Store> run{pairs, cols, mine};
  pairs.blocks(int8_stride(cols), [&](int begin, int end) { run.block(begin, end); });
}

template <class F>
void int8_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  int8_run<F>(w, x, cols, scratch, StorePair{out});
  _mm_sfence();  // lines that went past the caches are there before anybody is told so
}

template <class F>
void int8_glu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  int8_run<F>(w, x, cols, scratch, StoreValues{h});
}

template <class F>
size_t int8_scratch(int cols) {
  const size_t row_bytes = halves_bytes(cols / BLOCK) + F::line_bytes(cols);
  return int8_fixed(cols) + 2 * TILE_SIDE * row_bytes;
}

template <class F>
constexpr TileKernels int8_kernels(int min_tokens) {
  return {min_tokens,   GROUP,            int8_stride,    int8_hidden_stride, int8_scratch<F>,
          int8_pack<F>, int8_multiply<F>, int8_glu<F>, int8_seal<F>};
}

}  // namespace
}  // namespace headrace
