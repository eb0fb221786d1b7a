// The block formats q8_0 and q4_0 over any ISA: their dot tile, their activations, packing and unpacking.
//
//   out[r][t] = sum over blocks b of ws[r][b] * xs[t][b] * (integer dot of block b)
//
// Activations become int8 per 32 values, once per op. One step takes W blocks, so that their scales fill one vector;
// the integer dot products of Q::GROUP blocks are one call of Q::step (quants_avx512.h, quants_avx2.h,
// quants_portable.h). Where the ISA multiplies unsigned weights (quant + Q::OFFSET), the surplus OFFSET * sum(x) is
// taken away for W blocks at once: the activations carry xs * -OFFSET * sum(x) of every block. The order of additions
// of a (row, token) is fixed.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

struct ActsView {
  const uint8_t* quants;
  const float *scales, *offsets;
};

inline ActsView view_acts(const uint8_t* acts, int padded) {
  const float* scales = reinterpret_cast<const float*>(acts + size_t(padded) * BLOCK);
  return {acts, scales, scales + padded};
}

// Two half blocks of 16 floats each, and where they lie: what packing and preparing share.
inline float peak_size(const float* x) {
  V m = vabs(load(x));
#pragma GCC unroll 8
  for (int i = W; i < BLOCK; i += W) m = vmax(m, vabs(load(x + i)));
  return max_lane(m);
}

// The same of activations, where a NaN must come out as NaN: it becomes the block's scale.
inline float peak_or_nan(const float* x) {
  V m = vabs(load(x));
#pragma GCC unroll 8
  for (int i = W; i < BLOCK; i += W) m = larger(m, vabs(load(x + i)));
  return largest_lane(m);
}

template <class Q>
struct QuantFormat {
  static constexpr int TILE_ROWS = W == 16 ? 4 : 2;
  static constexpr int TILE_TOKENS = W == 16 ? 4 : 2;
  static constexpr int GROUP_BYTES = Q::GROUP * Q::BLOCK_BYTES;

  // Blocks b .. b + n of the row; n is W in all steps but a last, not FULL one.
  template <int R, int T, bool FULL>
  static inline __attribute__((always_inline)) void step(const uint8_t* const* w, const ActsView* x, size_t quants,
                                                         int b, int n, V (&acc)[R][T]) {
    V scale[R][T];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      if (FULL) prefetch_weights(w[r] + b * 2);
      V ws = FULL ? load_f16(w[r] + b * 2) : load_f16_n(w[r] + b * 2, n);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        scale[r][t] = mul(ws, load(x[t].scales + b));
        if (Q::OFFSET) acc[r][t] = fma(ws, load(x[t].offsets + b), acc[r][t]);
      }
    }
#pragma GCC unroll 8
    for (int g = 0; g < W; g += Q::GROUP) {
      if (!FULL && g >= n) break;
      typename Q::Weights q[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const uint8_t* p = w[r] + quants + size_t(b + g) * Q::BLOCK_BYTES;
        if (FULL) prefetch_weights(p);
        q[r] = Q::load(p, FULL ? Q::GROUP : n - g);
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
          acc[r][t] = Q::step(acc[r][t], q[r], x[t].quants + size_t(b + g) * BLOCK, scale[r][t], g);
    }
  }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    const int blocks = cols / BLOCK;
    const size_t quants = scales_bytes(blocks);
    ActsView x[T];
    V acc[R][T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      x[t] = view_acts(acts[t], padded_blocks(cols));
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[r][t] = zero();
    }
    int b = 0;
    for (; b + W <= blocks; b += W) step<R, T, true>(w, x, quants, b, W, acc);
    if (b < blocks) step<R, T, false>(w, x, quants, b, blocks - b, acc);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(acc[r][t]);
  }

  // Rounds one block to int8 and stores its halves where Q::step looks for them; returns the sum of the quants.
  static float prepare_block(const float* x, float inverse, uint8_t* lo, uint8_t* hi) {
    V total = zero();
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK; i += W) {
      V q = round_even(mul(load(x + i), set1(inverse)));
      store_low_bytes(i < 16 ? lo + i : hi + i - 16, q);
      total = add(total, q);
    }
    return sum(total);
  }

  static void prepare(const float* x, int cols, uint8_t* acts) {
    const int blocks = cols / BLOCK, padded = padded_blocks(cols);
    ActsView view = view_acts(acts, padded);
    float *scales = const_cast<float*>(view.scales), *offsets = const_cast<float*>(view.offsets);
    __builtin_memset(acts + blocks / Q::GROUP * Q::GROUP * BLOCK, 0,
                     size_t(padded - blocks / Q::GROUP * Q::GROUP) * BLOCK);
    for (int b = 0; b < padded; b++) {
      float peak = b < blocks ? peak_or_nan(x + b * BLOCK) : 0.0f, total = 0.0f;
      uint8_t* lo = acts + (b / Q::GROUP * Q::GROUP) * BLOCK + (b % Q::GROUP) * Q::HALF_STEP;
      if (b < blocks) total = prepare_block(x + b * BLOCK, peak > 0 ? 127.0f / peak : 0.0f, lo, lo + Q::HALF_GAP);
      scales[b] = peak / 127.0f;
      offsets[b] = -float(Q::OFFSET) * total * scales[b];
    }
  }

  static void unpack(const uint8_t* row, int cols, float scale, float* out) {
    const uint8_t* quants = row + scales_bytes(cols / BLOCK);
    for (int b = 0; b < cols / BLOCK; b++) {
      float lanes[W];
      store(lanes, load_f16_n(row + b * 2, 1));
      V q[BLOCK / W];
      Q::Codec::values(quants + size_t(b) * Q::BLOCK_BYTES, q);
      for (int i = 0; i < BLOCK / W; i++)
        store(out + b * BLOCK + i * W, mul(mul(q[i], set1(lanes[0])), set1(scale)));
    }
  }

  static void pack(const float* x, int cols, uint8_t* row) {
    const int blocks = cols / BLOCK;
    uint8_t* quants = row + scales_bytes(blocks);
    __builtin_memset(row + blocks * 2, 0, scales_bytes(blocks) - size_t(blocks) * 2);
    for (int b = 0; b < blocks; b++) {
      float scale = Q::Codec::scale(x + b * BLOCK);
      store_f16_n(row + b * 2, set1(scale), 1);
      Q::Codec::pack(x + b * BLOCK, set1(scale == 0.0f ? 0.0f : 1.0f / scale), quants + size_t(b) * Q::BLOCK_BYTES);
    }
  }
};

// How a block is rounded and stored: the same on every ISA, bit for bit what reference.py does.
struct Q8Codec {
  static float scale(const float* x) { return peak_size(x) / 127.0f; }

  static void pack(const float* x, V inverse, uint8_t* quants) {
    for (int i = 0; i < BLOCK; i += W) {
      V q = round_even(mul(load(x + i), inverse));
      store_low_bytes(quants + i, vmin(set1(127.0f), vmax(set1(-127.0f), q)));
    }
  }

  // The quants of a block, in order, as floats.
  static inline __attribute__((always_inline)) void values(const uint8_t* quants, V (&q)[BLOCK / W]) {
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK / W; i++) {
      V byte = load_u8(quants + i * W);
      q[i] = fma(floor_(mul(byte, set1(1.0f / 128))), set1(-256.0f), byte);
    }
  }
};

struct Q4Codec {
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

  static void pack(const float* x, V inverse, uint8_t* quants) {
    for (int i = 0; i < 16; i += W)
      store_low_bytes(quants + i, fma(quant(x + i + 16, inverse), set1(16.0f), quant(x + i, inverse)));
  }

  // The quants of a block, in order, as floats, 8 taken away.
  static inline __attribute__((always_inline)) void values(const uint8_t* quants, V (&q)[BLOCK / W]) {
#pragma GCC unroll 8
    for (int i = 0; i < 16 / W; i++) {
      V byte = load_u8(quants + i * W);
      V hi = floor_(mul(byte, set1(1.0f / 16)));
      q[i] = sub(fma(hi, set1(-16.0f), byte), set1(8.0f));
      q[i + 16 / W] = sub(hi, set1(8.0f));
    }
  }
};

}  // namespace
}  // namespace headrace
