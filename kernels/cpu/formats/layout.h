// Sizes in bytes of rows and of quantised activations: the C++ half of formats.py.
//
//   row of q8_0, q4_0      [ f16 scales | pad to 16 B | quants ]
//   activations for them   [ int8 quants | float scales | float offsets ], blocks padded with zeros to a multiple of 16
//
// The quants of activations are permuted to suit the ISA, so that a q4_0 weight needs no shuffle (see quants_*.h).
//   activations as tiles   [token / 16][k / 32] of 1 KB: [16 pairs of k][16 tokens][2] bf16, padded with zeros
//
// Static functions on purpose: each ISA file compiles its own.
#pragma once

#include "isa/table.h"

namespace headrace {

constexpr int BLOCK = 32;

static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline bool is_quantised(int format) { return format >= Q8_0; }
static inline size_t scales_bytes(int blocks) { return round_up(size_t(blocks) * 2, 16); }
static inline int padded_blocks(int cols) { return int(round_up(cols / BLOCK, 16)); }

static inline size_t row_bytes(int format, int cols) {
  if (!is_quantised(format)) return size_t(cols) * (format == F32 ? 4 : 2);
  return scales_bytes(cols / BLOCK) + size_t(cols) / (format == Q4_0 ? 2 : 1);
}

static inline size_t acts_bytes(int format, int cols) {
  return is_quantised(format) ? size_t(padded_blocks(cols)) * (BLOCK + 8) : size_t(cols) * 4;
}

constexpr int TILE_SIDE = 16, TILE_BYTES = 1024;  // rows or tokens of a tile; its bytes

static inline int tile_steps(int cols) { return (cols + BLOCK - 1) / BLOCK; }
static inline size_t tile_stride(int cols) { return size_t(tile_steps(cols)) * TILE_BYTES; }
static inline int tiles_of(int tokens) { return (tokens + TILE_SIDE - 1) / TILE_SIDE; }

// Asks for the weights that a tile will read in a while; rows lie one after the other, so they are a fixed distance
// ahead. Every line of a row must be asked for, its scales too: without it arithmetic and memory time add up, because the
// reorder window then holds too few lines. Far ahead into the second cache and near into the first: one expert layer of
// one token on a 2-core AVX-512 server CPU, share of the plain read for q4_0 / q8_0 / bf16, variants in turns:
//   3 KB ahead into the first   85 / 90 / 93 %      8 KB into the second   83 / 90 / 94 %
//   8 KB and 1 KB               91 / 92 / 98 %      16 KB and 1 KB         89 / 92 / 97 %
//   8 KB and 2 KB               87 / 94 / 99 %      8 KB and 0.5 KB        87 / 89 / 96 %
static inline void prefetch_weights(const uint8_t* p) {
  __builtin_prefetch(p + 8192, 0, 2);
  __builtin_prefetch(p + 1024, 0, 3);
}

}  // namespace headrace
