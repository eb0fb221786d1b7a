// Ops of several residual streams: what a part of a layer takes of them, and what they are behind it. Formulas and shapes are
// in kernels/residual/twins.py.
#pragma once

#include "ops/ops.h"

namespace headrace {

constexpr int MOST_STREAMS = 64;

struct StreamRows {  // float32 [T, m, d]: any stride from token to token and from stream to stream
  const float* data;
  int64_t token_stride, stride;
  int tokens, streams, d;
};

struct StreamWeights {  // [T, m], [T, m], [T, m, m]: from and to
  float *takes, *gives, *mixes;
};
struct StreamProducts {
  const float *products, *base, *scale;  // [T, (2 + m) m], [(2 + m) m], [3]
  int tokens, streams, rounds;
  float eps;
};
void stream_weights(const StreamProducts& args, const StreamWeights& out, Turn& turn);

// The weighted sum of streams, and its RMSNorm, unless `norm` is null: out [T, d].
void take_streams(const StreamRows& x, const float* takes, const float* norm, float eps, float* out, Turn& turn);

// Streams as they are mixed, and what was made times what it gives to each: out [T, m, d]. mixes null: each stays as it is;
// made null: nothing was made.
void close_streams(const StreamRows& x, const float* mixes, const float* gives, int64_t gives_stride, const float* made,
                   float* out, Turn& turn);

// How well each stream fits to `by`, as the softmax over streams: out [T, m].
void fit_streams(const StreamRows& x, const float* by, float eps, float* out, Turn& turn);

// The mean of streams [T, m, d], each number by the sigmoid of its own of `open`, which is used up: out [T, d].
void gate_streams(const StreamRows& x, float* open, float* out, Turn& turn);

}  // namespace headrace
