// Scales of block formats over any ints_*.h: the factors and minimums of W blocks of a row, a block to a lane.
//
//   S::load<FULL>(row, blocks, b, n, f)   those of blocks b .. b + n of a row of `blocks`; n = W if FULL. Lanes beyond n
//                                         hold finite numbers
//   S::bytes(blocks)                      bytes in front of the codes of a row, padding included
//   S::PARTS                              factors of a block: 1, or one for each half
//   S::MIN                                whether there are minimums
//
// What lies where: formats.py. A factor that is an integer times a half is rounded once, to float32.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

constexpr int SUPER_BLOCKS = 8;  // that share a half

template <int PARTS>
struct Factors {
  V scale[PARTS], min[PARTS];
};

template <bool FULL>
inline V load_halves(const uint8_t* p, int n) {
  if (FULL) prefetch_weights(p);
  return in_lanes(FULL ? load_f16(p) : load_f16_n(p, n));
}

struct HalfScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = false;
  static size_t bytes(int blocks) { return halves_bytes(blocks); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int, int b, int n, Factors<1>& f) {
    f.scale[0] = load_halves<FULL>(row + b * 2, n);
  }
};

struct HalfMinScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = true;
  static size_t bytes(int blocks) { return round_up(size_t(blocks) * 4, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<1>& f) {
    f.scale[0] = load_halves<FULL>(row + b * 2, n);
    f.min[0] = load_halves<FULL>(row + (blocks + b) * 2, n);
  }
};

// 2^(byte - 128): bytes from 2 on are the exponent of a float, less one; 0 and 1 give numbers below the normal ones.
struct PowerScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = false;
  static size_t bytes(int blocks) { return round_up(size_t(blocks), 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int, int b, int, Factors<1>& f) {
    if (FULL) prefetch_weights(row + b);
    const I byte = in_lanes(widen_u8(row + b));
    const I normal = shift_left<23>(int_sub(byte, int_set1(1))), small = shift_left<21>(int_add(byte, int_set1(1)));
    const I is_small = shift_right_signed<31>(int_sub(byte, int_set1(2)));
    f.scale[0] = as_floats(bit_xor(normal, bit_and(bit_xor(normal, small), is_small)));
  }
};

// A half for 256, over DIVISOR, times an integer for each block, or for each of its halves.
template <int PARTS_, int DIVISOR = 1>
struct ByteScales {
  static constexpr int PARTS = PARTS_;
  static constexpr bool MIN = false;
  static size_t halves(int blocks) { return size_t(blocks) / SUPER_BLOCKS * 2; }
  static size_t bytes(int blocks) { return round_up(halves(blocks) + size_t(blocks) * PARTS, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<PARTS>& f) {
    V d = spread_halves(row, b, n);
    if (DIVISOR > 1) d = mul(d, set1(1.0f / DIVISOR));
    const uint8_t* units = row + halves(blocks) + b;
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) {
      if (FULL) prefetch_weights(units + part * blocks);
      f.scale[part] = mul(d, to_float(in_lanes(widen_s8(units + part * blocks))));
    }
  }
};

// Two halves for 256, times an integer of 6 bits for the factor and one for the minimum of each block.
struct SixMinScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = true;
  static size_t halves(int blocks) { return size_t(blocks) / SUPER_BLOCKS * 2; }
  static size_t bytes(int blocks) { return round_up(2 * halves(blocks) + size_t(blocks) * 3 / 2, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<1>& f) {
    const uint8_t *units = row + 2 * halves(blocks) + b, *high = row + 2 * halves(blocks) + blocks + b / 8 * 4;
    if (FULL) prefetch_weights(units), prefetch_weights(high);
    const I low = in_lanes(widen_u8(units)), top = in_lanes(widen_fours(high, b));
    const I scale = bit_or(bit_and(low, int_set1(15)), shift_left<4>(bit_and(top, int_set1(3))));
    const I min = bit_or(shift_right<4>(low), shift_left<2>(bit_and(top, int_set1(12))));
    f.scale[0] = mul(spread_halves(row, b, n), to_float(scale));
    f.min[0] = mul(spread_halves(row + halves(blocks), b, n), to_float(min));
  }
};

// The same for each half of a block, with both integers in one byte.
struct NibbleMinScales {
  static constexpr int PARTS = 2;
  static constexpr bool MIN = true;
  static size_t halves(int blocks) { return size_t(blocks) / SUPER_BLOCKS * 2; }
  static size_t bytes(int blocks) { return round_up(2 * (halves(blocks) + size_t(blocks)), 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<2>& f) {
    const uint8_t* units = row + 2 * halves(blocks) + b;
    const V d = spread_halves(row, b, n), d_min = spread_halves(row + halves(blocks), b, n);
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) {
      if (FULL) prefetch_weights(units + part * blocks);
      const I both = in_lanes(widen_u8(units + part * blocks));
      f.scale[part] = mul(d, to_float(bit_and(both, int_set1(15))));
      f.min[part] = mul(d_min, to_float(shift_right<4>(both)));
    }
  }
};

}  // namespace
}  // namespace headrace
