// Ops that treat one token's row at a time: norms, GLU, sums of rows, the largest logit.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/each_token.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {

constexpr int FEW_LOGITS = 32768;  // less than this the caller looks through alone

// log(1 + e^x); from 20 on it is x to the last bit of a float.
static float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void rmsnorm(const float* x, const float* weight, float* y, int tokens, int d, float eps, Turn& turn) {
  const Kernels& isa = turn.isa;
  each_token(turn.team, tokens, int64_t(tokens) * d,
             [&](int t) { isa.rmsnorm(x + size_t(t) * d, weight, d, eps, y + size_t(t) * d); });
}

void add_rmsnorm(float* x, const float* y, const float* weight, float* out, int tokens, int d, float eps, float scale,
                 Turn& turn) {
  const Kernels& isa = turn.isa;
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    const size_t at = size_t(t) * d;
    isa.add_scaled(x + at, y + at, scale, d);
    isa.rmsnorm(x + at, weight, d, eps, out + at);
  });
}

void layernorm(const float* x, const float* weight, const float* bias, float* y, int tokens, int d, float eps, Turn& turn) {
  const Kernels& isa = turn.isa;
  each_token(turn.team, tokens, int64_t(tokens) * d,
             [&](int t) { isa.layernorm(x + size_t(t) * d, weight, bias, d, eps, y + size_t(t) * d); });
}

void add_layernorm(float* x, const float* y, const float* weight, const float* bias, float* out, int tokens, int d, float eps,
                   float scale, Turn& turn) {
  const Kernels& isa = turn.isa;
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    const size_t at = size_t(t) * d;
    isa.add_scaled(x + at, y + at, scale, d);
    isa.layernorm(x + at, weight, bias, d, eps, out + at);
  });
}

void glu(const float* gate_up, float* out, int tokens, int width, const Activation& activation, Turn& turn) {
  const Kernels& isa = turn.isa;
  const bool plain = is_swiglu(activation);
  const Glu how{activation, nullptr, nullptr};
  if (!activation.gated)
    return each_token(turn.team, tokens, int64_t(tokens) * width,
                      [&](int t) { isa.square_relu(gate_up + size_t(t) * width, width, out + size_t(t) * width); });
  each_token(turn.team, tokens, int64_t(tokens) * width * 4, [&](int t) {
    const float* gate = gate_up + size_t(t) * 2 * width;
    if (plain)
      isa.silu_mul(gate, gate + width, width, out + size_t(t) * width);
    else
      isa.glu(gate, gate + width, width, how, out + size_t(t) * width);
  });
}

void gated_add(float* y, const float* z, const float* gate, int tokens, int d, Turn& turn) {
  const Kernels& isa = turn.isa;
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    const size_t at = size_t(t) * d;
    if (gate)
      isa.gated_add(y + at, z + at, gate[t], d);
    else
      isa.add_scaled(y + at, z + at, 1.0f, d);
  });
}

// What `experts` does last, of rows that came in several parts: the same sum in the same order.
void weighted_rows(const float* rows, const float* weights, int tokens, int top_k, int d, float* y, Turn& turn) {
  const Kernels& isa = turn.isa;
  int32_t* at = turn.team.arena.take<int32_t>(size_t(tokens) * top_k);
  std::iota(at, at + size_t(tokens) * top_k, 0);
  each_token(turn.team, tokens, int64_t(tokens) * top_k * d, [&](int t) {
    const size_t first = size_t(t) * top_k;
    isa.weighted_sum(rows, size_t(d), at + first, weights + first, top_k, d, y + size_t(t) * d, nullptr);
  });
}

void gate_mul(float* y, const float* gate, int tokens, int d, int gates, bool soft, Turn& turn) {
  constexpr int PART = 256;  // of a token's gates at once
  const Kernels& isa = turn.isa;
  const int each = d / gates;
  each_token(turn.team, tokens, int64_t(tokens) * d * 4, [&](int t) {
    float open[PART];
    for (int i = 0; i < gates; i += PART) {
      const int n = std::min(PART, gates - i);
      const float* from = gate + size_t(t) * gates + i;
      if (soft)
        for (int j = 0; j < n; j++) open[j] = softplus(from[j]);
      else
        isa.sigmoid(from, n, open);
      float* to = y + size_t(t) * d + size_t(i) * each;
      for (int j = 0; j < n; j++, to += each)
        for (int e = 0; e < each; e++) to[e] *= open[j];
    }
  });
}

void scale(float* x, const float* by, int tokens, int d, Turn& turn) {
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    float* row = x + size_t(t) * d;
    for (int i = 0; i < d; i++) row[i] *= *by;
  });
}

void mul(float* y, int64_t y_stride, const float* by, int64_t by_stride, int tokens, int d, Turn& turn) {
  each_token(turn.team, tokens, int64_t(tokens) * d, [&](int t) {
    float* row = y + t * y_stride;
    const float* other = by + t * by_stride;
    for (int i = 0; i < d; i++) row[i] *= other[i];
  });
}

void gated_norm(const GatedNorm& args, Turn& turn) {
  const Kernels& isa = turn.isa;
  const int each = args.d / args.groups;
  each_token(turn.team, args.tokens, int64_t(args.tokens) * args.d * 4, [&](int t) {
    float* out = args.out + size_t(t) * args.d;
    isa.silu_mul(args.z + t * args.z_stride, args.y + t * args.y_stride, args.d, out);
    for (int i = 0; i < args.d; i += each) isa.rmsnorm(out + i, args.weight + i, each, args.eps, out + i);
  });
}

// Every worker looks through its part of all rows; the first of equals wins, and NaN over all.
void argmax(const float* logits, int rows, int n, float* values, int64_t* ids, Turn& turn) {
  Team& team = turn.team;
  const Kernels& isa = turn.isa;
  float* tops = team.arena.take<float>(size_t(team.size()) * rows);
  int* places = team.arena.take<int>(size_t(team.size()) * rows);
  int parts = 1;
  team.run(int64_t(rows) * n < FEW_LOGITS, [&](int worker) {
    if (worker == 0) parts = team.active();
    const Range mine = part_of(n, team.active(), worker);
    for (int r = 0; r < rows; r++) {
      const int at = worker * rows + r;
      places[at] = mine.begin + isa.largest(logits + size_t(r) * n + mine.begin, mine.end - mine.begin, &tops[at]);
    }
  });
  for (int r = 0; r < rows; r++) {
    int best = r;
    for (int at = r + rows; at < parts * rows; at += rows)
      if (tops[at] > tops[best] || (std::isnan(tops[at]) && !std::isnan(tops[best]))) best = at;
    values[r] = tops[best];
    ids[r] = places[best];
  }
}

}  // namespace headrace
