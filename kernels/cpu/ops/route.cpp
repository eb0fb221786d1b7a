// Which experts a token goes to: logits of the router, softmax before or after the choice, the top k.
//
// A token's choice is made by one worker, so it does not depend on the number of threads.
#include "ops/each_token.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

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

// One token.
void choose_one(const Kernels& isa, const Router& router, const float* logits, float* scores, int32_t* ids,
                float* weights) {
  const int experts = router.matrix.rows, k = router.top_k;
  if (router.softmax_first) isa.softmax(logits, experts, scores);
  choose(router.softmax_first ? scores : logits, experts, k, ids, weights);
  if (!router.softmax_first)
    isa.softmax(weights, k, weights);
  else if (router.renormalise)
    divide_by_sum(weights, k);
}

}  // namespace

void route(const float* x, int tokens, const Router& router, int32_t* ids, float* weights, Turn& turn) {
  Arena& arena = turn.team.arena;
  const int experts = router.matrix.rows, k = router.top_k;
  float* logits = arena.take<float>(size_t(tokens) * experts);
  float* scores = arena.take<float>(size_t(tokens) * experts);
  linear(x, router.matrix.cols, tokens, router.matrix, nullptr, logits, router.matrix.rows, turn);
  each_token(turn.team, tokens, int64_t(tokens) * experts * 4, [&](int t) {
    const size_t at = size_t(t) * experts;
    choose_one(turn.isa, router, logits + at, scores + at, ids + size_t(t) * k, weights + size_t(t) * k);
  });
}

}  // namespace headrace
