// The gated delta rule behind a short convolution.
#include "ops/each_token.h"
#include "ops/mixers/pieces.h"

namespace headrace {
namespace {

// What the rule takes of all tokens.
struct Taken {
  const float *qkv, *decay, *beta;  // [T, channels], [T, decays], [T, heads]
};

int values_of(const DeltaMixer& mixer) { return mixer.v_heads * mixer.v_dim; }
bool by_key(const DeltaMixer& mixer) { return mixer.decay.data; }
int decays_of(const DeltaMixer& mixer) { return mixer.v_heads * (by_key(mixer) ? mixer.k_dim : 1); }
int channels_of(const DeltaMixer& mixer) { return 2 * mixer.k_heads * mixer.k_dim + values_of(mixer); }

// The convolution and the rule over tokens [first, last), which are those of `all`; out [T, heads, v].
void recur(const DeltaMixer& mixer, const Taken& rows, int first, int last, const Sequences& all, float* out, Turn& turn,
           Stopwatch& watch) {
  const int channels = channels_of(mixer), keys = mixer.k_heads * mixer.k_dim;
  float* mixed = turn.team.arena.take<float>(size_t(last - first) * channels);
  short_conv({rows.qkv + size_t(first) * channels, mixer.conv, channels, mixer.inputs, mixed, channels, mixer.taps, nullptr,
              true, all}, turn);
  watch.lap(Part::conv);
  delta_rule({mixed, mixed + keys, mixed + 2 * keys, channels, channels, channels,
              rows.decay + size_t(first) * decays_of(mixer), rows.beta + size_t(first) * mixer.v_heads, mixer.state,
              out + size_t(first) * values_of(mixer), last - first, mixer.k_heads, mixer.v_heads, mixer.k_dim, mixer.v_dim,
              mixer.in_turns, all, by_key(mixer)}, turn);
  watch.lap(Part::delta);
}

// What a matrix makes of tokens, by way of another one where there is that: [T, to.rows].
float* through(const Weights& low, const Weights& to, const Normed& in, Turn& turn) {
  Arena& arena = turn.team.arena;
  const float* x = in.h;
  if (low.data) {
    float* few = arena.take<float>(size_t(in.tokens) * low.rows);
    linear(in.h, in.hidden, in.tokens, low, nullptr, few, low.rows, turn);
    x = few;
  }
  float* out = arena.take<float>(size_t(in.tokens) * to.rows);
  linear(x, to.cols, in.tokens, to, nullptr, out, to.rows, turn);
  return out;
}

// Decays and strengths of all tokens.
void gates(const DeltaMixer& mixer, const Normed& in, float* decay, float* beta, Turn& turn) {
  const float* ba = through({}, mixer.ba, in, turn);
  if (!by_key(mixer))
    return delta_gates({ba, mixer.rate, mixer.dt_bias, decay, beta, in.tokens, mixer.v_heads}, turn);
  const float* dt = through(mixer.decay_low, mixer.decay, in, turn);
  key_gates({dt, ba, mixer.rate, mixer.dt_bias, decay, beta, in.tokens, mixer.v_heads, mixer.k_dim,
             mixer.least}, turn);
}

// out = norm(out) * silu(z), or * sigmoid(z) where decays are by key, head by head.
void gate(const DeltaMixer& mixer, const Normed& in, const float* z, float* out, Turn& turn) {
  const int width = values_of(mixer);
  each_token(turn.team, in.tokens, int64_t(in.tokens) * width * 4, [&](int t) {
    for (int i = 0; i < width; i += mixer.v_dim) {
      float* head = out + size_t(t) * width + i;
      turn.isa.rmsnorm(head, mixer.norm, mixer.v_dim, in.eps, head);
      if (!by_key(mixer)) turn.isa.silu_mul(z + size_t(t) * width + i, head, mixer.v_dim, head);
    }
  });
  if (by_key(mixer)) gate_mul(out, z, in.tokens, width, width, false, turn);
}

}  // namespace

float* mix(const DeltaMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const int tokens = in.tokens, heads = mixer.v_heads, width = values_of(mixer);
  float* qkv = arena.take<float>(size_t(tokens) * channels_of(mixer));
  linear(in.h, in.hidden, tokens, mixer.qkv, nullptr, qkv, turn);
  float* decay = arena.take<float>(size_t(tokens) * decays_of(mixer));
  float* beta = arena.take<float>(size_t(tokens) * heads);
  gates(mixer, in, decay, beta, turn);
  watch.lap(Part::qkv);
  float* out = arena.take<float>(size_t(tokens) * width);
  const Kept inputs{mixer.inputs, size_t(channels_of(mixer)) * (mixer.taps - 1)};
  const Kept state{mixer.state, size_t(values_of(mixer)) * mixer.k_dim};
  by_piece(in, {inputs, state}, [&](int first, int last, const Sequences& all) {
    recur(mixer, {qkv, decay, beta}, first, last, all, out, turn, watch);
  });
  if (!in.wanted) return nullptr;
  const float* z = through(mixer.z_low, mixer.z, in, turn);
  watch.lap(Part::qkv);
  gate(mixer, in, z, out, turn);
  watch.lap(Part::delta);
  return out;
}

}  // namespace headrace
