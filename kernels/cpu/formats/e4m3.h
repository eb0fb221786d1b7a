// Floats of 8 bits: 1 of sign, 4 of exponent, 3 of mantissa, no infinities; 127 of either sign is NaN.
#pragma once

#include "isa/math.h"

namespace headrace {
namespace {

// A byte to a lane. Exponent and mantissa move into place; a multiplication mends the exponent, numbers below the normal
// ones included, and brings the sign.
inline __attribute__((always_inline)) V e4m3_to_float(I byte) {
  constexpr uint32_t POWER = 247u << 23;  // 2^120
  const I size = bit_and(byte, int_set1(127)), is_nan = shift_right_signed<31>(int_sub(int_set1(126), size));
  const I by = bit_xor(int_set1(POWER), shift_left<24>(bit_and(byte, int_set1(128))));
  return mul(as_floats(bit_or(shift_left<20>(size), is_nan)), as_floats(by));
}

}  // namespace
}  // namespace headrace
