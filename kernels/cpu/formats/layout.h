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
// ahead. Every line of a row must be asked for, its scales and its last blocks too: without it arithmetic and memory time
// add up, because the reorder window then holds too few lines. Far ahead into the second cache and nearer into the first. One
// expert layer of one token on a 2-core AVX-512 server CPU of Intel, share of the plain read for q4_0 / q8_0 / bf16, in turns:
//   3 KB ahead into the first   85 / 90 / 93 %      8 KB into the second   83 / 90 / 94 %
//   8 KB and 1 KB               91 / 92 / 98 %      16 KB and 1 KB         89 / 92 / 97 %
//   8 KB and 2 KB               87 / 94 / 99 %      8 KB and 0.5 KB        87 / 89 / 96 %
// AMD's own prefetchers keep up with rows of some lengths and lose others. One core of a Zen 5, one token, matrices of 2048 /
// 2880 / 4096 / 7168 / 16384 columns, in turns, each reading memory that no cache holds:
//                          q8_0                       q4_0                       q4_k                       q6_k
//   none                   65 / 44 / 52 / 44 / 39 %   92 / 89 / 48 / 44 / 37 %   89 / 90 / 44 / 53 / 31 %   85 / 40 / 50 / 44 / 31 %
//   8 KB and 1 KB          78 / 78 / 80 / 78 / 73 %   76 / 77 / 74 / 79 / 66 %   85 / 85 / 80 / 76 / 78 %   77 / 79 / 74 / 74 / 64 %
//   8 KB and 6 KB          84 / 78 / 82 / 82 / 74 %   83 / 84 / 80 / 82 / 70 %   90 / 96 / 93 / 87 / 89 %   90 / 92 / 84 / 79 / 69 %
//   4 KB into the first    89 / 90 / 94 / 88 / 85 %   90 / 96 / 94 / 93 / 86 %   97 / 96 / 96 / 93 / 87 %   96 / 92 / 90 / 93 / 81 %
// 2 KB: 0 to 20 % less; 6 KB: as 4 KB within 7 %; 8 KB: up to 12 % less; 8 KB into the second alone: 6 to 32 % less. What is
// chosen is measured at the first start (weight_prefetch.py). A distance of 0 asks for nothing: two requests for each line cost
// more here than two branches that always go one way.
static inline void prefetch_weights(const uint8_t* p) {
  if (prefetch_far) __builtin_prefetch(p + prefetch_far, 0, 2);
  if (prefetch_near) __builtin_prefetch(p + prefetch_near, 0, 3);
}
static inline void prefetch_lines(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) prefetch_weights(p + i);
}
// Codes ask for what lies ahead of codes. What lies as far ahead of a row's scales is asked for here, when the row begins: where
// scales asked for it as they were read, a few beside many codes, the last of it was asked for after codes had passed, and
// every long row waited for memory once (4 KB ahead as above, 7168 / 16384 columns: 72 / 68 % in q8_0, 80 / 62 % in q4_0).
static inline void prefetch_scales(const uint8_t* row, size_t bytes) {
  if (prefetch_near) prefetch_lines(row, bytes);
}

}  // namespace headrace
