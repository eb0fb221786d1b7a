// Sizes in bytes of quantised activations and of tiles; how far ahead weights are asked for.
//
//   activations for block formats   [ int8 codes | float scales | int32 minus the sums of codes | float scale * sum ]
//                                   of blocks, padded with zeros to a whole group; sums: of blocks, then of their first
//                                   halves, then of their second halves
//   activations as tiles            [token / 16][k / 32] of 1 KB: [16 pairs of k][16 tokens][2] bf16, padded with zeros
//
// Static functions on purpose: each ISA file compiles its own.
#pragma once

#include "isa/table.h"

namespace headrace {

constexpr int BLOCK = 32, BLOCK_GROUP = 16;  // weights of a block; blocks whose planes lie together: formats.py

static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline size_t halves_bytes(int blocks) { return round_up(size_t(blocks) * 2, 16); }  // a half a block, padded
// Bytes of the scales of a cached row of so many codes.
static inline size_t halves(size_t codes) { return codes / BLOCK * 2; }
static inline int padded_blocks(int cols) { return int(round_up(size_t(cols / BLOCK), BLOCK_GROUP)); }

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
// CPUs whose own prefetchers keep up lose by it: the context says whether it is done (runtime/turn.h). Where it is not, the
// distances are 0, and a line is asked for that is being read anyway; without the instructions the same loops are 0 to 5 %
// faster out of the second cache, and no faster out of memory.
static inline void prefetch_weights(const uint8_t* p) {
  __builtin_prefetch(p + prefetch_far, 0, 2);
  __builtin_prefetch(p + prefetch_near, 0, 3);
}

}  // namespace headrace
