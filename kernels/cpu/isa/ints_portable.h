// Vectors of 4 x 32 bits and of 16 bytes in plain C++: the names of ints_avx512.h. Lane i has block i. The loops over 16
// bytes are for the compiler to vectorise.
#pragma once

#include "isa/vec_portable.h"

namespace headrace {
namespace {

typedef uint32_t I __attribute__((vector_size(16)));
typedef int32_t Signed __attribute__((vector_size(16)));
constexpr int BYTE_OFFSET = 0;  // dot_wide takes signed bytes as they are

constexpr int block_of_lane(int lane) { return lane; }

inline I int_zero() { return I{0, 0, 0, 0}; }
inline I int_set1(uint32_t x) { return I{x, x, x, x}; }
inline I int_load_n(const uint8_t* p, int words) {
  I a = int_zero();
  if (words > 0) __builtin_memcpy(&a, p, size_t(words < W ? words : W) * 4);
  return a;
}
inline I int_load(const uint8_t* p) { return int_load_n(p, W); }
inline void int_store(uint8_t* p, I a) { __builtin_memcpy(p, &a, sizeof a); }
inline I bit_and(I a, I b) { return a & b; }
inline I bit_or(I a, I b) { return a | b; }
inline I bit_xor(I a, I b) { return a ^ b; }
template <int N>
inline I shift_left(I a) {
  return a << N;
}
template <int N>
inline I shift_right(I a) {
  return a >> N;
}
template <int N>
inline I shift_right_signed(I a) {
  return I(Signed(a) >> N);
}
inline I int_add(I a, I b) { return a + b; }
inline I int_sub(I a, I b) { return a - b; }
inline I byte_sub(I a, I b) {
  typedef uint8_t B __attribute__((vector_size(16)));
  return I(B(a) - B(b));
}
inline V to_float(I a) {
  const Signed s = Signed(a);
  return V{float(s[0]), float(s[1]), float(s[2]), float(s[3])};
}
inline V as_floats(I bits) { return V(bits); }
inline I as_ints(V v) { return I(v); }
inline I widen_u8(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline I widen_s8(const uint8_t* p) {
  return I(Signed{int8_t(p[0]), int8_t(p[1]), int8_t(p[2]), int8_t(p[3])});
}
inline I widen_fours(const uint8_t* p, int b) {
  const int by = b % 8 ? 4 : 0;
  return I{uint32_t(p[0] >> by & 15), uint32_t(p[1] >> by & 15), uint32_t(p[2] >> by & 15), uint32_t(p[3] >> by & 15)};
}

inline I lookup(I index, const int8_t* values) {
  uint8_t bytes[16];
  __builtin_memcpy(bytes, &index, 16);
  for (uint8_t& byte : bytes) byte = uint8_t(values[byte & 15]);
  return int_load(bytes);
}

// Products of bytes, four of them to a lane.
template <class Byte>
inline I dot_bytes(I sum, I w, const uint8_t* x) {
  Byte weights[16];
  __builtin_memcpy(weights, &w, 16);
  int32_t products[16];
  for (int i = 0; i < 16; i++) products[i] = int32_t(weights[i]) * int8_t(x[i]);
  Signed total = Signed(sum);
  for (int lane = 0; lane < W; lane++)
    total[lane] += products[4 * lane] + products[4 * lane + 1] + products[4 * lane + 2] + products[4 * lane + 3];
  return I(total);
}
inline I dot(I sum, I w, const uint8_t* x) { return dot_bytes<uint8_t>(sum, w, x); }
inline I dot_wide(I sum, I w, const uint8_t* x) { return dot_bytes<int8_t>(sum, w, x); }

inline I in_lanes(I blocks) { return blocks; }
inline I lanes_u8(const uint8_t* p) { return in_lanes(widen_u8(p)); }
inline I lanes_s8(const uint8_t* p) { return in_lanes(widen_s8(p)); }
inline void lanes_sixes(const uint8_t* low, const uint8_t* high, int b, I* first, I* second) {
  const I bytes = lanes_u8(low), top = in_lanes(widen_fours(high, b));
  *first = bit_or(bit_and(bytes, int_set1(15)), shift_left<4>(bit_and(top, int_set1(3))));
  *second = bit_or(shift_right<4>(bytes), shift_left<2>(bit_and(top, int_set1(12))));
}

template <bool FULL>
inline V lanes_f16(const uint8_t* p, int n) {
  return FULL ? load_f16(p) : load_f16_n(p, n);
}
template <bool FULL>
inline V spread_halves(const uint8_t* halves, int b, int) {
  uint16_t half;
  __builtin_memcpy(&half, halves + b / 8 * 2, 2);
  return set1(f16_to_float(half));
}
inline V spread_fours(V values) { return set1(values[0]); }

inline void turn(I* a) {
  const I b[4] = {a[0], a[1], a[2], a[3]};
  for (int d = 0; d < 4; d++) a[d] = I{b[0][d], b[1][d], b[2][d], b[3][d]};
}

inline void turn_pairs(I* a) {
  const I first = I{a[0][0], a[0][2], a[1][0], a[1][2]}, second = I{a[0][1], a[0][3], a[1][1], a[1][3]};
  a[0] = first, a[1] = second;
}

inline void turn_eights(I* a) {
  I low[4], high[4];
  for (int i = 0; i < 4; i++) low[i] = a[2 * i], high[i] = a[2 * i + 1];
  turn(low), turn(high);
  for (int i = 0; i < 4; i++) a[i] = low[i], a[4 + i] = high[i];
}

}  // namespace
}  // namespace headrace
