// Element-wise ops on one row, over any vec_*.h: norms, rotary embedding, GLU, softmax, sums.
//
// Every function does one row on one thread; formulas are in reference.py. Knows nothing of tokens, heads or threads.
#pragma once

#include "isa/math.h"

namespace headrace {
namespace {

inline float sum_of_squares(const float* x, int n) {
  V acc[4] = {zero(), zero(), zero(), zero()};
  int i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) {
      V v = load(x + i + u * W);
      acc[u] = fma(v, v, acc[u]);
    }
  for (; i < n; i += W) {
    V v = load_n(x + i, least(W, n - i));
    acc[0] = fma(v, v, acc[0]);
  }
  return sum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

void rmsnorm(const float* x, const float* weight, int n, float eps, float* y) {
  const V inverse = set1(1.0f / __builtin_sqrtf(sum_of_squares(x, n) / float(n) + eps));
  map2(x, weight, n, y, [=](V v, V w) { return mul(mul(v, inverse), w); });
}

// Two passes: of the mean, and of the squares of what is left, so that nothing is lost where a mean is large.
void layernorm(const float* x, const float* weight, const float* bias, int n, float eps, float* y) {
  V total = zero();
  for (int i = 0; i < n; i += W) total = add(total, load_n(x + i, least(W, n - i)));
  const V mean = set1(sum(total) / float(n));
  map(x, n, y, [=](V v) { return sub(v, mean); });
  const V inverse = set1(1.0f / __builtin_sqrtf(sum_of_squares(y, n) / float(n) + eps));
  map2(y, weight, n, y, [=](V v, V w) { return mul(mul(v, inverse), w); });
  map2(y, bias, n, y, [](V v, V b) { return add(v, b); });
}

void add_scaled(float* x, const float* y, float scale, int n) {
  map2(x, y, n, x, [=](V a, V b) { return fma(b, set1(scale), a); });
}

void rope(float* x, const float* cos, const float* sin, int r) {
  for (int i = 0; i < r; i += W) {
    const int n = least(W, r - i);
    V a = load_n(x + i, n), b = load_n(x + r + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(x + i, sub(mul(a, c), mul(b, s)), n);
    store_n(x + r + i, add(mul(b, c), mul(a, s)), n);
  }
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  map2(gate, up, n, out, [](V g, V u) { return mul(silu(g), u); });
}

void glu(const float* gate, const float* up, int n, const Glu& how, float* out) {
  for (int i = 0; i < n; i += W) {
    const int lanes = least(W, n - i);
    V g = load_n(gate + i, lanes), u = load_n(up + i, lanes);
    if (how.gate_bias) g = add(g, load_n(how.gate_bias + i, lanes)), u = add(u, load_n(how.up_bias + i, lanes));
    store_n(out + i, activate(g, u, how.activation), lanes);
  }
}

void square_relu(const float* x, int n, float* out) {
  map(x, n, out, [](V v) {
    const V above = vmax(zero(), v);  // this order of arguments lets NaN through
    return mul(above, above);
  });
}

void gated_add(float* y, const float* z, float gate, int n) { add_scaled(y, z, 1.0f / (1.0f + exp1(-gate)), n); }

inline float peak(const float* x, int n) {
  float top = x[0];
  int i = 0;
  if (n >= W) {
    V m = load(x);
    for (i = W; i + W <= n; i += W) m = vmax(m, load(x + i));
    top = max_lane(m);
  }
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

// Where the largest value stands first, and the value; NaN counts as larger than all. Runs are short, so that the one
// to search for the place is in the first cache.
int largest(const float* x, int n, float* top) {
  constexpr int RUN = 1024;
  V odd = zero();  // NaN as soon as a value is NaN or infinite
  float best = -__builtin_inff();
  int run = 0;
  for (int i = 0; i < n; i += RUN) {
    const int count = least(RUN, n - i);
    for (int j = 0; j < count; j += W) odd = fma(load_n(x + i + j, least(W, count - j)), zero(), odd);
    const float here = peak(x + i, count);
    if (here > best) best = here, run = i;
  }
  if (sum(odd) != 0.0f)
    for (int i = 0; i < n; i++)
      if (x[i] != x[i]) return *top = x[i], i;
  *top = best;
  for (int i = run; i < n; i++)
    if (x[i] == best) return i;
  return 0;
}

void softmax(const float* x, int n, float* out) {
  const V top = set1(peak(x, n));
  V total = zero();
  map(x, n, out, [=](V v) { return exp_(sub(v, top)); });
  for (int i = 0; i < n; i += W) total = add(total, load_n(out + i, least(W, n - i)));
  const V all = set1(sum(total));
  map(out, n, out, [=](V v) { return div(v, all); });
}

void sigmoid(const float* x, int n, float* out) {
  map(x, n, out, [](V v) { return sigmoid(v); });
}

// Rows of a sum lie anywhere: experts' products of 512 tokens take half the time if those of the next token are asked for.
inline void ask_rows(const float* rows, size_t stride, const int32_t* at, int k) {
  for (int j = 0; j < k; j++) __builtin_prefetch(rows + size_t(at[j]) * stride, 0, 2);
}

// y = sum over k, in order, of w[k] * rows[at[k]]
void weighted_sum(const float* rows, size_t stride, const int32_t* at, const float* w, int k, int n, float* y,
                  const int32_t* next) {
  for (int i = 0; i < n; i += W) {
    const int lanes = least(W, n - i);
    V acc = zero();
    if (next) ask_rows(rows + i, stride, next, k);
    for (int j = 0; j < k; j++) acc = fma(load_n(rows + size_t(at[j]) * stride + i, lanes), set1(w[j]), acc);
    store_n(y + i, acc, lanes);
  }
}

// The same of rows that have their expert's bias added.
void biased_sum(const float* rows, size_t stride, const int32_t* at, const float* w, int k, int n, float* y,
                const int32_t* next, const DownBiases& biases) {
  for (int i = 0; i < n; i += W) {
    const int lanes = least(W, n - i);
    V acc = zero();
    if (next) ask_rows(rows + i, stride, next, k);
    for (int j = 0; j < k; j++) {
      if (biases.ids[j] < 0) continue;
      const V bias = load_n(biases.first + size_t(biases.ids[j]) * biases.stride + i, lanes);
      acc = fma(add(load_n(rows + size_t(at[j]) * stride + i, lanes), bias), set1(w[j]), acc);
    }
    store_n(y + i, acc, lanes);
  }
}

// Reads a buffer once and adds it up, to measure what memory can give. Two streams per thread: one, two and four streams,
// with and without prefetch 2-16 KB ahead, read alike within 5 % (12-16 GB/s on one core), two being seldom the slowest.
uint64_t stream_sum(const uint8_t* data, size_t bytes) {
  const size_t half = bytes / 2 / (4 * BYTES) * (4 * BYTES);
  Bytes acc[4] = {bytes_zero(), bytes_zero(), bytes_zero(), bytes_zero()};
  for (size_t i = 0; i < half; i += 2 * BYTES) {
    acc[0] = bytes_add(acc[0], data + i);
    acc[1] = bytes_add(acc[1], data + i + BYTES);
    acc[2] = bytes_add(acc[2], data + half + i);
    acc[3] = bytes_add(acc[3], data + half + i + BYTES);
  }
  uint64_t total = bytes_sum(acc[0]) + bytes_sum(acc[1]) + bytes_sum(acc[2]) + bytes_sum(acc[3]);
  for (size_t i = 2 * half; i < bytes; i++) total += data[i];
  return total;
}

// Multiply-add of floats on registers, in so many chains that its latency does not show: what arithmetic can do at best.
double float_peak(int rounds) {
  constexpr int CHAINS = W == 16 ? 16 : 12;
  V sums[CHAINS], total = zero();
  const V by = set1(0.99f), plus = set1(0.01f);
#pragma GCC unroll 16
  for (int i = 0; i < CHAINS; i++) sums[i] = set1(float(i));
  for (int r = 0; r < rounds; r++)
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sums[i] = fma(sums[i], by, plus);
#pragma GCC unroll 16
  for (int i = 0; i < CHAINS; i++) total = add(total, sums[i]);
  volatile float sink = sum(total);  // the sums count as used
  (void)sink;
  return double(rounds) * CHAINS * W * 2;
}

}  // namespace
}  // namespace headrace
