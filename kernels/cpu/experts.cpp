// The routed experts of one layer in one parallel region.
//
//   pairs (token, k), sorted by expert   ->   h = silu(gate x) * (up x)   ->   out = down h   ->   y[t] = sum_k w * out
//
// 'Whole' experts: one worker does all three matrices of an expert for all its tokens, long contiguous reads and no
// barrier in between (measured 1.13-1.3 x faster than cutting rows). Where whole experts cannot be dealt out evenly
// (Mixtral's two on 16 cores, one crowded expert in a prompt), the largest are 'split' by rows over the team, with a
// barrier between the phases; plan() weighs both. Every pair writes its own row of `out` and the sum runs over k in
// order, so neither the schedule nor the number of threads changes a bit.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "layout.h"
#include "ops.h"
#include "team.h"

namespace headrace {
namespace {

constexpr int STEP_ROWS = 32;  // rows of gate and of up between two SwiGLUs
constexpr int SUM_COLUMNS = 512;
constexpr float SPLIT_COST = 1.2f;  // row-split time over whole-expert time, as measured

struct Group {  // an expert that was chosen; its pairs are rows first .. first + count
  int expert, first, count;
};

struct Layer {
  const float* x;
  const int32_t* ids;
  const float* weights;
  const Bank& bank;
  float* y;
  int tokens, top_k;
  const Kernels& isa;
  const FormatKernels& format;

  int groups = 0, split = 0;  // the first `split` groups are cut by rows
  Group* list;                // falling count
  int32_t* token_of;          // [pairs] in sorted order
  int32_t* row_of;            // [tokens, top_k] -> sorted row
  size_t x_bytes, h_bytes;    // of one token's activations
  uint8_t* x_acts;            // [tokens], or x itself
  float *h, *out;             // [pairs, width], [pairs, hidden]
  uint8_t* h_acts;            // [pairs], or h itself

  int pairs() const { return tokens * top_k; }

  Layer(const float* x_, int tokens_, const int32_t* ids_, const float* weights_, int top_k_, const Bank& bank_,
        float* y_, Arena& arena)
      : x(x_),
        ids(ids_),
        weights(weights_),
        bank(bank_),
        y(y_),
        tokens(tokens_),
        top_k(top_k_),
        isa(kernels()),
        format(isa.formats[bank_.format]) {
    list = arena.take<Group>(std::min(bank.experts, pairs()));
    token_of = arena.take<int32_t>(pairs());
    row_of = arena.take<int32_t>(pairs());
    sort_pairs(arena.take<int32_t>(bank.experts + 1));
    h = arena.take<float>(size_t(pairs()) * bank.width);
    out = arena.take<float>(size_t(pairs()) * bank.hidden);
    x_bytes = acts_bytes(bank.format, bank.hidden);
    h_bytes = acts_bytes(bank.format, bank.width);
    const bool prepared = format.prepare != nullptr;
    x_acts = prepared ? arena.take<uint8_t>(x_bytes * tokens) : reinterpret_cast<uint8_t*>(const_cast<float*>(x));
    h_acts = prepared ? arena.take<uint8_t>(h_bytes * pairs()) : reinterpret_cast<uint8_t*>(h);
  }

  // Counting sort by expert, stable, so an expert's tokens keep their order; then crowded experts first.
  void sort_pairs(int32_t* starts) {
    std::fill(starts, starts + bank.experts + 1, 0);
    for (int p = 0; p < pairs(); p++) {
      if (ids[p] < 0 || ids[p] >= bank.experts)
        throw std::out_of_range("expert id " + std::to_string(ids[p]) + " in a bank of " +
                                std::to_string(bank.experts));
      starts[ids[p] + 1]++;
    }
    for (int e = 0; e < bank.experts; e++) {
      if (starts[e + 1]) list[groups++] = {e, starts[e], starts[e + 1]};
      starts[e + 1] += starts[e];
    }
    for (int p = 0; p < pairs(); p++) {
      row_of[p] = starts[ids[p]]++;
      token_of[row_of[p]] = p / top_k;
    }
    std::stable_sort(list, list + groups, [](const Group& a, const Group& b) { return a.count > b.count; });
  }

  const uint8_t* block(int expert) const { return bank.data + size_t(expert) * bank.bytes; }

  // h rows of a group for rows r0 .. r1 of gate and up; `scratch` holds [count, STEP_ROWS] floats.
  void gate_up(const Group& group, Range rows, float* scratch) const {
    const size_t bytes = row_bytes(bank.format, bank.hidden);
    const uint8_t *gate = block(group.expert), *up = gate + size_t(bank.width) * bytes;
    const Tokens acts{x_acts, x_bytes, token_of + group.first, group.count};
    for (int r = rows.begin; r < rows.end; r += STEP_ROWS) {
      const int n = std::min(STEP_ROWS, rows.end - r);
      float* mine = h + size_t(group.first) * bank.width + r;
      const RowPair pair{gate + r * bytes, up + r * bytes, bytes, n, n};
      format.dot(pair, acts, bank.hidden, {mine, scratch, size_t(bank.width), STEP_ROWS});
      for (int i = 0; i < group.count; i++, mine += bank.width) isa.silu_mul(mine, scratch + i * STEP_ROWS, n, mine);
    }
  }

  void prepare_h(int first, int count) const {
    for (int p = first; format.prepare && p < first + count; p++)
      format.prepare(h + size_t(p) * bank.width, bank.width, h_acts + p * h_bytes);
  }

  void down(const Group& group, Range rows) const {
    const size_t bytes = row_bytes(bank.format, bank.width);
    const uint8_t* first = block(group.expert) + 2 * size_t(bank.width) * row_bytes(bank.format, bank.hidden);
    const int n = rows.end - rows.begin, half = (n + 1) / 2;
    const RowPair pair{first + rows.begin * bytes, first + (rows.begin + half) * bytes, bytes, half, n - half};
    const Tokens acts{h_acts + group.first * h_bytes, h_bytes, nullptr, group.count};
    float* mine = out + size_t(group.first) * bank.hidden + rows.begin;
    format.dot(pair, acts, bank.width, {mine, mine + half, size_t(bank.hidden), size_t(bank.hidden)});
  }

  void whole(const Group& group, float* scratch) const {
    gate_up(group, {0, bank.width}, scratch);
    prepare_h(group.first, group.count);
    down(group, {0, bank.hidden});
  }

  void sum(Range columns_of_tokens, int blocks) const {
    for (int i = columns_of_tokens.begin; i < columns_of_tokens.end; i++) {
      const int t = i / blocks, c = i % blocks * SUM_COLUMNS;
      isa.weighted_sum(out + c, bank.hidden, row_of + size_t(t) * top_k, weights + size_t(t) * top_k, top_k,
                       std::min(SUM_COLUMNS, bank.hidden - c), y + size_t(t) * bank.hidden + c);
    }
  }
};

// Time of an expert: reading it, plus arithmetic that grows with its tokens; four tokens cost about as much as the
// reading.
float cost(const Group& group) { return 4.0f + float(group.count); }

// When the last worker ends if groups from `split` on are taken whole, largest first, by whoever is free.
float finish_time(const Layer& layer, int split, int workers, float* load) {
  float cut = 0.0f;
  for (int i = 0; i < split; i++) cut += cost(layer.list[i]) * SPLIT_COST;
  std::fill(load, load + workers, cut / float(workers));
  for (int i = split; i < layer.groups; i++) *std::min_element(load, load + workers) += cost(layer.list[i]);
  return *std::max_element(load, load + workers);
}

// How many of the largest groups to split: none, a few, the remainder of an even deal, or all.
int plan(const Layer& layer, int workers, float* load) {
  if (workers == 1) return 0;
  int best = 0;
  float best_time = finish_time(layer, 0, workers, load);
  const auto consider = [&](int split) {
    const float time = finish_time(layer, split, workers, load);
    if (time < best_time) best = split, best_time = time;
  };
  for (int split = 1; split <= std::min(layer.groups, 4); split++) consider(split);
  consider(layer.groups % workers);
  consider(layer.groups);
  return best;
}

struct Counters {
  Counter gate_up, prepare, rest;
};

// The split groups' first half: gate and up by rows, then their activations.
void run_split(const Layer& layer, Team& team, Counters& counters, float* scratch) {
  const int parts = team.active();
  for (int i = counters.gate_up.next(); i < layer.split * parts; i = counters.gate_up.next())
    layer.gate_up(layer.list[i / parts], part_of(layer.bank.width, parts, i % parts, STEP_ROWS), scratch);
  team.barrier();
  for (int i = counters.prepare.next(); i < layer.split; i = counters.prepare.next())
    layer.prepare_h(layer.list[i].first, layer.list[i].count);
  team.barrier();
}

// Whole groups, the large ones first, then the split groups' down rows fill the gaps.
void run_rest(const Layer& layer, Team& team, Counters& counters, float* scratch) {
  const int parts = team.active(), wholes = layer.groups - layer.split;
  const int total = wholes + layer.split * parts;
  for (int i = counters.rest.next(); i < total; i = counters.rest.next()) {
    const int s = i - wholes;
    if (s < 0)
      layer.whole(layer.list[layer.split + i], scratch);
    else
      layer.down(layer.list[s / parts], part_of(layer.bank.hidden, parts, s % parts, 2));
  }
}

}  // namespace

void experts(const float* x, int tokens, const int32_t* ids, const float* weights, int top_k, const Bank& bank,
             float* y) {
  Turn turn;
  Team& team = turn.team;
  Layer layer(x, tokens, ids, weights, top_k, bank, y, team.arena);
  layer.split = plan(layer, team.size(), team.arena.take<float>(team.size()));
  const int most = layer.groups ? layer.list[0].count : 0, blocks = (bank.hidden + SUM_COLUMNS - 1) / SUM_COLUMNS;
  const size_t scratch_size = size_t(most) * STEP_ROWS;
  float* scratch = team.arena.take<float>(scratch_size * team.size());
  Counters counters;
  team.run(false, [&](int worker) {
    float* mine = scratch + worker * scratch_size;
    if (layer.format.prepare) {
      const Range part = part_of(tokens, team.active(), worker);
      for (int t = part.begin; t < part.end; t++)
        layer.format.prepare(x + size_t(t) * bank.hidden, bank.hidden, layer.x_acts + t * layer.x_bytes);
      team.barrier();
    }
    if (layer.split) run_split(layer, team, counters, mine);
    run_rest(layer, team, counters, mine);
    team.barrier();
    layer.sum(part_of(tokens * blocks, team.active(), worker), blocks);
  });
}

}  // namespace headrace
