// Rounding to q8_0 and q4_0 while loading: the same on every ISA, bit for bit what reference.py does.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

// The largest magnitude of a block.
inline float peak_size(const float* x) {
  V m = vabs(load(x));
#pragma GCC unroll 8
  for (int i = W; i < BLOCK; i += W) m = vmax(m, vabs(load(x + i)));
  return max_lane(m);
}

struct Q8Rounding {
  static float scale(const float* x) { return peak_size(x) / 127.0f; }

  static void pack(const float* x, V inverse, uint8_t* codes) {
    for (int i = 0; i < BLOCK; i += W) {
      V q = round_even(mul(load(x + i), inverse));
      store_low_bytes(codes + i, vmin(set1(127.0f), vmax(set1(-127.0f), q)));
    }
  }
  static constexpr int BYTES = 32;
};

struct Q4Rounding {
  // The value of largest magnitude, the first of equals, over -8.
  static float scale(const float* x) {
    const float size = peak_size(x);
    int i = 0;
    while (i < BLOCK - 1 && __builtin_fabsf(x[i]) != size) i++;
    return x[i] / -8.0f;
  }

  static V quant(const float* x, V inverse) {
    return vmin(set1(15.0f), vmax(zero(), floor_(add(mul(load(x), inverse), set1(8.5f)))));
  }

  static void pack(const float* x, V inverse, uint8_t* codes) {
    for (int i = 0; i < 16; i += W)
      store_low_bytes(codes + i, fma(quant(x + i + 16, inverse), set1(16.0f), quant(x + i, inverse)));
  }
  static constexpr int BYTES = 16;
};

// A row: halves, padding, codes.
template <class R>
void pack_row(const float* x, int cols, uint8_t* row) {
  const int blocks = cols / BLOCK;
  const size_t scales = halves_bytes(blocks);
  __builtin_memset(row + blocks * 2, 0, scales - size_t(blocks) * 2);
  for (int b = 0; b < blocks; b++) {
    const float scale = R::scale(x + b * BLOCK);
    store_f16_n(row + b * 2, set1(scale), 1);
    R::pack(x + b * BLOCK, set1(scale == 0.0f ? 0.0f : 1.0f / scale), row + scales + size_t(b) * R::BYTES);
  }
}

}  // namespace
}  // namespace headrace
