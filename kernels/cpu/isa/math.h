// Small helpers over any vec_*.h: exp, sigmoid, loops over a row with its tail.
//
// exp(x) = 2^n * e^r with n = round(x / ln 2) and |r| <= ln 2 / 2. ln 2 is taken away in two parts so that r is exact
// to float; the Taylor sum to r^7 leaves r^8 / 8! < 6e-9, so the error is float rounding (about 1e-7). Arguments are
// clamped to where the result is a normal float: far below, exp is 1e-38 instead of 0, which callers that need a true 0
// must mask.
#pragma once

#include "isa/table.h"

namespace headrace {
namespace {

constexpr int least(int a, int b) { return a < b ? a : b; }
constexpr int most(int a, int b) { return a > b ? a : b; }

inline V exp_(V x) {
  x = vmin(set1(88.0f), vmax(set1(-87.3f), x));  // this order of arguments lets NaN through
  V n = round_even(mul(x, set1(1.44269504f)));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return scale2(p, n);
}

inline float exp1(float x) {
  float lanes[W];
  store(lanes, exp_(set1(x)));
  return lanes[0];
}

inline V silu(V x) { return div(x, add(set1(1.0f), exp_(sub(zero(), x)))); }

inline V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), exp_(sub(zero(), x)))); }

// bound * tanh(x / bound); a bound of 0 changes nothing.
inline V bent(V x, float bound) {
  if (bound == 0.0f) return x;
  const V turned = exp_(mul(set1(2.0f / bound), x));
  return mul(set1(bound), sub(set1(1.0f), div(set1(2.0f), add(turned, set1(1.0f)))));
}

// See Activation. This order of arguments lets NaN through the clamps.
inline V activate(V gate, V up, const Activation& a) {
  if (!a.late) gate = vmin(set1(a.limit), gate);
  up = vmin(set1(a.limit), vmax(set1(-a.limit), up));
  const V curved = a.cubic == 0.0f ? gate : mul(gate, fma(set1(a.cubic), mul(gate, gate), set1(1.0f)));
  const V opened = div(bent(gate, a.bend), add(set1(1.0f), exp_(mul(set1(-a.alpha), curved))));
  up = bent(up, a.bend_up);
  return mul(add(up, set1(a.offset)), a.late ? vmin(set1(a.limit), opened) : opened);
}

// out[i] = fn(a[i]) for n floats.
template <class Fn>
inline void map(const float* a, int n, float* out, Fn fn) {
  int i = 0;
  for (; i + W <= n; i += W) store(out + i, fn(load(a + i)));
  if (i < n) store_n(out + i, fn(load_n(a + i, n - i)), n - i);
}

// out[i] = fn(a[i], b[i]) for n floats.
template <class Fn>
inline void map2(const float* a, const float* b, int n, float* out, Fn fn) {
  int i = 0;
  for (; i + W <= n; i += W) store(out + i, fn(load(a + i), load(b + i)));
  if (i < n) store_n(out + i, fn(load_n(a + i, n - i), load_n(b + i, n - i)), n - i);
}

}  // namespace
}  // namespace headrace
