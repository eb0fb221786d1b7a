// The ops as plain functions over pointers and sizes: what bind.cpp calls. Formulas and shapes are in reference.py.
//
// Strides count floats, from one token to the next. An op runs in a turn that it is given, or, where it is made of several,
// takes one after another for its context. Shapes have been checked by the Python wrapper.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <variant>
#include <vector>

#include "isa/table.h"

namespace headrace {

struct Context;
class Turn;

struct Weights {  // a packed matrix [rows, cols]
  int format, rows, cols;
  const uint8_t* data;
};

struct Rows {  // packed matrices one below the other, in any formats
  Weights part[3];
  int parts;
};

inline int rows_of(const Rows& rows) {
  int n = 0;
  for (int i = 0; i < rows.parts; i++) n += rows.part[i].rows;
  return n;
}

// All experts of a layer: blocks of `bytes`, each gate [width, hidden] | up | down [hidden, width], and at bias_offset, if it
// is not 0, float32 biases of gate, up and down. Without a gate, as the activation says, `up` comes first.
struct Bank {
  int gate, up, down;  // formats; activations for gate and up are prepared alike
  int experts, hidden, width;
  size_t bytes, bias_offset;
  Activation activation;
  bool weighs_input;  // a token's weight multiplies what an expert takes of it, not what it gives
  const uint8_t* data;
};

struct Values {  // of a cache: [pages, G, page_keys, d]; bytes from one row, head's plane and page to the next
  int d;
  size_t row, plane, page;
  uint8_t* data;
};

struct Cache {  // one layer's pages of keys [pages, G, page_keys, d] and of values, which may lie inside the keys
  int format, groups, page_keys, d;
  uint8_t* k;
  Values values;
};

struct Rope {  // of the first r pairs of a head; cos, sin [positions, r]
  int r;
  const float *cos, *sin;
};

// convert.cpp
void quantize(const uint8_t* values, int values_format, int rows, int cols, int format, uint8_t* out, Turn& turn);
void dequantize(const Weights& matrix, float* out, Turn& turn);
// Throws std::out_of_range for an id that the table does not have.
void embed(const Weights& table, const int64_t* ids, int tokens, float scale, float* out, Turn& turn);

// repack.cpp: rows of a GGUF file's blocks, to rows of the format of the same name
void repack(const uint8_t* blocks, int rows, int cols, int format, uint8_t* out, Turn& turn);

// pointwise.cpp
void rmsnorm(const float* x, const float* weight, float* y, int tokens, int d, float eps, Turn& turn);
void add_rmsnorm(float* x, const float* y, const float* weight, float* out, int tokens, int d, float eps, float scale,
                 Turn& turn);
void layernorm(const float* x, const float* weight, const float* bias, float* y, int tokens, int d, float eps, Turn& turn);
void add_layernorm(float* x, const float* y, const float* weight, const float* bias, float* out, int tokens, int d, float eps,
                   float scale, Turn& turn);
inline bool is_swiglu(const Activation& a) {
  return a.gated && a.alpha == 1.0f && a.offset == 0.0f && a.cubic == 0.0f && a.bend == 0.0f && a.bend_up == 0.0f &&
         a.limit == std::numeric_limits<float>::infinity();
}
// gate_up: [tokens, 2 width], or [tokens, width] where there is no gate.
void glu(const float* gate_up, float* out, int tokens, int width, const Activation& activation, Turn& turn);
void gated_add(float* y, const float* z, const float* gate, int tokens, int d, Turn& turn);
// y[t] = sum_k weights[t, k] * rows[t, k], in the order of k. rows: [tokens, top_k, d].
void weighted_rows(const float* rows, const float* weights, int tokens, int top_k, int d, float* y, Turn& turn);
// y *= sigmoid(gate), or softplus(gate): each of `gates` is that of d / gates values next to each other.
void gate_mul(float* y, const float* gate, int tokens, int d, int gates, bool soft, Turn& turn);
void scale(float* x, const float* by, int tokens, int d, Turn& turn);  // all by the same number
// y *= by; both strided in tokens
void mul(float* y, int64_t y_stride, const float* by, int64_t by_stride, int tokens, int d, Turn& turn);
struct GatedNorm {  // of out = rmsnorm(y * silu(z)) * weight, each of `groups` parts of a row for itself
  const float *y, *z, *weight;  // [T, d], strided in T, twice; [d]
  int64_t y_stride, z_stride;
  float* out;  // [T, d]
  int tokens, d, groups;
  float eps;
};
void gated_norm(const GatedNorm& args, Turn& turn);
void argmax(const float* logits, int rows, int n, float* values, int64_t* ids, Turn& turn);

// qkv.cpp
struct HeadNorm {  // RMSNorm over runs of `size` values; size 0: none
  const float* weight;
  int size;
};
struct QkvArgs {
  float* qkv;  // [T, heads d + groups d + groups v]: queries, keys, values; without these where they are shared
  int tokens, heads;  // of queries
  Cache cache;
  Rope rope;
  const int32_t* positions;  // [T]
  const int64_t* slots;      // [T]
  HeadNorm q_norm, k_norm, v_norm;
  float eps, clip, v_scale;  // the last of values
  bool shared;  // keys before their norm serve as values
};
void place_qkv(const QkvArgs& args, Turn& turn);

struct HeadRows {  // float32 [T, N, .]: any stride from token to token and from head to head
  float* data;
  int64_t token_stride, head_stride;
  int tokens, heads;
};
void rotate(const HeadRows& x, const Rope& rope, const int32_t* positions, Turn& turn);
void scale_rows(const HeadRows& x, int d, const float* by, const int32_t* positions, Turn& turn);  // x[t] *= by[positions[t]]

// route.cpp
enum class Scoring : int { softmax, softmax_topk, sigmoid, sigmoid_topk, sparsemixer, sqrt_softplus };
constexpr std::pair<const char*, Scoring> SCORINGS[] = {
    {"softmax", Scoring::softmax}, {"softmax_topk", Scoring::softmax_topk}, {"sigmoid", Scoring::sigmoid},
    {"sigmoid_topk", Scoring::sigmoid_topk}, {"sparsemixer", Scoring::sparsemixer},
    {"sqrt_softplus", Scoring::sqrt_softplus}};
struct Router {
  Weights matrix;  // data null: none
  int top_k;
  Scoring scoring;
  bool renormalise;
  const float *bias, *choice_bias;  // [experts] of the logits, and of the scores for the choice; null: none
  int groups, top_groups;           // of neighbouring experts; how many are open to a token
  bool top2;                        // a group counts as the sum of its two best, not as its best
  float scale;
  const float* factors;  // [experts] of their weights; null: none
  float jitter;          // of sparsemixer
};
// given: ids [tokens, top_k] are there already, and weights alone are asked for.
void route(const float* x, int tokens, const Router& router, bool given, int32_t* ids, float* weights, Turn& turn);

// linear.cpp: y [tokens, y_stride], of which each token's first rows are written
void linear(const float* x, int64_t x_stride, int tokens, const Weights& weight, const float* bias, float* y,
            int64_t y_stride, Turn& turn);
void linear(const float* x, int64_t x_stride, int tokens, const Rows& rows, const float* bias, float* y, Turn& turn);

// y [T, N, rows]: each head's own product, with a matrix of N times as many rows.
void linear_by_head(const HeadRows& x, const Weights& weight, const HeadRows& y, Turn& turn);

// recurrent.cpp
struct Sequences {  // of one pass
  const int32_t *slots, *starts, *contexts;  // [S], [S + 1], [S]
  int count;
};
struct ConvArgs {
  const float *x, *weights;  // [T, channels], strided in T; [channels, taps]
  int64_t x_stride;
  float *state, *out;  // [slots, channels, taps - 1], [T, channels]
  int channels, taps;
  const float* bias;  // [channels]; null: none
  bool silu;          // of what comes out
  Sequences all;
};
void short_conv(const ConvArgs& args, Turn& turn);
struct GateArgs {
  const float* ba;               // [T, 2 heads]: strengths of a change, then what decays follow from
  const float *rate, *dt_bias;   // [heads]
  float *decay, *beta;           // [T, heads]
  int tokens, heads;
};
void delta_gates(const GateArgs& args, Turn& turn);
struct KeyGateArgs {  // decays by key
  const float *dt, *b;          // [T, heads, keys], [T, heads]: what decays and strengths follow from
  const float *rate, *dt_bias;  // [heads], [heads, keys]
  float *decay, *beta;          // as dt and b
  int tokens, heads, keys;
  float least;  // below 0: the bound of a decay, which goes by a sigmoid; 0: none
};
void key_gates(const KeyGateArgs& args, Turn& turn);
struct DeltaArgs {
  const float *q, *k, *v;  // [T, groups, keys] twice, [T, heads, values], strided in T
  int64_t q_stride, k_stride, v_stride;
  const float *decay, *beta;  // [T, heads]; decay by key: [T, heads, keys]
  float *state, *out;         // [slots, heads, keys, values], [T, heads, values]
  int tokens, groups, heads, keys, values;
  bool in_turns;  // head h has the keys of group h modulo groups, instead of those of its neighbours
  Sequences all;
  bool by_key;
};
void delta_rule(const DeltaArgs& args, Turn& turn);
struct SpaceArgs {
  const float *x, *in, *by;  // [T, heads, values], [T, groups, keys] twice, strided in T
  int64_t x_stride, in_stride, by_stride;
  const float* dt;  // [T, heads], strided in T
  int64_t dt_stride;
  const float *rate, *dt_bias, *skip;  // [heads]
  float least, most;                   // of a step
  float *state, *out;                  // [slots, heads, keys, values], [T, heads, values]
  int tokens, groups, heads, keys, values;
  Sequences all;
};
void state_space(const SpaceArgs& args, Turn& turn);

// attention.cpp
struct AttentionArgs {
  const float* q;  // [T, N, d], strided in T
  int64_t q_stride;
  Cache cache;
  const int32_t *tables, *starts, *contexts;  // [S, table_len], [S + 1], [S]
  int sequences, table_len, heads;
  float scale;
  int window;          // how many keys a query sees at most, its own included; NO_WINDOW: all
  int chunk;           // of so many positions: a query sees keys of its own one; 0: there are none
  const float* sinks;  // [N], null: none
  float* out;          // [T, N, values.d], strided in T
  int64_t out_stride;
};
void attention(const AttentionArgs& args, Turn& turn);

// chosen_keys.cpp
struct IndexArgs {  // keys of an indexer for its cache, of one head
  float* k;  // [T, d], used up
  const float *norm, *bias;  // [d], of a layer norm
  float eps;
  Cache cache;
  Rope rope;
  const int32_t* positions;
  const int64_t* slots;
  int tokens;
};
void place_index(const IndexArgs& args, Turn& turn);
struct ChooseArgs {
  const float *q, *weights;  // [T, heads, d], rotated; [T, heads]
  Cache cache;
  const int32_t *tables, *starts, *contexts;  // as of attention
  int sequences, table_len, heads, top;
  int32_t* slots;  // [T, top]: where the keys lie that a token sees, -1 behind the last
  int rate, page;  // tokens that a key stands for, in pages of so many; it lies with the last of them
  bool numbers;    // not where keys lie, but which they are
};
void choose_keys(const ChooseArgs& args, Turn& turn);

// block.cpp: a layer before its experts
struct Piece {  // tokens [first, last) of one sequence, behind which its state is copied into slot `keep`; below 0: nowhere
  int first, last, slot, keep;
  Sequences alone;
};
struct Pages {  // where layers of one kind keep their rows: [T] and [S, table_len], as in Places
  const int64_t* slots;
  const int32_t* tables;
};
struct Places {
  int tokens;
  const int32_t* positions;
  const int64_t* slots;
  const int32_t *tables, *starts, *contexts;
  int sequences, table_len;
  const int32_t* states;      // [S]: slots of recurrent states; null: the model has none
  std::vector<Piece> pieces;  // of the tokens, where states are kept on the way; else all are one piece
  std::vector<Pages> windows;  // of layers over a window, by kind; those that see everything have `slots` and `tables`
  mutable std::vector<int32_t> chosen;  // [tokens, top]: slots of the keys that a layer chose, for those behind it
  Pages of(int kind) const { return kind ? windows.at(size_t(kind) - 1) : Pages{slots, tables}; }
};
struct AttentionMixer {
  int heads;  // of queries
  Rows qkv;
  const float* qkv_bias;
  HeadNorm q_norm, k_norm, v_norm;
  float v_scale;
  bool shared;  // as in QkvArgs
  Cache cache;
  Rope rope;
  float clip, scale;
  int window, chunk;
  int kind;  // of its pages, as `Places::of` takes it
  const float* sinks;
  Weights gate;  // of what the heads give, of each value or of each head; data null: none
  bool soft;     // its softplus instead of its sigmoid
  Rope first;    // before the norms of heads, with `rope` turning nothing; r 0: none
  const float* temperature;  // by position: of queries; null: none
};
struct Indexer {  // of latent attention; q.data null: the layer has none of its own
  int heads;
  Weights q, k, weights;
  const float *norm, *bias;
  float eps;
  Cache cache;
};
struct LatentMixer {
  int heads;
  Weights q_a;  // data null: queries come straight from the hidden state
  const float *q_a_norm, *q_a_bias;
  Weights q, kv_a;
  const float *kv_a_bias, *kv_a_norm;
  Weights k_up, v_up;
  Cache cache;  // one head: keys are latents and what is rotated, values the latents in them
  Rope rope;
  float norm_eps, scale;
  const float* temperature;  // by position: of queries; null: none
  bool may_make_keys;
  Weights gate;  // a number for each head, by whose sigmoid it is weighted; data null: none
  int top;  // keys that a token sees at most; 0: all
  Indexer indexer;
};
constexpr size_t MADE_BYTES = size_t(64) << 20;  // of keys and values that are made of latents: as many heads, one at least
struct DeltaMixer {
  int k_heads, k_dim, v_heads, v_dim;
  bool in_turns;
  Rows qkv;
  Weights z, ba;
  const float* conv;  // [channels, taps]
  int taps;
  const float *rate, *dt_bias, *norm;
  float *inputs, *state;  // [slots, channels, taps - 1], [slots, v_heads, k_dim, v_dim]
  Weights decay, decay_low, z_low;  // decays by key, and through how many dims they and the gate come; data null: none
  float least;                      // as in KeyGateArgs
};
struct ConvMixer {
  Weights rows;            // [3 channels, hidden]: what the input is multiplied by, then the output, then the input
  const float *rows_bias, *conv, *conv_bias;  // null: none; [channels, taps]; [channels] or null
  int channels, taps;
  float* inputs;  // [slots, channels, taps - 1]
};
struct SpaceMixer {
  int groups, heads, keys, values;
  float least, most;       // of a step
  Weights rows;            // [heads values + channels + heads, hidden]: the gate, channels, steps
  const float *rows_bias, *conv, *conv_bias;  // null: none; [channels, taps]; [channels] or null
  int taps;
  const float *rate, *dt_bias, *skip, *norm;  // [heads] three times, [heads values]
  float *inputs, *state;  // [slots, channels, taps - 1], [slots, heads, keys, values]
};
struct NoMixer {};  // of a layer that looks at no other token
struct Block {
  int hidden;
  const float *pre_norm, *post_norm, *pre_bias, *post_bias;  // post_norm null: ends with its mixer; biases null: RMSNorms
  float eps, residual_scale;
  std::variant<AttentionMixer, LatentMixer, DeltaMixer, ConvMixer, SpaceMixer, NoMixer> mixer;
  Weights o;  // data null: no mixer
  const float* o_bias;
  const float *out_norm, *router_norm;  // of what is projected back, and in front of the router; null: none
  Router router;
};
struct Wanted {  // the tokens that go on after the mixer; rows null: all, in place
  const int64_t* rows;
  int count;
  float* x;  // [count, D]
};
// h: the norm for what follows, or, of a layer that ends with its mixer, what is to be added to x.
void attention_block(const Block& block, const Places& places, float* x, const float* update, int tokens,
                     const Wanted& wanted, float* h, int32_t* ids, float* weights, const Context& context);

// experts.cpp
// Of every pair's output; more tokens go through in chunks. A power of two and what its rows have in addition (out_stride), so
// that 2048 tokens of 8 experts and 2048 columns are not 2032 and 16.
constexpr size_t EXPERT_OUT_BYTES = size_t(129) << 20;
// Throws std::out_of_range for an id that the bank does not have.
void experts(const float* x, int tokens, const int32_t* ids, const float* weights, int top_k, const Bank& bank,
             float* y, const Context& context);

// layers.cpp
struct Tail {  // norms of a layer whose MLP and experts are normed each for itself, and what the residual stream is scaled by
  const float *mlp_in, *mlp_out, *experts_out, *out, *scale;  // out null: the layer has none
};
struct DecoderLayer {
  Block block;
  Bank bank;                          // data null: a dense layer
  Rows gate_up;                       // of the dense or the shared MLP
  Weights down, shared_gate;          // data null: none
  Activation activation;              // of the MLP
  Tail tail;
};
struct Stack {  // all layers; a class of its own, so that Python holds it and a call converts no list
  std::vector<DecoderLayer> layers;
};
struct Tally {  // who chose which expert, for whoever asks; every pointer may be null
  int64_t* counts;            // [2, layers, experts]: grows by choices of prompts' tokens, then of the first `decoding`
  int experts, decoding;
  int32_t* ids;               // [layers, tokens, top_k]: of the tokens that went on, as `route` gives them
  float* weights;
};
struct LayersArgs {
  float* x;  // [tokens, D]
  int tokens;
  Wanted wanted;  // after the last layer's mixer
  float* update;      // [tokens, D]: of each layer in turn; the last one's stays
  int32_t* distinct;  // [layers]: how many experts were chosen
  Tally tally;
};
void layers(const Stack& stack, const Places& places, const LayersArgs& args, const Context& context);

// measure.cpp
double stream_read(const uint8_t* data, size_t bytes, Turn& turn);  // seconds
enum class Peak : int { floats, int8_dots, bf16_dots, bf16_tiles, int8_tiles };
constexpr std::pair<const char*, Peak> PEAKS[] = {
    {"float multiply-adds", Peak::floats},
    {"int8 dot products", Peak::int8_dots},
    {"bf16 dot products", Peak::bf16_dots},
    {"bf16 tiles", Peak::bf16_tiles},
    {"int8 tiles", Peak::int8_tiles}};
double peak_rate(Peak which, Turn& turn);                           // operations a second on registers alone; 0: none
double region_ns(int rounds, Turn& turn);                           // dispatch and join of an empty region
double barrier_ns(int rounds, Turn& turn);                          // one barrier inside a region

}  // namespace headrace
