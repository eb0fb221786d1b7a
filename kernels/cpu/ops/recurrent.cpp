// Recurrent layers: the short convolution, the gated delta rule, a state space; formulas and shapes are in recurrent.py.
//
// A decay by key is a number for each row of a state. Such a rule is made of weighted sums of rows:
//
//   seen = S' (d k)      c = beta (v - seen)      out = S' (d q) + (k . q) c      row i of S = d_i of it + k_i c
//
// Tokens of a sequence come one after the other, so work is dealt out by channels, or by heads and columns of values, which
// know nothing of each other: the number of threads changes no bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "formats/layout.h"
#include "ops/each_token.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int64_t SMALL = 32768;  // multiplications: less than this is done by the caller alone
constexpr int CHANNELS = 256;     // of a block, whose taps and last inputs stay in the first cache
constexpr int COLUMNS = 32;       // of a head's state that go through a prompt together

int tokens_of(const Sequences& all, int s) { return all.starts[s + 1] - all.starts[s]; }
bool begins(const Sequences& all, int s) { return all.contexts[s] == tokens_of(all, s); }

// One block of channels of one sequence.
struct ConvBlock {
  const ConvArgs& args;
  const Kernels& isa;
  int sequence, first, n;    // channels
  float *taps, *past;        // [taps][CHANNELS], [taps - 1][CHANNELS]: the inputs before the first token
  const float** rows;        // [taps]

  int memory() const { return args.taps - 1; }
  int tokens() const { return tokens_of(args.all, sequence); }
  float* state() const {
    return args.state + (size_t(args.all.slots[sequence]) * args.channels + first) * memory();
  }

  // The input `back` tokens after the first one; before it, from the state.
  const float* input(int t) const {
    if (t < 0) return past + size_t(t + memory()) * CHANNELS;
    return args.x + size_t(args.all.starts[sequence] + t) * args.x_stride + first;
  }

  void load() const {
    const float *weights = args.weights + size_t(first) * args.taps, *kept = state();
    for (int j = 0; j < args.taps; j++)
      for (int c = 0; c < n; c++) taps[j * CHANNELS + c] = weights[size_t(c) * args.taps + j];
    for (int j = 0; j < memory(); j++) {
      float* to = past + j * CHANNELS;
      if (begins(args.all, sequence))
        std::fill_n(to, n, 0.0f);
      else
        for (int c = 0; c < n; c++) to[c] = kept[size_t(c) * memory() + j];
    }
  }

  void run() const {
    load();
    for (int t = 0; t < tokens(); t++) {
      for (int j = 0; j < args.taps; j++) rows[j] = input(t - memory() + j);
      float* out = args.out + size_t(args.all.starts[sequence] + t) * args.channels + first;
      isa.conv(rows, taps, CHANNELS, args.taps, n, args.bias ? args.bias + first : nullptr, args.silu, out);
    }
    for (int j = 0; j < memory(); j++) {
      const float* last = input(tokens() - memory() + j);
      for (int c = 0; c < n; c++) state()[size_t(c) * memory() + j] = last[c];
    }
  }
};

// log(1 + e^x), which float32 cannot tell from x beyond 20.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Queries and keys of all tokens at length 1, decays as factors.
struct Prepared {
  float *q, *k, *products;  // [T, G, keys] twice, [T, G]
  float* decay;             // [T, H], or [T, H, keys]
};

int decays_of(const DeltaArgs& args) { return args.heads * (args.by_key ? args.keys : 1); }

Prepared take_prepared(const DeltaArgs& args, Arena& arena) {
  const size_t pairs = size_t(args.tokens) * args.groups;
  return {arena.take<float>(pairs * args.keys), arena.take<float>(pairs * args.keys), arena.take<float>(pairs),
          arena.take<float>(size_t(args.tokens) * decays_of(args))};
}

void prepare(const DeltaArgs& args, const Kernels& isa, const Prepared& to, int t) {
  for (int g = 0; g < args.groups; g++) {
    const size_t at = size_t(t) * args.groups + g;
    const float *q = args.q + t * args.q_stride + size_t(g) * args.keys;
    const float *k = args.k + t * args.k_stride + size_t(g) * args.keys;
    to.products[at] = isa.unit_pair(q, k, args.keys, to.q + at * args.keys, to.k + at * args.keys);
  }
  for (int h = 0; h < decays_of(args); h++) {
    const size_t at = size_t(t) * decays_of(args) + h;
    to.decay[at] = std::exp(args.decay[at]);
  }
}

// Columns [column, column + n) of a head's state through all tokens of a sequence.
void run_columns(const DeltaArgs& args, const Kernels& isa, const Prepared& made, int s, int head, int column, int n,
                 float* scratch) {
  const int tokens = tokens_of(args.all, s), first = args.all.starts[s];
  const int group = args.in_turns ? head % args.groups : head / (args.heads / args.groups);
  float* state = args.state + (size_t(args.all.slots[s]) * args.heads + head) * args.keys * args.values + column;
  if (begins(args.all, s))
    for (int i = 0; i < args.keys; i++) std::fill_n(state + size_t(i) * args.values, n, 0.0f);
  const size_t key = (size_t(first) * args.groups + group) * args.keys;
  const size_t gate = size_t(first) * args.heads + head;
  DeltaRun run{};
  run.q = made.q + key, run.k = made.k + key, run.key_stride = size_t(args.groups) * args.keys;
  run.products = made.products + size_t(first) * args.groups + group, run.product_stride = size_t(args.groups);
  run.decay = made.decay + gate, run.beta = args.beta + gate, run.gate_stride = size_t(args.heads);
  run.v = args.v + first * args.v_stride + size_t(head) * args.values + column, run.v_stride = size_t(args.v_stride);
  run.out = args.out + (size_t(first) * args.heads + head) * args.values + column;
  run.out_stride = size_t(args.heads) * args.values;
  run.state = state, run.state_stride = size_t(args.values), run.scratch = scratch;
  run.tokens = tokens, run.keys = args.keys, run.columns = n;
  isa.delta_rule(run);
}

// Scratch of a worker for decays by key: rows of a state, and behind them what a token adds.
struct KeyRows {
  float *rows, *seen, *asked;  // [keys + 1][stride]; [keys] twice: by what rows are weighted
  int32_t* at;                 // [keys]: all of them
  size_t stride;

  KeyRows(const DeltaArgs& args, int columns, Arena& arena)
      : rows(arena.take<float>(size_t(args.keys + 1) * round_up(columns, LANES_MAX))),
        seen(arena.take<float>(args.keys)),
        asked(arena.take<float>(args.keys)),
        at(arena.take<int32_t>(args.keys)),
        stride(round_up(columns, LANES_MAX)) {
    for (int i = 0; i < args.keys; i++) at[i] = i;
  }

  // One token: what it finds in the rows, gives, and leaves in them. out [n]
  void step(const Kernels& isa, int keys, const float* d, const float* k, const float* q, float product, float beta,
            const float* v, int n, float* out) const {
    float* c = rows + keys * stride;
    for (int i = 0; i < keys; i++) seen[i] = d[i] * k[i], asked[i] = d[i] * q[i];
    isa.weighted_sum(rows, stride, at, seen, keys, n, c, nullptr);
    isa.weighted_sum(rows, stride, at, asked, keys, n, out, nullptr);
    for (int j = 0; j < n; j++) c[j] = beta * (v[j] - c[j]), out[j] += product * c[j];
    for (int i = 0; i < keys; i++) {
      const int32_t both[] = {i, keys};
      const float weights[] = {d[i], k[i]};
      isa.weighted_sum(rows, stride, both, weights, 2, n, rows + i * stride, nullptr);
    }
  }
};

// As `run_columns`, by key.
void run_by_key(const DeltaArgs& args, const Kernels& isa, const Prepared& made, int s, int head, int column, int n,
                const KeyRows& scratch) {
  const int first = args.all.starts[s], keys = args.keys;
  const int group = args.in_turns ? head % args.groups : head / (args.heads / args.groups);
  float* state = args.state + (size_t(args.all.slots[s]) * args.heads + head) * keys * args.values + column;
  for (int i = 0; i < keys; i++) {
    if (begins(args.all, s))
      std::fill_n(scratch.rows + i * scratch.stride, n, 0.0f);
    else
      std::memcpy(scratch.rows + i * scratch.stride, state + size_t(i) * args.values, size_t(n) * sizeof(float));
  }
  for (int t = first; t < args.all.starts[s + 1]; t++) {
    const size_t of_head = size_t(t) * args.heads + head, of_group = size_t(t) * args.groups + group;
    scratch.step(isa, keys, made.decay + of_head * keys, made.k + of_group * keys, made.q + of_group * keys,
                 made.products[of_group], args.beta[of_head], args.v + t * args.v_stride + size_t(head) * args.values + column,
                 n, args.out + of_head * args.values + column);
  }
  for (int i = 0; i < keys; i++)
    std::memcpy(state + size_t(i) * args.values, scratch.rows + i * scratch.stride, size_t(n) * sizeof(float));
}

// Steps of all tokens and what they leave of a state: [T, heads] both.
struct Steps {
  float *step, *decay;
};

void prepare(const SpaceArgs& args, const Steps& to, int t) {
  const float* dt = args.dt + t * args.dt_stride;
  for (int h = 0; h < args.heads; h++) {
    const size_t at = size_t(t) * args.heads + h;
    to.step[at] = std::min(args.most, std::max(args.least, softplus(dt[h] + args.dt_bias[h])));
    to.decay[at] = std::exp(args.rate[h] * to.step[at]);
  }
}

void run_columns(const SpaceArgs& args, const Kernels& isa, const Steps& made, int s, int head, int column, int n) {
  const int tokens = tokens_of(args.all, s), first = args.all.starts[s], group = head / (args.heads / args.groups);
  float* state = args.state + (size_t(args.all.slots[s]) * args.heads + head) * args.keys * args.values + column;
  if (begins(args.all, s))
    for (int i = 0; i < args.keys; i++) std::fill_n(state + size_t(i) * args.values, n, 0.0f);
  const size_t gate = size_t(first) * args.heads + head;
  SpaceRun run{};
  run.in = args.in + first * args.in_stride + size_t(group) * args.keys;
  run.by = args.by + first * args.by_stride + size_t(group) * args.keys;
  run.in_stride = size_t(args.in_stride), run.by_stride = size_t(args.by_stride);
  run.decay = made.decay + gate, run.step = made.step + gate, run.gate_stride = size_t(args.heads);
  run.x = args.x + first * args.x_stride + size_t(head) * args.values + column, run.x_stride = size_t(args.x_stride);
  run.out = args.out + (size_t(first) * args.heads + head) * args.values + column;
  run.out_stride = size_t(args.heads) * args.values;
  run.state = state, run.state_stride = size_t(args.values), run.skip = args.skip[head];
  run.tokens = tokens, run.keys = args.keys, run.columns = n;
  isa.state_space(run);
}

}  // namespace

void short_conv(const ConvArgs& args, Turn& turn) {
  Team& team = turn.team;
  const int blocks = (args.channels + CHANNELS - 1) / CHANNELS, items = blocks * args.all.count;
  const int tokens = args.all.starts[args.all.count] - args.all.starts[0];
  float* scratch = team.arena.take<float>(size_t(team.size()) * 2 * args.taps * CHANNELS);
  const float** rows = team.arena.take<const float*>(size_t(team.size()) * args.taps);
  Counter counter;
  team.run(int64_t(tokens) * args.channels * args.taps < SMALL, [&](int worker) {
    float* mine = scratch + size_t(worker) * 2 * args.taps * CHANNELS;
    for (int i = counter.next(); i < items; i = counter.next()) {
      const int s = i / blocks, first = i % blocks * CHANNELS;
      if (!tokens_of(args.all, s)) continue;
      ConvBlock{args, turn.isa, s, first, std::min(CHANNELS, args.channels - first), mine, mine + args.taps * CHANNELS,
                rows + size_t(worker) * args.taps}
          .run();
    }
  });
}

void delta_gates(const GateArgs& args, Turn& turn) {
  const int heads = args.heads;
  each_token(turn.team, args.tokens, int64_t(args.tokens) * heads * 16, [&](int t) {
    const float* strength = args.ba + size_t(t) * 2 * heads;
    float *decay = args.decay + size_t(t) * heads, *beta = args.beta + size_t(t) * heads;
    for (int h = 0; h < heads; h++) decay[h] = args.rate[h] * softplus(strength[heads + h] + args.dt_bias[h]);
    turn.isa.sigmoid(strength, heads, beta);
  });
}

void key_gates(const KeyGateArgs& args, Turn& turn) {
  const int heads = args.heads, keys = args.keys;
  each_token(turn.team, args.tokens, int64_t(args.tokens) * heads * keys * 16, [&](int t) {
    for (int i = 0; i < heads * keys; i++) {
      const size_t at = size_t(t) * heads * keys + i;
      const float dt = args.dt[at] + args.dt_bias[i], rate = args.rate[i / keys];
      args.decay[at] = args.least == 0.0f ? rate * softplus(dt) : args.least / (1.0f + std::exp(rate * dt));
    }
    turn.isa.sigmoid(args.b + size_t(t) * heads, heads, args.beta + size_t(t) * heads);
  });
}

void delta_rule(const DeltaArgs& args, Turn& turn) {
  Team& team = turn.team;
  const Prepared made = take_prepared(args, team.arena);
  // A token of a decode step reads a head's state once: whole rows of it. A prompt's columns are few at a time.
  const int columns = args.tokens == args.all.count ? args.values : COLUMNS;
  const int blocks = (args.values + columns - 1) / columns, items = args.all.count * args.heads * blocks;
  const size_t room = size_t(args.keys) * round_up(columns, LANES_MAX);
  float* scratch = team.arena.take<float>(args.by_key ? 0 : room * team.size());
  KeyRows* rows = team.arena.take<KeyRows>(args.by_key ? team.size() : 0);
  for (int i = 0; args.by_key && i < team.size(); i++) new (rows + i) KeyRows(args, columns, team.arena);
  Counter counter;
  team.run(int64_t(args.tokens) * args.heads * args.keys * args.values < SMALL, [&](int worker) {
    const Range mine = part_of(args.tokens, team.active(), worker);
    for (int t = mine.begin; t < mine.end; t++) prepare(args, turn.isa, made, t);
    team.barrier();
    for (int i = counter.next(); i < items; i = counter.next()) {
      const int s = i / (args.heads * blocks), head = i / blocks % args.heads, column = i % blocks * columns;
      if (!tokens_of(args.all, s)) continue;
      const int n = std::min(columns, args.values - column);
      if (args.by_key)
        run_by_key(args, turn.isa, made, s, head, column, n, rows[worker]);
      else
        run_columns(args, turn.isa, made, s, head, column, n, scratch + worker * room);
    }
  });
}

void state_space(const SpaceArgs& args, Turn& turn) {
  Team& team = turn.team;
  const size_t pairs = size_t(args.tokens) * args.heads;
  const Steps made{team.arena.take<float>(pairs), team.arena.take<float>(pairs)};
  const int columns = args.tokens == args.all.count ? args.values : COLUMNS;
  const int blocks = (args.values + columns - 1) / columns, items = args.all.count * args.heads * blocks;
  Counter counter;
  team.run(int64_t(args.tokens) * args.heads * args.keys * args.values < SMALL, [&](int worker) {
    const Range mine = part_of(args.tokens, team.active(), worker);
    for (int t = mine.begin; t < mine.end; t++) prepare(args, made, t);
    team.barrier();
    for (int i = counter.next(); i < items; i = counter.next()) {
      const int s = i / (args.heads * blocks), head = i / blocks % args.heads, column = i % blocks * columns;
      if (!tokens_of(args.all, s)) continue;
      run_columns(args, turn.isa, made, s, head, column, std::min(columns, args.values - column));
    }
  });
}

}  // namespace headrace
