// Entries that stand for several tokens each: see kernels/compressed/entries.py. Tokens come one after the other, numbers of an
// entry know nothing of each other: neither the number of threads nor how a sequence is cut changes a bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/each_token.h"
#include "ops/pooled/pooled.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int COLUMNS = 64;  // of an entry that go through a sequence together
constexpr float NOTHING = std::numeric_limits<float>::lowest();  // the largest logarithm of a weight where there is none

// What has been seen of a block: the largest logarithm of a weight, the sum of weights and the weighted sum.
struct Seen {
  float most[COLUMNS], total[COLUMNS], mean[COLUMNS];

  void clear() {
    std::fill_n(most, COLUMNS, NOTHING);
    std::fill_n(total, COLUMNS, 0.0f);
    std::fill_n(mean, COLUMNS, 0.0f);
  }

  void take(const float* weighed, const float* places, const float* made, int n) {
    for (int i = 0; i < n; i++) {
      const float log = weighed[i] + places[i], top = std::max(most[i], log);
      const float old = most[i] == top ? 1.0f : std::exp(most[i] - top), by = log == top ? 1.0f : std::exp(log - top);
      most[i] = top;
      total[i] = total[i] * old + by;
      mean[i] = mean[i] * old + by * made[i];
    }
  }
};

// One sequence, and its entries that become whole.
struct Taken {
  int sequence, first, count, start;  // its tokens, and the position of the first one
  int whole;                          // entries
  float* entries;                     // [whole][d]
};

void turn_pairs(float* x, int d, const float* cos, const float* sin, int r, bool back) {
  float* pair = x + d - 2 * r;
  for (int i = 0; i < r; i++, pair += 2) {
    const float a = pair[0], b = pair[1], s = back ? -sin[i] : sin[i];
    pair[0] = a * cos[i] - b * s;
    pair[1] = b * cos[i] + a * s;
  }
}

struct Fold {
  const FoldArgs& args;
  const Kernels& isa;

  int d() const { return args.cache.d; }

  float* state(const Taken& one, int series, int part) const {
    const size_t slot = size_t(args.all.slots[one.sequence]);
    return args.state + ((slot * args.series + series) * 3 + part) * d();
  }

  // Columns [from, from + n) of a sequence.
  void columns(const Taken& one, int from, int n) const {
    Seen seen[2];
    for (int s = 0; s < args.series; s++) {
      seen[s].clear();
      if (!one.start) continue;
      std::copy_n(state(one, s, 0) + from, n, seen[s].most);
      std::copy_n(state(one, s, 1) + from, n, seen[s].total);
      std::copy_n(state(one, s, 2) + from, n, seen[s].mean);
    }
    float* to = one.entries + from;
    for (int t = 0; t < one.count; t++) {
      const int place = (one.start + t) % args.rate;
      for (int s = 0; s < args.series; s++) {
        const size_t own = size_t(s) * d() + from, row = size_t(one.first + t) * args.series * d() + own;
        seen[s].take(args.weighed + row, args.places + size_t(place) * args.series * d() + own, args.made + row, n);
      }
      if (place < args.rate - 1) continue;
      const Seen& end = seen[args.series - 1];
      for (int i = 0; i < n; i++) to[i] = end.mean[i] / end.total[i];
      to += d();
      if (args.series == 2) seen[1] = seen[0];
      seen[0].clear();
    }
    for (int s = 0; s < args.series; s++) {
      std::copy_n(seen[s].most, n, state(one, s, 0) + from);
      std::copy_n(seen[s].total, n, state(one, s, 1) + from);
      std::copy_n(seen[s].mean, n, state(one, s, 2) + from);
    }
  }

  // Entry number i of those that become whole: normed, turned as the first token of its block, to where its last one lies.
  void write(const Taken& one, int i) const {
    float* row = one.entries + size_t(i) * d();
    const int number = one.start / args.rate + i, last = (number + 1) * args.rate - 1 - one.start;
    const size_t turned = size_t(number) * args.rate * args.rope.r;
    isa.rmsnorm(row, args.norm, d(), args.eps, row);
    turn_pairs(row, d(), args.rope.cos + turned, args.rope.sin + turned, args.rope.r, false);
    const size_t slot = size_t(args.slots[one.first + last]);
    const size_t at = slot / args.page * args.cache.page_keys + slot % args.page / args.rate;
    const FormatKernels& format = isa.formats[args.cache.format];
    format.pack(row, d(), args.cache.k + at * format.row_bytes(d()));
  }
};

}  // namespace

void fold_entries(const FoldArgs& args, Turn& turn) {
  Arena& arena = turn.team.arena;
  const Fold fold{args, turn.isa};
  const int d = args.cache.d, pieces = (d + COLUMNS - 1) / COLUMNS, S = args.all.count;
  Taken* taken = arena.take<Taken>(S);
  int64_t work = 0;
  for (int s = 0; s < S; s++) {
    Taken& one = taken[s];
    one.sequence = s, one.first = args.all.starts[s], one.count = args.all.starts[s + 1] - one.first;
    one.start = args.all.contexts[s] - one.count;
    one.whole = args.all.contexts[s] / args.rate - one.start / args.rate;
    one.entries = arena.take<float>(size_t(one.whole) * d);
    work += int64_t(one.count) * args.series * d * 16;
  }
  Counter counters[2];
  turn.team.run(work < 32768, [&](int) {
    for (int i = counters[0].next(); i < S * pieces; i = counters[0].next()) {
      const int from = i % pieces * COLUMNS;
      if (taken[i / pieces].count) fold.columns(taken[i / pieces], from, std::min(COLUMNS, d - from));
    }
    turn.team.barrier();
    for (int s = counters[1].next(); s < S; s = counters[1].next())
      for (int i = 0; i < taken[s].whole; i++) fold.write(taken[s], i);
  });
}

void rotate_pairs(const HeadRows& x, int d, const Rope& rope, const int32_t* positions, bool back, Turn& turn) {
  each_token(turn.team, x.tokens, int64_t(x.tokens) * x.heads * rope.r * 4, [&](int t) {
    const size_t turned = size_t(positions[t]) * rope.r;
    for (int n = 0; n < x.heads; n++)
      turn_pairs(x.data + t * x.token_stride + n * x.head_stride, d, rope.cos + turned, rope.sin + turned, rope.r, back);
  });
}

void pool_runs(const float* rows, const float* places, int runs, int n, int d, float* out, Turn& turn) {
  each_token(turn.team, runs, int64_t(runs) * n * d * 16, [&](int run) {
    const float* first = rows + size_t(run) * n * 2 * d;
    for (int from = 0; from < d; from += COLUMNS) {
      const int columns = std::min(COLUMNS, d - from);
      Seen seen;
      seen.clear();
      for (int i = 0; i < n; i++) {
        const float* row = first + size_t(i) * 2 * d + from;
        seen.take(row + d, places + size_t(i) * d + from, row, columns);
      }
      for (int i = 0; i < columns; i++) out[size_t(run) * d + from + i] = seen.mean[i] / seen.total[i];
    }
  });
}

}  // namespace headrace
