// Several residual streams, a token at a time: each has its own order of sums, whatever is beside it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ops/each_token.h"
#include "ops/residual/residual.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

const float* stream(const StreamRows& x, int t, int i) { return x.data + t * x.token_stride + i * x.stride; }

int64_t values(const StreamRows& x) { return int64_t(x.tokens) * x.streams * x.d; }

void scaled(const float* products, const float* base, float scale, int n, float* out) {
  for (int i = 0; i < n; i++) out[i] = products[i] * scale + base[i];
}

// Columns of [m, m] divided by their sums.
void balance_columns(float* x, int m, float eps) {
  for (int to = 0; to < m; to++) {
    float total = 0.0f;
    for (int from = 0; from < m; from++) total += x[from * m + to];
    for (int from = 0; from < m; from++) x[from * m + to] /= total + eps;
  }
}

void balance_rows(float* x, int m, float eps) {
  for (int from = 0; from < m; from++) {
    const float total = std::accumulate(x + from * m, x + (from + 1) * m, 0.0f);
    for (int to = 0; to < m; to++) x[from * m + to] /= total + eps;
  }
}

float dot(const FormatKernels& f32, const float* row, const float* by, int d) {
  float found;
  const uint8_t *a = reinterpret_cast<const uint8_t*>(row), *x = reinterpret_cast<const uint8_t*>(by);
  const size_t bytes = size_t(d) * sizeof(float);
  f32.dot({a, a, bytes, 1, 0}, {x, bytes, nullptr, 1}, d, {&found, &found, 1, 1});
  return found;
}

}  // namespace

void stream_weights(const StreamProducts& args, const StreamWeights& out, Turn& turn) {
  const Kernels& isa = turn.isa;
  const int m = args.streams, width = (2 + m) * m;
  each_token(turn.team, args.tokens, int64_t(args.tokens) * m * m * args.rounds * 4, [&](int t) {
    const float* products = args.products + size_t(t) * width;
    float *takes = out.takes + size_t(t) * m, *gives = out.gives + size_t(t) * m, *mixes = out.mixes + size_t(t) * m * m;
    scaled(products, args.base, args.scale[0], m, takes);
    scaled(products + m, args.base + m, args.scale[1], m, gives);
    scaled(products + 2 * m, args.base + 2 * m, args.scale[2], m * m, mixes);
    isa.sigmoid(takes, m, takes);
    isa.sigmoid(gives, m, gives);
    for (int i = 0; i < m; i++) takes[i] += args.eps, gives[i] *= 2.0f;
    for (int i = 0; i < m; i++) isa.softmax(mixes + i * m, m, mixes + i * m);
    for (int i = 0; i < m * m; i++) mixes[i] += args.eps;
    balance_columns(mixes, m, args.eps);
    for (int round = 1; round < args.rounds; round++) {
      balance_rows(mixes, m, args.eps);
      balance_columns(mixes, m, args.eps);
    }
  });
}

void take_streams(const StreamRows& x, const float* takes, const float* norm, float eps, float* out, Turn& turn) {
  const Kernels& isa = turn.isa;
  int32_t all[MOST_STREAMS];
  std::iota(all, all + x.streams, 0);
  each_token(turn.team, x.tokens, values(x), [&](int t) {
    float* y = out + size_t(t) * x.d;
    isa.weighted_sum(stream(x, t, 0), size_t(x.stride), all, takes + size_t(t) * x.streams, x.streams, x.d, y, nullptr);
    if (norm) isa.rmsnorm(y, norm, x.d, eps, y);
  });
}

void close_streams(const StreamRows& x, const float* mixes, const float* gives, int64_t gives_stride, const float* made,
                   float* out, Turn& turn) {
  const Kernels& isa = turn.isa;
  const int m = x.streams;
  each_token(turn.team, x.tokens, values(x) * (mixes ? m : 1), [&](int t) {
    for (int to = 0; to < m; to++) {
      float* y = out + (size_t(t) * m + to) * x.d;
      if (mixes) {
        int32_t at[MOST_STREAMS];
        float by[MOST_STREAMS];
        int count = 0;
        for (int from = 0; from < m; from++) {
          const float one = mixes[(size_t(t) * m + from) * m + to];
          if (one != 0.0f) at[count] = from, by[count++] = one;  // most streams of some models stay where they are
        }
        isa.weighted_sum(stream(x, t, 0), size_t(x.stride), at, by, count, x.d, y, nullptr);
      } else {
        std::memcpy(y, stream(x, t, to), size_t(x.d) * sizeof(float));
      }
      if (made) isa.add_scaled(y, made + size_t(t) * x.d, gives[t * gives_stride + to], x.d);
    }
  });
}

void fit_streams(const StreamRows& x, const float* by, float eps, float* out, Turn& turn) {
  const Kernels& isa = turn.isa;
  const FormatKernels& f32 = isa.formats[F32];
  each_token(turn.team, x.tokens, values(x) * 2, [&](int t) {
    float* fits = out + size_t(t) * x.streams;
    for (int i = 0; i < x.streams; i++) {
      const float* row = stream(x, t, i);
      fits[i] = dot(f32, row, by, x.d) / std::sqrt(dot(f32, row, row, x.d) / float(x.d) + eps);
    }
    isa.softmax(fits, x.streams, fits);
  });
}

void gate_streams(const StreamRows& x, float* open, float* out, Turn& turn) {
  const Kernels& isa = turn.isa;
  each_token(turn.team, x.tokens, values(x) * 4, [&](int t) {
    float *gates = open + size_t(t) * x.streams * x.d, *y = out + size_t(t) * x.d;
    isa.sigmoid(gates, x.streams * x.d, gates);
    std::fill_n(y, x.d, 0.0f);
    for (int i = 0; i < x.streams; i++) {
      const float *row = stream(x, t, i), *gate = gates + size_t(i) * x.d;
      for (int c = 0; c < x.d; c++) y[c] += gate[c] * row[c];
    }
    for (int c = 0; c < x.d; c++) y[c] /= float(x.streams);
  });
}

}  // namespace headrace
