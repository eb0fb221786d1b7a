// The routed experts of one layer in one parallel region.
//
//   pairs (token, k), sorted by expert   ->   h = silu(gate x) * (up x)   ->   out = down h   ->   y[t] = sum_k w * out
//
// 'Whole' experts: one worker does all three matrices of an expert for all its tokens, long contiguous reads and no
// barrier in between. Where whole experts cannot be dealt out evenly (Mixtral's two on 16 cores, one crowded expert in a
// prompt), the largest are 'split' by rows, with a barrier between the phases; plan() weighs both. A few are always
// split where there are few groups: their last phase comes in small pieces at the end, which evens out cores of unequal
// speed (2 of 8 split on 2 cores: 1 to 6 % faster than none or all). Every pair writes its own row of `out` and the sum
// runs over k in order, so neither the schedule nor the number of threads changes a bit.
//
// A pair whose expert is -1 is not this bank's business: nothing is read for it, and it adds a row of zeros.
//
// An expert with many tokens goes through matrix tiles where the ISA has them: its tokens are gathered as bf16 tiles,
// and h leaves SwiGLU as tiles for `down`. Its own number of tokens decides, nothing else; tiles round differently.
// Memory: `out` is held to EXPERT_OUT_BYTES by taking the tokens in chunks; a chunk reads its experts anew.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "formats/layout.h"
#include "ops/ops.h"
#include "runtime/stopwatch.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int STEP_ROWS = 32;  // rows of gate and of up between two SwiGLUs
constexpr int SUM_COLUMNS = 512;
constexpr int PIECE_ROWS = 64, PIECES = 4;  // of a split matrix: at least so many rows, at most so many for each worker
constexpr int EVEN_GROUPS = 8;      // groups for each worker from which on a whole one at the end delays little
constexpr float SPLIT_COST = 1.05f;  // row-split time over whole-expert time, as measured
constexpr float TILED_COST = 7.0f, TILE_COST = 4.0f;  // see cost()

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
  const Context& context;
  const Kernels& isa;
  const FormatKernels &gate_format, &up_format, &down_format;

  int groups = 0, split = 0;  // the first `split` groups are cut by rows
  Group* list;                // falling count
  int32_t* token_of;          // [pairs] in sorted order
  int32_t* row_of;            // [tokens, top_k] -> sorted row, or nobody()
  float* out;                 // [pairs, out_stride], `hidden` of each row used; then a row of zeros for nobody()
  // For groups by dot products, if there are any:
  size_t x_bytes, h_bytes;  // of one token's activations
  uint8_t* x_acts;          // [tokens], or x itself
  float* h;                 // [pairs, width]
  uint8_t* h_acts;          // [pairs], or h itself

  int pairs() const { return tokens * top_k; }
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
        down_format(turn.context.format(bank_.down)) {
    Arena& arena = turn.team.arena;
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
    x_acts = gate_format.prepare ? arena.take<uint8_t>(x_bytes * tokens) : reinterpret_cast<uint8_t*>(const_cast<float*>(x));
    h_acts = down_format.prepare ? arena.take<uint8_t>(h_bytes * pairs()) : reinterpret_cast<uint8_t*>(h);
  }

  // Tiles take an expert whose formats make the same tiles of activations, as gate and up hand theirs on to `down`.
  bool takes_tiles(int count) const {
    if (bank.gate != bank.up || !gate_format.tiles || !down_format.tiles) return false;
    if (gate_format.tiles->pack != down_format.tiles->pack) return false;
    return context.takes_tiles(bank.gate, count) && context.takes_tiles(bank.down, count);
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
      token_of[groups++] = 0;
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
      if (ids[p] >= 0) token_of[row_of[p]] = p / top_k;
    }
    std::stable_sort(list, list + groups, [](const Group& a, const Group& b) { return a.count > b.count; });
  }

  const uint8_t* block(int expert) const { return bank.data + size_t(expert) * bank.bytes; }

  const uint8_t* up_block(int expert) const { return block(expert) + size_t(bank.width) * gate_format.row_bytes(bank.hidden); }

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
    if (group.tiled)
      return gate_format.tiles->swiglu(gate_up_rows(group, rows), {group.x_tiles, x_stride(), group.count}, bank.hidden,
                                       {group.h_tiles, h_stride(), rows.begin, bank.width}, scratch.tiles);
    const Tokens acts{x_acts, x_bytes, token_of + group.first, group.count};
    for (int r = rows.begin; r < rows.end; r += STEP_ROWS) {
      const int n = std::min(STEP_ROWS, rows.end - r);
      float* mine = h + size_t(group.first) * bank.width + r;
      gate_up_products(group, {r, r + n}, acts, mine, scratch.up);
      for (int i = 0; i < group.count; i++, mine += bank.width) isa.silu_mul(mine, scratch.up + i * STEP_ROWS, n, mine);
    }
  }

  void gate_up_products(const Group& group, Range rows, const Tokens& acts, float* gate, float* up) const {
    if (bank.gate == bank.up)
      return gate_format.dot(gate_up_rows(group, rows), acts, bank.hidden, {gate, up, size_t(bank.width), STEP_ROWS});
    const int n = rows.end - rows.begin;
    const size_t gate_bytes = gate_format.row_bytes(bank.hidden), up_bytes = up_format.row_bytes(bank.hidden);
    dot_halves(gate_format, block(group.expert) + rows.begin * gate_bytes, n, acts, bank.hidden, gate, size_t(bank.width));
    dot_halves(up_format, up_block(group.expert) + rows.begin * up_bytes, n, acts, bank.hidden, up, STEP_ROWS);
  }

  void prepare_h(const Group& group) const {
    if (group.tiled && gate_format.tiles->seal)
      for (int i = 0; i < tile_count(group); i++)
        gate_format.tiles->seal(group.h_tiles + i * h_stride(), std::min(TILE_SIDE, group.count - i * TILE_SIDE), bank.width);
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
      const int t = i / blocks, c = i % blocks * SUM_COLUMNS;
      isa.weighted_sum(out + c, out_stride(bank), row_of + size_t(t) * top_k, weights + size_t(t) * top_k, top_k,
                       std::min(SUM_COLUMNS, bank.hidden - c), y + size_t(t) * bank.hidden + c);
    }
  }
};

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
  const int least = layer.groups < EVEN_GROUPS * workers ? std::min(layer.groups, workers) : 0;
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
    if (prepare) layer.prepare_x(part_of(tokens, parts, worker));
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
