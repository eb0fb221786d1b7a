// Which experts a token goes to: logits of the router, their scores, the best groups, the top k of them, their weights.
//
// A token's choice is made by one worker, so it does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>

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
  for (int i = 0; i < n; i++) values[i] /= total + 1e-20f;
}

// What a group of experts counts as.
float group_score(const float* scores, int n, bool top2) {
  int32_t ids[2];
  float best[2];
  choose(scores, n, top2 ? 2 : 1, ids, best);
  return top2 ? best[0] + best[1] : best[0];
}

// What one token's choice borrows.
struct Scratch {
  float *logits, *scores, *biased;  // [experts]
  float *groups, *best;             // [groups]
  int32_t* open;                    // [groups]
};

// Scores of experts outside of the best groups become -infinity.
void close_groups(const Router& router, const Scratch& s) {
  const int n = router.matrix.rows / router.groups;
  for (int g = 0; g < router.groups; g++) s.groups[g] = group_score(s.biased + g * n, n, router.top2);
  choose(s.groups, router.groups, router.top_groups, s.open, s.best);
  for (int g = 0; g < router.groups; g++)
    if (std::find(s.open, s.open + router.top_groups, g) == s.open + router.top_groups)
      std::fill_n(s.biased + g * n, n, -std::numeric_limits<float>::infinity());
}

// log(1 + e^x), which is x where e^x is all of the sum.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Scores of all experts: probabilities, or the logits where those come after the choice.
const float* score(const Kernels& isa, const Router& router, const Scratch& s) {
  if (router.scoring == Scoring::softmax_topk || router.scoring == Scoring::sigmoid_topk) return s.logits;
  if (router.scoring == Scoring::sqrt_softplus)
    for (int e = 0; e < router.matrix.rows; e++) s.scores[e] = std::sqrt(softplus(s.logits[e]));
  else
    (router.scoring == Scoring::softmax ? isa.softmax : isa.sigmoid)(s.logits, router.matrix.rows, s.scores);
  return s.scores;
}

// The largest logits; of each its weight, the share of it in a softmax over what is left and near it. They are chosen at
// once: among logits that are no numbers, or minus infinity, one that was taken out could be found again.
void sparse_mix(const Router& router, const Scratch& s, int32_t* ids, float* weights) {
  const int experts = router.matrix.rows;
  std::copy_n(s.logits, experts, s.scores);
  choose(s.logits, experts, router.top_k, ids, weights);
  for (int i = 0; i < router.top_k; i++) {
    float total = 0.0f;
    const float best = s.logits[ids[i]];
    for (int e = 0; e < experts; e++) {
      const bool far = (best - s.logits[e]) / std::max(std::abs(s.logits[e]), best) > 2.0f * router.jitter;
      if (!far) total += std::exp(s.scores[e] - best);  // of those chosen before nothing
    }
    weights[i] = 1.0f / total;
    s.scores[ids[i]] = -std::numeric_limits<float>::infinity();
  }
}

// One token. given: its experts are there.
void choose_one(const Kernels& isa, const Router& router, const Scratch& s, bool given, int32_t* ids, float* weights) {
  const int experts = router.matrix.rows, k = router.top_k;
  const bool mixed = router.scoring == Scoring::sparsemixer;
  const float* scores = mixed ? s.logits : score(isa, router, s);
  const bool grouped = router.top_groups < router.groups;
  if (given) {
    for (int i = 0; i < k; i++) weights[i] = scores[ids[i]];
  } else if (mixed) {
    sparse_mix(router, s, ids, weights);
  } else if (router.choice_bias || grouped) {
    for (int e = 0; e < experts; e++) s.biased[e] = scores[e] + (router.choice_bias ? router.choice_bias[e] : 0.0f);
    if (grouped) close_groups(router, s);
    choose(s.biased, experts, k, ids, weights);
    for (int i = 0; i < k; i++) weights[i] = scores[ids[i]];
  } else {
    choose(scores, experts, k, ids, weights);
  }
  if (router.scoring == Scoring::softmax_topk)
    isa.softmax(weights, k, weights);
  else if (router.scoring == Scoring::sigmoid_topk)
    isa.sigmoid(weights, k, weights);
  else if (router.renormalise)
    divide_by_sum(weights, k);
  if (router.scale != 1.0f)
    for (int i = 0; i < k; i++) weights[i] *= router.scale;
  if (router.factors)
    for (int i = 0; i < k; i++) weights[i] *= router.factors[ids[i]];
}

}  // namespace

void route(const float* x, int tokens, const Router& router, bool given, int32_t* ids, float* weights, Turn& turn) {
  Arena& arena = turn.team.arena;
  const int experts = router.matrix.rows, groups = router.groups, k = router.top_k;
  float* logits = arena.take<float>(size_t(tokens) * experts);
  float* scores = arena.take<float>(size_t(tokens) * 2 * experts);
  float* of_groups = arena.take<float>(size_t(tokens) * 2 * groups);
  int32_t* open = arena.take<int32_t>(size_t(tokens) * groups);
  linear(x, router.matrix.cols, tokens, router.matrix, router.bias, logits, router.matrix.rows, turn);
  each_token(turn.team, tokens, int64_t(tokens) * experts * 4, [&](int t) {
    const size_t e = size_t(t) * experts, g = size_t(t) * groups;
    const Scratch scratch{logits + e, scores + 2 * e, scores + 2 * e + experts, of_groups + 2 * g, of_groups + 2 * g + groups, open + g};
    choose_one(turn.isa, router, scratch, given, ids + size_t(t) * k, weights + size_t(t) * k);
  });
}

}  // namespace headrace
