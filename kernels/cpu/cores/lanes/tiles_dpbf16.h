// Products of many tokens by vdpbf16ps, for CPUs with AVX512-BF16 and VBMI: a lane is a row of weights.
//
//   out[r][t] = sum over k of bf16(w[r][k]) * bf16(x[t][k])
//
// Rows and tokens: eights.h. A panel is pairs of bf16 [k / 2][part][run] of 256 or 512 columns, which the first cache holds, an
// eight of tokens dwords [k / 2][8 tokens]; both are padded with zeros to whole blocks. What a weight becomes is a format's business:
//
//   Bf16Pairs    what it is
//   F16Pairs     two bf16 whose sum it is, exactly: 11 bits do not fit into 8. Twice the products; float32 arithmetic has half
//                their rate and reaches a smaller share of it
//   Fp8Pairs     what it is without its scale; those of 128 columns are summed, then scaled, as by dot products (fp8.h)
//   BlockPairs   code * scale + minimum, rounded to bf16 once, as in AMX tiles (tiles_bf16.h)
//
// Sums run over k in one order, so a token's result depends on nothing beside it; subnormals count as zero.
//
// Measured on one core of a Zen 5, processor time in turns, shares of what the instruction does on registers alone.
// - 2 runs of 16 rows times 8 tokens, which are 16 sums, out of the second cache without unpacking: 0.99 to 1.03, and so are
//   3 x 8, 4 x 6 and 2 x 12, or less.
// - An expert of 2048 x 768 in bf16 with 16 / 32 / 64 / 512 tokens: 0.62 / 0.75 / 0.83 / 0.89. Panels of all columns with 32
//   and 64: 0.72 / 0.80. All lines of the next rows asked for during the first eight of tokens, not over four of them: 0.45 /
//   0.62 / 0.74 / 0.89. Sums saved after all tokens, not as they become whole: down alone 0.84 in place of 0.90 with 512.
//   Stored past the caches: the same.
// - With 4 and 8 tokens reading the weights takes the time: 0.17 and 0.30. Lines asked for during the unpacking too: 0.14 and
//   0.28 without. With 16 tokens and more that is worse: 0.50 / 0.68 / 0.79 / 0.88.
#pragma once

#include "cores/lanes/eights.h"
#include "formats/exact.h"
#include "formats/fp8.h"
#include "formats/tile_formats_bf16.h"

namespace headrace {
namespace {

struct Steps {
  int begin, end;
};

constexpr int BLOCK_PAIRS = BLOCK / 2;

// Where pair 0 of a run begins, and how far it is to the next.
template <int PARTS>
struct RunPairs {
  static constexpr size_t STEP = size_t(PARTS) * RUNS * 64;
  uint8_t* first;

  void put(int pair, int part, __m512i values) const {
    _mm512_store_si512(first + size_t(pair) * STEP + part * RUNS * 64, values);
  }
};

// 16 vectors of 16 pairs of a row each, from pair `from` on.
template <int PARTS>
inline __attribute__((always_inline)) void put_turned(const RunPairs<PARTS>& to, int from, int part, V (&a)[W]) {
  transpose(a);
#pragma GCC unroll 16
  for (int d = 0; d < W; d++) to.put(from + d, part, as_ints(a[d]));
}

// A block of words of a row; what is beyond `left` is zero.
inline __m512i block_words(const uint8_t* p, int left) {
  return _mm512_maskz_loadu_epi16(left >= BLOCK ? ~0u : (1u << left) - 1, p);
}

// PIECE: blocks of a panel.
struct Bf16Pairs {
  static constexpr int PARTS = 1, SCALED_STEPS = 0, PIECE = 8;
  static size_t more_bytes(int) { return 0; }

  static void unpack(const Rows16& rows, int cols, Steps steps, const RunPairs<PARTS>& to, const Ahead& ahead, uint8_t*) {
    for (int step = steps.begin; step < steps.end; step++) {
      ahead.ask(step - steps.begin);
      V a[W];
      const size_t from = size_t(step) * 2 * BLOCK;
      if (rows.stride && cols - step * BLOCK >= BLOCK) {
        load_lines(rows.at[0] + from, rows.stride, a);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) a[i] = as_floats(block_words(rows.at[i] + from, cols - step * BLOCK));
      }
      put_turned(to, (step - steps.begin) * BLOCK_PAIRS, 0, a);
    }
  }
};

struct F16Pairs {
  static constexpr int PARTS = 2, SCALED_STEPS = 0, PIECE = 8;
  static size_t more_bytes(int) { return 0; }

  // What is left of a float that was rounded to bf16; nothing of one that is no number.
  static V rest(V exact, __m256i rounded) {
    return _mm512_maskz_sub_ps(_mm512_cmp_ps_mask(vabs(exact), set1(65504.0f), _CMP_LE_OQ), exact, from_bf16(rounded));
  }

  static void unpack(const Rows16& rows, int cols, Steps steps, const RunPairs<PARTS>& to, const Ahead& ahead, uint8_t*) {
    for (int step = steps.begin; step < steps.end; step++) {
      ahead.ask(step - steps.begin);
      V a[W], b[W];
      for (int i = 0; i < W; i++) {
        const __m512i words = block_words(rows.at[i] + size_t(step) * 2 * BLOCK, cols - step * BLOCK);
        const V low = from_f16(_mm512_castsi512_si256(words)), high = from_f16(_mm512_extracti64x4_epi64(words, 1));
        const __m512i both = to_bf16_pair(low, high);
        a[i] = as_floats(both);
        b[i] = as_floats(to_bf16_pair(rest(low, _mm512_castsi512_si256(both)), rest(high, _mm512_extracti64x4_epi64(both, 1))));
      }
      put_turned(to, (step - steps.begin) * BLOCK_PAIRS, 0, a);
      put_turned(to, (step - steps.begin) * BLOCK_PAIRS, 1, b);
    }
  }
};

// Low and high bytes of bf16 to words: of bytes 0 and 1 of every dword, or of bytes 2 and 3.
struct alignas(64) JoinBytes {
  uint8_t at[2][64];
};
constexpr JoinBytes JOIN_BYTES = [] {
  JoinBytes made{};
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 64; i++) made.at[half][i] = uint8_t(i / 4 * 4 + 2 * half + i % 4 / 2 + i % 2 * 64);
  return made;
}();

struct Fp8Pairs {
  static constexpr int PARTS = 1, SCALED_STEPS = FP8_RUN / BLOCK, PIECE = 16;
  static_assert(PIECE % SCALED_STEPS == 0);
  static size_t more_bytes(int) { return size_t(PIECE) / SCALED_STEPS * RUNS * 64; }

  static void unpack(const Rows16& rows, int cols, Steps steps, const RunPairs<PARTS>& to, const Ahead& ahead,
                     uint8_t* more) {
    const int begin = steps.begin * BLOCK, end = least(cols, steps.end * BLOCK);
    for (int c = begin; c < end; c += 2 * BLOCK) {
      for (int half = 0; half < 2; half++) ahead.ask((c - begin) / BLOCK + half);
      const int words = least(W, (end - c) / 4);
      V a[W];
      load_words(rows, Fp8Format::scales_bytes(cols) + size_t(c), words, a);
#pragma GCC unroll 16
      for (int d = 0; d < W; d++) {
        if (d >= words) break;
        I low, high;
        Fp8Bf16::bytes_of(as_ints(a[d]), &low, &high);
        for (int half = 0; half < 2; half++)
          to.put((c - begin) / 2 + 2 * d + half, 0, _mm512_permutex2var_epi8(low, int_load(JOIN_BYTES.at[half]), high));
      }
    }
    float* scales = reinterpret_cast<float*>(more);
    for (int c = begin; c < end; c += FP8_RUN, scales += RUNS * W)
      for (int i = 0; i < W; i++) scales[i] = scale_of_run(rows.at[i], c / FP8_RUN);
  }
};

// Two vectors of floats, of even and of odd columns, to pairs of bf16.
inline __m512i interleaved(V even, V odd) {
  return _mm512_permutexvar_epi16(_mm512_load_si512(INTERLEAVE), to_bf16_pair(even, odd));
}

template <class F>
struct BlockPairs {
  static constexpr int PARTS = 1, SCALED_STEPS = 0, PIECE = BLOCK_GROUP, EACH = F::Scales::MIN ? 2 : 1;
  static size_t more_bytes(int) { return size_t(PIECE) * FACTORS<F> * RUNS * 64; }

  template <int I_>
  static inline V value(I words, V scale, V min) {
    const V code = ExactFormat<F>::template byte_of<I_>(words);
    return F::Scales::MIN ? fma(code, scale, min) : mul(code, scale);
  }

  // A block of all rows.
  static inline __attribute__((always_inline)) void put(const Step& codes, const float* factors, const RunPairs<PARTS>& to,
                                                        int pair) {
    Step q;
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++) q[j] = codes[j];
    signed_codes<typename F::Codes>(q);
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++) {
      const float* at = factors + (F::PARTS == 1 ? 0 : j / 4) * EACH * RUNS * W;
      const V scale = load(at), min = load(at + (EACH - 1) * RUNS * W);
      to.put(pair + 2 * j, 0, interleaved(value<0>(q[j], scale, min), value<1>(q[j], scale, min)));
      to.put(pair + 2 * j + 1, 0, interleaved(value<2>(q[j], scale, min), value<3>(q[j], scale, min)));
    }
  }

  static void unpack(const Rows16& rows, int cols, Steps steps, const RunPairs<PARTS>& to, const Ahead& ahead,
                     uint8_t* more) {
    const int blocks = cols / BLOCK;
    float* factors = reinterpret_cast<float*>(more);
    for (int first = steps.begin; first < steps.end; first += BLOCK_GROUP) {
      const int n = least(BLOCK_GROUP, blocks - first), done = first - steps.begin;
      unpack_factors<F>(rows, blocks, first, n, [&](int block, int which, V values) __attribute__((always_inline)) {
        store(factors + (size_t(block) * FACTORS<F> + which) * RUNS * W, values);
      });
      unpack_codes<F>(rows, blocks, first, n, [&](int block, const Step& q) __attribute__((always_inline)) {
        ahead.ask(done + block);
        put(q, factors + size_t(block) * FACTORS<F> * RUNS * W, to, (done + block) * BLOCK_PAIRS);
      });
    }
  }
};

inline __m512bh token_pair(const uint8_t* x, int t) {
  int32_t pair;
  __builtin_memcpy(&pair, x + t * 4, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// Tokens that are multiplied at once, at most: 24 sums in registers. With 14 an expert of 14 tokens takes 1.05 times as long, as
// the next rows are then asked for all at once.
constexpr int TOGETHER = 12;

// How many of those that are left come next: eight, and the last few with the eight before them. Sums of two or four tokens are
// too few chains to hide how long the instruction takes.
constexpr int together(int left) { return left <= TOGETHER ? left : EIGHT; }
constexpr int times_together(int tokens) { return tokens <= TOGETHER ? 1 : 1 + eights_of(tokens - TOGETHER); }

// T tokens, those of an eight at x and of the one at `next`; SCALED: sums of so many steps are scaled, and added up in `out`;
// 0: none are.
template <int T, int PARTS, int SCALED>
struct PairProducts {
  static inline __attribute__((always_inline)) void step(const uint8_t* w, const uint8_t* x, const uint8_t* next,
                                                         V (&acc)[T][RUNS]) {
#pragma GCC unroll 4
    for (int pair = 0; pair < BLOCK_PAIRS; pair++, x += EIGHT * 4, next += EIGHT * 4)
#pragma GCC unroll 2
      for (int part = 0; part < PARTS; part++, w += RUNS * 64) {
        const __m512bh a = (__m512bh)int_load(w), b = (__m512bh)int_load(w + 64);
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) {
          const __m512bh token = t < EIGHT ? token_pair(x, t) : token_pair(next, t - EIGHT);
          acc[t][0] = _mm512_dpbf16_ps(acc[t][0], a, token);
          acc[t][1] = _mm512_dpbf16_ps(acc[t][1], b, token);
        }
      }
  }

  // Sums of all steps before grow by those of a panel.
  static __attribute__((noinline)) void run(const uint8_t* w, const uint8_t* x, const uint8_t* next, int steps,
                                            const float* scales, const Ahead& ahead, float (*out)[RUNS][W]) {
    constexpr size_t W_STEP = BLOCK_PAIRS * RunPairs<PARTS>::STEP, X_STEP = BLOCK_PAIRS * EIGHT * 4;
    const int each = SCALED ? SCALED : steps;
    for (int first = 0; first < steps; first += each, scales += RUNS * W) {
      V acc[T][RUNS];
#pragma GCC unroll 12
      for (int t = 0; t < T; t++)
#pragma GCC unroll 2
        for (int r = 0; r < RUNS; r++) acc[t][r] = SCALED ? zero() : load(out[t][r]);
      for (int s = first; s < least(steps, first + each); s++) {
        ahead.ask(s);
        step(w + s * W_STEP, x + s * X_STEP, next + s * X_STEP, acc);
      }
#pragma GCC unroll 12
      for (int t = 0; t < T; t++)
#pragma GCC unroll 2
        for (int r = 0; r < RUNS; r++)
          store(out[t][r], SCALED ? fma(load(scales + r * W), acc[t][r], load(out[t][r])) : acc[t][r]);
    }
  }
};

inline size_t pairs_half(int cols) { return tile_stride(cols) / 2; }  // of eight tokens

// Hidden values: as activations, and before those are made, as floats.
inline size_t pairs_hidden_stride(int width) { return tile_stride(width) + hidden_row(width) * TILE_SIDE * 4; }

// Columns c .. c + 32 of eight tokens: 16 pairs.
inline void pack_pairs(const EightTokens& token, int c, int left, uint8_t* to) {
  __m256i low[EIGHT], high[EIGHT];
#pragma GCC unroll 8
  for (int i = 0; i < EIGHT; i++) {
    const float* x = token.at[i] + c;
    const V first = left >= W ? load(x) : load_n(x, left);
    const V second = left >= BLOCK ? load(x + W) : left > W ? load_n(x + W, left - W) : zero();
    const __m512i both = to_bf16_pair(first, second);
    low[i] = _mm512_castsi512_si256(both), high[i] = _mm512_extracti64x4_epi64(both, 1);
  }
  transpose8(low), transpose8(high);
  __m256i* line = reinterpret_cast<__m256i*>(to);
#pragma GCC unroll 8
  for (int i = 0; i < EIGHT; i++) _mm256_storeu_si256(line + i, low[i]), _mm256_storeu_si256(line + EIGHT + i, high[i]);
}

void pairs_pack(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles) {
  for (int first = 0; first < count; first += EIGHT) {
    const EightTokens token(x, stride, index, first, count);
    for (int c = 0; c < cols; c += BLOCK, tiles += TILE_BYTES / 2) pack_pairs(token, c, cols - c, tiles);
  }
}

void pairs_seal(uint8_t* hidden, int count, int width) {
  pairs_pack(reinterpret_cast<const float*>(hidden + tile_stride(width)), hidden_row(width), nullptr, count, width, hidden);
}

// What a thread needs: a panel, the sums of a pass, and what unpacking needs besides.
template <class F>
struct PairScratch {
  static constexpr size_t PANEL = size_t(F::PIECE) * BLOCK_PAIRS * RunPairs<F::PARTS>::STEP;
  uint8_t* panel;

  EightSums* sums() const { return reinterpret_cast<EightSums*>(panel + PANEL); }
  uint8_t* more() const { return panel + PANEL + PASS_SUMS; }
};

template <class F>
size_t pairs_scratch(int cols) {
  return PairScratch<F>::PANEL + PASS_SUMS + F::more_bytes(cols);
}

// Up to TOGETHER tokens.
template <class F>
void pair_products(const PairScratch<F>& scratch, const uint8_t* x, const uint8_t* next, int steps, int tokens, const Ahead& ahead,
                   EightSums* sums) {
  constexpr int PARTS = F::PARTS, SCALED = F::SCALED_STEPS;
  constexpr decltype(&PairProducts<8, PARTS, SCALED>::run) by_pairs[TOGETHER / 2] = {
      PairProducts<2, PARTS, SCALED>::run, PairProducts<4, PARTS, SCALED>::run,  PairProducts<6, PARTS, SCALED>::run,
      PairProducts<8, PARTS, SCALED>::run, PairProducts<10, PARTS, SCALED>::run, PairProducts<12, PARTS, SCALED>::run};
  by_pairs[(tokens - 1) / 2](scratch.panel, x, next, steps, reinterpret_cast<const float*>(scratch.more()), ahead, sums[0]);
}

// 16 rows of both runs from `row` on with up to PASS_TOKENS tokens from `token` on, panel after panel: save(sums, row, token,
// tokens). Sums are saved as soon as they are whole, so that one eight's stores are waited for while the next is multiplied;
// meanwhile the rows behind these are asked for.
template <class F, class Save>
void pairs_pass(const RowPair& w, int row, const TileTokens& x, int token, int cols, const PairScratch<F>& scratch,
                const Save& save) {
  const uint8_t *a = w.a + size_t(row) * w.row_bytes, *b = w.b + size_t(row) * w.row_bytes;
  const Rows16 rows_a(a, w.row_bytes, w.na - row), rows_b(row < w.nb ? b : a, w.row_bytes, most(w.nb - row, 1));
  const int all = tile_steps(cols), tokens = least(PASS_TOKENS, x.count - token), times = times_together(tokens);
  const int early = tokens <= EIGHT ? 2 : 0, parts = early + least(times, ASKING);
  const size_t rows_bytes = W * w.row_bytes, each = rows_bytes / all;
  const auto each_eight = [&](int t, int n, const auto& visit) {
    for (const int end = t + n; t < end; t += EIGHT) visit(t, least(EIGHT, end - t));
  };
  __builtin_memset(scratch.sums(), 0, eights_of(tokens) * sizeof(EightSums));
  for (int first = 0; first < all; first += F::PIECE) {
    const int end = least(all, first + F::PIECE);
    const auto ahead = [&](int part) {
      const size_t done = rows_bytes + first * each + (end - first) * each * part / parts;
      return Ahead{a + done, b + done, part < parts ? each / parts : 0};
    };
    const auto eight = [&](int t) {
      const uint8_t* at = x.base + t / TILE_SIDE * x.stride + t % TILE_SIDE / EIGHT * pairs_half(cols);
      return at + size_t(first) * (TILE_BYTES / 2);
    };
    F::unpack(rows_a, cols, {first, end}, {scratch.panel}, ahead(early ? 0 : parts), scratch.more());
    F::unpack(rows_b, cols, {first, end}, {scratch.panel + 64}, ahead(early ? 1 : parts), scratch.more() + 64);
    for (int i = 0; i < times; i++) {
      const int t = token + i * EIGHT, n = together(tokens - i * EIGHT);
      EightSums* sums = scratch.sums() + i;
      if (end == all) each_eight(t, n, [&](int at, int count) { save.ask(row, at, count); });
      pair_products<F>(scratch, eight(t), eight(t + EIGHT), end - first, n, ahead(early + i), sums);
      if (end == all) each_eight(t, n, [&](int at, int count) { save(sums[(at - t) / EIGHT], row, at, count); });
    }
  }
}

// All rows, 16 of both runs at a time, with all tokens.
template <class F, class Save>
void pairs_run(const RowPair& w, const TileTokens& x, int cols, uint8_t* scratch_, const Save& save) {
  const PairScratch<F> scratch{scratch_};
  for (int row = 0; row < w.na; row += W)
    for (int token = 0; token < x.count; token += PASS_TOKENS) pairs_pass<F>(w, row, x, token, cols, scratch, save);
}

template <class F>
void pairs_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  pairs_run<F>(w, x, cols, scratch, SaveProducts{w, out});
}

template <class F>
void pairs_glu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  pairs_run<F>(w, x, cols, scratch, SaveHidden{w, h, tile_stride(h.width)});
}

template <class F>
constexpr TileKernels pairs_kernels(int min_tokens) {
  return {min_tokens, 0,                 tile_stride,  pairs_hidden_stride, pairs_scratch<F>,
          pairs_pack, pairs_multiply<F>, pairs_glu<F>, pairs_seal};
}

// vdpbf16ps on registers, in so many chains that its latency does not show: what the instruction can do at best.
double bf16_peak(int rounds) {
  constexpr int CHAINS = 16;
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  V sums[CHAINS];
#pragma GCC unroll 16
  for (int i = 0; i < CHAINS; i++) sums[i] = zero();
  for (int r = 0; r < rounds; r++)
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) {
      sums[i] = _mm512_dpbf16_ps(sums[i], ones, ones);
      asm volatile("" : "+v"(sums[i]));  // its value counts
    }
  return double(rounds) * CHAINS * 32 * 2;
}

}  // namespace
}  // namespace headrace
