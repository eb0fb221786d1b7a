// What a block runs between its norms: a mixer of each kind in a file of its own, made of the ops. `mix` of the same kind in
// kernels/decoder_layer.py and kernels/mixers.py says what it stands for.
#pragma once

#include "ops/ops.h"
#include "runtime/stopwatch.h"
#include "runtime/turn.h"

namespace headrace {

struct Normed {  // what a mixer takes
  const float* h;  // [tokens, hidden]
  int tokens, hidden;
  float eps;
  const Places& places;
  bool wanted;  // else keys and values, or states, are kept alone
};

// What goes into the block's `o`: [tokens, o.cols] in the arena; null where it is not wanted.
float* mix(const AttentionMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch);
float* mix(const LatentMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch);
float* mix(const DeltaMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch);
float* mix(const ConvMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch);
float* mix(const SpaceMixer& mixer, const Normed& in, Turn& turn, Stopwatch& watch);

}  // namespace headrace
