// The state space of Mamba 2 behind a short convolution; `SpaceBlock` in kernels/mixers.py says what it stands for.
#include "ops/mixers/pieces.h"

namespace headrace {

float* mix(const SpaceMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const int tokens = in.tokens, values = mixer.heads * mixer.values, keys = mixer.groups * mixer.keys;
  const int channels = values + 2 * keys, width = values + channels + mixer.heads;
  float* rows = arena.take<float>(size_t(tokens) * width);
  linear(in.h, in.hidden, tokens, mixer.rows, mixer.rows_bias, rows, width, turn);
  watch.lap(Part::qkv);
  float *mixed = arena.take<float>(size_t(tokens) * channels), *out = arena.take<float>(size_t(tokens) * values);
  const Kept inputs{mixer.inputs, size_t(channels) * (mixer.taps - 1)}, state{mixer.state, size_t(values) * mixer.keys};
  by_piece(in, {inputs, state}, [&](int first, int last, const Sequences& all) {
    const float* from = rows + size_t(first) * width;
    float* to = mixed + size_t(first) * channels;
    short_conv({from + values, mixer.conv, width, mixer.inputs, to, channels, mixer.taps, mixer.conv_bias, true, all}, turn);
    watch.lap(Part::conv);
    state_space({to, to + values, to + values + keys, channels, channels, channels, from + values + channels, width,
                 mixer.rate, mixer.dt_bias, mixer.skip, mixer.least, mixer.most, mixer.state, out + size_t(first) * values,
                 last - first, mixer.groups, mixer.heads, mixer.keys, mixer.values, all}, turn);
    watch.lap(Part::delta);
  });
  if (!in.wanted) return nullptr;
  float* normed = arena.take<float>(size_t(tokens) * values);
  gated_norm({out, rows, mixer.norm, values, width, normed, tokens, values, mixer.groups, in.eps}, turn);
  watch.lap(Part::delta);
  return normed;
}

}  // namespace headrace
