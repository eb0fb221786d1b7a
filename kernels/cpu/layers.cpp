// A decoder's layers one after the other; `compose_layers` in kernels/blocks.py says what it stands for.
//
// One call for all of them, since a call from Python costs 20 us in a decode step: the weights that streamed by have
// driven the interpreter out of every cache.
#include <algorithm>
#include <memory>
#include <vector>

#include "ops.h"
#include "stopwatch.h"
#include "team.h"

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

// out = down(silu(gate h) * (up h))
void mlp(const DecoderLayer& layer, const float* h, int tokens, float* out, Team& team) {
  const int hidden = layer.down.rows, width = layer.down.cols;
  float* gate_up = team.arena.take<float>(size_t(tokens) * 2 * width);
  float* product = team.arena.take<float>(size_t(tokens) * width);
  linear(h, hidden, tokens, layer.gate_up, nullptr, gate_up, team);
  silu_mul(gate_up, product, tokens, width, team);
  linear(product, width, tokens, layer.down, nullptr, out, team);
}

// update += sigmoid(gate h) * mlp(h), or without a gate the whole of it
void add_shared(const DecoderLayer& layer, const float* h, int tokens, float* update) {
  Turn turn;
  Team& team = turn.team;
  const int hidden = layer.down.rows;
  float* shared = team.arena.take<float>(size_t(tokens) * hidden);
  mlp(layer, h, tokens, shared, team);
  float* gate = nullptr;
  if (layer.shared_gate.data) {
    gate = team.arena.take<float>(tokens);
    linear(h, hidden, tokens, layer.shared_gate, nullptr, gate, team);
  }
  gated_add(update, shared, gate, tokens, hidden, team);
}

void dense(const DecoderLayer& layer, const float* h, int tokens, float* update) {
  Turn turn;
  mlp(layer, h, tokens, update, turn.team);
}

}  // namespace

void Stopwatch::add(Part part, int64_t ns) { nanoseconds[int(part)].fetch_add(ns, std::memory_order_relaxed); }

std::vector<std::pair<std::string, double>> take_part_seconds() {
  constexpr const char* NAMES[] = {"norms", "qkv", "place_qkv", "attention", "o", "route", "experts", "dense"};
  static_assert(std::size(NAMES) == size_t(Part::COUNT));
  std::vector<std::pair<std::string, double>> found;
  for (size_t i = 0; i < std::size(NAMES); i++)
    found.emplace_back(NAMES[i], double(nanoseconds[i].exchange(0, std::memory_order_relaxed)) * 1e-9);
  return found;
}

void layers(const std::vector<DecoderLayer>& stack, const Places& places, const LayersArgs& args) {
  int top_k = 0;
  for (const DecoderLayer& layer : stack) top_k = std::max(top_k, layer.block.router.top_k);
  const size_t chosen = size_t(args.tokens) * top_k;
  const std::unique_ptr<float[]> h(new float[size_t(args.tokens) * stack[0].block.o.rows]), weights(new float[chosen]);
  const std::unique_ptr<int32_t[]> ids(new int32_t[chosen]);
  const float* update = nullptr;
  for (size_t i = 0; i < stack.size(); i++) {
    const DecoderLayer& layer = stack[i];
    const bool last = i + 1 == stack.size();
    const Wanted wanted = last ? args.wanted : Wanted{nullptr, args.tokens, nullptr};
    attention_block(layer.block, places, args.x, update, args.tokens, wanted, h.get(), ids.get(), weights.get());
    args.distinct[i] = 0;
    if (wanted.count == 0) return;
    if (layer.bank.data) {
      const int k = layer.block.router.top_k;
      args.distinct[i] = count_distinct(ids.get(), size_t(wanted.count) * k, layer.bank.experts);
      experts(h.get(), wanted.count, ids.get(), weights.get(), k, layer.bank, args.update);
    }
    if (layer.down.data) {
      Stopwatch watch;
      if (layer.bank.data)
        add_shared(layer, h.get(), wanted.count, args.update);
      else
        dense(layer, h.get(), wanted.count, args.update);
      watch.lap(Part::dense);
    }
    update = args.update;
  }
}

}  // namespace headrace
