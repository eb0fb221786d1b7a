// Between the qkv projection and attention, in one go over each token's row: norms of queries and keys, clipping, rotary
// embedding, and keys and values into the cache. Formula and shapes: place_qkv_ in reference.py.
//
// One op, because each costs a decode step more to call than to compute.
#include <algorithm>
#include <limits>

#include "ops/each_token.h"
#include "ops/mixers/cache_rows.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

void normalise(const Kernels& isa, const HeadNorm& norm, float eps, float* x, int n) {
  if (!norm.size) return;
  for (int i = 0; i < n; i += norm.size) isa.rmsnorm(x + i, norm.weight, norm.size, eps, x + i);
}

void clip(float limit, float* x, int n) {
  if (limit == std::numeric_limits<float>::infinity()) return;
  for (int i = 0; i < n; i++) x[i] = x[i] < -limit ? -limit : x[i] > limit ? limit : x[i];
}

// One token. kept: for values that are keys before their norm, where they are.
void place(const QkvArgs& args, const Kernels& isa, int t, float* kept) {
  const Cache& cache = args.cache;
  const int d = cache.d, vd = cache.values.d, queries = args.heads * d, keys = cache.groups * d, values = cache.groups * vd;
  const CacheRows k_rows(isa, cache), v_rows(isa, cache.format, vd, cache.page_keys);
  const size_t row = size_t(args.positions[t]) * args.rope.r;
  float *q = args.qkv + size_t(t) * (queries + keys + (args.shared ? 0 : values)), *k = q + queries, *end = k + keys;
  float* v = args.shared ? kept : end;
  if (args.shared) std::copy_n(k, keys, kept);
  normalise(isa, args.q_norm, args.eps, q, queries);
  normalise(isa, args.k_norm, args.eps, k, keys);
  normalise(isa, args.v_norm, args.eps, v, values);
  clip(args.clip, q, queries + keys);
  clip(args.clip, v, values);
  if (args.v_scale != 1.0f)
    for (int i = 0; i < values; i++) v[i] *= args.v_scale;
  for (float* head = q; head < end; head += d) isa.rope(head, args.rope.cos + row, args.rope.sin + row, args.rope.r);
  const int64_t page = args.slots[t] / cache.page_keys, at = args.slots[t] % cache.page_keys;
  for (int g = 0; g < cache.groups; g++) {
    const size_t plane = size_t(page * cache.groups + g);
    k_rows.pack(k + g * d, cache.k + plane * k_rows.plane(), at);
    v_rows.pack(v + g * vd, cache.values.data + plane * v_rows.plane(), at);
  }
}

}  // namespace

void place_qkv(const QkvArgs& args, Turn& turn) {
  const size_t keys = size_t(args.cache.groups) * args.cache.d;
  float* kept = args.shared ? turn.team.arena.take<float>(args.tokens * keys) : nullptr;  // here: a worker cannot fail
  each_token(turn.team, args.tokens, int64_t(args.tokens) * (args.heads + 2 * args.cache.groups) * args.cache.d,
             [&](int t) { place(args, turn.isa, t, kept ? kept + t * keys : nullptr); });
}

void rotate(const HeadRows& x, const Rope& rope, const int32_t* positions, Turn& turn) {
  each_token(turn.team, x.tokens, int64_t(x.tokens) * x.heads * 2 * rope.r, [&](int t) {
    const size_t row = size_t(positions[t]) * rope.r;
    float* head = x.data + t * x.token_stride;
    for (int n = 0; n < x.heads; n++, head += x.head_stride) turn.isa.rope(head, rope.cos + row, rope.sin + row, rope.r);
  });
}

void scale_rows(const HeadRows& x, int d, const float* by, const int32_t* positions, Turn& turn) {
  each_token(turn.team, x.tokens, int64_t(x.tokens) * x.heads * d, [&](int t) {
    const float factor = by[positions[t]];
    float* head = x.data + t * x.token_stride;
    for (int n = 0; n < x.heads; n++, head += x.head_stride)
      for (int i = 0; i < d; i++) head[i] *= factor;
  });
}

}  // namespace headrace
