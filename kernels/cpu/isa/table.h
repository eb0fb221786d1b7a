// What one instruction set offers: a table of plain functions, filled once per ISA by the same templates.
//
//   formats[code]   what a weight format needs: dot products and tiles, its activations, packing and unpacking of a row
//   exact[code]     the same without rounding activations to int8 (a file of its own, so that cores share the compiling)
//   the rest        one row, or one block, of an element-wise op or of attention
//
// Everything here works on one thread, one row or one tile; threads, tokens and experts are the business of the op
// files. Structs carry no member functions: an inline one compiled with AVX-512 could be the copy that the linker keeps
// for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

// Codes of formats.py.
enum FormatCode : int {
  F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4,
  IQ3_S, IQ3_XXS, IQ2_XXS, IQ2_XS, IQ1_S, IQ1_M,
  FP8, Q4_0_BF16, INT4_G32, INT4_G32_BF16, INT4_G128, INT4_G128_BF16, NVFP4, FORMAT_COUNT
};

// Two runs of rows, read side by side: gate and up of an expert, or the two halves of one matrix. nb is na or na - 1.
struct RowPair {
  const uint8_t* a;
  const uint8_t* b;
  size_t row_bytes;
  int na, nb;
};

// Activations of `count` tokens: token i lies at base + (index ? index[i] : i) * stride.
struct Tokens {
  const uint8_t* base;
  size_t stride;
  const int32_t* index;
  int count;
};

// Where the products of a RowPair go: a[i] . x[t] to a[t * a_stride + i], and b likewise.
struct PairOut {
  float *a, *b;
  size_t a_stride, b_stride;
};

// Activations as tiles: `count` tokens, 16 to a tile; `stride` bytes from one 16 to the next.
struct TileTokens {
  const uint8_t* base;
  size_t stride;
  int count;
};

// Between gate and up of a gated MLP: (up + offset) * gate * sigmoid(alpha * (gate + cubic * gate^3)), of a gate of at most
// `limit` and an up within +-limit; late: gate times sigmoid is at most `limit`. SwiGLU is 1, 0, infinity, 0, false.
// Not gated: there is no gate, and it is relu(up)^2. bend, bend_up: gate, where it is not in the sigmoid, and up are
// within +-bend, on the curve of a tanh; 0: they are not.
struct Activation {
  float alpha, offset, limit, cubic, bend, bend_up;
  bool late, gated;
};

// The same with biases that are added before, of the rows that are computed; null: none.
struct Glu {
  Activation activation;
  const float *gate_bias, *up_bias;
};

// Where GLU of gate and up rows goes: values first .. first + n of `width`, for the same tokens, 16 to `stride` bytes. glu:
// what is computed, its biases those of all `width` rows; null: SwiGLU.
struct TileHidden {
  uint8_t* base;
  size_t stride;
  int first, width;
  const Glu* glu;
};

// Many tokens: the same products as `dot`, with weights unpacked once for all of them. `scratch` holds scratch_bytes(cols).
struct TileKernels {
  int min_tokens;  // fewer are faster with `dot`, unless the context knows better
  int group;       // columns of a token that share a scale of int8; 0: tokens, and weights, are rounded to bf16
  size_t (*stride)(int cols);          // bytes of the activations of 16 tokens
  size_t (*hidden_stride)(int width);  // of what `glu` writes for 16 tokens
  size_t (*scratch_bytes)(int cols);
  // Up to 16 tokens to tiles; token i lies at x + (index ? index[i] : i) * stride floats.
  void (*pack)(const float* x, size_t stride, const int32_t* index, int count, int cols, uint8_t* tiles);
  void (*multiply)(const RowPair& w, const TileTokens& x, int cols, const PairOut& out, uint8_t* scratch);
  void (*glu)(const RowPair& gate_up, const TileTokens& x, int cols, const TileHidden& h, uint8_t* scratch);
  // Makes tiles of up to 16 tokens out of what `glu` wrote for all of their width; null: they are tiles already.
  void (*seal)(uint8_t* hidden, int count, int width);
  bool plain = false;  // whether `glu` leaves what `seal` of any kernels with the same hidden_stride takes

  // Whether what `glu` leaves here can go into the products of `down`.
  bool leads_to(const TileKernels& down) const {
    return pack == down.pack || (plain && hidden_stride == down.hidden_stride);
  }
};

struct FormatKernels {
  size_t (*row_bytes)(int cols);
  size_t (*acts_bytes)(int cols);  // of a token's activations, as `prepare` makes them
  void (*dot)(const RowPair& w, const Tokens& x, int cols, const PairOut& out);
  void (*prepare)(const float* x, int cols, uint8_t* acts);  // null: float32 activations are used as they are
  void (*unpack)(const uint8_t* row, int cols, float scale, float* out);
  void (*pack)(const float* x, int cols, uint8_t* row);  // null: not here; reference.py rounds to it
  const TileKernels* tiles;  // null: every number of tokens goes through `dot`
};

// The keys or the values of one head in the cache: rows of d numbers, or the first d of rows of row_d.
struct AttendRows {
  const uint8_t* first;          // in page 0
  size_t page_bytes, row_bytes;  // from one page, or row, to the next; of Q8_0 a row of codes, the scales behind all rows
  int d, row_d, dp;              // dp: d rounded up to 2 LANES_MAX
  float* wide;                   // scratch [ATTEND_KEYS][dp]: keys and values may have the same
};

// One attention item: `rows` = queries x heads of one group, row r belongs to query r / group. Values may be the first
// numbers of keys: then they are taken from those.
struct AttendItem {
  const float* q;  // [rows rounded up to 4][k.dp], as `query` leaves them
  int rows, group;
  int page_keys, format;  // keys in a page; F32, BF16 or Q8_0
  AttendRows k, v;
  const int32_t* table;
  int first, window;  // first: position of query 0; query i sees positions first + i - window + 1 .. first + i
  float* scores;      // scratch [rows rounded up to 4][ATTEND_KEYS]
  bool read_on;       // whether this thread takes the keys behind the run next
};

// The running softmax of every row: largest score, sum of exponentials, weighted sum of values in the order of the cache.
struct AttendState {
  float *m, *l, *acc;  // [rows], [rows], [rows][v.dp]
};

// One way of attention: what it makes of queries, and how it leaves sums of values, is its own business.
struct AttendKernels {
  bool (*takes)(const AttendRows& k, const AttendRows& v, int format);
  // Row `row` of `rows`, which fills its part of [rows rounded up to 4][keys.dp] floats; q null: a row that is none.
  void (*query)(const float* q, const AttendRows& keys, int format, float scale, int row, int rows, float* out);
  // Keys [begin, end) of heads of one sequence, with the same queries. States have room for rows rounded up to 4.
  void (*attend)(const AttendItem* items, int count, int begin, int end, const AttendState* states);
  void (*finish)(const AttendState& total, int row, const AttendRows& values, int format, float* out);
};

constexpr int ATTEND_KEYS = 32;  // keys per step of the online softmax
constexpr int ATTEND_ROWS = 64;  // of an item, at most
constexpr int LANES_MAX = 16;
constexpr int NO_WINDOW = 1 << 30;

// The biases of `down` of a token's experts: of expert e at first + e * stride. An id of -1 has none.
struct DownBiases {
  const float* first;
  size_t stride;
  const int32_t* ids;
};

// Some columns of one head's state [keys][.] through all tokens of a sequence, by the gated delta rule. Strides are floats,
// from one token, or row of the state, to the next.
struct DeltaRun {
  const float *q, *k;  // [tokens][keys], at the lengths that they are used with
  size_t key_stride;
  const float* products;  // q . k
  size_t product_stride;
  const float *decay, *beta;  // decay: as a factor
  size_t gate_stride;
  const float* v;
  size_t v_stride;
  float* out;
  size_t out_stride;
  float* state;
  size_t state_stride;
  float* scratch;  // [keys][columns rounded up to LANES_MAX]
  int tokens, keys, columns;
};

// What n keys, at most INDEX_KEYS, score with one query of an indexer.
struct IndexRun {
  const float *q, *weights, *keys;  // [heads][d], [heads], [d][INDEX_KEYS]
  int heads, d, n;
  float* scores;  // [n]
};

constexpr int INDEX_KEYS = 32;

// Some columns of one head's state [keys][.] through all tokens of a sequence, by the recurrence of a state space. Strides
// are floats, from one token, or row of the state, to the next.
struct SpaceRun {
  const float *in, *by;  // [tokens][keys]: what values are put in by, and what is read by
  size_t in_stride, by_stride;
  const float *decay, *step;  // decay: as a factor
  size_t gate_stride;
  const float* x;
  size_t x_stride;
  float* out;
  size_t out_stride;
  float* state;
  size_t state_stride;
  float skip;  // of values, what comes out without a state
  int tokens, keys, columns;
};

struct Kernels {
  const char* name;
  FormatKernels formats[FORMAT_COUNT];
  const FormatKernels* exact;  // [FORMAT_COUNT]: activations are never rounded to int8
  void (*rmsnorm)(const float* x, const float* weight, int n, float eps, float* y);
  void (*layernorm)(const float* x, const float* weight, const float* bias, int n, float eps, float* y);
  void (*add_scaled)(float* x, const float* y, float scale, int n);
  void (*rope)(float* x, const float* cos, const float* sin, int r);
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  void (*glu)(const float* gate, const float* up, int n, const Glu& how, float* out);
  void (*square_relu)(const float* x, int n, float* out);
  void (*gated_add)(float* y, const float* z, float gate, int n);  // y += z * sigmoid(gate)
  void (*softmax)(const float* x, int n, float* out);
  void (*sigmoid)(const float* x, int n, float* out);
  int (*largest)(const float* x, int n, float* top);
  // next: k rows that are added up after these, and are asked for meanwhile; null: none.
  void (*weighted_sum)(const float* rows, size_t stride, const int32_t* at, const float* w, int k, int n, float* y,
                       const int32_t* next);
  void (*biased_sum)(const float* rows, size_t stride, const int32_t* at, const float* w, int k, int n, float* y,
                     const int32_t* next, const DownBiases& biases);
  AttendKernels attend;
  const AttendKernels* attend_bf16;  // queries and weights rounded to bf16, of a cache of bf16; null: none
  void (*attend_merge)(const AttendState& total, const AttendState& part, int rows, int dp);
  void (*q8_pack)(const float* x, int d, uint8_t* codes, uint8_t* scales);  // rows of a Q8_0 cache
  void (*q8_unpack)(const uint8_t* codes, const uint8_t* scales, int d, float* out);
  float (*unit_pair)(const float* q, const float* k, int n, float* q_out, float* k_out);
  void (*delta_rule)(const DeltaRun& run);
  void (*conv)(const float* const* rows, const float* w, size_t stride, int taps, int n, const float* bias, bool silu,
               float* out);
  void (*state_space)(const SpaceRun& run);
  void (*index_scores)(const IndexRun& run);
  uint64_t (*stream_sum)(const uint8_t* data, size_t bytes);
  double (*float_peak)(int rounds);  // multiply-adds on registers alone; returns operations
  double (*int8_peak)(int rounds);   // integer dot products, likewise; null: none
  double (*bf16_peak)(int rounds);
  void (*tiles_begin)();  // before and after any tile work of a thread; null where there are no tiles
  void (*tiles_end)();
  double (*bf16_tiles_peak)(int rounds);  // products of tiles that are there already
  double (*int8_tiles_peak)(int rounds);
};

// How many bytes ahead of what is read weights are asked for, into the second and into the first cache: set for the op whose
// turn it is, as its context says. They change no result.
extern size_t prefetch_far, prefetch_near;

// Tables are constants of the compiler: code that fills one at the start would be compiled for an instruction set that
// this CPU may lack.
struct ExactTable {
  FormatKernels formats[FORMAT_COUNT];
};
extern const ExactTable exact_portable, exact_avx2, exact_avx512;
extern const Kernels kernels_portable, kernels_avx2, kernels_avx512;
Kernels with_bf16(const Kernels& avx512);  // only for CPUs that have BF16 and VBMI
Kernels with_amx(const Kernels& avx512);   // with BF16; only for CPUs that have AMX

}  // namespace headrace
