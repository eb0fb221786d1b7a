// The routed experts of one layer in one parallel region.
//
//   pairs (token, k), sorted by expert   ->   h = glu(gate x, up x)   ->   out = down h   ->   y[t] = sum_k w * (out + bias)
//
// 'Whole' experts: one worker does all three matrices of an expert for all its tokens, long contiguous reads and no
// barrier in between. Where whole experts cannot be dealt out evenly (Mixtral's two on 16 cores, one crowded expert in a
// prompt), the largest are 'split' by rows, with a barrier between the phases; plan() weighs both. A few are always
// split where there are few groups, or where they go through tiles, so that none takes longer for being cut: their last phase
// comes in small pieces at the end, which evens out cores of unequal speed (2 of 8 split on 2 cores: 1 to 6 % faster than none
// or all). Every pair writes its own row of `out` and the sum runs over k in order, so neither the schedule nor the number of
// threads changes a bit.
//
// A pair whose expert is -1 is not this bank's business: nothing is read for it, and it adds a row of zeros.
//
// An expert with many tokens goes through matrix tiles where the ISA has them: its tokens are gathered as bf16 tiles,
// and h leaves GLU as tiles for `down`. Its own number of tokens decides, nothing else; tiles round differently.
// Memory: `out` is held to EXPERT_OUT_BYTES by taking the tokens in chunks; a chunk reads its experts anew.
#include <algorithm>

#include "ops/experts_layer.h"
#include "runtime/stopwatch.h"

namespace headrace {
namespace {

constexpr int PIECE_ROWS = 64, PIECES = 4;  // of a split matrix: at least so many rows, at most so many for each worker
constexpr int EVEN_GROUPS = 8;      // groups for each worker from which on a whole one at the end delays little
constexpr float SPLIT_COST = 1.05f;  // row-split time over whole-expert time, as measured
constexpr float TILED_COST = 7.0f, TILE_COST = 4.0f;  // see cost()

// Time of an expert: reading it, plus arithmetic that grows with its tokens; four tokens cost about as much as the
// reading. By tiles it is unpacking, and whole sixteens of tokens; the first sixteen cost as much as 7 tokens by dot
// products.
float cost(const Group& group) {
  return group.tiled ? TILED_COST + TILE_COST * float(tile_count(group)) : 4.0f + float(group.count);
}

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
  const bool evens = layer.groups < EVEN_GROUPS * workers || (layer.groups && layer.list[0].tiled);
  const int least = evens ? std::min(layer.groups, workers) : 0;
  int best = least;
  float best_time = finish_time(layer, best, workers, load);
  const auto consider = [&](int split) {
    if (split < least) return;
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

// Memory for the activations of tiled groups: shared for split ones, of each worker for the largest whole one.
void take_tiles(Layer& layer, Arena& arena) {
  for (int i = 0; i < layer.split; i++) {
    Group& group = layer.list[i];
    if (!group.tiled) break;
    group.x_tiles = arena.take<uint8_t>(tile_count(group) * layer.x_stride());
    group.h_tiles = arena.take<uint8_t>(tile_count(group) * layer.h_stride());
  }
}

Scratch* take_scratch(const Layer& layer, Team& team) {
  Scratch* all = team.arena.take<Scratch>(team.size());
  int dot_tokens = 0, tiles = 0;
  for (int i = 0; i < layer.groups; i++) {
    const Group& group = layer.list[i];
    if (!group.tiled) dot_tokens = std::max(dot_tokens, group.count);
    if (i >= layer.split) tiles = std::max(tiles, tile_count(group));
  }
  const bool tiled = layer.groups > 0 && layer.list[0].tiled;
  const int longest = std::max(layer.bank.hidden, layer.bank.width);
  const size_t tile_scratch = tiled ? std::max(layer.gate_format.tiles->scratch_bytes(longest), layer.down_format.tiles->scratch_bytes(longest)) : 0;
  for (int worker = 0; worker < team.size(); worker++) {
    all[worker].up = team.arena.take<float>(size_t(dot_tokens) * STEP_ROWS);
    all[worker].tiles = team.arena.take<uint8_t>(tile_scratch);
    all[worker].x_tiles = team.arena.take<uint8_t>(tiled ? tiles * layer.x_stride() : 0);
    all[worker].h_tiles = team.arena.take<uint8_t>(tiled ? tiles * layer.h_stride() : 0);
  }
  return all;
}

int pieces_of(int rows, int workers) { return std::clamp(rows / PIECE_ROWS, 1, PIECES * workers); }

// The split groups' first half: activations, gate and up by rows, then activations for `down`.
void run_split(const Layer& layer, Team& team, Counters& counters, const Scratch& scratch, int worker) {
  const int parts = pieces_of(layer.bank.width, team.active());
  if (layer.list[0].tiled) {
    for (int i = 0; i < layer.split; i++)
      for (int tile = worker; tile < tile_count(layer.list[i]); tile += team.active())
        layer.pack_x(layer.list[i], tile);
    team.barrier();
  }
  for (int i = counters.gate_up.next(); i < layer.split * parts; i = counters.gate_up.next())
    layer.gate_up(layer.list[i / parts], part_of(layer.bank.width, parts, i % parts, STEP_ROWS), scratch);
  team.barrier();
  for (int i = counters.prepare.next(); i < layer.split; i = counters.prepare.next()) layer.prepare_h(layer.list[i]);
  team.barrier();
}

// Whole groups, the large ones first, then the split groups' down rows fill the gaps.
void run_rest(const Layer& layer, Team& team, Counters& counters, const Scratch& scratch) {
  const int parts = pieces_of(layer.bank.hidden, team.active()), wholes = layer.groups - layer.split;
  const int total = wholes + layer.split * parts;
  for (int i = counters.rest.next(); i < total; i = counters.rest.next()) {
    const int s = i - wholes;
    if (s < 0)
      layer.whole(layer.list[layer.split + i], scratch);
    else
      layer.down(layer.list[s / parts], part_of(layer.bank.hidden, parts, s % parts, 2), scratch);
  }
}

void run_chunk(const float* x, int tokens, const int32_t* ids, const float* weights, int top_k, const Bank& bank,
               float* y, const Context& context) {
  Turn turn(context);
  Team& team = turn.team;
  Layer layer(x, tokens, ids, weights, top_k, bank, y, turn);
  layer.split = plan(layer, team.size(), team.arena.take<float>(team.size()));
  take_tiles(layer, team.arena);
  const Scratch* scratch = take_scratch(layer, team);
  const bool prepare = layer.dots() && layer.gate_format.prepare, tiled = layer.groups && layer.list[0].tiled;
  const int blocks = (bank.hidden + SUM_COLUMNS - 1) / SUM_COLUMNS;
  Counters counters;
  team.run(false, [&](int worker) {
    const int parts = team.active();
    if (tiled) layer.isa.tiles_begin();
    if (prepare) layer.prepare_x(part_of(layer.inputs(), parts, worker));
    if (prepare) team.barrier();
    if (layer.split) run_split(layer, team, counters, scratch[worker], worker);
    run_rest(layer, team, counters, scratch[worker]);
    if (tiled) layer.isa.tiles_end();
    team.barrier();
    layer.sum(part_of(tokens * blocks, parts, worker), blocks);
  });
}

}  // namespace

void experts(const float* x, int tokens, const int32_t* ids, const float* weights, int top_k, const Bank& bank,
             float* y, const Context& context) {
  Stopwatch watch;
  const int most = int(std::max<size_t>(1, EXPERT_OUT_BYTES / (size_t(top_k) * out_stride(bank) * sizeof(float))));
  for (int t = 0; t < tokens; t += most)
    run_chunk(x + size_t(t) * bank.hidden, std::min(most, tokens - t), ids + size_t(t) * top_k,
              weights + size_t(t) * top_k, top_k, bank, y + size_t(t) * bank.hidden, context);
  watch.lap(Part::experts);
}

}  // namespace headrace
