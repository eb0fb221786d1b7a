// Blocks as GGUF files have them to the rows of formats.py: the same codes and scales in another order, nothing rounded.
//
//   reader   one struct a format: takes a file's block apart into a code for each weight, halves and integers of scales
//   writer   puts them where they belong; the same for all
//
// Where bits lie in a file's block: ggml-common.h and ggml-quants.c of llama.cpp, by their description.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "formats/layout.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int SUPER = 256, SUPER_BLOCKS = SUPER / BLOCK;
constexpr int PIECE = 8;  // rows taken at a time

// Where the parts of a row's scales begin.
struct Header {
  uint8_t *halves, *min_halves, *units, *high;  // high: bits beyond the units' bytes
};

// One file's block: `codes` of WEIGHTS weights go to the writer, scales straight to their place.
struct Out {
  uint8_t* codes;
  Header at;
  int block, blocks;  // number of the first block of 32, and of all in the row

  void half(const uint8_t* from) const { std::memcpy(at.halves + block * 2, from, 2); }
  void super_half(const uint8_t* from) const { std::memcpy(at.halves + block / SUPER_BLOCKS * 2, from, 2); }
  // A minimum that the file subtracts.
  void super_minimum(const uint8_t* from) const {
    uint8_t* to = at.min_halves + block / SUPER_BLOCKS * 2;
    to[0] = from[0], to[1] = from[1] ^ 0x80;
  }
  // The unit of half block i, of those from this block on.
  void unit16(int i, uint8_t value) const { at.units[i % 2 * blocks + block + i / 2] = value; }
};

// A byte of 4-bit codes has weights l and l + 16.
void nibbles(const uint8_t* q, uint8_t* codes) {
  for (int l = 0; l < 16; l++) codes[l] = q[l] & 15, codes[l + 16] = q[l] >> 4;
}

void add_bits(const uint8_t* from, uint8_t* codes) {  // bit l of 32 is the fifth bit of weight l
  uint32_t bits;
  std::memcpy(&bits, from, 4);
  for (int l = 0; l < BLOCK; l++) codes[l] |= (bits >> l & 1) << 4;
}

struct ReadQ4_0 {  // also iq4_nl
  static constexpr int WEIGHTS = 32, BYTES = 18;
  static void read(const uint8_t* from, const Out& out) { out.half(from), nibbles(from + 2, out.codes); }
};
struct ReadQ4_1 {
  static constexpr int WEIGHTS = 32, BYTES = 20;
  static void read(const uint8_t* from, const Out& out) {
    out.half(from), std::memcpy(out.at.min_halves + out.block * 2, from + 2, 2);
    nibbles(from + 4, out.codes);
  }
};
struct ReadQ5_0 {
  static constexpr int WEIGHTS = 32, BYTES = 22;
  static void read(const uint8_t* from, const Out& out) {
    out.half(from), nibbles(from + 6, out.codes), add_bits(from + 2, out.codes);
  }
};
struct ReadQ5_1 {
  static constexpr int WEIGHTS = 32, BYTES = 24;
  static void read(const uint8_t* from, const Out& out) {
    out.half(from), std::memcpy(out.at.min_halves + out.block * 2, from + 2, 2);
    nibbles(from + 8, out.codes), add_bits(from + 4, out.codes);
  }
};
struct ReadQ8_0 {
  static constexpr int WEIGHTS = 32, BYTES = 34;
  static void read(const uint8_t* from, const Out& out) { out.half(from), std::memcpy(out.codes, from + 2, 32); }
};
struct ReadMxfp4 {
  static constexpr int WEIGHTS = 32, BYTES = 17;
  static void read(const uint8_t* from, const Out& out) {
    out.at.units[out.block] = from[0], nibbles(from + 1, out.codes);
  }
};

// Two bits of each of 128 weights: field s of byte l is weight 32 s + l.
void two_bits(const uint8_t* q, uint8_t* codes) {
  for (int s = 0; s < 4; s++)
    for (int l = 0; l < 32; l++) codes[32 * s + l] = q[l] >> 2 * s & 3;
}

struct ReadQ2_K {
  static constexpr int WEIGHTS = SUPER, BYTES = 84;
  static void read(const uint8_t* from, const Out& out) {
    for (int i = 0; i < 16; i++) out.unit16(i, from[i]);
    two_bits(from + 16, out.codes), two_bits(from + 48, out.codes + 128);
    out.super_half(from + 80), out.super_minimum(from + 82);
  }
};

struct ReadQ3_K {
  static constexpr int WEIGHTS = SUPER, BYTES = 110;
  static void read(const uint8_t* from, const Out& out) {
    const uint8_t *high = from, *scales = from + 96;
    two_bits(from + 32, out.codes), two_bits(from + 64, out.codes + 128);
    for (int s = 0; s < 8; s++)
      for (int l = 0; l < 32; l++) out.codes[32 * s + l] |= (high[l] >> s & 1) << 2;
    for (int i = 0; i < 16; i++) {
      const int low = scales[i % 8] >> i / 8 * 4 & 15, top = scales[8 + i % 4] >> i / 4 * 2 & 3;
      out.unit16(i, uint8_t((low | top << 4) - 32));
    }
    out.super_half(from + 108);
  }
};

// The factor and minimum of 8 blocks, 6 bits each.
void six_bits(const uint8_t* s, const Out& out) {
  uint8_t* high = out.at.high + out.block / 2;
  for (int i = 0; i < 8; i++) {
    const int unit = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
    const int minimum = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
    const uint8_t top = uint8_t(unit >> 4 | minimum >> 4 << 2);
    out.at.units[out.block + i] = uint8_t((unit & 15) | minimum << 4);
    high[i % 4] = i < 4 ? top : uint8_t(high[i % 4] | top << 4);
  }
}

// 32 bytes: low halves are one block, high halves the next.
void nibble_blocks(const uint8_t* q, uint8_t* codes) {
  for (int l = 0; l < 32; l++) codes[l] = q[l] & 15, codes[l + 32] = q[l] >> 4;
}

struct ReadQ4_K {
  static constexpr int WEIGHTS = SUPER, BYTES = 144;
  static void read(const uint8_t* from, const Out& out) {
    out.super_half(from), out.super_minimum(from + 2), six_bits(from + 4, out);
    for (int c = 0; c < 4; c++) nibble_blocks(from + 16 + 32 * c, out.codes + 64 * c);
  }
};
struct ReadQ5_K {
  static constexpr int WEIGHTS = SUPER, BYTES = 176;
  static void read(const uint8_t* from, const Out& out) {
    out.super_half(from), out.super_minimum(from + 2), six_bits(from + 4, out);
    const uint8_t* high = from + 16;
    for (int c = 0; c < 4; c++) nibble_blocks(from + 48 + 32 * c, out.codes + 64 * c);
    for (int s = 0; s < 8; s++)
      for (int l = 0; l < 32; l++) out.codes[32 * s + l] |= (high[l] >> s & 1) << 4;
  }
};

struct ReadQ6_K {
  static constexpr int WEIGHTS = SUPER, BYTES = 210;
  static void read(const uint8_t* from, const Out& out) {
    for (int c = 0; c < 2; c++) {
      const uint8_t *low = from + 64 * c, *high = from + 128 + 32 * c;
      uint8_t* codes = out.codes + 128 * c;
      for (int half = 0; half < 2; half++)
        for (int l = 0; l < 32; l++) {
          const uint8_t byte = low[32 * half + l];
          codes[32 * half + l] = (byte & 15) | (high[l] >> 2 * half & 3) << 4;
          codes[64 + 32 * half + l] = byte >> 4 | (high[l] >> (4 + 2 * half) & 3) << 4;
        }
    }
    for (int i = 0; i < 16; i++) out.unit16(i, from[192 + i]);
    out.super_half(from + 208);
  }
};

struct ReadIq4_xs {
  static constexpr int WEIGHTS = SUPER, BYTES = 136;
  static void read(const uint8_t* from, const Out& out) {
    out.super_half(from);
    for (int i = 0; i < 8; i++) {
      const int low = from[4 + i / 2] >> i % 2 * 4 & 15, top = from[2 + i / 4] >> i % 4 * 2 & 3;
      out.at.units[out.block + i] = uint8_t((low | top << 4) - 32);
      nibbles(from + 8 + 16 * i, out.codes + 32 * i);
    }
  }
};

// Fields of `bits` bits from `low` up of a block's codes, as a plane's bytes.
template <int BITS>
void put_plane(const uint8_t* codes, int low, uint8_t* to) {
  for (int b = 0; b < 4 * BITS; b++) {
    unsigned byte = 0;
    for (int at = 0; at < 8 / BITS; at++) byte |= (codes[b + 4 * BITS * at] >> low & ((1u << BITS) - 1)) << at * BITS;
    to[b] = uint8_t(byte);
  }
}

// Block `b` of a row's codes to its planes, the narrow one first.
template <int HIGH, int LOW>
void put_block(const uint8_t* codes, int b, int blocks, uint8_t* planes) {
  const int group = b / BLOCK_GROUP * BLOCK_GROUP, n = std::min(BLOCK_GROUP, blocks - group), at = b - group;
  uint8_t* start = planes + size_t(group) * (HIGH + LOW) * 4;
  if constexpr (HIGH > 0) put_plane<HIGH>(codes, LOW, start + at * 4 * HIGH);
  put_plane<LOW>(codes, 0, start + n * 4 * HIGH + at * 4 * LOW);
}

template <class R, int HIGH, int LOW>
void repack_row(const uint8_t* from, int cols, const Header& at, uint8_t* planes) {
  const int blocks = cols / BLOCK, together = R::WEIGHTS / BLOCK;
  alignas(64) uint8_t codes[R::WEIGHTS];
  for (int b = 0; b < blocks; b += together, from += R::BYTES) {
    R::read(from, {codes, at, b, blocks});
    for (int i = 0; i < together; i++) put_block<HIGH, LOW>(codes + i * BLOCK, b + i, blocks, planes);
  }
}

// A format's row: which parts its scales have, and how to fill it.
struct Repack {
  void (*row)(const uint8_t* from, int cols, const Header& at, uint8_t* planes);
  int weights, bytes;           // of a file's block
  int shared;                   // blocks to a half; 0: there are none
  bool has_min;                 // halves of minimums
  int units;                    // bytes a block
  bool has_high;                // and half a byte more
};

template <class R, int HIGH, int LOW>
constexpr Repack repack_of(int shared, bool has_min, int units, bool has_high = false) {
  return {repack_row<R, HIGH, LOW>, R::WEIGHTS, R::BYTES, shared, has_min, units, has_high};
}

Repack find(int format) {
  switch (format) {
    case Q8_0: return repack_of<ReadQ8_0, 0, 8>(1, false, 0);
    case Q4_0:
    case IQ4_NL: return repack_of<ReadQ4_0, 0, 4>(1, false, 0);
    case Q4_1: return repack_of<ReadQ4_1, 0, 4>(1, true, 0);
    case Q5_0: return repack_of<ReadQ5_0, 1, 4>(1, false, 0);
    case Q5_1: return repack_of<ReadQ5_1, 1, 4>(1, true, 0);
    case MXFP4: return repack_of<ReadMxfp4, 0, 4>(0, false, 1);
    case Q2_K: return repack_of<ReadQ2_K, 0, 2>(SUPER_BLOCKS, true, 2);
    case Q3_K: return repack_of<ReadQ3_K, 1, 2>(SUPER_BLOCKS, false, 2);
    case Q4_K: return repack_of<ReadQ4_K, 0, 4>(SUPER_BLOCKS, true, 1, true);
    case Q5_K: return repack_of<ReadQ5_K, 1, 4>(SUPER_BLOCKS, true, 1, true);
    case Q6_K: return repack_of<ReadQ6_K, 2, 4>(SUPER_BLOCKS, false, 2);
    case IQ4_XS: return repack_of<ReadIq4_xs, 0, 4>(SUPER_BLOCKS, false, 1);
    default: throw std::invalid_argument("no such format in files");
  }
}

}  // namespace

void repack(const uint8_t* blocks, int rows, int cols, int format, uint8_t* out, Turn& turn) {
  const Repack found = find(format);
  const size_t in_bytes = size_t(cols / found.weights) * found.bytes, out_bytes = turn.isa.formats[format].row_bytes(cols);
  const int count = cols / BLOCK, halves = found.shared ? count / found.shared * 2 : 0;
  const int scales = halves * (found.has_min ? 2 : 1) + count * found.units + (found.has_high ? count / 2 : 0);
  const size_t start = round_up(size_t(scales), 16);
  Counter counter;
  turn.team.run(size_t(rows) * in_bytes < 65536, [&](int) {
    for (int first = counter.next() * PIECE; first < rows; first = counter.next() * PIECE)
      for (int row = first; row < std::min(rows, first + PIECE); row++) {
        uint8_t* to = out + row * out_bytes;
        uint8_t* units = to + halves * (found.has_min ? 2 : 1);
        std::memset(to + scales, 0, start - size_t(scales));
        found.row(blocks + row * in_bytes, cols, {to, to + halves, units, units + count * found.units}, to + start);
      }
  });
}

}  // namespace headrace
