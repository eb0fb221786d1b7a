// Steps of recurrent layers over any vec_*.h: the gated delta rule and a state space on some columns of a head's state, a
// token of the short convolution. Formulas are in recurrent.py; nothing here knows sequences, slots or threads.
//
// A state S [keys][values] is gone through once a token: while it takes up token t, it is multiplied with key and query of
// t + 1. What token t sees and gives follows from the state before it,
//
//   seen = e^decay S' k      c = beta (v - seen)      out = e^decay S' q + (k . q) c      S = e^decay S + k c'
//
// so that one token of a decode step reads its state once from memory, and once from a cache to write it. Columns of values
// do not know each other: those of a prompt go through all tokens a few at a time, out of the first cache.
#pragma once

#include "cores/map.h"
#include "isa/math.h"

namespace headrace {
namespace {

// q and k at length 1, q besides times n^-0.5; returns q . k of what they have become.
float unit_pair(const float* q, const float* k, int n, float* q_out, float* k_out) {
  constexpr float EPS = 1e-6f;
  const V of_q = set1(1.0f / __builtin_sqrtf(sum_of_squares(q, n) + EPS) / __builtin_sqrtf(float(n)));
  const V of_k = set1(1.0f / __builtin_sqrtf(sum_of_squares(k, n) + EPS));
  V product = zero();
  for (int i = 0; i < n; i += W) {
    const int lanes = least(W, n - i);
    const V a = mul(load_n(q + i, lanes), of_q), b = mul(load_n(k + i, lanes), of_k);
    store_n(q_out + i, a, lanes);
    store_n(k_out + i, b, lanes);
    product = fma(a, b, product);
  }
  return sum(product);
}

// U vectors of columns of a state; a single one may have fewer than W lanes.
template <int U>
struct StateColumns {
  int lanes;

  inline V get(const float* row, int u) const { return U == 1 ? load_n(row, lanes) : load(row + u * W); }
  inline void put(float* row, int u, V x) const { U == 1 ? store_n(row, x, lanes) : store(row + u * W, x); }
};

// What a token's key and query find in a state.
template <int U>
struct Found {
  V by_k[U], by_q[U];

  inline void clear() {
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) by_k[u] = by_q[u] = zero();
  }

  inline void take(int u, V s, V k, V q) { by_k[u] = fma(s, k, by_k[u]), by_q[u] = fma(s, q, by_q[u]); }
};

template <int U>
struct DeltaColumns {
  const DeltaRun& run;
  StateColumns<U> columns;
  float *state, *scratch;  // scratch: [keys][U W], of a state between its first token and its last
  const float* v;
  float* out;

  void look(const float* k, const float* q, Found<U>& found) const {
    found.clear();
    const float* row = state;
    for (int i = 0; i < run.keys; i++, row += run.state_stride)
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) found.take(u, columns.get(row, u), set1(k[i]), set1(q[i]));
  }

  // S = decay S + k c', and what the next token finds in it.
  template <bool NEXT>
  void update(const float* from, size_t from_stride, float* to, size_t to_stride, float decay, const float* k,
              const V (&c)[U], const float* next_k, const float* next_q, Found<U>& found) const {
    if (NEXT) found.clear();
    const V shrink = set1(decay);
    for (int i = 0; i < run.keys; i++, from += from_stride, to += to_stride) {
      const V key = set1(k[i]);
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) {
        const V s = fma(key, c[u], mul(columns.get(from, u), shrink));
        columns.put(to, u, s);
        if (NEXT) found.take(u, s, set1(next_k[i]), set1(next_q[i]));
      }
    }
  }

  // What the token adds to the state; its output.
  inline void answer(int t, const Found<U>& found, V (&c)[U]) const {
    const size_t at = t * run.gate_stride;
    const V shrink = set1(run.decay[at]), beta = set1(run.beta[at]), product = set1(run.products[t * run.product_stride]);
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) {
      c[u] = mul(beta, sub(columns.get(v + t * run.v_stride, u), mul(shrink, found.by_k[u])));
      columns.put(out + t * run.out_stride, u, fma(product, c[u], mul(shrink, found.by_q[u])));
    }
  }

  void all_tokens() const {
    const size_t stride = run.key_stride;
    Found<U> found;
    look(run.k, run.q, found);
    for (int t = 0; t < run.tokens; t++) {
      V c[U];
      answer(t, found, c);
      const bool first = t == 0, last = t + 1 == run.tokens;
      const float *from = first ? state : scratch, *k = run.k + t * stride;
      float* to = last ? state : scratch;
      const size_t from_stride = first ? run.state_stride : U * W, to_stride = last ? run.state_stride : U * W;
      const float decay = run.decay[t * run.gate_stride];
      if (last)
        update<false>(from, from_stride, to, to_stride, decay, k, c, k, k, found);
      else
        update<true>(from, from_stride, to, to_stride, decay, k, c, k + stride, run.q + (t + 1) * stride, found);
    }
  }
};

template <int U>
int delta_columns(const DeltaRun& run, int column) {
  for (; column + U * W <= run.columns || (U == 1 && column < run.columns); column += U * W)
    DeltaColumns<U>{run, {least(W, run.columns - column)}, run.state + column, run.scratch, run.v + column, run.out + column}
        .all_tokens();
  return column;
}

void delta_rule(const DeltaRun& run) {
  constexpr int WIDE = W == 16 ? 8 : 4, NARROW = 2;  // a prompt's columns stay in the first cache
  int column = run.tokens == 1 ? delta_columns<WIDE>(run, 0) : 0;
  column = delta_columns<NARROW>(run, column);
  delta_columns<1>(run, column);
}

// A state S through all tokens: S = decay S + in (step x)', out = S' by + skip x. What is read of a row is added up while the
// row is brought up to date, so that a token goes through its state once. Those of a prompt, a few columns at a time, stay
// in the first cache.
template <int U>
int space_columns(const SpaceRun& run, int column) {
  for (; column + U * W <= run.columns || (U == 1 && column < run.columns); column += U * W) {
    const StateColumns<U> columns{least(W, run.columns - column)};
    for (int t = 0; t < run.tokens; t++) {
      const float *in = run.in + t * run.in_stride, *by = run.by + t * run.by_stride;
      const float *x = run.x + t * run.x_stride + column, step = run.step[t * run.gate_stride];
      const V shrink = set1(run.decay[t * run.gate_stride]);
      V added[U], read[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) added[u] = mul(columns.get(x, u), set1(step)), read[u] = zero();
      float* row = run.state + column;
      for (int i = 0; i < run.keys; i++, row += run.state_stride) {
        const V key = set1(in[i]), query = set1(by[i]);
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) {
          const V s = fma(key, added[u], mul(columns.get(row, u), shrink));
          columns.put(row, u, s);
          read[u] = fma(query, s, read[u]);
        }
      }
      float* out = run.out + t * run.out_stride + column;
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) columns.put(out, u, fma(columns.get(x, u), set1(run.skip), read[u]));
    }
  }
  return column;
}

void state_space(const SpaceRun& run) {
  int column = space_columns<4>(run, 0);
  column = space_columns<2>(run, column);
  space_columns<1>(run, column);
}

// The sum over taps j of w[j * stride + i] * rows[j][i], and a bias; its silu, or not.
void conv(const float* const* rows, const float* w, size_t stride, int taps, int n, const float* bias, bool with_silu,
          float* out) {
  for (int i = 0; i < n; i += W) {
    const int lanes = least(W, n - i);
    V acc = bias ? load_n(bias + i, lanes) : zero();
    for (int j = 0; j < taps; j++) acc = fma(load_n(w + j * stride + i, lanes), load_n(rows[j] + i, lanes), acc);
    store_n(out + i, with_silu ? silu(acc) : acc, lanes);
  }
}

}  // namespace
}  // namespace headrace
