// How the ops of one engine compute: instruction set, rounding of activations, when tiles are used, number of threads.
//
// A plain value, given to every op: two engines in one process have one each, and neither sees the other's. Only the
// files that run op by op know it; what works on one row gets what it needs from the table.
#pragma once

#include "dispatch/isa.h"

namespace headrace {

struct Context {
  const Kernels* isa;
  bool exact;                     // activations are not rounded to int8
  int threads;                    // the caller included
  size_t ahead[2];                // how many bytes ahead weights are asked for, into the second and the first cache
  bool pairs;                     // attention on a cache of bf16 multiplies bf16, where the CPU has that
  int tiles_from[FORMAT_COUNT];  // from how many tokens on tiles are used; 0: as the table says

  const FormatKernels& format(int code) const { return (exact ? isa->exact : isa->formats)[code]; }

  // From how many tokens on tiles are used; 0: never.
  int tile_tokens(int code) const {
    const TileKernels* tiles = format(code).tiles;
    if (!tiles) return 0;
    return tiles_from[code] ? tiles_from[code] : tiles->min_tokens;
  }

  // Columns of a token that share a scale of int8 in tiles; 0: bf16, or no tiles.
  int tile_group(int code) const { return format(code).tiles ? format(code).tiles->group : 0; }

  bool takes_tiles(int code, int tokens) const {
    const int least = tile_tokens(code);
    return least && tokens >= least;
  }
};

}  // namespace headrace
