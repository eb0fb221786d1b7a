// Which keys a token sees, where it sees some alone: keys of an indexer, their scores, the best of them. Formulas and shapes
// are in kernels/sparse/choose.py.
//
//   first every block of queries x run of keys by anybody into a row of scores for each query, then each query's best
//
// Keys are widened and turned over once for a block of queries of one sequence. A key's score has one order of additions, and
// of equal ones the earlier counts: neither the block nor the number of threads changes a choice.
#include <algorithm>
#include <cmath>
#include <new>

#include "ops/each_token.h"
#include "ops/mixers/mixers.h"
#include "ops/mixers/rising.h"

namespace headrace {
namespace {

constexpr int BLOCK = 8;                      // queries that share turned keys
constexpr int RUN = 8 * INDEX_KEYS;           // keys of one item
constexpr size_t SCORES = size_t(1) << 20;    // that are there at once, or those of one block
constexpr int64_t SMALL = 32768;              // multiplications: less than this is done by the caller alone

// Some new tokens of one sequence; `scores` of the first query, `context` floats for each.
struct Queries {
  int sequence, token, count, context;  // token: the first one; context: keys of the last one
  float* scores;
};

struct Item {
  int block, key;
};

// Layer norm of a row, in double: it is short, and goes into the choice of every later token.
void layer_norm(float* x, const float* weight, const float* bias, int n, float eps) {
  double mean = 0.0, square = 0.0;
  for (int i = 0; i < n; i++) mean += x[i];
  mean /= n;
  for (int i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
  const double inverse = 1.0 / std::sqrt(square / n + double(eps));
  for (int i = 0; i < n; i++) x[i] = float((x[i] - mean) * inverse) * weight[i] + bias[i];
}

// A key lies with the last of the tokens that it stands for.
size_t slot_of(const ChooseArgs& args, int sequence, int key) {
  const int B = args.cache.page_keys, last = (key + 1) * args.rate - 1;
  const int32_t page = args.tables[size_t(sequence) * args.table_len + last / args.page];
  return size_t(page) * B + size_t(last % args.page) * B / args.page;
}

// How many keys a token may see: those that end with it or before.
int keys_of(const ChooseArgs& args, int sequence, int token) {
  return (args.contexts[sequence] - args.starts[sequence + 1] + token + 1) / args.rate;
}

// One worker's scratch.
struct Scratch {
  float *row, *turned;  // [d], [d][INDEX_KEYS]
  uint32_t* order;      // of the longest context

  Scratch(const ChooseArgs& args, int longest, Arena& arena)
      : row(arena.take<float>(args.cache.d)),
        turned(arena.take<float>(size_t(args.cache.d) * INDEX_KEYS)),
        order(arena.take<uint32_t>(longest)) {}
};

// Keys [first, first + n) turned over.
void turn_over(const ChooseArgs& args, const Kernels& isa, int sequence, int first, int n, const Scratch& scratch) {
  const FormatKernels& format = isa.formats[args.cache.format];
  const int d = args.cache.d;
  const size_t bytes = format.row_bytes(d);
  for (int j = 0; j < n; j++) {
    format.unpack(args.cache.k + slot_of(args, sequence, first + j) * bytes, d, 1.0f, scratch.row);
    for (int i = 0; i < d; i++) scratch.turned[size_t(i) * INDEX_KEYS + j] = scratch.row[i];
  }
}

// Scores of a block's queries with a run of keys.
void score(const ChooseArgs& args, const Kernels& isa, const Queries& block, int first, const Scratch& scratch) {
  const int end = std::min(first + RUN, block.context), d = args.cache.d;
  for (int key = first; key < end; key += INDEX_KEYS) {
    const int n = std::min(INDEX_KEYS, end - key);
    turn_over(args, isa, block.sequence, key, n, scratch);
    for (int i = 0; i < block.count; i++) {
      const size_t token = size_t(block.token) + i;
      isa.index_scores({args.q + token * args.heads * d, args.weights + token * args.heads, scratch.turned, args.heads, d, n,
                        block.scores + size_t(i) * block.context + key});
    }
  }
}

// The best keys of a token, in the order of positions; n: keys that it may see.
void select(const ChooseArgs& args, int sequence, int token, int n, const float* scores, uint32_t* order) {
  int32_t* out = args.slots + size_t(token) * args.top;
  const Cut cut = best_of(scores, n, args.top, order);
  int found = 0, equal = cut.equal;
  for (int key = 0; key < n && found < args.top; key++) {
    if (!cut.all && !cut.takes(scores[key], equal)) continue;
    out[found++] = args.numbers ? key : int32_t(slot_of(args, sequence, key));
  }
  std::fill(out + found, out + args.top, -1);
}

struct Job {
  const ChooseArgs& args;
  Turn& turn;
  Queries* blocks;
  int longest;

  // Blocks [begin, end), whose scores are there at once.
  void run(int begin, int end) const {
    Arena& arena = turn.team.arena;
    const Arena::Loan loan(arena);
    int count = 0, queries = 0;
    int64_t work = 0;
    for (int b = begin; b < end; b++) {
      count += (blocks[b].context + RUN - 1) / RUN, queries += blocks[b].count;
      blocks[b].scores = arena.take<float>(size_t(blocks[b].count) * blocks[b].context);
      work += int64_t(blocks[b].count) * blocks[b].context * args.heads * args.cache.d;
    }
    Item* items = arena.take<Item>(count);
    Item* next = items;
    for (int b = begin; b < end; b++)
      for (int key = 0; key < blocks[b].context; key += RUN) *next++ = {b, key};
    Scratch* scratch = arena.take<Scratch>(turn.team.size());
    for (int i = 0; i < turn.team.size(); i++) new (scratch + i) Scratch(args, longest, arena);
    Counter counters[2];
    turn.team.run(work < SMALL, [&](int worker) {
      for (int i = counters[0].next(); i < count; i = counters[0].next())
        score(args, turn.isa, blocks[items[i].block], items[i].key, scratch[worker]);
      turn.team.barrier();
      for (int i = counters[1].next(); i < queries; i = counters[1].next()) choose(begin, i, scratch[worker]);
    });
  }

  // The keys of query number `i` of blocks from `begin` on.
  void choose(int begin, int i, const Scratch& scratch) const {
    int b = begin;
    for (; i >= blocks[b].count; b++) i -= blocks[b].count;
    const Queries& block = blocks[b];
    const int token = block.token + i, n = keys_of(args, block.sequence, token);
    select(args, block.sequence, token, n, block.scores + size_t(i) * block.context, scratch.order);
  }
};

}  // namespace

void place_index(const IndexArgs& args, Turn& turn) {
  const Cache& cache = args.cache;
  const FormatKernels& format = turn.isa.formats[cache.format];
  each_token(turn.team, args.tokens, int64_t(args.tokens) * cache.d * 4, [&](int t) {
    float* row = args.k + size_t(t) * cache.d;
    const size_t turned = size_t(args.positions[t]) * args.rope.r;
    layer_norm(row, args.norm, args.bias, cache.d, args.eps);
    turn.isa.rope(row, args.rope.cos + turned, args.rope.sin + turned, args.rope.r);
    format.pack(row, cache.d, cache.k + size_t(args.slots[t]) * format.row_bytes(cache.d));
  });
}

void choose_keys(const ChooseArgs& args, Turn& turn) {
  Arena& arena = turn.team.arena;
  int count = 0, longest = 0;
  for (int s = 0; s < args.sequences; s++) count += (args.starts[s + 1] - args.starts[s] + BLOCK - 1) / BLOCK;
  Queries* blocks = arena.take<Queries>(count);
  Queries* next = blocks;
  for (int s = 0; s < args.sequences; s++) {
    for (int t = args.starts[s]; t < args.starts[s + 1]; t += BLOCK) {
      const int n = std::min(BLOCK, args.starts[s + 1] - t), context = keys_of(args, s, t + n - 1);
      if (context > args.top) {
        *next++ = {s, t, n, context, nullptr};
        longest = std::max(longest, context);
      } else {
        for (int i = t; i < t + n; i++) select(args, s, i, keys_of(args, s, i), nullptr, nullptr);
      }
    }
  }
  const Job job{args, turn, blocks, longest};
  count = int(next - blocks);
  for (int begin = 0, end; begin < count; begin = end) {
    size_t scores = 0;
    for (end = begin; end < count && (end == begin || scores < SCORES); end++)
      scores += size_t(blocks[end].count) * blocks[end].context;
    job.run(begin, end);
  }
}

}  // namespace headrace
