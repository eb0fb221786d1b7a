// The format fp8 over any ints_*.h: floats of 8 bits with a float32 scale for each run of 128.
//
//   out[r][t] = sum over runs u of scale[r][u] * (sum over c of w[r][c] * x[t][c])
//
// Fp8Format: activations are float32, as they are. Fp8Bf16, where the CPU multiplies bf16 and looks up 128 bytes at once:
// activations become bf16, weights do exactly; sums are float32. Every (row, token) has one running vector a run and one
// over all runs, whatever the tile's size, so a token's result does not depend on the tokens beside it.
#pragma once

#include "formats/e4m3.h"
#include "formats/layout.h"

namespace headrace {
namespace {

constexpr int FP8_RUN = 128;  // weights that share a scale; a last run may be shorter, by whole blocks

inline float scale_of_run(const uint8_t* row, int run) {
  float scale;
  __builtin_memcpy(&scale, row + size_t(run) * 4, 4);
  return scale;
}

struct Fp8Format {
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = W == 16 ? 4 : 2;
  static constexpr void (*PREPARE)(const float* x, int cols, uint8_t* acts) = nullptr;

  static size_t scales_bytes(int cols) { return round_up(size_t(cols + FP8_RUN - 1) / FP8_RUN * 4, 16); }
  static size_t row_bytes(int cols) { return scales_bytes(cols) + size_t(cols); }
  static size_t acts_bytes(int cols) { return size_t(cols) * sizeof(float); }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    V total[R][T];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) total[r][t] = zero();
    for (int c = 0; c < cols; c += FP8_RUN) add_run<R, T>(w, acts, scales_bytes(cols), c, least(cols, c + FP8_RUN), total);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(total[r][t]);
  }

  template <int R, int T>
  static inline __attribute__((always_inline)) void add_run(const uint8_t* const* w, const uint8_t* const* acts,
                                                            size_t scales, int begin, int end, V (&total)[R][T]) {
    V run[R][T];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) run[r][t] = zero();
    for (int c = begin; c < end; c += W)
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) {
        const uint8_t* at = w[r] + scales + c;
        if (c % 64 == 0) prefetch_weights(at);
        const V weights = e4m3_to_float(widen_u8(at));
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) run[r][t] = fma(weights, load(reinterpret_cast<const float*>(acts[t]) + c), run[r][t]);
      }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) total[r][t] = fma(set1(scale_of_run(w[r], begin / FP8_RUN)), run[r][t], total[r][t]);
  }

  static void unpack(const uint8_t* row, int cols, float by, float* out) {
    const uint8_t* codes = row + scales_bytes(cols);
    for (int c = 0; c < cols; c += W) {
      const V scale = set1(scale_of_run(row, c / FP8_RUN));
      store(out + c, mul(mul(e4m3_to_float(widen_u8(codes + c)), scale), set1(by)));
    }
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

// The bytes of a bf16 for each size of a float of 8 bits.
struct alignas(64) Bf16OfE4m3 {
  uint8_t low[128], high[128];
};
constexpr Bf16OfE4m3 BF16_OF_E4M3 = [] {
  Bf16OfE4m3 made{};
  for (int size = 0; size < 128; size++) {
    int exponent = size / 8 + 120, mantissa = size % 8;
    for (; size < 8 && mantissa < 8 && mantissa > 0; exponent--) mantissa *= 2;  // below the normal ones
    unsigned bits = unsigned(exponent + (size < 8)) << 7 | unsigned(mantissa % 8) << 4;
    if (size == 0) bits = 0;
    if (size == 127) bits = 0x7fc0;
    made.low[size] = uint8_t(bits), made.high[size] = uint8_t(bits >> 8);
  }
  return made;
}();

struct Fp8Bf16 {
  static constexpr int TILE_ROWS = 2, TILE_TOKENS = 4, STEP = 64;

  static size_t row_bytes(int cols) { return Fp8Format::row_bytes(cols); }
  static size_t acts_bytes(int cols) { return round_up(size_t(cols), STEP) * 2; }

  // In each step of 64 those that unpacking the low halves of 16 bytes gives, then those of the high halves.
  static void prepare(const float* x, int cols, uint8_t* acts) {
    for (int c = 0; c < cols; c += STEP)
      for (int half = 0; half < 2; half++) {
        const float* from = x + c + 8 * half;
        const V low = eights(from, from + 16), high = c + 32 < cols ? eights(from + 32, from + 48) : zero();
        _mm512_storeu_si512(acts + 2 * c + 64 * half, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
  }
  static constexpr void (*PREPARE)(const float* x, int cols, uint8_t* acts) = prepare;

  static V eights(const float* a, const float* b) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1);
  }

  // The low and the high bytes of 64 weights as bf16.
  static inline __attribute__((always_inline)) void bytes_of(I weights, I* low, I* high) {
    constexpr int FIRST_OR_BOTH_OTHERS = 0xF8;
    const Bf16OfE4m3& of = BF16_OF_E4M3;
    *low = _mm512_permutex2var_epi8(int_load(of.low), weights, int_load(of.low + 64));
    const I sizes = _mm512_permutex2var_epi8(int_load(of.high), weights, int_load(of.high + 64));
    *high = _mm512_ternarylogic_epi32(sizes, weights, int_set1(0x80808080u), FIRST_OR_BOTH_OTHERS);
  }

  // 64 weights as bf16, in the order of `prepare`.
  static inline __attribute__((always_inline)) void widen(const uint8_t* p, int left, __m512bh* first, __m512bh* second) {
    I low, high;
    bytes_of(left >= STEP ? int_load(p) : _mm512_maskz_loadu_epi8(0xFFFFFFFFu, p), &low, &high);
    *first = (__m512bh)_mm512_unpacklo_epi8(low, high);
    *second = (__m512bh)_mm512_unpackhi_epi8(low, high);
  }

  template <int R, int T>
  static void tile(const uint8_t* const* w, const uint8_t* const* acts, int cols, float* const* out,
                   const size_t* stride) {
    V total[R][T];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) total[r][t] = zero();
    const size_t scales = Fp8Format::scales_bytes(cols);
    for (int c = 0; c < cols; c += FP8_RUN) add_run<R, T>(w, acts, scales, c, least(cols, c + FP8_RUN), total);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) out[r][t * stride[r]] = sum(total[r][t]);
  }

  template <int R, int T>
  static inline __attribute__((always_inline)) void add_run(const uint8_t* const* w, const uint8_t* const* acts,
                                                            size_t scales, int begin, int end, V (&total)[R][T]) {
    V run[R][T];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) run[r][t] = zero();
    for (int c = begin; c < end; c += STEP)
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) {
        __m512bh first, second;
        prefetch_weights(w[r] + scales + c);
        widen(w[r] + scales + c, end - c, &first, &second);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const uint8_t* x = acts[t] + 2 * size_t(c);
          run[r][t] = _mm512_dpbf16_ps(run[r][t], first, (__m512bh)int_load(x));
          run[r][t] = _mm512_dpbf16_ps(run[r][t], second, (__m512bh)int_load(x + 64));
        }
      }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) total[r][t] = fma(set1(scale_of_run(w[r], begin / FP8_RUN)), run[r][t], total[r][t]);
  }
};
using Fp8Fast = Fp8Bf16;

#else
using Fp8Fast = Fp8Format;
#endif

}  // namespace
}  // namespace headrace
