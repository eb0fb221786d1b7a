// A short convolution between two gates; `ConvBlock` in kernels/mixers.py says what it stands for.
#include "ops/mixers/pieces.h"

namespace headrace {

float* mix(const ConvMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const int tokens = in.tokens, channels = mixer.channels, width = 3 * channels;
  float* rows = arena.take<float>(size_t(tokens) * width);
  linear(in.h, in.hidden, tokens, mixer.rows, mixer.rows_bias, rows, width, turn);
  watch.lap(Part::qkv);
  float *opens = rows, *closes = rows + channels, *x = rows + 2 * channels;
  mul(x, width, opens, width, tokens, channels, turn);
  float* out = arena.take<float>(size_t(tokens) * channels);
  by_piece(in, {{mixer.inputs, size_t(channels) * (mixer.taps - 1)}}, [&](int first, int, const Sequences& all) {
    short_conv({x + size_t(first) * width, mixer.conv, width, mixer.inputs, out + size_t(first) * channels, channels,
                mixer.taps, mixer.conv_bias, false, all}, turn);
  });
  watch.lap(Part::conv);
  if (!in.wanted) return nullptr;
  mul(out, channels, closes, width, tokens, channels, turn);
  watch.lap(Part::conv);
  return out;
}

}  // namespace headrace
