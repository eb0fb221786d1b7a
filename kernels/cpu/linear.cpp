// y = x W^T + bias for any format and any number of tokens.
//
// Activations are prepared once (int8 for block formats) into the arena, then every worker owns rows: few tokens, one
// long run each, read as two streams (its two halves); many tokens, pieces of rows handed out on demand; fewer rows
// than would occupy the team, tokens are divided instead. The value of y[t][r] does not depend on who computes it.
#include <algorithm>

#include "isa.h"
#include "layout.h"
#include "ops.h"
#include "team.h"

namespace headrace {
namespace {

constexpr int64_t SMALL = 65536;  // multiplications: less than this is done by the caller alone
constexpr int MANY_TOKENS = 16;
constexpr int PIECE_ROWS = 64;

struct Linear {
  const FormatKernels& format;
  const Weights& weight;
  Tokens acts;
  const float* bias;
  float* y;

  void run(Range rows, Range tokens) const {
    if (rows.begin == rows.end || tokens.begin == tokens.end) return;
    const int n = rows.end - rows.begin, half = (n + 1) / 2;
    const size_t bytes = row_bytes(weight.format, weight.cols);
    const uint8_t* first = weight.data + size_t(rows.begin) * bytes;
    const Tokens part{acts.base + size_t(tokens.begin) * acts.stride, acts.stride, nullptr, tokens.end - tokens.begin};
    float* out = y + size_t(tokens.begin) * weight.rows + rows.begin;
    format.dot({first, first + half * bytes, bytes, half, n - half}, part, weight.cols,
               {out, out + half, size_t(weight.rows), size_t(weight.rows)});
    for (int t = 0; bias && t < part.count; t++)
      for (int r = 0; r < n; r++) out[size_t(t) * weight.rows + r] += bias[rows.begin + r];
  }
};

}  // namespace

void linear(const float* x, int64_t x_stride, int tokens, const Weights& weight, const float* bias, float* y) {
  Turn turn;
  Team& team = turn.team;
  const FormatKernels& format = kernels().formats[weight.format];
  const size_t stride = format.prepare ? acts_bytes(weight.format, weight.cols) : size_t(x_stride) * 4;
  uint8_t* prepared = format.prepare ? team.arena.take<uint8_t>(stride * tokens) : nullptr;
  const uint8_t* base = prepared ? prepared : reinterpret_cast<const uint8_t*>(x);
  const Linear job{format, weight, {base, stride, nullptr, tokens}, bias, y};

  const bool solo = int64_t(weight.rows) * weight.cols * tokens < SMALL;
  const bool by_token = weight.rows < 4 * team.size() && tokens >= team.size();
  Counter pieces;
  team.run(solo, [&](int worker) {
    const int parts = team.active();
    if (prepared) {
      const Range mine = part_of(tokens, parts, worker);
      for (int t = mine.begin; t < mine.end; t++) format.prepare(x + t * x_stride, weight.cols, prepared + t * stride);
      team.barrier();
    }
    if (by_token) return job.run({0, weight.rows}, part_of(tokens, parts, worker));
    if (tokens <= MANY_TOKENS) return job.run(part_of(weight.rows, parts, worker, 2), {0, tokens});
    for (int r = pieces.next() * PIECE_ROWS; r < weight.rows; r = pieces.next() * PIECE_ROWS)
      job.run({r, std::min(weight.rows, r + PIECE_ROWS)}, {0, tokens});
  });
}

}  // namespace headrace
