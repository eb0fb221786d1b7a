// Attention of a few query rows over a run of pages, with the softmax kept up to date (online), over any vec_*.h.
//
//   for every 32 keys:  s = q . k    m' = max(m, s)    p = e^(s - m')    shrink = e^(m - m')
//                       l = l * shrink + sum p         acc = acc * shrink + p . v
//
// Keys and values are widened to float32 scratch once for all rows (one group of heads x a block of queries). A row
// sees its own keys only, in the order of their positions, and each of its sums has one fixed order: results do not
// depend on the rows beside it. attend_merge joins two runs of pages the same way. Knows nothing of heads, sequences or
// threads.
#pragma once

#include "formats/floats.h"

namespace headrace {
namespace {

constexpr int KEYS = ATTEND_KEYS;

// `keys` rows of one page as float32 rows of dp.
inline void widen_rows(const AttendItem& item, const uint8_t* src, int keys, float* dst) {
  const int d = item.d, dp = item.dp;
  for (int j = 0; j < keys; j++, dst += dp) {
    if (item.format == F32)
      FloatFormat<F32Row>::unpack(src + size_t(j) * d * 4, d, 1.0f, dst);
    else
      FloatFormat<BF16Row>::unpack(src + size_t(j) * d * 2, d, 1.0f, dst);
    for (int i = d; i < dp; i++) dst[i] = 0.0f;
  }
}

// Byte offset of a key from its head's plane in page 0.
inline size_t place_of(const AttendItem& item, int key) {
  const int size = item.format == F32 ? 4 : 2;
  return size_t(item.table[key / item.page_keys]) * item.page_bytes + size_t(key % item.page_keys) * item.d * size;
}

// Keys key0 .. key0 + keys, from as many pages as they lie in; the cache itself where it is float32 rows of dp in one page.
inline const float* gather(const AttendItem& item, const uint8_t* plane, int key0, int keys, float* scratch) {
  const bool one_page = key0 % item.page_keys + keys <= item.page_keys;
  if (one_page && item.format == F32 && item.d == item.dp)
    return reinterpret_cast<const float*>(plane + place_of(item, key0));
  for (int j = 0; j < keys;) {
    const int n = least(keys - j, item.page_keys - (key0 + j) % item.page_keys);
    widen_rows(item, plane + place_of(item, key0 + j), n, scratch + size_t(j) * item.dp);
    j += n;
  }
  return scratch;
}

// scores[r][j] = q[r] . k[j] for R rows and n keys; W dot products at a time, added up together.
template <int R>
void score_tile(const float* q, const float* k, int n, int dp, float* scores) {
  constexpr int STEP = W / R;
  for (int j0 = 0; j0 < n; j0 += STEP) {
    const float* key[STEP];
    V acc[W];
#pragma GCC unroll 16
    for (int j = 0; j < STEP; j++) key[j] = k + size_t(least(j0 + j, n - 1)) * dp;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) acc[i] = zero();
    for (int c = 0; c < dp; c += W) {
#pragma GCC unroll 16
      for (int j = 0; j < STEP; j++) {
        V kv = load(key[j] + c);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r * STEP + j] = fma(load(q + size_t(r) * dp + c), kv, acc[r * STEP + j]);
      }
    }
    float sums[W];
    store(sums, sum_lanes(acc));
    for (int r = 0; r < R; r++) __builtin_memcpy(scores + r * KEYS + j0, sums + r * STEP, STEP * 4);
  }
}

// Turns n scores of a row into weights, the rest into zeros; brings the row's state up to the new maximum.
inline void softmax_step(float* scores, int n, float* m, float* l, float* acc, int dp) {
  const int full = n / W * W;
  V top = set1(*m);
  for (int j = 0; j < full; j += W) top = vmax(top, load(scores + j));
  float now = max_lane(top);
  for (int j = full; j < n; j++) now = scores[j] > now ? scores[j] : now;
  V total = zero();
  for (int j = 0; j < KEYS; j += W) {
    const int lanes = most(0, least(W, n - j));
    V p = exp_(sub(load(scores + j), set1(now)));
    if (lanes < W) {  // what no key has written stays out
      store(scores + j, p);
      p = load_n(scores + j, lanes);
    }
    store(scores + j, p);
    total = add(total, p);
  }
  if (now > *m) {
    const float shrink = exp1(*m - now);
    *l *= shrink;
    map(acc, dp, acc, [=](V a) { return mul(a, set1(shrink)); });
  }
  *m = now;
  *l += sum(total);
}

// acc[r] += sum over n keys of p[r][j] * v[j], U vectors of columns at a time.
template <int R, int U>
void value_tile(const float* p, const float* v, int n, int dp, int c, float* acc) {
  V a[R][U];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) a[r][u] = load(acc + size_t(r) * dp + c + u * W);
  for (int j = 0; j < n; j++) {
    V vv[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) vv[u] = load(v + size_t(j) * dp + c + u * W);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) a[r][u] = fma(set1(p[r * KEYS + j]), vv[u], a[r][u]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) store(acc + size_t(r) * dp + c + u * W, a[r][u]);
}

template <int R>
void value_rows(const float* p, const float* v, int n, int dp, float* acc) {
  constexpr int U = W == 16 ? 4 : 2;
  int c = 0;
  for (; c + U * W <= dp; c += U * W) value_tile<R, U>(p, v, n, dp, c, acc);
  for (; c < dp; c += W) value_tile<R, 1>(p, v, n, dp, c, acc);
}

// R rows from row r on against the `keys` keys of one step.
template <int R>
void attend_rows(const AttendItem& item, const AttendState& state, int r, int key0, int keys, const float* k,
                 const float* v) {
  int seen[R];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) seen[i] = most(0, least(keys, item.first + (r + i) / item.group + 1 - key0));
  const int n = seen[R - 1];
  if (n == 0) return;
  const int dp = item.dp;
  float* scores = item.scores + size_t(r) * KEYS;
  score_tile<R>(item.q + size_t(r) * dp, k, n, dp, scores);
  for (int i = 0; i < R; i++) {
    if (seen[i])
      softmax_step(scores + i * KEYS, seen[i], state.m + r + i, state.l + r + i, state.acc + size_t(r + i) * dp, dp);
    else
      __builtin_memset(scores + i * KEYS, 0, KEYS * 4);
  }
  value_rows<R>(scores, v, n, dp, state.acc + size_t(r) * dp);
}

// Asks for the keys and values of the page that `key` lies in: pages lie anywhere, no hardware sees them coming.
inline void prefetch_page(const AttendItem& item, int key) {
  const size_t at = place_of(item, key);
  const int bytes = least(item.page_keys, KEYS) * item.d * (item.format == F32 ? 4 : 2);
  for (int i = 0; i < bytes; i += 64) {
    __builtin_prefetch(item.k + at + i);
    __builtin_prefetch(item.v + at + i);
  }
}

// The keys from key0 on, as many as one step takes and `end` leaves.
inline void attend_step(const AttendItem& item, const AttendState& state, int key0, int end) {
  const int keys = least(KEYS, end - key0);
  for (int key = key0 + KEYS; key < least(end, key0 + 2 * KEYS); key += item.page_keys) prefetch_page(item, key);
  const float* k = gather(item, item.k, key0, keys, item.kf);
  const float* v = gather(item, item.v, key0, keys, item.vf);
  int r = 0;
  for (; r + 4 <= item.rows; r += 4) attend_rows<4>(item, state, r, key0, keys, k, v);
  for (; r + 2 <= item.rows; r += 2) attend_rows<2>(item, state, r, key0, keys, k, v);
  for (; r < item.rows; r++) attend_rows<1>(item, state, r, key0, keys, k, v);
}

void attend(const AttendItem& item, int begin, int end, const AttendState& state) {
  for (int r = 0; r < item.rows; r++) state.m[r] = -__builtin_inff(), state.l[r] = 0.0f;
  __builtin_memset(state.acc, 0, size_t(item.rows) * item.dp * 4);
  end = least(end, item.first + (item.rows - 1) / item.group + 1);
  for (int key = begin; key < end; key += KEYS) attend_step(item, state, key, end);
}

void attend_merge(const AttendState& total, const AttendState& part, int rows, int dp) {
  for (int r = 0; r < rows; r++) {
    if (part.l[r] == 0.0f) continue;  // none of its keys in this run
    const float m = part.m[r] > total.m[r] ? part.m[r] : total.m[r];
    const float a = total.l[r] == 0.0f ? 0.0f : exp1(total.m[r] - m), b = exp1(part.m[r] - m);
    total.m[r] = m;
    total.l[r] = total.l[r] * a + part.l[r] * b;
    map2(total.acc + size_t(r) * dp, part.acc + size_t(r) * dp, dp, total.acc + size_t(r) * dp,
         [=](V x, V y) { return fma(y, set1(b), mul(x, set1(a))); });
  }
}

void attend_finish(const AttendState& total, int row, int dp, int d, float* out) {
  const V inverse = set1(1.0f / total.l[row]);
  map(total.acc + size_t(row) * dp, d, out, [=](V a) { return mul(a, inverse); });
}

}  // namespace
}  // namespace headrace
