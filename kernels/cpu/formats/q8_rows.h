// Rows of a q8_0 cache over any vec_*.h: int8 codes, and for each 32 of them a half, which lies elsewhere.
//
//   d = half(max|x| / 127)   q = round(x / d), to the even one of two   a number is q d
//
// The same on every ISA, bit for bit what kernels/blocks/cache_rows.py does. A number that is none or infinite makes none of
// all 32; what a half cannot hold is cut off at its largest one.
#pragma once

#include "formats/blocks.h"

namespace headrace {
namespace {

constexpr float LARGEST_HALF = 65504.0f;

inline void q8_pack(const float* x, int d, uint8_t* codes, uint8_t* scales) {
  for (int b = 0; b < d / BLOCK; b++, x += BLOCK, codes += BLOCK, scales += 2) {
    const float peak = peak_or_nan(x), wanted = peak / 127.0f;
    const bool finite = peak <= __FLT_MAX__;
    store_f16_n(scales, set1(!finite ? __builtin_nanf("") : wanted < LARGEST_HALF ? wanted : LARGEST_HALF), 1);
    const float scale = half_at(scales);
    const V inverse = set1(finite && scale > 0.0f ? 1.0f / scale : 0.0f);
    for (int i = 0; i < BLOCK; i += W) {
      const V q = finite ? round_even(mul(load(x + i), inverse)) : zero();
      store_low_bytes(codes + i, vmin(set1(127.0f), vmax(set1(-127.0f), q)));
    }
  }
}

void q8_unpack(const uint8_t* codes, const uint8_t* scales, int d, float* out) {
  for (int b = 0; b < d / BLOCK; b++, codes += BLOCK, scales += 2, out += BLOCK) {
    const V scale = set1(half_at(scales));
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK; i += W) store(out + i, mul(load_i8(codes + i), scale));
  }
}

}  // namespace
}  // namespace headrace
