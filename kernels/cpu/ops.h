// The ops as plain functions over pointers and sizes: what bind.cpp calls. Formulas and shapes are in reference.py.
//
// Strides count floats, from one token to the next. Each op takes the team for one turn; shapes have been checked by
// the Python wrapper.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

struct Weights {  // a packed matrix [rows, cols]
  int format, rows, cols;
  const uint8_t* data;
};

struct Bank {  // all experts of a layer: blocks of `bytes`, each gate [width, hidden] | up | down [hidden, width]
  int format, experts, hidden, width;
  size_t bytes;
  const uint8_t* data;
};

struct Cache {  // one layer's pages of keys or values [pages, G, page_keys, d]
  int format, groups, page_keys, d;
};

// convert.cpp
void quantize(const uint8_t* values, int values_format, int rows, int cols, int format, uint8_t* out);
void dequantize(const Weights& matrix, float* out);
// Throws std::out_of_range for an id that the table does not have.
void embed(const Weights& table, const int64_t* ids, int tokens, float scale, float* out);
void kv_write(const Cache& cache, uint8_t* k_cache, uint8_t* v_cache, const float* k, int64_t k_stride, const float* v,
              int64_t v_stride, const int64_t* slots, int tokens);

// pointwise.cpp
void rmsnorm(const float* x, int64_t x_stride, float* y, int64_t y_stride, const float* weight, int tokens, int heads,
             int d, float eps);
void add_rmsnorm(float* x, const float* y, const float* weight, float* out, int tokens, int d, float eps, float scale);
void rope(float* x, int64_t stride, const float* cos, const float* sin, const int32_t* positions, int tokens, int heads,
          int d, int r);
void silu_mul(const float* gate_up, float* out, int tokens, int width);
void gated_add(float* y, const float* z, const float* gate, int tokens, int d);
void route(const float* logits, int tokens, int experts, int top_k, bool softmax_first, bool renormalise, int32_t* ids,
           float* weights);

// linear.cpp
void linear(const float* x, int64_t x_stride, int tokens, const Weights& weight, const float* bias, float* y);

// attention.cpp
struct AttentionArgs {
  const float* q;  // [T, N, d], strided in T
  int64_t q_stride;
  Cache cache;
  const uint8_t *k, *v;
  const int32_t *tables, *starts, *contexts;  // [S, table_len], [S + 1], [S]
  int sequences, table_len, heads;
  float scale;
  float* out;  // [T, N, d]
};
void attention(const AttentionArgs& args);

// experts.cpp; throws std::out_of_range for an id that the bank does not have
void experts(const float* x, int tokens, const int32_t* ids, const float* weights, int top_k, const Bank& bank,
             float* y);

// measure.cpp
double stream_read(const uint8_t* data, size_t bytes);  // seconds
double peak_rate(bool tiles);                           // operations a second, bf16 tiles or int8; 0: none
double region_ns(int rounds);                           // dispatch and join of an empty region
double barrier_ns(int rounds);                          // one barrier inside a region

}  // namespace headrace
