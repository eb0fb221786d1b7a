// Ops that treat one token's row at a time: norms, rotary embedding, SwiGLU, gated sum, routing.
//
// One token is quicker than waking the team, so small work stays with the caller. A row is never split: its sums have
// one order for any number of threads.
#include <algorithm>

#include "isa.h"
#include "ops.h"
#include "team.h"

namespace headrace {
namespace {

constexpr int SMALL = 32768;  // values: less than this is done by the caller alone

// fn(token) for every token, each worker a run of tokens.
template <class Fn>
void each_token(Team& team, int tokens, int64_t values, const Fn& fn) {
  team.run(values < SMALL || tokens == 1, [&](int worker) {
    const Range mine = part_of(tokens, team.active(), worker);
    for (int t = mine.begin; t < mine.end; t++) fn(t);
  });
}

// The top_k largest scores in falling order; equal ones in the order of their ids. Insertion into a short sorted list.
void choose(const float* scores, int n, int top_k, int32_t* ids, float* values) {
  int have = 0;
  for (int e = 0; e < n; e++) {
    if (have == top_k && !(scores[e] > values[top_k - 1])) continue;
    int at = have < top_k ? have++ : top_k - 1;
    for (; at > 0 && scores[e] > values[at - 1]; at--) ids[at] = ids[at - 1], values[at] = values[at - 1];
    ids[at] = e;
    values[at] = scores[e];
  }
}

void divide_by_sum(float* values, int n) {
  float total = 0.0f;
  for (int i = 0; i < n; i++) total += values[i];
  for (int i = 0; i < n; i++) values[i] /= total;
}

}  // namespace

void rmsnorm(const float* x, int64_t x_stride, float* y, int64_t y_stride, const float* weight, int tokens, int heads,
             int d, float eps) {
  Turn turn;
  const Kernels& isa = kernels();
  each_token(turn.team, tokens, int64_t(tokens) * heads * d, [&](int t) {
    for (int h = 0; h < heads; h++) isa.rmsnorm(x + t * x_stride + h * d, weight, d, eps, y + t * y_stride + h * d);
  });
}

void add_rmsnorm(float* x, const float* y, const float* weight, float* out, int tokens, int d, float eps, float scale) {
  Turn turn;
  const Kernels& isa = kernels();
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    const size_t at = size_t(t) * d;
    isa.add_scaled(x + at, y + at, scale, d);
    isa.rmsnorm(x + at, weight, d, eps, out + at);
  });
}

void rope(float* x, int64_t stride, const float* cos, const float* sin, const int32_t* positions, int tokens, int heads,
          int d, int r) {
  Turn turn;
  const Kernels& isa = kernels();
  each_token(turn.team, tokens, int64_t(tokens) * heads * d, [&](int t) {
    const size_t at = size_t(positions[t]) * r;
    for (int h = 0; h < heads; h++) isa.rope(x + t * stride + h * d, cos + at, sin + at, r);
  });
}

void silu_mul(const float* gate_up, float* out, int tokens, int width) {
  Turn turn;
  const Kernels& isa = kernels();
  each_token(turn.team, tokens, int64_t(tokens) * width * 4, [&](int t) {
    const float* gate = gate_up + size_t(t) * 2 * width;
    isa.silu_mul(gate, gate + width, width, out + size_t(t) * width);
  });
}

void gated_add(float* y, const float* z, const float* gate, int tokens, int d) {
  Turn turn;
  const Kernels& isa = kernels();
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    const size_t at = size_t(t) * d;
    if (gate)
      isa.gated_add(y + at, z + at, gate[t], d);
    else
      isa.add_scaled(y + at, z + at, 1.0f, d);
  });
}

void route(const float* logits, int tokens, int experts, int top_k, bool softmax_first, bool renormalise, int32_t* ids,
           float* weights) {
  Turn turn;
  const Kernels& isa = kernels();
  float* scores = turn.team.arena.take<float>(size_t(tokens) * experts);
  each_token(turn.team, tokens, int64_t(tokens) * experts * 4, [&](int t) {
    const float* row = logits + size_t(t) * experts;
    float *mine = scores + size_t(t) * experts, *chosen = weights + size_t(t) * top_k;
    if (softmax_first) isa.softmax(row, experts, mine);
    choose(softmax_first ? mine : row, experts, top_k, ids + size_t(t) * top_k, chosen);
    if (!softmax_first)
      isa.softmax(chosen, top_k, chosen);
    else if (renormalise)
      divide_by_sum(chosen, top_k);
  });
}

}  // namespace headrace
