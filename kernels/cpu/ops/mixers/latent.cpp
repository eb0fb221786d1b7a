// Latent attention, all of it on latents.
//
// A query lies where attention wants it, [own part in the space of latents | rotated part], from the start: the product by
// head writes the one beside the other.
#include <cstring>

#include "formats/layout.h"
#include "ops/each_token.h"
#include "ops/mixers/mixers.h"

namespace headrace {
namespace {

// Latents and rotary keys of the new tokens into the cache: `rows` [T, l + 2 r].
void keep(const LatentMixer& mixer, const Normed& in, float* rows, Turn& turn) {
  const Cache& cache = mixer.cache;
  const FormatKernels& format = turn.isa.formats[cache.format];
  const int rank = cache.values.d, width = cache.d;
  const size_t bytes = format.row_bytes(width);
  each_token(turn.team, in.tokens, int64_t(in.tokens) * width, [&](int t) {
    float* row = rows + size_t(t) * width;
    const size_t turned = size_t(in.places.positions[t]) * mixer.rope.r;
    turn.isa.rmsnorm(row, mixer.kv_a_norm, rank, mixer.norm_eps, row);
    turn.isa.rope(row + rank, mixer.rope.cos + turned, mixer.rope.sin + turned, mixer.rope.r);
    format.pack(row, width, cache.k + size_t(in.places.slots[t]) * bytes);
  });
}

// Queries as their matrix gives them, [T, N, n + 2 r].
float* project(const LatentMixer& mixer, const Normed& in, Turn& turn) {
  Arena& arena = turn.team.arena;
  const float* h = in.h;
  if (const int rank = mixer.q_a.rows; mixer.q_a.data) {
    float* low = arena.take<float>(size_t(in.tokens) * rank);
    linear(h, in.hidden, in.tokens, mixer.q_a, mixer.q_a_bias, low, rank, turn);
    rmsnorm(low, mixer.q_a_norm, low, in.tokens, rank, mixer.norm_eps, turn);
    h = low;
  }
  float* q = arena.take<float>(size_t(in.tokens) * mixer.q.rows);
  linear(h, mixer.q.cols, in.tokens, mixer.q, nullptr, q, mixer.q.rows, turn);
  return q;
}

// The rotated part of every query, behind its part in the space of latents: `to` [T, N, l + 2 r].
void place_rotated(const LatentMixer& mixer, const Normed& in, const float* q, float* to, Turn& turn) {
  const int own = mixer.k_up.cols, each = mixer.q.rows / mixer.heads, rank = mixer.cache.values.d, width = mixer.cache.d;
  each_token(turn.team, in.tokens, int64_t(in.tokens) * mixer.heads * (each - own), [&](int t) {
    const size_t turned = size_t(in.places.positions[t]) * mixer.rope.r;
    for (int n = 0; n < mixer.heads; n++) {
      const size_t head = size_t(t) * mixer.heads + n;
      float* rotated = to + head * width + rank;
      std::memcpy(rotated, q + head * each + own, size_t(each - own) * sizeof(float));
      turn.isa.rope(rotated, mixer.rope.cos + turned, mixer.rope.sin + turned, mixer.rope.r);
    }
  });
}

// float32 [T, N, d], one after the other.
HeadRows side_by_side(float* data, int tokens, int heads, int d) { return {data, int64_t(heads) * d, d, tokens, heads}; }

}  // namespace

float* mix(const LatentMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const Places& places = in.places;
  const int tokens = in.tokens, N = mixer.heads, rank = mixer.cache.values.d, width = mixer.cache.d;
  float* rows = arena.take<float>(size_t(tokens) * width);
  linear(in.h, in.hidden, tokens, mixer.kv_a, mixer.kv_a_bias, rows, width, turn);
  watch.lap(Part::qkv);
  keep(mixer, in, rows, turn);
  watch.lap(Part::place);
  if (!in.wanted) return nullptr;

  float* q = project(mixer, in, turn);
  watch.lap(Part::qkv);
  float* queries = arena.take<float>(size_t(tokens) * N * width);
  place_rotated(mixer, in, q, queries, turn);
  watch.lap(Part::place);
  linear_by_head(side_by_side(q, tokens, N, mixer.q.rows / N), mixer.k_up, side_by_side(queries, tokens, N, width), turn);
  watch.lap(Part::by_head);
  float* seen = arena.take<float>(size_t(tokens) * N * rank);
  attention({queries, int64_t(N) * width, mixer.cache, places.tables, places.starts, places.contexts, places.sequences,
             places.table_len, N, mixer.scale, NO_WINDOW, nullptr, seen}, turn);
  watch.lap(Part::attention);
  const int v = mixer.v_up.rows / N;
  float* out = arena.take<float>(size_t(tokens) * N * v);
  linear_by_head(side_by_side(seen, tokens, N, rank), mixer.v_up, side_by_side(out, tokens, N, v), turn);
  watch.lap(Part::by_head);
  return out;
}

}  // namespace headrace
