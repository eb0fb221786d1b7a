// Products of many tokens by vpdpbusd, for every block format: a lane is a row of weights.
//
//   out[r][t] = sum over blocks b of xs[t][b] * (scale[r][b] * (integer dot of block b) + min[r][b] * (sum of x's codes))
//
// The formula and the rounding of the dot products (formats/blocks.h); only the order of additions differs. 16 rows of
// both runs are unpacked once for all tokens, to bytes [block][k / 4][run] and floats [block][factor][run], which the second
// cache holds. Tokens go by eights: their activations are dwords [block][k / 4][8 tokens], each broadcast to all rows. No sum
// is ever turned, and none goes from lane to lane.
#pragma once

#include "cores/panels.h"

namespace headrace {
namespace {

constexpr int EIGHT = 8;  // tokens that lie together

// Activations of eight tokens and a block are 16 lines of 8 values: 8 of codes, then these.
enum TokenLine { SCALE = WORDS, MINUS_SUM, MINUS_FIRST, MINUS_SECOND, SCALED_SUM, SCALED_FIRST, SCALED_SECOND, LINES = 16 };
constexpr size_t EIGHT_BYTES = LINES * EIGHT * 4;

inline size_t vnni_half(int cols) { return size_t(cols / BLOCK) * EIGHT_BYTES; }
inline size_t vnni_stride(int cols) { return 2 * vnni_half(cols); }
// Hidden values: as activations, and before those are made, as floats [16 tokens][width].
inline size_t vnni_hidden_stride(int width) { return vnni_stride(width) + size_t(width) * TILE_SIDE * 4; }

// Eight vectors of 8 values: rows become columns.
inline __attribute__((always_inline)) void transpose8(__m256i (&a)[EIGHT]) {
  __m256i b[EIGHT];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256i low01 = _mm256_unpacklo_epi32(a[i], a[i + 1]), high01 = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    const __m256i low23 = _mm256_unpacklo_epi32(a[i + 2], a[i + 3]), high23 = _mm256_unpackhi_epi32(a[i + 2], a[i + 3]);
    b[i] = _mm256_unpacklo_epi64(low01, low23), b[i + 1] = _mm256_unpackhi_epi64(low01, low23);
    b[i + 2] = _mm256_unpacklo_epi64(high01, high23), b[i + 3] = _mm256_unpackhi_epi64(high01, high23);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    a[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    a[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
}

// The largest magnitude of a block of each of eight tokens; a NaN counts as the largest.
inline __attribute__((always_inline)) __m256 peaks_of(const float* const* x) {
  __m256i a[EIGHT];
#pragma GCC unroll 8
  for (int t = 0; t < EIGHT; t++) {
    const __m512i m = as_ints(larger(vabs(load(x[t])), vabs(load(x[t] + W))));
    a[t] = _mm256_max_epu32(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
  }
  transpose8(a);
#pragma GCC unroll 3
  for (int n = 4; n; n /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) a[i] = _mm256_max_epu32(a[i], a[i + n]);
  return _mm256_castsi256_ps(a[0]);
}

// A block of eight tokens at x[0 .. 7].
inline void vnni_pack_block(const float* const* x, uint8_t* to) {
  const __m256 peak = peaks_of(x), full = _mm256_set1_ps(127.0f), scale = _mm256_div_ps(peak, full);
  const __mmask8 some = _mm256_cmp_ps_mask(peak, _mm256_setzero_ps(), _CMP_GT_OQ);
  alignas(32) float inverse[EIGHT];
  _mm256_store_ps(inverse, _mm256_maskz_div_ps(some, full, peak));
  __m256i codes[EIGHT];
#pragma GCC unroll 8
  for (int t = 0; t < EIGHT; t++) {
    const V by = set1(inverse[t]);
    const __m128i low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(mul(load(x[t]), by)));
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(mul(load(x[t] + W), by)));
    codes[t] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  transpose8(codes);
  const auto line = [&](int i) { return reinterpret_cast<__m256i*>(to + i * EIGHT * 4); };
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
  for (int j = 0; j < WORDS; j++) {
    _mm256_storeu_si256(line(j), codes[j]);
    sums[j / 4] = _mm256_dpbusd_epi32(sums[j / 4], _mm256_set1_epi8(1), codes[j]);
  }
  const auto save = [&](__m256i sum, int minus, int scaled) {
    _mm256_storeu_si256(line(minus), _mm256_sub_epi32(_mm256_setzero_si256(), sum));
    _mm256_storeu_ps(reinterpret_cast<float*>(line(scaled)), _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)));
  };
  _mm256_storeu_ps(reinterpret_cast<float*>(line(SCALE)), scale);
  save(_mm256_add_epi32(sums[0], sums[1]), MINUS_SUM, SCALED_SUM);
  save(sums[0], MINUS_FIRST, SCALED_FIRST);
  save(sums[1], MINUS_SECOND, SCALED_SECOND);
}

// Up to 16 tokens; where an eight has fewer, its last one fills the place.
void vnni_pack(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles) {
  for (int first = 0; first < count; first += EIGHT, tiles += vnni_half(cols)) {
    const float* token[EIGHT];
    for (int i = 0; i < EIGHT; i++) {
      const int t = least(first + i, count - 1);
      token[i] = x + size_t(index ? index[t] : t) * stride;
    }
    for (int b = 0; b < cols / BLOCK; b++) {
      vnni_pack_block(token, tiles + size_t(b) * EIGHT_BYTES);
      for (int i = 0; i < EIGHT; i++) token[i] += BLOCK;
    }
  }
}

void vnni_seal(uint8_t* hidden, int count, int width) {
  vnni_pack(reinterpret_cast<const float*>(hidden + vnni_stride(width)), size_t(width), nullptr, count, width, hidden);
}

// A group of blocks of 16 rows of both runs, unpacked.
constexpr int RUNS = 2;
constexpr size_t CODES_BYTES = size_t(WORDS) * RUNS * 64;  // of a block
constexpr size_t panel_bytes(int factors) { return BLOCK_GROUP * (CODES_BYTES + size_t(factors) * RUNS * 64); }
inline const float* panel_factors(const uint8_t* panel) {
  return reinterpret_cast<const float*>(panel + BLOCK_GROUP * CODES_BYTES);
}

template <class F>
void vnni_unpack(const Rows16& rows, int blocks, int first, int n, int run, uint8_t* panel) {
  unpack_codes<F>(rows, blocks, first, n, [&](int block, const Step& q) __attribute__((always_inline)) {
    uint8_t* to = panel + size_t(block) * CODES_BYTES + run * 64;
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++) _mm512_store_si512(to + j * RUNS * 64, q[j]);
  });
  float* factors = const_cast<float*>(panel_factors(panel)) + run * W;
  unpack_factors<F>(rows, blocks, first, n, [&](int block, int which, V values) __attribute__((always_inline)) {
    store(factors + (size_t(block) * FACTORS<F> + which) * RUNS * W, values);
  });
}

using EightSums = float[EIGHT][RUNS][W];

// What is asked for meanwhile: for each block so many bytes from a and from b on.
struct Ahead {
  const uint8_t *a, *b;
  size_t bytes;

  inline __attribute__((always_inline)) void ask(int block) const {
    for (size_t i = 0; i < bytes; i += 64) {
      __builtin_prefetch(a + block * bytes + i, 0, 2);
      __builtin_prefetch(b + block * bytes + i, 0, 2);
    }
  }
};

// What the products need to know of a format.
template <int OFFSET_, int PARTS_, bool MIN_>
struct PanelOf {
  static constexpr int OFFSET = OFFSET_, PARTS = PARTS_;
  static constexpr bool MIN = MIN_;
};

template <int T, class P>
struct PanelProducts {
  static constexpr int LINE = EIGHT * 4, EACH = P::MIN ? 2 : 1;
  using Sums = I[P::PARTS][T][RUNS];

  static inline V token_float(const uint8_t* x, int line, int t) {
    return set1(*reinterpret_cast<const float*>(x + line * LINE + t * 4));
  }
  static inline I token_int(const uint8_t* x, int line, int t) {
    int32_t value;
    __builtin_memcpy(&value, x + line * LINE + t * 4, 4);
    return int_set1(uint32_t(value));
  }

  // The integer dot products of a block, or of each of its halves.
  static inline __attribute__((always_inline)) void dots(const uint8_t* w, const uint8_t* x, Sums& sums) {
    constexpr int MINUS[2] = {P::PARTS == 1 ? MINUS_SUM : MINUS_FIRST, MINUS_SECOND};
#pragma GCC unroll 2
    for (int part = 0; part < P::PARTS; part++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        sums[part][t][0] = sums[part][t][1] =
            P::OFFSET ? shift_left<log2_of(P::OFFSET)>(token_int(x, MINUS[part], t)) : int_zero();
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++) {
      const I a = int_load(w + j * RUNS * 64), b = int_load(w + j * RUNS * 64 + 64);
      auto& part = sums[P::PARTS == 1 ? 0 : j / 4];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        const I token = token_int(x, j, t);
        part[t][0] = _mm512_dpbusd_epi32(part[t][0], a, token);
        part[t][1] = _mm512_dpbusd_epi32(part[t][1], b, token);
      }
    }
  }

  // acc += xs * (scale * dot) of a block.
  static inline __attribute__((always_inline)) void scale(const float* f, const uint8_t* x, const Sums& sums,
                                                          V (&acc)[T][RUNS]) {
    constexpr int LAST = P::PARTS - 1;
#pragma GCC unroll 2
    for (int run = 0; run < RUNS; run++) {
      const V first = load(f + run * W), last = load(f + (LAST * EACH * RUNS + run) * W);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        V total = mul(to_float(sums[0][t][run]), first);
        if (P::PARTS == 2) total = fma(to_float(sums[LAST][t][run]), last, total);
        acc[t][run] = fma(total, token_float(x, SCALE, t), acc[t][run]);
      }
    }
  }

  // acc += min * (xs * sum of x's codes).
  static inline __attribute__((always_inline)) void add_minimums(const float* f, const uint8_t* x, V (&acc)[T][RUNS]) {
    constexpr int SCALED[2] = {P::PARTS == 1 ? SCALED_SUM : SCALED_FIRST, SCALED_SECOND};
#pragma GCC unroll 2
    for (int part = 0; part < P::PARTS; part++) {
      const V a = load(f + (part * EACH + 1) * RUNS * W), b = load(f + (part * EACH + 1) * RUNS * W + W);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        const V by = token_float(x, SCALED[part], t);
        acc[t][0] = fma(a, by, acc[t][0]);
        acc[t][1] = fma(b, by, acc[t][1]);
      }
    }
  }

  // Sums of all blocks before grow by those of the panel.
  static __attribute__((noinline)) void run(const uint8_t* panel, const uint8_t* x, int blocks, const Ahead& ahead,
                                            float (*out)[RUNS][W]) {
    const float* f = panel_factors(panel);
    V acc[T][RUNS];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[t][0] = load(out[t][0]), acc[t][1] = load(out[t][1]);
    for (int b = 0; b < blocks; b++, panel += CODES_BYTES, x += EIGHT_BYTES, f += P::PARTS * EACH * RUNS * W) {
      ahead.ask(b);
      Sums sums;
      dots(panel, x, sums);
      scale(f, x, sums, acc);
      if (P::MIN) add_minimums(f, x, acc);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) store(out[t][0], acc[t][0]), store(out[t][1], acc[t][1]);
  }
};

// Up to eight tokens; with two sums a block, four at a time, so that sums stay in registers.
template <class P>
void eight_products(const uint8_t* panel, const uint8_t* x, int blocks, int tokens, const Ahead& ahead, EightSums& out) {
  if constexpr (P::PARTS == 2) {
    if (tokens > 4) {
      PanelProducts<4, P>::run(panel, x, blocks, ahead, out);
      x += 4 * 4;
    }
    float(*rest)[RUNS][W] = tokens > 4 ? out + 4 : out;
    const Ahead none{nullptr, nullptr, 0};
    ((tokens - 1) % 4 < 2 ? PanelProducts<2, P>::run : PanelProducts<4, P>::run)(panel, x, blocks, tokens > 4 ? none : ahead,
                                                                                 rest);
  } else {
    constexpr decltype(&PanelProducts<8, P>::run) by_pairs[4] = {PanelProducts<2, P>::run, PanelProducts<4, P>::run,
                                                                 PanelProducts<6, P>::run, PanelProducts<8, P>::run};
    by_pairs[(tokens - 1) / 2](panel, x, blocks, ahead, out);
  }
}

constexpr int PASS = 256;  // tokens that a group of blocks is unpacked for

// 16 rows of both runs after the other with up to PASS tokens: save(sums, row, token, tokens).
template <class F, class Save>
void vnni_pass(const RowPair& w, const uint8_t* x, size_t stride, int tokens, int cols, uint8_t* scratch, const Save& save) {
  using P = PanelOf<F::Codes::OFFSET, F::PARTS, F::Scales::MIN>;
  const int blocks = cols / BLOCK;
  const size_t rows_bytes = W * w.row_bytes;
  EightSums* sums = reinterpret_cast<EightSums*>(scratch + panel_bytes(FACTORS<F>));
  for (int row = 0; row < w.na; row += W) {
    const uint8_t *a = w.a + size_t(row) * w.row_bytes, *b = w.b + size_t(row) * w.row_bytes;
    const Rows16 rows_a(a, w.row_bytes, w.na - row), rows_b(row < w.nb ? b : a, w.row_bytes, most(w.nb - row, 1));
    __builtin_memset(sums, 0, size_t(tokens + EIGHT - 1) / EIGHT * sizeof(EightSums));
    for (int first = 0; first < blocks; first += BLOCK_GROUP) {
      const int n = least(BLOCK_GROUP, blocks - first);
      vnni_unpack<F>(rows_a, blocks, first, n, 0, scratch);
      vnni_unpack<F>(rows_b, blocks, first, n, 1, scratch);
      for (int t = 0; t < tokens; t += EIGHT) {
        const size_t each = rows_bytes / blocks, done = rows_bytes + first * each;
        const Ahead ahead{a + done, b + done, t == 0 ? each : 0};
        const uint8_t* eight = x + t / TILE_SIDE * stride + t % TILE_SIDE / EIGHT * vnni_half(cols) + first * EIGHT_BYTES;
        eight_products<P>(scratch, eight, n, least(EIGHT, tokens - t), ahead, sums[t / EIGHT]);
      }
    }
    for (int t = 0; t < tokens; t += EIGHT) save(sums[t / EIGHT], row, t, least(EIGHT, tokens - t));
  }
}

template <class F, class Save>
void vnni_run(const RowPair& w, const TileTokens& x, int cols, uint8_t* scratch, const Save& save) {
  for (int first = 0; first < x.count; first += PASS)
    vnni_pass<F>(w, x.base + first / TILE_SIDE * x.stride, x.stride, least(PASS, x.count - first), cols, scratch,
                 [&](const EightSums& sums, int row, int token, int n) { save(sums, row, first + token, n); });
}

template <class F>
void vnni_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  vnni_run<F>(w, x, cols, scratch, [&](const EightSums& sums, int row, int token, int n) {
    float *a = out.a + token * out.a_stride + row, *b = out.b + token * out.b_stride + row;
    for (int t = 0; t < n; t++, a += out.a_stride, b += out.b_stride) {
      store_n(a, load(sums[t][0]), least(W, w.na - row));
      if (row < w.nb) store_n(b, load(sums[t][1]), least(W, w.nb - row));
    }
  });
}

// The hidden values of one token from row `row` on.
inline V hidden_lanes(V gate, V up, const TileHidden& h, int row, int lanes) {
  if (!h.glu) return mul(silu(gate), up);
  const Glu& how = *h.glu;
  if (how.gate_bias) gate = add(gate, load_n(how.gate_bias + row, lanes)), up = add(up, load_n(how.up_bias + row, lanes));
  return activate(gate, up, how.activation);
}

template <class F>
void vnni_glu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  vnni_run<F>(w, x, cols, scratch, [&](const EightSums& sums, int row, int token, int n) {
    float* values = reinterpret_cast<float*>(h.base + token / TILE_SIDE * h.stride + vnni_stride(h.width));
    values += size_t(token % TILE_SIDE) * h.width + h.first + row;
    const int lanes = least(W, w.na - row);
    for (int t = 0; t < n; t++, values += h.width)
      store_n(values, hidden_lanes(load(sums[t][0]), load(sums[t][1]), h, h.first + row, lanes), lanes);
  });
}

template <class F>
size_t vnni_scratch(int) {
  return panel_bytes(FACTORS<F>) + PASS / EIGHT * sizeof(EightSums);
}

template <class F>
constexpr TileKernels VNNI_KERNELS{6,         BLOCK,            vnni_stride,    vnni_hidden_stride, vnni_scratch<F>,
                                   vnni_pack, vnni_multiply<F>, vnni_glu<F>, vnni_seal};

// For fill_table: what tiles a block format has whose activations are rounded to int8.
struct VnniTiles {
  template <class F>
  static constexpr const TileKernels* of() {
    return &VNNI_KERNELS<F>;
  }
};

}  // namespace
}  // namespace headrace
