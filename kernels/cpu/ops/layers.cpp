// A decoder's layers one after the other; `compose_layers` in kernels/decoder_layer.py says what it stands for.
//
// One call for all of them, since a call from Python costs 20 us in a decode step: the weights that streamed by have
// driven the interpreter out of every cache.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/ops.h"
#include "runtime/stopwatch.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

std::atomic<int64_t> nanoseconds[int(Part::COUNT)];

int count_distinct(const int32_t* ids, size_t n, int experts) {
  std::vector<bool> seen(experts);
  int count = 0;
  for (size_t i = 0; i < n; i++) {
    if (seen[ids[i]]) continue;
    seen[ids[i]] = true;
    count++;
  }
  return count;
}

// Adds the choices of a layer's tokens to its counts. A reader in another thread may see part of them.
void count(const int32_t* ids, int tokens, int top_k, const Tally& tally, size_t layer, size_t layers) {
  if (!tally.counts) return;
  const size_t all = size_t(tokens) * top_k, decoding = size_t(std::min(tokens, tally.decoding)) * top_k;
  int64_t* prompts = tally.counts + layer * tally.experts;
  int64_t* generating = prompts + layers * tally.experts;
  for (size_t i = 0; i < decoding; i++) generating[ids[i]]++;
  for (size_t i = decoding; i < all; i++) prompts[ids[i]]++;
}

// out = down(glu(gate h, up h)), or without a gate down(glu(up h))
void mlp(const DecoderLayer& layer, const float* h, int tokens, float* out, Turn& turn) {
  Arena& arena = turn.team.arena;
  const int hidden = layer.down.rows, width = layer.down.cols;
  float* gate_up = arena.take<float>(size_t(tokens) * rows_of(layer.gate_up));
  float* product = arena.take<float>(size_t(tokens) * width);
  linear(h, hidden, tokens, layer.gate_up, nullptr, gate_up, turn);
  glu(gate_up, product, tokens, width, layer.activation, turn);
  linear(product, width, tokens, layer.down, nullptr, out, hidden, turn);
}

// update += sigmoid(gate h) * mlp(h), or without a gate the whole of it
void add_shared(const DecoderLayer& layer, const float* h, int tokens, float* update, const Context& context) {
  Turn turn(context);
  Arena& arena = turn.team.arena;
  const int hidden = layer.down.rows;
  float* shared = arena.take<float>(size_t(tokens) * hidden);
  mlp(layer, h, tokens, shared, turn);
  float* gate = nullptr;
  if (layer.shared_gate.data) {
    gate = arena.take<float>(tokens);
    linear(h, hidden, tokens, layer.shared_gate, nullptr, gate, 1, turn);
  }
  gated_add(update, shared, gate, tokens, hidden, turn);
}

// update = scale * norm(norm(mlp(norm(x))) + norm(update)), x *= scale
void finish(const DecoderLayer& layer, float* x, int tokens, float* update, const Context& context) {
  Turn turn(context);
  Arena& arena = turn.team.arena;
  const Tail& tail = layer.tail;
  const int hidden = layer.down.rows;
  const float eps = layer.block.eps;
  float* in = arena.take<float>(size_t(tokens) * hidden);
  float* own = arena.take<float>(size_t(tokens) * hidden);
  rmsnorm(x, tail.mlp_in, in, tokens, hidden, eps, turn);
  mlp(layer, in, tokens, own, turn);
  rmsnorm(own, tail.mlp_out, own, tokens, hidden, eps, turn);
  rmsnorm(update, tail.experts_out, update, tokens, hidden, eps, turn);
  gated_add(own, update, nullptr, tokens, hidden, turn);
  rmsnorm(own, tail.out, update, tokens, hidden, eps, turn);
  scale(x, tail.scale, tokens, hidden, turn);
  scale(update, tail.scale, tokens, hidden, turn);
}

void dense(const DecoderLayer& layer, const float* h, int tokens, float* update, const Context& context) {
  Turn turn(context);
  mlp(layer, h, tokens, update, turn);
}

}  // namespace

void Stopwatch::add(Part part, int64_t ns) { nanoseconds[int(part)].fetch_add(ns, std::memory_order_relaxed); }

std::vector<std::pair<std::string, double>> take_part_seconds() {
  constexpr const char* NAMES[] = {"norms",     "qkv",        "place_qkv", "by_head", "conv",    "attention",
                                   "delta_rule", "o",         "route",     "experts", "dense"};
  static_assert(std::size(NAMES) == size_t(Part::COUNT));
  std::vector<std::pair<std::string, double>> found;
  for (size_t i = 0; i < std::size(NAMES); i++)
    found.emplace_back(NAMES[i], double(nanoseconds[i].exchange(0, std::memory_order_relaxed)) * 1e-9);
  return found;
}

void layers(const Stack& stack, const Places& places, const LayersArgs& args, const Context& context) {
  int top_k = 0;
  for (const DecoderLayer& layer : stack.layers) top_k = std::max(top_k, layer.block.router.top_k);
  const size_t chosen = size_t(args.tokens) * top_k;
  const std::unique_ptr<float[]> h(new float[size_t(args.tokens) * stack.layers[0].block.hidden]), own_weights(new float[chosen]);
  const std::unique_ptr<int32_t[]> own_ids(new int32_t[chosen]);
  const float* update = nullptr;
  for (size_t i = 0; i < stack.layers.size(); i++) {
    const DecoderLayer& layer = stack.layers[i];
    const bool last = i + 1 == stack.layers.size();
    int32_t* ids = args.tally.ids ? args.tally.ids + i * chosen : own_ids.get();
    float* weights = args.tally.weights ? args.tally.weights + i * chosen : own_weights.get();
    const Wanted wanted = last ? args.wanted : Wanted{nullptr, args.tokens, nullptr};
    attention_block(layer.block, places, args.x, update, args.tokens, wanted, h.get(), ids, weights, context);
    args.distinct[i] = 0;
    if (wanted.count == 0) return;
    if (layer.bank.data) {
      const int k = layer.block.router.top_k;
      args.distinct[i] = count_distinct(ids, size_t(wanted.count) * k, layer.bank.experts);
      count(ids, wanted.count, k, args.tally, i, stack.layers.size());
      experts(h.get(), wanted.count, ids, weights, k, layer.bank, args.update, context);
    }
    if (!layer.bank.data && !layer.down.data)  // h is what the mixer gives
      std::memcpy(args.update, h.get(), size_t(wanted.count) * layer.block.hidden * sizeof(float));
    if (layer.down.data) {
      Stopwatch watch;
      if (layer.tail.out)
        finish(layer, wanted.rows ? wanted.x : args.x, wanted.count, args.update, context);
      else if (layer.bank.data)
        add_shared(layer, h.get(), wanted.count, args.update, context);
      else
        dense(layer, h.get(), wanted.count, args.update, context);
      watch.lap(Part::dense);
    }
    update = args.update;
  }
}

}  // namespace headrace
