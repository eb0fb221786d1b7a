// What the two ways of latent attention share; `LatentBlock` in kernels/mixers.py says what they stand for.
//
// Letters: N heads, l the rank of a latent, 2 r what is rotated, n and v a head's own part of a key, and its value.
#pragma once

#include "ops/mixers/mixers.h"

namespace headrace {

struct LatentShape {
  int heads, l, rotated, n, v;

  explicit LatentShape(const LatentMixer& mixer)
      : heads(mixer.heads),
        l(mixer.cache.values.d),
        rotated(mixer.cache.d - l),
        n(mixer.k_up.cols),
        v(mixer.v_up.rows / heads) {}

  int width() const { return l + rotated; }  // of a cached row
  int key() const { return n + rotated; }    // of a head's query, and of its key
};

// Whether keys and values are made for so many new tokens of a sequence, as `makes_keys` of kernels/mixers.py says.
bool makes_keys(const LatentShape& shape, int queries, int context);

// made_keys.cpp: what sequence s sees by keys and values that are made of its latents. q [T, N, n + 2 r], its last part
// rotated; out [T, N, v]; both of all tokens of the pass.
void attend_made(const LatentMixer& mixer, const Places& places, int s, const float* q, float* out, Turn& turn,
                 Stopwatch& watch);

}  // namespace headrace
