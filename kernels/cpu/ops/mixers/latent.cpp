// Latent attention: decode steps and short prompts attend to latents themselves, longer prompts to keys and values that are
// made of them (made_keys.cpp).
//
// A query that attends to latents lies where attention wants it, [own part in the space of latents | rotated part], from the
// start: the product by head writes the one beside the other.
#include "ops/mixers/latent.h"

#include <algorithm>
#include <cstring>

#include "ops/each_token.h"
#include "ops/mixers/cache_rows.h"

namespace headrace {
namespace {

// Latents and rotary keys of the new tokens into the cache: `rows` [T, l + 2 r].
void keep(const LatentMixer& mixer, const Normed& in, float* rows, Turn& turn) {
  const Cache& cache = mixer.cache;
  const LatentShape shape(mixer);
  const CacheRows to(turn.isa, cache);
  each_token(turn.team, in.tokens, int64_t(in.tokens) * shape.width(), [&](int t) {
    float* row = rows + size_t(t) * shape.width();
    const size_t turned = size_t(in.places.positions[t]) * mixer.rope.r;
    turn.isa.rmsnorm(row, mixer.kv_a_norm, shape.l, mixer.norm_eps, row);
    turn.isa.rope(row + shape.l, mixer.rope.cos + turned, mixer.rope.sin + turned, mixer.rope.r);
    const size_t slot = size_t(in.places.slots[t]);
    to.pack(row, cache.k + slot / cache.page_keys * to.plane(), slot % cache.page_keys);
  });
}

// float32 [T, N, d], one after the other.
HeadRows side_by_side(float* data, int tokens, int heads, int d) { return {data, int64_t(heads) * d, d, tokens, heads}; }

// What queries are made of, [T, q.cols]: the hidden state, or a latent of it.
const float* low_rank(const LatentMixer& mixer, const Normed& in, Turn& turn) {
  if (!mixer.q_a.data) return in.h;
  const int rank = mixer.q_a.rows;
  float* low = turn.team.arena.take<float>(size_t(in.tokens) * rank);
  linear(in.h, in.hidden, in.tokens, mixer.q_a, mixer.q_a_bias, low, rank, turn);
  rmsnorm(low, mixer.q_a_norm, low, in.tokens, rank, mixer.norm_eps, turn);
  return low;
}

// Queries, [T, N, n + 2 r], the last part rotated.
float* queries(const LatentMixer& mixer, const Normed& in, const float* h, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const LatentShape shape(mixer);
  float* q = arena.take<float>(size_t(in.tokens) * mixer.q.rows);
  linear(h, mixer.q.cols, in.tokens, mixer.q, nullptr, q, mixer.q.rows, turn);
  watch.lap(Part::qkv);
  HeadRows rotated = side_by_side(q, in.tokens, shape.heads, shape.key());
  rotated.data += shape.n;
  rotate(rotated, mixer.rope, in.places.positions, turn);
  if (mixer.temperature)
    scale_rows(side_by_side(q, in.tokens, shape.heads, shape.key()), shape.key(), mixer.temperature, in.places.positions, turn);
  watch.lap(Part::place);
  return q;
}

// Writes keys of the layer's own indexer, and those that new tokens choose, where a context has more than all may see.
void index_keys(const LatentMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  const Indexer& indexer = mixer.indexer;
  if (!indexer.q.data) return;
  const Arena::Loan loan(turn.team.arena);
  float* k = turn.team.arena.take<float>(size_t(in.tokens) * indexer.k.rows);
  linear(in.h, in.hidden, in.tokens, indexer.k, nullptr, k, indexer.k.rows, turn);
  watch.lap(Part::qkv);
  place_index({k, indexer.norm, indexer.bias, indexer.eps, indexer.cache, mixer.rope, in.places.positions, in.places.slots,
               in.tokens}, turn);
  watch.lap(Part::place);
}

// Slots of the keys that new tokens see, into `places.chosen`; low: what queries are made of.
void choose(const LatentMixer& mixer, const Normed& in, const float* low, Turn& turn, Stopwatch& watch) {
  const Indexer& indexer = mixer.indexer;
  const Places& places = in.places;
  if (!indexer.q.data) return;
  Arena& arena = turn.team.arena;
  const Arena::Loan loan(arena);
  float *q = arena.take<float>(size_t(in.tokens) * indexer.q.rows), *w = arena.take<float>(size_t(in.tokens) * indexer.heads);
  linear(low, indexer.q.cols, in.tokens, indexer.q, nullptr, q, indexer.q.rows, turn);
  linear(in.h, in.hidden, in.tokens, indexer.weights, nullptr, w, indexer.heads, turn);
  rotate(side_by_side(q, in.tokens, indexer.heads, indexer.cache.d), mixer.rope, places.positions, turn);
  watch.lap(Part::qkv);
  places.chosen.resize(size_t(in.tokens) * mixer.top);
  choose_keys({q, w, indexer.cache, places.tables, places.starts, places.contexts, places.sequences, places.table_len,
               indexer.heads, mixer.top, places.chosen.data(), 1, indexer.cache.page_keys, false}, turn);
  watch.lap(Part::attention);
}

// Who sees what: sequences of a pass in their pages, or tokens in pages of one key each.
struct Seen {
  Cache cache;
  const int32_t *tables, *starts, *contexts;
  int count, table_len;
};

// Tokens [first, first + n), each with the keys that it chose.
Seen chosen(const LatentMixer& mixer, const Places& places, int first, int n, Arena& arena) {
  Cache cache = mixer.cache;
  cache.page_keys = 1, cache.values.plane = cache.values.page = cache.values.row;
  int32_t *starts = arena.take<int32_t>(n + 1), *contexts = arena.take<int32_t>(n);
  for (int i = 0; i <= n; i++) starts[i] = i;
  for (int i = 0; i < n; i++) contexts[i] = std::min(places.positions[first + i] + 1, mixer.top);
  return {cache, places.chosen.data() + size_t(first) * mixer.top, starts, contexts, n, mixer.top};
}

// Sequences [begin, end) with all that lies before their tokens.
Seen whole(const LatentMixer& mixer, const Places& places, int begin, int end, Arena& arena) {
  int32_t* starts = arena.take<int32_t>(end - begin + 1);
  for (int s = begin; s <= end; s++) starts[s - begin] = places.starts[s] - places.starts[begin];
  return {mixer.cache, places.tables + size_t(begin) * places.table_len, starts, places.contexts + begin, end - begin,
          places.table_len};
}

// What sequences [begin, end) see by attending to latents, to all or to chosen ones; q and out as of `attend_made`.
void attend_latents(const LatentMixer& mixer, const Places& places, int begin, int end, bool some, float* q, float* out,
                    Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const Arena::Loan loan(arena);
  const LatentShape shape(mixer);
  const int N = shape.heads, first = places.starts[begin], tokens = places.starts[end] - first, width = shape.width();
  q += size_t(first) * N * shape.key(), out += size_t(first) * N * shape.v;
  float *wide = arena.take<float>(size_t(tokens) * N * width), *seen = arena.take<float>(size_t(tokens) * N * shape.l);
  linear_by_head(side_by_side(q, tokens, N, shape.key()), mixer.k_up, side_by_side(wide, tokens, N, width), turn);
  each_token(turn.team, tokens, int64_t(tokens) * N * shape.rotated, [&](int t) {
    for (size_t head = size_t(t) * N; head < size_t(t + 1) * N; head++)
      std::memcpy(wide + head * width + shape.l, q + head * shape.key() + shape.n, size_t(shape.rotated) * sizeof(float));
  });
  watch.lap(Part::by_head);
  const Seen by = some ? chosen(mixer, places, first, tokens, arena) : whole(mixer, places, begin, end, arena);
  attention({wide, int64_t(N) * width, by.cache, by.tables, by.starts, by.contexts, by.count, by.table_len, N, mixer.scale,
             NO_WINDOW, 0, nullptr, seen, int64_t(N) * shape.l}, turn);
  watch.lap(Part::attention);
  linear_by_head(side_by_side(seen, tokens, N, shape.l), mixer.v_up, side_by_side(out, tokens, N, shape.v), turn);
  watch.lap(Part::by_head);
}

// What heads give, [T, N v], each times the sigmoid of its number.
float* gated(const LatentMixer& mixer, const Normed& in, const float* heads, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const LatentShape shape(mixer);
  const int rows = in.tokens * shape.heads;
  float *gate = arena.take<float>(rows), *out = arena.take<float>(size_t(rows) * shape.v);
  linear(in.h, in.hidden, in.tokens, mixer.gate, nullptr, gate, shape.heads, turn);
  std::fill_n(out, size_t(rows) * shape.v, 0.0f);
  gated_add(out, heads, gate, rows, shape.v, turn);
  watch.lap(Part::qkv);
  return out;
}

}  // namespace

float* mix(const LatentMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const Places& places = in.places;
  const LatentShape shape(mixer);
  float* rows = arena.take<float>(size_t(in.tokens) * shape.width());
  linear(in.h, in.hidden, in.tokens, mixer.kv_a, mixer.kv_a_bias, rows, shape.width(), turn);
  watch.lap(Part::qkv);
  keep(mixer, in, rows, turn);
  watch.lap(Part::place);
  index_keys(mixer, in, turn, watch);
  if (!in.wanted) return nullptr;
  const float* low = low_rank(mixer, in, turn);
  const int longest = *std::max_element(places.contexts, places.contexts + places.sequences);
  if (mixer.top && longest > mixer.top) choose(mixer, in, low, turn, watch);
  float *q = queries(mixer, in, low, turn, watch), *out = arena.take<float>(size_t(in.tokens) * shape.heads * shape.v);
  const auto some = [&](int s) { return mixer.top && places.contexts[s] > mixer.top; };
  const auto made = [&](int s) {
    return mixer.may_make_keys && !some(s) &&
           makes_keys(shape, places.starts[s + 1] - places.starts[s], places.contexts[s]);
  };
  for (int s = 0, end; s < places.sequences; s = end) {
    end = s + 1;
    if (made(s)) {
      attend_made(mixer, places, s, q, out, turn, watch);
      continue;
    }
    while (end < places.sequences && !made(end) && some(end) == some(s)) end++;
    attend_latents(mixer, places, s, end, some(s), q, out, turn, watch);
  }
  return mixer.gate.data ? gated(mixer, in, out, turn, watch) : out;
}

}  // namespace headrace
