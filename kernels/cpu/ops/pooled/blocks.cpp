// Which blocks of keys a token sees for each head of keys: the best by the largest product of one of their keys with its
// query. A product has one order of additions, and of equal blocks the earlier counts: no other token changes a choice.
#include <algorithm>
#include <cstring>
#include <limits>

#include "ops/each_token.h"
#include "ops/mixers/rising.h"
#include "ops/pooled/pooled.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int TOGETHER = 8;       // tokens that share a page
constexpr int RUN = 4;            // blocks of one item
constexpr int64_t SMALL = 32768;  // multiplications: less than this is done by the caller alone

struct Item {
  int sequence, token, count, block;  // tokens of one sequence, and the first of some blocks
};

struct Job {
  const ChooseBlocksArgs& args;
  const Kernels& isa;
  uint8_t* acts;    // of each query
  size_t stride;
  float* scores;    // [T, groups, most]
  int most;         // blocks of the longest context

  const FormatKernels& format() const { return isa.formats[args.cache.format]; }
  int position(int s, int token) const { return args.contexts[s] - args.starts[s + 1] + token; }

  // What blocks score that are whole up to a token's own position; keys behind it do not count.
  void score(const Item& item, float* products) const {
    const int context = position(item.sequence, item.token + item.count - 1) + 1;
    const int end = std::min(item.block + RUN, (context + args.size - 1) / args.size);
    for (int b = item.block; b < end; b++) {
      for (int i = 0; i < item.count * args.groups; i++)
        scores[(size_t(item.token) * args.groups + i) * most + b] = -std::numeric_limits<float>::infinity();
      for (int key = b * args.size; key < std::min((b + 1) * args.size, context); key += args.cache.page_keys)
        page(item, b, key, std::min(args.cache.page_keys, context - key), products);
    }
  }

  // Keys [key, key + n) of one page.
  void page(const Item& item, int block, int key, int n, float* products) const {
    const int B = args.cache.page_keys, queries = item.count * args.groups, half = (n + 1) / 2;
    const size_t bytes = format().row_bytes(args.cache.d);
    const uint8_t* rows = args.cache.k + size_t(args.tables[size_t(item.sequence) * args.table_len + key / B]) * B * bytes;
    const uint8_t* base = acts + size_t(item.token) * args.groups * stride;
    format().dot({rows, rows + half * bytes, bytes, half, n - half}, {base, stride, nullptr, queries}, args.cache.d,
                 {products, products + half, size_t(B), size_t(B)});
    for (int i = 0; i < queries; i++) {
      const int seen = std::min(n, position(item.sequence, item.token + i / args.groups) + 1 - key);
      float& best = scores[(size_t(item.token) * args.groups + i) * most + block];
      for (int j = 0; j < seen; j++) best = std::max(best, products[size_t(i) * B + j]);
    }
  }

  // The best blocks of a token for one head of keys.
  void select(int sequence, int token, int group, uint32_t* order) const {
    const size_t row = size_t(token) * args.groups + group;
    float* mine = scores + row * most;
    int32_t* out = args.blocks + row * args.top;
    const int n = position(sequence, token) / args.size + 1;
    for (int b = std::max(0, n - args.local); b < n; b++) mine[b] = std::numeric_limits<float>::infinity();
    const Cut cut = best_of(mine, n, args.top, order);
    int found = 0, equal = cut.equal;
    for (int b = 0; b < n && found < args.top; b++)
      if (cut.takes(mine[b], equal)) out[found++] = b;
    std::fill(out + found, out + args.top, -1);
  }
};

}  // namespace

void choose_blocks(const ChooseBlocksArgs& args, Turn& turn) {
  Team& team = turn.team;
  Arena& arena = team.arena;
  const int tokens = args.starts[args.sequences], d = args.cache.d;
  const FormatKernels& format = turn.isa.formats[args.cache.format];
  const int longest = *std::max_element(args.contexts, args.contexts + args.sequences);
  Job job{args, turn.isa, nullptr, format.acts_bytes(d), nullptr, (longest + args.size - 1) / args.size};
  job.acts = arena.take<uint8_t>(size_t(tokens) * args.groups * job.stride);
  job.scores = arena.take<float>(size_t(tokens) * args.groups * job.most);
  int count = 0;
  int64_t work = 0;
  Item* items = arena.take<Item>(size_t(tokens) * (job.most / RUN + 1));
  int* owner = arena.take<int>(tokens);
  for (int s = 0; s < args.sequences; s++) {
    for (int t = args.starts[s]; t < args.starts[s + 1]; t += TOGETHER) {
      const int n = std::min(TOGETHER, args.starts[s + 1] - t), context = job.position(s, t + n - 1) + 1;
      for (int b = 0; b * args.size < context; b += RUN) items[count++] = {s, t, n, b};
      for (int i = 0; i < n; i++) owner[t + i] = s;
      work += int64_t(n) * context * args.groups * d;
    }
  }
  float** products = arena.take<float*>(team.size());
  uint32_t** orders = arena.take<uint32_t*>(team.size());
  for (int i = 0; i < team.size(); i++) {
    products[i] = arena.take<float>(size_t(TOGETHER) * args.groups * args.cache.page_keys);
    orders[i] = arena.take<uint32_t>(job.most);
  }
  Counter counters[3];
  const int queries = tokens * args.groups;
  team.run(work < SMALL, [&](int worker) {
    for (int i = counters[0].next(); i < queries; i = counters[0].next()) {
      const float* q = args.q + size_t(i) * d;
      if (format.prepare)
        format.prepare(q, d, job.acts + i * job.stride);
      else
        std::memcpy(job.acts + i * job.stride, q, size_t(d) * sizeof(float));
    }
    team.barrier();
    for (int i = counters[1].next(); i < count; i = counters[1].next()) job.score(items[i], products[worker]);
    team.barrier();
    for (int i = counters[2].next(); i < queries; i = counters[2].next())
      job.select(owner[i / args.groups], i / args.groups, i % args.groups, orders[worker]);
  });
}

}  // namespace headrace
