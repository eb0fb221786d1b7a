// Grouped-query attention, with or without a gate on what the heads give.
#include "ops/mixers/mixers.h"

namespace headrace {

float* mix(const AttentionMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const Places& places = in.places;
  const Pages pages = places.of(mixer.kind);
  const int rows = rows_of(mixer.qkv), d = mixer.cache.d, width = mixer.heads * mixer.cache.values.d, tokens = in.tokens;
  float* qkv = arena.take<float>(size_t(tokens) * rows);
  linear(in.h, in.hidden, tokens, mixer.qkv, mixer.qkv_bias, qkv, turn);
  watch.lap(Part::qkv);
  if (mixer.first.r) rotate({qkv, rows, d, tokens, mixer.heads + mixer.cache.groups}, mixer.first, places.positions, turn);
  place_qkv({qkv, tokens, mixer.heads, mixer.cache, mixer.rope, places.positions, pages.slots, mixer.q_norm, mixer.k_norm,
             mixer.v_norm, in.eps, mixer.clip, mixer.v_scale, mixer.shared}, turn);
  watch.lap(Part::place);
  if (!in.wanted) return nullptr;
  if (mixer.temperature) scale_rows({qkv, rows, d, tokens, mixer.heads}, d, mixer.temperature, places.positions, turn);
  float* out = arena.take<float>(size_t(tokens) * width);
  attention({qkv, rows, mixer.cache, pages.tables, places.starts, places.contexts, places.sequences, places.table_len,
             mixer.heads, mixer.scale, mixer.window, mixer.chunk, mixer.sinks, out, width}, turn);
  watch.lap(Part::attention);
  if (mixer.gate.data) {
    const int gates = mixer.gate.rows;
    float* gate = arena.take<float>(size_t(tokens) * gates);
    linear(in.h, in.hidden, tokens, mixer.gate, nullptr, gate, gates, turn);
    gate_mul(out, gate, tokens, width, gates, mixer.soft, turn);
    watch.lap(Part::qkv);
  }
  return out;
}

}  // namespace headrace
