// Products of many tokens by vpdpbusd, for every block format: a lane is a row of weights.
//
//   out[r][t] = sum over blocks b of xs[t][b] * (scale[r][b] * (integer dot of block b) + min[r][b] * (sum of x's codes))
//
// The formula and the rounding of the dot products (formats/blocks.h); only the order of additions differs. A group of blocks
// of 16 rows of both runs is unpacked once for all tokens, to codes [block][k / 4][run] and floats [block][factor][run], a panel
// that the first cache holds. Tokens: tiles_vnni_tokens.h; what it shares with bf16: eights.h.
//
// vpdpbusd has two ports, which the multiplications of the scales need too: eight of ten turns are left to it, eight of eleven
// with minimums or two parts. Shifts, masks, turns within quarters of a line and conversions go through other ports (measured on
// Zen 5), so that what can be done by those costs next to nothing.
#pragma once

#include <type_traits>

#include "cores/lanes/tiles_vnni_tokens.h"

namespace headrace {
namespace {

// What the products need to know of a format. NIBBLES: codes of 4 bits that are bytes after a shift and a mask stay words until
// they are multiplied: half as many lines to store and to load, and ports that vpdpbusd does not need are free to unpack them.
// POWERS: scales are powers of two, and those of the panel and of the tokens are medium, so that their product is a sum of
// exponents: exact, and without one of the two multiplications that vpdpbusd has to wait for.
template <int OFFSET_, int PARTS_, bool MIN_, bool NIBBLES_, bool POWERS_>
struct PanelOf {
  static constexpr int OFFSET = OFFSET_, PARTS = PARTS_;
  static constexpr bool MIN = MIN_, NIBBLES = NIBBLES_, POWERS = POWERS_;
  static constexpr int LINES = NIBBLES ? WORDS / 2 : WORDS;  // of a block and a run
  using Tokens = TokenLines<PARTS, MIN>;
  static constexpr size_t CODES_BYTES = size_t(LINES) * RUNS * 64;
  // Blocks of a panel: 16 KB of codes, which the first cache holds. Sums of many tokens wait in the second, so that it is a
  // longer one for them, but where there are two sums a block and a panel would be read twice.
  static constexpr int FEW = 128, GROUP = (NIBBLES ? 2 : 1) * BLOCK_GROUP, MOST = PARTS == 2 ? GROUP : 4 * BLOCK_GROUP;
  static_assert(PARTS == 1 || !(NIBBLES || POWERS), "their sums go into one");
  static_assert(!(MIN && POWERS), "minimums are no powers");
  static_assert(!(MIN && OFFSET), "tokens have one kind of sums");
};
template <class F, bool POWERS = false, class C = typename F::Codes>
using PanelFor = PanelOf<C::OFFSET, F::PARTS, F::Scales::MIN, std::is_same<C, Planes<0, 4, C::OFFSET>>::value, POWERS>;

template <class F>
constexpr bool HAS_POWERS = std::is_same<typename F::Scales, PowerScales>::value;

// A group of blocks and a run; tells whether all factors are medium.
template <class F>
bool vnni_unpack(const Rows16& rows, int blocks, int first, int n, int run, uint8_t* panel, float* factors, const Ahead& ahead) {
  using P = PanelFor<F>;
  const auto line = [&](int block, int j) { return panel + size_t(block) * P::CODES_BYTES + (j * RUNS + run) * 64; };
  if constexpr (P::NIBBLES)
    turn_codes<F>(rows, blocks, first, n, [&](int block, int word, I codes) __attribute__((always_inline)) {
      if (word == 0) ahead.ask(block);
      _mm512_store_si512(line(block, word), codes);
    });
  else
    unpack_codes<F>(rows, blocks, first, n, [&](int block, const Step& q) __attribute__((always_inline)) {
      ahead.ask(block);
#pragma GCC unroll 8
      for (int j = 0; j < WORDS; j++) _mm512_store_si512(line(block, j), q[j]);
    });
  V smallest = set1(1.0f), largest = smallest;
  unpack_factors<F>(rows, blocks, first, n, [&](int block, int which, V values) __attribute__((always_inline)) {
    store(factors + ((size_t(block) * FACTORS<F> + which) * RUNS + run) * W, values);
    if (HAS_POWERS<F>) smallest = vmin(values, smallest), largest = vmax(values, largest);
  });
  return max_lane(largest) <= MEDIUM_WEIGHT && max_lane(div(set1(1.0f), smallest)) <= MEDIUM_WEIGHT;
}

// So many blocks of both runs: codes, then factors.
template <class F>
struct Panel {
  uint8_t* codes;
  float* factors;

  static size_t codes_bytes(int blocks) { return round_up(size_t(blocks), BLOCK_GROUP) * PanelFor<F>::CODES_BYTES; }
  static size_t bytes(int blocks) { return codes_bytes(blocks) + size_t(blocks) * FACTORS<F> * RUNS * 64; }
  Panel(uint8_t* at, int blocks) : codes(at), factors(reinterpret_cast<float*>(at + codes_bytes(blocks))) {}

  // Blocks first .. first + n of a row; tells whether all factors are medium, where that matters. `ahead` is asked for during
  // the first run's, then during the second's.
  bool unpack(const Rows16 (&rows)[RUNS], int blocks, int first, int n, const Ahead (&ahead)[RUNS]) const {
    bool medium = true;
    for (int done = 0; done < n; done += BLOCK_GROUP)
      for (int run = 0; run < RUNS; run++)
        medium &= vnni_unpack<F>(rows[run], blocks, first + done, least(BLOCK_GROUP, n - done), run,
                                 codes + size_t(done) * PanelFor<F>::CODES_BYTES, factors + size_t(done) * FACTORS<F> * RUNS * W,
                                 ahead[run].from(done));
    return medium;
  }
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
#pragma GCC unroll 2
    for (int part = 0; part < P::PARTS; part++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        sums[part][t][0] = sums[part][t][1] =
            P::OFFSET ? shift_left<log2_of(P::OFFSET)>(token_int(x, OF_PART + part, t)) : int_zero();
#pragma GCC unroll 8
    for (int line = 0; line < P::LINES; line++) {
      const I a = int_load(w + line * RUNS * 64), b = int_load(w + line * RUNS * 64 + 64);
      auto& part = sums[P::PARTS == 1 ? 0 : line / 4];
      if (!P::NIBBLES) {
        add_line(a, b, x, line, part);
      } else {
        const I four = int_set1(0x0F0F0F0F);
        add_line(bit_and(a, four), bit_and(b, four), x, line, part);
        add_line(bit_and(shift_right<4>(a), four), bit_and(shift_right<4>(b), four), x, line + P::LINES, part);
      }
    }
  }

  static inline __attribute__((always_inline)) void add_line(I a, I b, const uint8_t* x, int j, I (&sums)[T][RUNS]) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const I token = token_int(x, j, t);
      sums[t][0] = _mm512_dpbusd_epi32(sums[t][0], a, token);
      sums[t][1] = _mm512_dpbusd_epi32(sums[t][1], b, token);
    }
  }

  // acc += xs * (scale * dot) of a block.
  static inline __attribute__((always_inline)) void scale(const float* f, const uint8_t* x, const Sums& sums,
                                                          V (&acc)[T][RUNS]) {
    constexpr int LAST = P::PARTS - 1;
#pragma GCC unroll 2
    for (int run = 0; run < RUNS; run++) {
      const V first = load(f + run * W), last = load(f + (LAST * EACH * RUNS + run) * W);
      const I exponents = int_sub(as_ints(first), as_ints(set1(1.0f)));
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        if (P::POWERS) {
          const V by = as_floats(int_add(token_int(x, SCALE, t), exponents));
          acc[t][run] = fma(to_float(sums[0][t][run]), by, acc[t][run]);
          continue;
        }
        V total = mul(to_float(sums[0][t][run]), first);
        if (P::PARTS == 2) total = fma(to_float(sums[LAST][t][run]), last, total);
        acc[t][run] = fma(total, token_float(x, SCALE, t), acc[t][run]);
      }
    }
  }

  // acc += min * (xs * sum of x's codes).
  static inline __attribute__((always_inline)) void add_minimums(const float* f, const uint8_t* x, V (&acc)[T][RUNS]) {
#pragma GCC unroll 2
    for (int part = 0; part < P::PARTS; part++) {
      const V a = load(f + (part * EACH + 1) * RUNS * W), b = load(f + (part * EACH + 1) * RUNS * W + W);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        const V by = token_float(x, OF_PART + part, t);
        acc[t][0] = fma(a, by, acc[t][0]);
        acc[t][1] = fma(b, by, acc[t][1]);
      }
    }
  }

  // Tokens `from` .. from + N of a block.
  template <int N>
  static inline __attribute__((always_inline)) void block(const uint8_t* w, const float* f, const uint8_t* x, int from,
                                                          V (&acc)[T][RUNS]) {
    using Some = PanelProducts<N, P>;
    auto& mine = reinterpret_cast<V(&)[N][RUNS]>(acc[from]);
    typename Some::Sums sums;
    Some::dots(w, x + from * 4, sums);
    Some::scale(f, x + from * 4, sums, mine);
    if (P::MIN) Some::add_minimums(f, x + from * 4, mine);
  }

  // Sums of all blocks before grow by those of a panel. Eight tokens at a time have more sums than there are registers; what
  // is put aside waits behind stores of results that wait for their lines. So four after the other, with a fence so that
  // nothing is loaded early. With minimums and unpacked codes no faster.
  static __attribute__((noinline)) void run(const uint8_t* panel, const float* f, const uint8_t* x, int blocks,
                                            const Ahead& ahead, float (*out)[RUNS][W]) {
    V acc[T][RUNS];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[t][0] = load(out[t][0]), acc[t][1] = load(out[t][1]);
    for (int b = 0; b < blocks; b++, panel += P::CODES_BYTES, x += P::Tokens::BYTES, f += P::PARTS * EACH * RUNS * W) {
      ahead.ask(b);
      if constexpr (T == 8 && (!P::MIN || P::NIBBLES)) {
        block<4>(panel, f, x, 0, acc);
        asm volatile("" ::: "memory");
        block<4>(panel, f, x, 4, acc);
        asm volatile("" ::: "memory");
      } else {
        block<T>(panel, f, x, 0, acc);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) store(out[t][0], acc[t][0]), store(out[t][1], acc[t][1]);
  }
};

// Up to eight tokens; with two sums a block, four at a time, so that sums stay in registers.
template <class P>
void eight_products(const uint8_t* panel, const float* f, const uint8_t* x, int blocks, int tokens, const Ahead& ahead,
                    EightSums& out) {
  if constexpr (P::PARTS == 2) {
    if (tokens > 4) {
      PanelProducts<4, P>::run(panel, f, x, blocks, ahead, out);
      x += 4 * 4;
    }
    float(*rest)[RUNS][W] = tokens > 4 ? out + 4 : out;
    const Ahead none{nullptr, nullptr, 0};
    ((tokens - 1) % 4 < 2 ? PanelProducts<2, P>::run
                          : PanelProducts<4, P>::run)(panel, f, x, blocks, tokens > 4 ? none : ahead, rest);
  } else {
    constexpr decltype(&PanelProducts<8, P>::run) by_pairs[4] = {PanelProducts<2, P>::run, PanelProducts<4, P>::run,
                                                                 PanelProducts<6, P>::run, PanelProducts<8, P>::run};
    by_pairs[(tokens - 1) / 2](panel, f, x, blocks, ahead, out);
  }
}

// What a thread needs: a panel, and the sums of a pass.
template <class F>
struct PanelScratch {
  static size_t bytes() { return Panel<F>::bytes(PanelFor<F>::MOST) + PASS_SUMS; }
  uint8_t* first;

  Panel<F> panel() const { return {first, PanelFor<F>::MOST}; }
  EightSums* sums() const { return reinterpret_cast<EightSums*>(first + Panel<F>::bytes(PanelFor<F>::MOST)); }
};

// 16 rows of both runs from `row` on with up to PASS_TOKENS tokens from `token` on, a panel after the other: save(sums, row,
// token, tokens). Sums wait from panel to panel; meanwhile the rows behind these are asked for: where eight tokens at most have
// two sums a block, during the unpacking, too (q6_k takes 0.6 of the time, others would take 1.15 times it).
template <class F, class Save>
void vnni_pass(const RowPair& w, int row, const TileTokens& x, int token, int cols, const PanelScratch<F>& scratch,
               const Save& save) {
  const uint8_t *a = w.a + size_t(row) * w.row_bytes, *b = w.b + size_t(row) * w.row_bytes;
  const Rows16 rows[RUNS] = {{a, w.row_bytes, w.na - row}, {row < w.nb ? b : a, w.row_bytes, most(w.nb - row, 1)}};
  using Lines = typename PanelFor<F>::Tokens;
  const int blocks = cols / BLOCK, tokens = least(PASS_TOKENS, x.count - token), eights = eights_of(tokens);
  const int group = tokens <= PanelFor<F>::FEW ? PanelFor<F>::GROUP : PanelFor<F>::MOST;
  const int early = F::PARTS == 2 && eights == 1 ? 2 : 0, parts = early + least(eights, ASKING);
  const size_t rows_bytes = W * w.row_bytes, each = rows_bytes / blocks;
  const Panel<F> panel = scratch.panel();
  __builtin_memset(scratch.sums(), 0, eights * sizeof(EightSums));
  for (int first = 0; first < blocks; first += group) {
    const int n = least(group, blocks - first);
    const auto ahead = [&](int part) {
      const size_t done = rows_bytes + first * each + n * each * part / parts;
      return Ahead{a + done, b + done, part < parts ? each / parts : 0};
    };
    const bool medium = panel.unpack(rows, blocks, first, n, {ahead(early ? 0 : parts), ahead(early ? 1 : parts)});
    for (int i = 0, t = token; i < eights; i++, t += EIGHT) {
      const uint8_t* eight = x.base + t / TILE_SIDE * x.stride + t % TILE_SIDE / EIGHT * Lines::half(cols);
      const bool powers = HAS_POWERS<F> && medium && eight[Lines::medium(cols)];
      const int count = least(EIGHT, x.count - t);
      if (first + n == blocks) save.ask(row, t, count);
      (powers ? eight_products<PanelFor<F, HAS_POWERS<F>>> : eight_products<PanelFor<F>>)(
          panel.codes, panel.factors, eight + first * Lines::BYTES, n, count, ahead(early + i), scratch.sums()[i]);
      if (first + n == blocks) save(scratch.sums()[i], row, t, count);
    }
  }
}

// All rows, 16 of both runs at a time, with all tokens: save(sums, row, token, tokens).
template <class F, class Save>
void vnni_run(const RowPair& w, const TileTokens& x, int cols, uint8_t* scratch_, const Save& save) {
  const PanelScratch<F> scratch{scratch_};
  for (int row = 0; row < w.na; row += W)
    for (int token = 0; token < x.count; token += PASS_TOKENS) vnni_pass<F>(w, row, x, token, cols, scratch, save);
}

template <class F>
void vnni_multiply(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch) {
  vnni_run<F>(w, x, cols, scratch, SaveProducts{w, out});
}

template <class F>
void vnni_glu(const RowPair& w, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch) {
  vnni_run<F>(w, x, cols, scratch, SaveHidden{w, h, vnni_hidden_floats(h.width)});
}

template <class F>
size_t vnni_scratch(int) {
  return PanelScratch<F>::bytes();
}

template <class F, class L = typename PanelFor<F>::Tokens>
constexpr TileKernels VNNI_KERNELS{6,            BLOCK,            L::stride,   vnni_hidden_stride, vnni_scratch<F>,
                                   vnni_pack<L>, vnni_multiply<F>, vnni_glu<F>, vnni_seal<L>,       true};

// For fill_table: what tiles a block format has whose activations are rounded to int8.
struct VnniTiles {
  template <class F>
  static constexpr const TileKernels* of() {
    return &VNNI_KERNELS<F>;
  }
};

}  // namespace
}  // namespace headrace
