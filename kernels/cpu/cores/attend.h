// Attention of a few query rows over a run of pages, with the softmax kept up to date (online), over any vec_*.h.
//
//   for every 32 keys:  s = q . k    m' = max(m, s)    p = e^(s - m')    shrink = e^(m - m')
//                       l = l * shrink + sum p         acc = acc * shrink + p . v
//
// Keys and values are widened to float32 scratch once for all rows (one group of heads x a block of queries); values that
// are the first numbers of their keys are those. A row sees its own keys only, in the order of their positions, and each of
// its sums has one fixed order: results do not depend on the rows beside it. Keys before a row's window have the weight 0,
// and pages before the windows of all rows are not touched. attend_merge joins two runs of pages the same way. Knows
// nothing of heads, sequences or threads.
#pragma once

#include "formats/floats.h"

namespace headrace {
namespace {

constexpr int KEYS = ATTEND_KEYS;

// `keys` rows of one page as float32 rows of dp.
inline void widen_rows(const AttendRows& rows, int format, const uint8_t* src, int keys, float* dst) {
  const int d = rows.d, dp = rows.dp;
  for (int j = 0; j < keys; j++, src += rows.row_bytes, dst += dp) {
    if (format == F32)
      FloatFormat<F32Row>::unpack(src, d, 1.0f, dst);
    else
      FloatFormat<BF16Row>::unpack(src, d, 1.0f, dst);
    for (int i = d; i < dp; i++) dst[i] = 0.0f;
  }
}

// Where a key, or its value, lies.
inline const uint8_t* place_of(const AttendItem& item, const AttendRows& rows, int key) {
  return rows.first + size_t(item.table[key / item.page_keys]) * rows.page_bytes +
         size_t(key % item.page_keys) * rows.row_bytes;
}

// Keys or values as float32: that of place j at `at` + j * stride, from a first place on.
struct WideRows {
  const float* at;
  size_t stride;
};

// Places [from, keys) of a step at key0, from as many pages as they lie in; the cache itself where it is float32 in one page
// and needs no zeros behind a row.
inline WideRows gather(const AttendItem& item, const AttendRows& rows, int key0, int from, int keys) {
  const bool one_page = (key0 + from) % item.page_keys + keys - from <= item.page_keys;
  if (one_page && item.format == F32 && rows.d == rows.dp) {
    const size_t stride = rows.row_bytes / sizeof(float);
    return {reinterpret_cast<const float*>(place_of(item, rows, key0 + from)) - from * stride, stride};
  }
  for (int j = from; j < keys;) {
    const int n = least(keys - j, item.page_keys - (key0 + j) % item.page_keys);
    widen_rows(rows, item.format, place_of(item, rows, key0 + j), n, rows.wide + size_t(j) * rows.dp);
    j += n;
  }
  return {rows.wide, size_t(rows.dp)};
}

// Whether values are the first numbers of their keys.
inline bool within_keys(const AttendItem& item) {
  const AttendRows &k = item.k, &v = item.v;
  return k.first == v.first && k.page_bytes == v.page_bytes && k.row_bytes == v.row_bytes;
}

// The keys of one step: places [from, keys), the first of them at position key0.
struct StepKeys {
  int key0, from, keys;
  WideRows k, v;
};

// scores[r][j] = q[r] . k[j] for R rows and keys [from, n); W dot products at a time, added up together.
template <int R>
void score_tile(const float* q, const WideRows& k, int from, int n, int dp, float* scores) {
  constexpr int STEP = W / R;
  for (int j0 = from / STEP * STEP; j0 < n; j0 += STEP) {
    const float* key[STEP];
    V acc[W];
#pragma GCC unroll 16
    for (int j = 0; j < STEP; j++) key[j] = k.at + size_t(most(from, least(j0 + j, n - 1))) * k.stride;
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

// Turns scores [from, n) of a row into weights, the rest into zeros; brings the row's state up to the new maximum.
inline void softmax_step(float* scores, int from, int n, float* m, float* l, float* acc, int dp) {
  for (int j = 0; j < from; j++) scores[j] = -__builtin_inff();
  const int full = n / W * W;
  V top = set1(*m);
  for (int j = 0; j < full; j += W) top = vmax(top, load(scores + j));
  float now = max_lane(top);
  for (int j = full; j < n; j++) now = scores[j] > now ? scores[j] : now;
  V total = zero();
  for (int j = 0; j < KEYS; j += W) {
    const int lanes = most(0, least(W, n - j));
    V p = exp_(sub(load(scores + j), set1(now)));
    if (lanes < W || j < from) {  // what no key has written stays out
      store(scores + j, p);
      for (int i = j; i < least(from, j + W); i++) scores[i] = 0.0f;
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

// acc[r] += sum over keys [from, n) of p[r][j] * v[j], U vectors of columns at a time.
template <int R, int U>
void value_tile(const float* p, const WideRows& v, int from, int n, int dp, int c, float* acc) {
  V a[R][U];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) a[r][u] = load(acc + size_t(r) * dp + c + u * W);
  for (int j = from; j < n; j++) {
    V vv[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) vv[u] = load(v.at + size_t(j) * v.stride + c + u * W);
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
void value_rows(const float* p, const WideRows& v, int from, int n, int dp, float* acc) {
  constexpr int U = W == 16 ? 4 : 2;
  int c = 0;
  for (; c + U * W <= dp; c += U * W) value_tile<R, U>(p, v, from, n, dp, c, acc);
  for (; c < dp; c += W) value_tile<R, 1>(p, v, from, n, dp, c, acc);
}

// R rows from row r on against the keys of one step. Rows are of rising positions: the first sees the earliest of these
// keys, the last one the latest.
template <int R>
void attend_rows(const AttendItem& item, const AttendState& state, int r, const StepKeys& step) {
  int from[R], seen[R];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) {
    const int own = item.first + (r + i) / item.group + 1 - step.key0;  // place behind the query's own key
    from[i] = most(step.from, own - item.window);
    seen[i] = least(step.keys, own);
  }
  const int first = from[0], n = seen[R - 1], dp = item.v.dp;
  if (n <= first) return;
  float* scores = item.scores + size_t(r) * KEYS;
  score_tile<R>(item.q + size_t(r) * item.k.dp, step.k, first, n, item.k.dp, scores);
  for (int i = 0; i < R; i++) {
    if (seen[i] > from[i])
      softmax_step(scores + i * KEYS, from[i], seen[i], state.m + r + i, state.l + r + i,
                   state.acc + size_t(r + i) * dp, dp);
    else
      __builtin_memset(scores + i * KEYS, 0, KEYS * 4);
  }
  value_rows<R>(scores, step.v, first, n, dp, state.acc + size_t(r) * dp);
}

// Asks for the keys and values of the page that `key` lies in: pages lie anywhere, no hardware sees them coming.
inline void prefetch_page(const AttendItem& item, const AttendRows& rows, int key) {
  const uint8_t* at = place_of(item, rows, key);
  const size_t bytes = least(item.page_keys, KEYS) * rows.row_bytes;
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
}

// The keys from key0 on, as many as one step takes and `end` leaves; none before `low`.
inline void attend_step(const AttendItem& item, const AttendState& state, int key0, int low, int end) {
  const bool within = within_keys(item);
  for (int key = key0 + KEYS; key < least(end, key0 + 2 * KEYS); key += item.page_keys) {
    prefetch_page(item, item.k, key);
    if (!within) prefetch_page(item, item.v, key);
  }
  StepKeys step{key0, most(0, low - key0), least(KEYS, end - key0), {}, {}};
  step.k = gather(item, item.k, key0, step.from, step.keys);
  step.v = within ? step.k : gather(item, item.v, key0, step.from, step.keys);
  int r = 0;
  for (; r + 4 <= item.rows; r += 4) attend_rows<4>(item, state, r, step);
  for (; r + 2 <= item.rows; r += 2) attend_rows<2>(item, state, r, step);
  for (; r < item.rows; r++) attend_rows<1>(item, state, r, step);
}

void attend(const AttendItem& item, int begin, int end, const AttendState& state) {
  for (int r = 0; r < item.rows; r++) state.m[r] = -__builtin_inff(), state.l[r] = 0.0f;
  __builtin_memset(state.acc, 0, size_t(item.rows) * item.v.dp * 4);
  const int low = most(begin, item.first + 1 - item.window);
  end = least(end, item.first + (item.rows - 1) / item.group + 1);
  for (int key = begin + (low - begin) / KEYS * KEYS; key < end; key += KEYS) attend_step(item, state, key, low, end);
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
