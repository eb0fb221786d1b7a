// y = x W^T + bias for any format and any number of tokens.
//
// Activations are prepared once (int8 for block formats) into the arena, then every worker owns rows: few tokens, one
// long run each, read as two streams (its two halves); many tokens, pieces of rows handed out on demand; fewer rows
// than would occupy the team, tokens are divided instead. The value of y[t][r] does not depend on who computes it.
//
// Where the ISA has matrix tiles and there are tokens enough for them, activations become bf16 tiles instead, and a
// piece is pairs of slices of 16 rows (one of each half), unpacked once for all its tokens. Which of the two is used depends on
// the format, the rows and the number of tokens alone; they round differently.
#include <algorithm>

#include "formats/layout.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int64_t SMALL = 65536;  // multiplications: less than this is done by the caller alone
constexpr int MANY_TOKENS = 16;
constexpr int PIECE_ROWS = 64;
constexpr int PIECE_PANELS = 4;  // by tiles: at most so many times 32 rows

struct Linear {
  const FormatKernels& format;
  const Weights& weight;
  Tokens acts;
  const float* bias;
  float* y;
  size_t y_stride;

  void run(Range rows, Range tokens) const {
    if (rows.begin == rows.end || tokens.begin == tokens.end) return;
    const int n = rows.end - rows.begin, half = (n + 1) / 2;
    const size_t bytes = format.row_bytes(weight.cols);
    const uint8_t* first = weight.data + size_t(rows.begin) * bytes;
    const Tokens part{acts.base + size_t(tokens.begin) * acts.stride, acts.stride, nullptr, tokens.end - tokens.begin};
    float* out = y + size_t(tokens.begin) * y_stride + rows.begin;
    format.dot({first, first + half * bytes, bytes, half, n - half}, part, weight.cols,
               {out, out + half, y_stride, y_stride});
    for (int t = 0; bias && t < part.count; t++)
      for (int r = 0; r < n; r++) out[size_t(t) * y_stride + r] += bias[rows.begin + r];
  }
};

// The same by tiles: items are pieces of rows, times parts of the tokens where there are too few rows for the team.
struct TiledLinear {
  const Kernels& isa;
  const TileKernels& tiles;
  const Weights& weight;
  const float *x, *bias;
  int64_t x_stride;
  int tokens;
  float* y;
  size_t y_stride, bytes;  // bytes of a row of weights
  uint8_t *acts, *scratch;  // of all tokens; of each worker
  size_t stride, scratch_bytes;  // of the activations of 16 tokens; of a worker's scratch
  int piece, pieces, token_parts;

  TiledLinear(const float* x_, int64_t x_stride_, int tokens_, const Weights& weight_, const float* bias_, float* y_,
              int64_t y_stride_, Turn& turn)
      : isa(turn.isa),
        tiles(*turn.context.format(weight_.format).tiles),
        weight(weight_),
        x(x_),
        bias(bias_),
        x_stride(x_stride_),
        tokens(tokens_),
        y(y_),
        y_stride(size_t(y_stride_)),
        bytes(turn.context.format(weight_.format).row_bytes(weight_.cols)) {
    Team& team = turn.team;
    stride = tiles.stride(weight.cols);
    acts = team.arena.take<uint8_t>(tiles_of(tokens) * stride);
    scratch_bytes = round_up(tiles.scratch_bytes(weight.cols), 64);
    scratch = team.arena.take<uint8_t>(scratch_bytes * team.size());
    const int all = (weight.rows + 2 * TILE_SIDE - 1) / (2 * TILE_SIDE);
    const int share = std::clamp(all / (4 * team.size()), 1, PIECE_PANELS);
    piece = share * 2 * TILE_SIDE;
    pieces = (weight.rows + piece - 1) / piece;
    token_parts = pieces < 2 * team.size() ? std::min(team.size(), tiles_of(tokens)) : 1;
  }

  void pack(Range token_tiles) const {
    for (int i = token_tiles.begin; i < token_tiles.end; i++)
      tiles.pack(x + i * TILE_SIDE * x_stride, size_t(x_stride), nullptr, std::min(TILE_SIDE, tokens - i * TILE_SIDE),
                     weight.cols, acts + i * stride);
  }

  void run(int item, int worker) const {
    const int row = item / token_parts * piece, n = std::min(piece, weight.rows - row), half = (n + 1) / 2;
    const Range part = part_of(tokens, token_parts, item % token_parts, 2 * TILE_SIDE);
    const int count = part.end - part.begin;
    const uint8_t* first = weight.data + size_t(row) * bytes;
    float* out = y + size_t(part.begin) * y_stride + row;
    tiles.multiply({first, first + half * bytes, bytes, half, n - half},
                   {acts + part.begin / TILE_SIDE * stride, stride, count}, weight.cols,
                   {out, out + half, y_stride, y_stride},
                   scratch + worker * scratch_bytes);
    for (int t = 0; bias && t < count; t++)
      for (int r = 0; r < n; r++) out[size_t(t) * y_stride + r] += bias[row + r];
  }
};

// Each head's own product: an item is a head, or some of its rows where heads are few.
struct ByHead {
  const HeadRows& x;
  const FormatKernels& format;
  const TileKernels* tiles;  // null: by dot products
  const uint8_t* weights;
  int rows, cols, parts;  // rows of a head
  const HeadRows& y;
  uint8_t* prepared;  // [N, T] of `stride`; null: x as it is
  uint8_t *acts, *scratch;  // by tiles, of each worker: a head's tokens, and what products need
  size_t bytes, stride, acts_bytes, scratch_bytes;  // of a row; of one token, or of 16 by tiles; of a worker

  ByHead(const HeadRows& x_, const Weights& weight, const HeadRows& y_, Turn& turn)
      : x(x_), format(turn.context.format(weight.format)), weights(weight.data), y(y_) {
    Team& team = turn.team;
    rows = weight.rows / x.heads, cols = weight.cols;
    tiles = turn.context.takes_tiles(weight.format, x.tokens) && rows >= TILE_SIDE ? format.tiles : nullptr;
    parts = tiles ? 1 : std::clamp(4 * team.size() / x.heads, 1, std::max(1, rows / TILE_SIDE));
    bytes = format.row_bytes(cols);
    stride = tiles ? tiles->stride(cols) : format.prepare ? format.acts_bytes(cols) : 0;
    prepared = stride && !tiles ? team.arena.take<uint8_t>(stride * x.tokens * x.heads) : nullptr;
    acts_bytes = tiles ? tiles_of(x.tokens) * stride : 0;
    scratch_bytes = tiles ? round_up(tiles->scratch_bytes(cols), 64) : 0;
    acts = team.arena.take<uint8_t>(acts_bytes * team.size());
    scratch = team.arena.take<uint8_t>(scratch_bytes * team.size());
  }

  const float* token(int t, int head) const { return x.data + t * x.token_stride + head * x.head_stride; }

  void prepare(int t, int head) const {
    format.prepare(token(t, head), cols, prepared + (size_t(head) * x.tokens + t) * stride);
  }

  // Some rows of a head, by halves, for all tokens.
  void run(int head, Range part, int worker) const {
    const int n = part.end - part.begin, half = (n + 1) / 2;
    const uint8_t* first = weights + (size_t(head) * rows + part.begin) * bytes;
    const RowPair pair{first, first + half * bytes, bytes, half, n - half};
    const size_t step = size_t(y.token_stride);
    float* out = y.data + head * y.head_stride + part.begin;
    const PairOut to{out, out + half, step, step};
    if (n == 0) return;
    if (tiles) return run_tiles(head, pair, to, worker);
    if (prepared) return format.dot(pair, {prepared + size_t(head) * x.tokens * stride, stride, nullptr, x.tokens}, cols, to);
    const auto* base = reinterpret_cast<const uint8_t*>(token(0, head));
    format.dot(pair, {base, size_t(x.token_stride) * sizeof(float), nullptr, x.tokens}, cols, to);
  }

  void run_tiles(int head, const RowPair& pair, const PairOut& to, int worker) const {
    uint8_t* mine = acts + worker * acts_bytes;
    for (int t = 0; t < x.tokens; t += TILE_SIDE)
      tiles->pack(token(t, head), size_t(x.token_stride), nullptr, std::min(TILE_SIDE, x.tokens - t), cols,
                  mine + t / TILE_SIDE * stride);
    tiles->multiply(pair, {mine, stride, x.tokens}, cols, to, scratch + worker * scratch_bytes);
  }
};

void linear_tiled(const TiledLinear& job, Team& team) {
  Counter items;
  team.run(false, [&](int worker) {
    job.isa.tiles_begin();
    job.pack(part_of(tiles_of(job.tokens), team.active(), worker));
    team.barrier();
    for (int i = items.next(); i < job.pieces * job.token_parts; i = items.next()) job.run(i, worker);
    job.isa.tiles_end();
  });
}

}  // namespace

void linear(const float* x, int64_t x_stride, int tokens, const Weights& weight, const float* bias, float* y,
            int64_t y_stride, Turn& turn) {
  Team& team = turn.team;
  const FormatKernels& format = turn.context.format(weight.format);
  if (turn.context.takes_tiles(weight.format, tokens) && weight.rows >= TILE_SIDE)
    return linear_tiled({x, x_stride, tokens, weight, bias, y, y_stride, turn}, team);
  const size_t stride = format.prepare ? format.acts_bytes(weight.cols) : size_t(x_stride) * 4;
  uint8_t* prepared = format.prepare ? team.arena.take<uint8_t>(stride * tokens) : nullptr;
  const uint8_t* base = prepared ? prepared : reinterpret_cast<const uint8_t*>(x);
  const Linear job{format, weight, {base, stride, nullptr, tokens}, bias, y, size_t(y_stride)};

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

void linear_by_head(const HeadRows& x, const Weights& weight, const HeadRows& y, Turn& turn) {
  Team& team = turn.team;
  const ByHead job(x, weight, y, turn);
  const bool solo = int64_t(weight.rows) * weight.cols * x.tokens < SMALL;
  Counter items;
  team.run(solo, [&](int worker) {
    if (job.tiles) turn.isa.tiles_begin();
    if (job.prepared) {
      const int all = x.tokens * x.heads;
      const Range mine = part_of(all, team.active(), worker);
      for (int i = mine.begin; i < mine.end; i++) job.prepare(i / x.heads, i % x.heads);
      team.barrier();
    }
    for (int i = items.next(); i < x.heads * job.parts; i = items.next())
      job.run(i / job.parts, part_of(job.rows, job.parts, i % job.parts, 2), worker);
    if (job.tiles) turn.isa.tiles_end();
  });
}

void linear(const float* x, int64_t x_stride, int tokens, const Rows& rows, const float* bias, float* y, Turn& turn) {
  const int64_t stride = rows_of(rows);
  for (int i = 0, first = 0; i < rows.parts; first += rows.part[i++].rows)
    linear(x, x_stride, tokens, rows.part[i], bias ? bias + first : nullptr, y + first, stride, turn);
}

}  // namespace headrace
