// Scales of block formats over any ints_*.h: the factors and minimums of W blocks of a row, a block to a lane.
//
//   S::load<FULL>(row, blocks, b, n, f)   those of blocks b .. b + n of a row of `blocks`; n = W if FULL. Lanes beyond n
//                                         hold finite numbers
//   S::bytes(blocks)                      bytes in front of the codes of a row, padding included
//   S::PARTS                              factors of a block: 1, or one for each half
//   S::MIN                                whether there are minimums
//   S::EIGHT                              bytes of 8 blocks in each array, in order; {0}: the row has a number of its own too,
//                                         so that no two rows can be read as one
//
// What lies where: formats.py. A factor that is an integer times a half is rounded once, to float32.
#pragma once

#include <type_traits>

#include "formats/e4m3.h"
#include "formats/floats.h"

namespace headrace {
namespace {

constexpr int SUPER_BLOCKS = 8;  // that share a half

template <int PARTS>
struct Factors {
  V scale[PARTS], min[PARTS];
};

// H: F16Row or BF16Row.
template <bool FULL, class H = F16Row>
inline V load_halves(const uint8_t* p, int n) {
  if constexpr (std::is_same<H, F16Row>::value) return lanes_f16<FULL>(p, n);
  return as_floats(in_lanes(as_ints(FULL ? H::load(p) : H::load_n(p, n))));
}

template <class H>
struct ScalesOf {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = false;
  static constexpr int EIGHT[] = {16};
  static size_t bytes(int blocks) { return halves_bytes(blocks); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int, int b, int n, Factors<1>& f) {
    f.scale[0] = load_halves<FULL, H>(row + b * 2, n);
  }
};
using HalfScales = ScalesOf<F16Row>;
using Bf16Scales = ScalesOf<BF16Row>;

struct HalfMinScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = true;
  static constexpr int EIGHT[] = {16, 16};
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
  static constexpr int EIGHT[] = {8};
  static size_t bytes(int blocks) { return round_up(size_t(blocks), 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int, int b, int, Factors<1>& f) {
    const I byte = lanes_u8(row + b);
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
  static constexpr int EIGHT[] = {2, 8, PARTS == 2 ? 8 : 0};
  static size_t halves(int blocks) { return size_t(blocks) / SUPER_BLOCKS * 2; }
  static size_t bytes(int blocks) { return round_up(halves(blocks) + size_t(blocks) * PARTS, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<PARTS>& f) {
    V d = spread_halves<FULL>(row, b, n);
    if (DIVISOR > 1) d = mul(d, set1(1.0f / DIVISOR));
    const uint8_t* units = row + halves(blocks) + b;
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) f.scale[part] = mul(d, to_float(lanes_s8(units + part * blocks)));
  }
};

// Two halves for 256, times an integer of 6 bits for the factor and one for the minimum of each block.
struct SixMinScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = true;
  static constexpr int EIGHT[] = {2, 2, 8, 4};
  static size_t halves(int blocks) { return size_t(blocks) / SUPER_BLOCKS * 2; }
  static size_t bytes(int blocks) { return round_up(2 * halves(blocks) + size_t(blocks) * 3 / 2, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<1>& f) {
    const uint8_t *units = row + 2 * halves(blocks) + b, *high = row + 2 * halves(blocks) + blocks + b / 8 * 4;
    I scale, min;
    lanes_sixes(units, high, b, &scale, &min);
    f.scale[0] = mul(spread_halves<FULL>(row, b, n), to_float(scale));
    f.min[0] = mul(spread_halves<FULL>(row + halves(blocks), b, n), to_float(min));
  }
};

// The same for each half of a block, with both integers in one byte.
struct NibbleMinScales {
  static constexpr int PARTS = 2;
  static constexpr bool MIN = true;
  static constexpr int EIGHT[] = {2, 2, 8, 8};
  static size_t halves(int blocks) { return size_t(blocks) / SUPER_BLOCKS * 2; }
  static size_t bytes(int blocks) { return round_up(2 * (halves(blocks) + size_t(blocks)), 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<2>& f) {
    const uint8_t* units = row + 2 * halves(blocks) + b;
    const V d = spread_halves<FULL>(row, b, n), d_min = spread_halves<FULL>(row + halves(blocks), b, n);
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) {
      const I both = lanes_u8(units + part * blocks);
      f.scale[part] = mul(d, to_float(bit_and(both, int_set1(15))));
      f.min[part] = mul(d_min, to_float(shift_right<4>(both)));
    }
  }
};

// A number H for each PER weights, 32 or 128, and a byte with the code that stands for 0: the minimum is the product of both,
// without their sign; exact, since they have 16 bits together.
template <class H, int PER>
struct ZeroScales {
  static constexpr int PARTS = 1;
  static constexpr bool MIN = true;
  static constexpr int TOGETHER = PER / BLOCK;
  static constexpr int EIGHT[] = {16 / TOGETHER, 8 / TOGETHER};
  static size_t runs(int blocks) { return size_t(blocks + TOGETHER - 1) / TOGETHER; }
  static size_t bytes(int blocks) { return round_up(runs(blocks) * 3, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<1>& f) {
    const int run = b / TOGETHER;
    const uint8_t *halves = row + run * 2, *zeros = row + 2 * runs(blocks) + run;
    V code;
    if (TOGETHER == 1) {
      f.scale[0] = load_halves<FULL, H>(halves, n);
      code = to_float(lanes_u8(zeros));
    } else {
      f.scale[0] = spread_fours(H::load_n(halves, (n + TOGETHER - 1) / TOGETHER));
      code = spread_fours(to_float(widen_u8(zeros)));
    }
    f.min[0] = sub(zero(), mul(f.scale[0], code));
  }
};

// A float32 for the row times a float of 8 bits for each half of a block.
struct E4m3Scales {
  static constexpr int PARTS = 2;
  static constexpr bool MIN = false;
  static constexpr int EIGHT[] = {0};
  static size_t bytes(int blocks) { return round_up(4 + size_t(blocks) * PARTS, 16); }

  template <bool FULL>
  static inline __attribute__((always_inline)) void load(const uint8_t* row, int blocks, int b, int n, Factors<2>& f) {
    float all;
    __builtin_memcpy(&all, row, 4);
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) {
      const uint8_t* units = row + 4 + b + part * blocks;
      f.scale[part] = mul(set1(all), e4m3_to_float(FULL ? lanes_u8(units) : lanes_u8_n(units, n)));
    }
  }

  // What lies behind the units may be no number.
  static inline I lanes_u8_n(const uint8_t* p, int n) {
    uint8_t bytes[16] = {};
    __builtin_memcpy(bytes, p, size_t(n));
    return lanes_u8(bytes);
  }
};

}  // namespace
}  // namespace headrace
