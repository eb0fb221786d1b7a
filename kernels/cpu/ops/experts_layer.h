// What the routed experts of one layer compute on (experts.cpp): pairs sorted by expert, and each step of a group of them.
//
// No threads here: a step is told its rows, or its tokens, and by whom it is done changes nothing.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "formats/layout.h"
#include "ops/each_token.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int STEP_ROWS = 32;  // rows of gate and of up between two GLUs
constexpr int SUM_COLUMNS = 512;

// Floats from one row of `out` to the next: a cache line more than a row, which is often a power of two, so that the 16
// tokens of a tile do not all go to one set of the cache (32 tokens: `down` takes a tenth less).
size_t out_stride(const Bank& bank) { return size_t(bank.hidden) + TILE_SIDE; }

struct Group {  // an expert that was chosen; its pairs are rows first .. first + count
  int expert, first, count;
  bool tiled;                  // by matrix tiles, not by dot products
  uint8_t *x_tiles, *h_tiles;  // activations of a tiled group: its own if it is split, else the worker's
};

int tile_count(const Group& group) { return group.tiled ? tiles_of(group.count) : 0; }

struct Scratch {  // of one worker
  float* up;      // [tokens of the largest group by dot products, STEP_ROWS]
  uint8_t *tiles, *x_tiles, *h_tiles;
};

struct Layer {
  const float* x;
  const int32_t* ids;
  const float* weights;
  const Bank& bank;
  float* y;
  int tokens, top_k;
  bool own_rows = false;  // of pairs: then x has a row for each, already weighted, and the weights are 1
  const Context& context;
  const Kernels& isa;
  const FormatKernels &gate_format, &up_format, &down_format;
  const bool swiglu;  // and no biases

  int groups = 0, split = 0;  // the first `split` groups are cut by rows
  Group* list;                // falling count
  int32_t* token_of;          // [pairs] in sorted order
  int32_t* row_of;            // [tokens, top_k] -> sorted row, or nobody()
  float* out;                 // [pairs, out_stride], `hidden` of each row used; then a row of zeros for nobody()
  // For groups by dot products, if there are any:
  size_t x_bytes, h_bytes;  // of one token's activations
  uint8_t* x_acts;          // [inputs], or x itself
  float* h;                 // [pairs, width]
  uint8_t* h_acts;          // [pairs], or h itself

  int pairs() const { return tokens * top_k; }
  int inputs() const { return own_rows ? pairs() : tokens; }  // rows of x
  int input_of(int pair) const { return own_rows ? pair : pair / top_k; }
  int nobody() const { return pairs(); }  // the row of zeros
  bool dots() const { return groups > 0 && !list[groups - 1].tiled; }  // the smallest group comes last

  Layer(const float* x_, int tokens_, const int32_t* ids_, const float* weights_, int top_k_, const Bank& bank_,
        float* y_, Turn& turn)
      : x(x_),
        ids(ids_),
        weights(weights_),
        bank(bank_),
        y(y_),
        tokens(tokens_),
        top_k(top_k_),
        context(turn.context),
        isa(turn.isa),
        gate_format(turn.context.format(bank_.gate)),
        up_format(turn.context.format(bank_.up)),
        down_format(turn.context.format(bank_.down)),
        swiglu(is_swiglu(bank_.activation) && !bank_.bias_offset) {
    Arena& arena = turn.team.arena;
    if (bank.weighs_input) weigh_input(turn);
    list = arena.take<Group>(tokens == 1 ? pairs() : std::min(bank.experts, pairs()));
    token_of = arena.take<int32_t>(pairs());
    row_of = arena.take<int32_t>(pairs());
    if (tokens == 1)
      take_pairs();
    else
      sort_pairs(arena.take<int32_t>(bank.experts + 1));
    out = arena.take<float>((size_t(pairs()) + 1) * out_stride(bank));
    std::fill_n(out + size_t(nobody()) * out_stride(bank), bank.hidden, 0.0f);
    x_bytes = gate_format.acts_bytes(bank.hidden);
    h_bytes = down_format.acts_bytes(bank.width);
    if (!dots()) return;
    h = arena.take<float>(size_t(pairs()) * bank.width);
    x_acts = gate_format.prepare ? arena.take<uint8_t>(x_bytes * inputs()) : reinterpret_cast<uint8_t*>(const_cast<float*>(x));
    h_acts = down_format.prepare ? arena.take<uint8_t>(h_bytes * pairs()) : reinterpret_cast<uint8_t*>(h);
  }

  // Tiles take an expert where `down` can go on with what gate and up leave.
  bool takes_tiles(int count) const {
    if (!bank.activation.gated || bank.gate != bank.up || !gate_format.tiles || !down_format.tiles) return false;
    if (!gate_format.tiles->leads_to(*down_format.tiles)) return false;
    return context.takes_tiles(bank.gate, count) && context.takes_tiles(bank.down, count);
  }

  void weigh_input(Turn& turn) {
    float *rows = turn.team.arena.take<float>(size_t(pairs()) * bank.hidden), *ones = turn.team.arena.take<float>(pairs());
    each_token(turn.team, pairs(), int64_t(pairs()) * bank.hidden, [&](int p) {
      const float* from = x + size_t(p / top_k) * bank.hidden;
      for (int i = 0; i < bank.hidden; i++) rows[size_t(p) * bank.hidden + i] = weights[p] * from[i];
    });
    std::fill_n(ones, pairs(), 1.0f);
    x = rows, weights = ones, own_rows = true;
  }

  void check(int32_t id) const {
    if (id < -1 || id >= bank.experts)
      throw std::out_of_range("expert id " + std::to_string(id) + " in a bank of " + std::to_string(bank.experts));
  }

  // One token's experts are different already. Sorting them took 10 us of a layer of 800, with all caches cold.
  void take_pairs() {
    const bool tiled = takes_tiles(1);
    for (int p = 0; p < top_k; p++) {
      check(ids[p]);
      row_of[p] = ids[p] < 0 ? nobody() : groups;
      if (ids[p] < 0) continue;
      list[groups] = {ids[p], groups, 1, tiled, nullptr, nullptr};
      token_of[groups++] = input_of(p);
    }
  }

  // Counting sort by expert, stable, so an expert's tokens keep their order; then crowded experts first.
  void sort_pairs(int32_t* starts) {
    std::fill(starts, starts + bank.experts + 1, 0);
    for (int p = 0; p < pairs(); p++) {
      check(ids[p]);
      if (ids[p] >= 0) starts[ids[p] + 1]++;
    }
    for (int e = 0; e < bank.experts; e++) {
      const int count = starts[e + 1];
      const bool tiled = takes_tiles(count);
      if (count) list[groups++] = {e, starts[e], count, tiled, nullptr, nullptr};
      starts[e + 1] += starts[e];
    }
    for (int p = 0; p < pairs(); p++) {
      row_of[p] = ids[p] < 0 ? nobody() : starts[ids[p]]++;
      if (ids[p] >= 0) token_of[row_of[p]] = input_of(p);
    }
    std::stable_sort(list, list + groups, [](const Group& a, const Group& b) { return a.count > b.count; });
  }

  const uint8_t* block(int expert) const { return bank.data + size_t(expert) * bank.bytes; }

  const uint8_t* up_block(int expert) const {
    return block(expert) + (bank.activation.gated ? size_t(bank.width) * gate_format.row_bytes(bank.hidden) : 0);
  }

  // Of an expert's gate, up and down, side by side; null: none.
  const float* biases(int expert) const {
    return bank.bias_offset ? reinterpret_cast<const float*>(block(expert) + bank.bias_offset) : nullptr;
  }

  // What is computed from gate and up of the rows from `row` on.
  Glu glu(const Group& group, int row) const {
    const float* first = biases(group.expert);
    return {bank.activation, first ? first + row : nullptr, first ? first + bank.width + row : nullptr};
  }

  // Some rows of gate and of up, of one format.
  RowPair gate_up_rows(const Group& group, Range rows) const {
    const size_t bytes = gate_format.row_bytes(bank.hidden);
    return {block(group.expert) + rows.begin * bytes, up_block(group.expert) + rows.begin * bytes, bytes,
            rows.end - rows.begin, rows.end - rows.begin};
  }

  // The products of `n` rows from `first` on, by halves, so that they are read as two streams.
  void dot_halves(const FormatKernels& format, const uint8_t* first, int n, const Tokens& acts, int cols, float* to,
                  size_t stride) const {
    const size_t bytes = format.row_bytes(cols);
    const int half = (n + 1) / 2;
    format.dot({first, first + half * bytes, bytes, half, n - half}, acts, cols, {to, to + half, stride, stride});
  }

  // The two halves of some rows of `down`, and where their products go.
  RowPair down_rows(const Group& group, Range rows, PairOut* to) const {
    const size_t bytes = down_format.row_bytes(bank.width);
    const uint8_t* first = up_block(group.expert) + size_t(bank.width) * up_format.row_bytes(bank.hidden);
    const int n = rows.end - rows.begin, half = (n + 1) / 2;
    float* mine = out + size_t(group.first) * out_stride(bank) + rows.begin;
    *to = {mine, mine + half, out_stride(bank), out_stride(bank)};
    return {first + rows.begin * bytes, first + (rows.begin + half) * bytes, bytes, half, n - half};
  }

  // Bytes of 16 tokens of a tiled group: activations, and hidden values.
  size_t x_stride() const { return gate_format.tiles->stride(bank.hidden); }
  size_t h_stride() const { return gate_format.tiles->hidden_stride(bank.width); }

  // Activations of a token for the groups by dot products.
  void prepare_x(Range part) const {
    for (int t = part.begin; t < part.end; t++)
      gate_format.prepare(x + size_t(t) * bank.hidden, bank.hidden, x_acts + t * x_bytes);
  }

  // Gathers 16 tokens of a tiled group: part `i` of tile_count(group).
  void pack_x(const Group& group, int i) const {
    const int first = i * TILE_SIDE, n = std::min(TILE_SIDE, group.count - first);
    gate_format.tiles->pack(x, size_t(bank.hidden), token_of + group.first + first, n, bank.hidden,
                            group.x_tiles + i * x_stride());
  }

  // h of a group for some rows of gate and up.
  void gate_up(const Group& group, Range rows, const Scratch& scratch) const {
    const Glu all = glu(group, 0);
    if (group.tiled)
      return gate_format.tiles->glu(gate_up_rows(group, rows), {group.x_tiles, x_stride(), group.count}, bank.hidden,
                                    {group.h_tiles, h_stride(), rows.begin, bank.width, swiglu ? nullptr : &all}, scratch.tiles);
    const Tokens acts{x_acts, x_bytes, token_of + group.first, group.count};
    for (int r = rows.begin; r < rows.end; r += STEP_ROWS) {
      const int n = std::min(STEP_ROWS, rows.end - r);
      float* mine = h + size_t(group.first) * bank.width + r;
      if (!bank.activation.gated) {
        up_products(group, {r, r + n}, acts, mine, size_t(bank.width));
        for (int i = 0; i < group.count; i++, mine += bank.width) isa.square_relu(mine, n, mine);
        continue;
      }
      gate_up_products(group, {r, r + n}, acts, mine, scratch.up);
      const Glu how = glu(group, r);
      for (int i = 0; i < group.count; i++, mine += bank.width) {
        const float* up = scratch.up + i * STEP_ROWS;
        swiglu ? isa.silu_mul(mine, up, n, mine) : isa.glu(mine, up, n, how, mine);
      }
    }
  }

  void gate_up_products(const Group& group, Range rows, const Tokens& acts, float* gate, float* up) const {
    if (bank.gate == bank.up)
      return gate_format.dot(gate_up_rows(group, rows), acts, bank.hidden, {gate, up, size_t(bank.width), STEP_ROWS});
    const int n = rows.end - rows.begin;
    const size_t bytes = gate_format.row_bytes(bank.hidden);
    dot_halves(gate_format, block(group.expert) + rows.begin * bytes, n, acts, bank.hidden, gate, size_t(bank.width));
    up_products(group, rows, acts, up, STEP_ROWS);
  }

  void up_products(const Group& group, Range rows, const Tokens& acts, float* to, size_t stride) const {
    const uint8_t* first = up_block(group.expert) + rows.begin * up_format.row_bytes(bank.hidden);
    dot_halves(up_format, first, rows.end - rows.begin, acts, bank.hidden, to, stride);
  }

  void prepare_h(const Group& group) const {
    if (group.tiled && down_format.tiles->seal)
      for (int i = 0; i < tile_count(group); i++)
        down_format.tiles->seal(group.h_tiles + i * h_stride(), std::min(TILE_SIDE, group.count - i * TILE_SIDE), bank.width);
    if (group.tiled || !down_format.prepare) return;
    for (int p = group.first; p < group.first + group.count; p++)
      down_format.prepare(h + size_t(p) * bank.width, bank.width, h_acts + p * h_bytes);
  }

  void down(const Group& group, Range rows, const Scratch& scratch) const {
    PairOut to;
    const RowPair pair = down_rows(group, rows, &to);
    if (group.tiled)
      down_format.tiles->multiply(pair, {group.h_tiles, h_stride(), group.count}, bank.width, to, scratch.tiles);
    else
      down_format.dot(pair, {h_acts + group.first * h_bytes, h_bytes, nullptr, group.count}, bank.width, to);
  }

  void whole(Group group, const Scratch& scratch) const {
    group.x_tiles = scratch.x_tiles, group.h_tiles = scratch.h_tiles;
    for (int i = 0; i < tile_count(group); i++) pack_x(group, i);
    gate_up(group, {0, bank.width}, scratch);
    prepare_h(group);
    down(group, {0, bank.hidden}, scratch);
  }

  void sum(Range columns_of_tokens, int blocks) const {
    for (int i = columns_of_tokens.begin; i < columns_of_tokens.end; i++) {
      const int t = i / blocks, c = i % blocks * SUM_COLUMNS, n = std::min(SUM_COLUMNS, bank.hidden - c);
      const size_t first = size_t(t) * top_k;
      const int32_t* next = t + 1 < tokens ? row_of + first + top_k : nullptr;
      float* to = y + size_t(t) * bank.hidden + c;
      if (bank.bias_offset)
        isa.biased_sum(out + c, out_stride(bank), row_of + first, weights + first, top_k, n, to, next,
                       {biases(0) + 2 * bank.width + c, bank.bytes / sizeof(float), ids + first});
      else
        isa.weighted_sum(out + c, out_stride(bank), row_of + first, weights + first, top_k, n, to, next);
    }
  }
};

}  // namespace
}  // namespace headrace
