// Vectors of 4 floats in plain C++ (GCC and Clang vector types): any CPU. Same names as vec_avx512.h and vec_avx2.h.
//
// *_n variants touch the first n lanes only (0 <= n <= W), loads fill the rest with zeros. Half precision is converted
// by hand, lane by lane: correct, and slow. Knows nothing of formats or ops.
#pragma once

#include "isa/table.h"

namespace headrace {
namespace {

typedef float V __attribute__((vector_size(16)));
constexpr int W = 4;

inline V zero() { return V{0, 0, 0, 0}; }
inline V set1(float x) { return V{x, x, x, x}; }
inline V load_n(const float* p, int n) {
  V v = zero();
  __builtin_memcpy(&v, p, size_t(n) * 4);
  return v;
}
inline V load(const float* p) { return load_n(p, W); }
inline void store_n(float* p, V v, int n) { __builtin_memcpy(p, &v, size_t(n) * 4); }
inline void store(float* p, V v) { store_n(p, v, W); }

template <class Fn>
inline V each(V a, Fn fn) {
  return V{fn(a[0]), fn(a[1]), fn(a[2]), fn(a[3])};
}

inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
inline V fma(V a, V b, V c) { return a * b + c; }
inline V vmax(V a, V b) { return a > b ? a : b; }  // either is NaN: b
inline V vmin(V a, V b) { return a < b ? a : b; }
typedef uint32_t Bits __attribute__((vector_size(16)));
// The larger of two magnitudes, bit by bit: a NaN is larger than infinity, so it is not lost.
inline V larger(V a, V b) { return Bits(a) > Bits(b) ? a : b; }
inline V vabs(V a) {
  return each(a, [](float x) { return __builtin_fabsf(x); });
}
inline V round_even(V a) {
  return each(a, [](float x) { return __builtin_rintf(x); });
}
inline V floor_(V a) {
  return each(a, [](float x) { return __builtin_floorf(x); });
}

inline float as_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

// 2^n for -126 <= n <= 127
inline float power_of_2(float n) { return n == n ? as_float(uint32_t(int(n) + 127) << 23) : n; }
inline V scale2(V p, V n) { return mul(p, each(n, power_of_2)); }

inline float sum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float max_lane(V v) {
  float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
inline float largest_lane(V v) {  // of magnitudes, as `larger`
  V m = larger(v, V{v[2], v[3], v[0], v[1]});
  return larger(m, V{m[1], m[0], m[3], m[2]})[0];
}
// Lane i of the result is the lanes of a[i] joined by `fn`, of each in the same order.
template <class Fn>
inline V join_lanes(const V (&a)[W], const Fn& fn) {
  const V x = fn(V{a[0][0], a[1][0], a[2][0], a[3][0]}, V{a[0][2], a[1][2], a[2][2], a[3][2]});
  const V y = fn(V{a[0][1], a[1][1], a[2][1], a[3][1]}, V{a[0][3], a[1][3], a[2][3], a[3][3]});
  return fn(x, y);
}

// Exponent and mantissa move into place, then one multiplication by 2^112 mends the exponent, denormals included.
inline float f16_to_float(uint16_t h) {
  uint32_t shifted = uint32_t(h & 0x7fff) << 13;
  float x = (h & 0x7c00) == 0x7c00 ? as_float(shifted | 0x7f800000) : as_float(shifted) * as_float(0x77800000);
  return as_float(as_bits(x) | uint32_t(h & 0x8000) << 16);
}

// Adding a power of two with the same unit in the last place as the half rounds to nearest even in hardware.
inline uint16_t float_to_f16(float x) {
  uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00 | (size >> 13 & 0x3ff));
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);                                        // rounds to infinity
  if (size < 0x38800000) return uint16_t(sign | (as_bits(as_float(size) + 0.5f) - 0x3f000000));  // denormal half
  return uint16_t(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

inline float bf16_to_float(uint16_t h) { return as_float(uint32_t(h) << 16); }

inline uint16_t float_to_bf16(float x) {
  uint32_t bits = as_bits(x);
  return x == x ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : uint16_t(0x7fc0);
}

template <class Fn>
inline V load_half_n(const uint8_t* p, int n, Fn fn) {
  uint16_t h[W] = {};
  __builtin_memcpy(h, p, size_t(n) * 2);
  return V{fn(h[0]), fn(h[1]), fn(h[2]), fn(h[3])};
}

template <class Fn>
inline void store_half_n(uint8_t* p, V v, int n, Fn fn) {
  uint16_t h[W] = {fn(v[0]), fn(v[1]), fn(v[2]), fn(v[3])};
  __builtin_memcpy(p, h, size_t(n) * 2);
}

inline V load_f16_n(const uint8_t* p, int n) { return load_half_n(p, n, f16_to_float); }
inline V load_f16(const uint8_t* p) { return load_f16_n(p, W); }
inline float half_at(const uint8_t* p) { return load_f16_n(p, 1)[0]; }
inline V load_bf16_n(const uint8_t* p, int n) { return load_half_n(p, n, bf16_to_float); }
inline V load_bf16(const uint8_t* p) { return load_bf16_n(p, W); }
inline void store_f16_n(uint8_t* p, V v, int n) { store_half_n(p, v, n, float_to_f16); }
inline void store_bf16_n(uint8_t* p, V v, int n) { store_half_n(p, v, n, float_to_bf16); }

// 2 W values of bf16: those at even places and those at odd places. Which is which depends on the byte order.
inline void load_bf16_pairs(const uint8_t* p, V* even, V* odd) {
  typedef uint32_t Bits __attribute__((vector_size(16)));
  Bits v;
  __builtin_memcpy(&v, p, sizeof v);
  const bool little = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  *(little ? even : odd) = reinterpret_cast<V>(v << 16);
  *(little ? odd : even) = reinterpret_cast<V>(v & 0xffff0000u);
}

// One of both.
template <int ODD, bool NO_MASK>
inline V load_bf16_part(const uint8_t* p) {
  V even, odd;
  load_bf16_pairs(p, &even, &odd);
  return ODD ? odd : even;
}

inline V load_i8(const uint8_t* p) { return V{float(int8_t(p[0])), float(int8_t(p[1])), float(int8_t(p[2])), float(int8_t(p[3]))}; }

// The low byte of every lane, which holds a whole number.
inline void store_low_bytes(uint8_t* p, V v) {
  for (int i = 0; i < W; i++) p[i] = uint8_t(int32_t(v[i]));
}

// Adds 16 bytes to a running sum of 64-bit lanes: the cheapest use of a load that cannot be dropped.
typedef uint64_t Bytes __attribute__((vector_size(16)));
constexpr int BYTES = 16;
inline Bytes bytes_zero() { return Bytes{0, 0}; }
inline Bytes bytes_add(Bytes sum, const uint8_t* p) {
  Bytes v;
  __builtin_memcpy(&v, p, sizeof v);
  return sum + v;
}
inline uint64_t bytes_sum(Bytes sum) { return sum[0] + sum[1]; }

}  // namespace
}  // namespace headrace
