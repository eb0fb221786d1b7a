// Causal attention over the paged cache: cuts the work into items, gives them to the team, joins the parts.
//
//   item = one sequence x one key/value head x a block of queries, all query heads of the group together
//
// The context is cut into chunks of about 512 positions. Every chunk starts from an empty softmax state, and the states
// are joined in the order of the chunks: by the worker that does the whole item when items are plenty, or in a second
// phase when chunks were spread over the team because items were few. Both give the same bits. No memory grows with
// context^2.
#include <algorithm>
#include <limits>
#include <new>

#include "formats/layout.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int CHUNK = 512;        // positions
constexpr int ITEM_ROWS = 64;     // query rows of one item: queries x heads of the group
constexpr int64_t SMALL = 16384;  // score values x d: less than this is done by the caller alone

struct Item {
  int sequence, head, query, queries, chunks, part;  // part: its first chunk among all chunks
};

struct Attention {
  const AttentionArgs& args;
  const Kernels& isa;
  int group, dp, max_rows, chunk_pages;
  int items = 0, parts = 0;
  int64_t work = 0;
  Item* list = nullptr;

  Attention(const AttentionArgs& a, Turn& turn) : args(a), isa(turn.isa) {
    group = a.heads / a.cache.groups;
    dp = int(round_up(a.cache.d, LANES_MAX));
    max_rows = std::max(group, ITEM_ROWS / group * group);
    chunk_pages = std::max(1, CHUNK / a.cache.page_keys);
    make_list(turn.team.arena);
  }

  int block() const { return max_rows / group; }  // queries of one item
  int queries(int s) const { return args.starts[s + 1] - args.starts[s]; }

  // The last blocks see most keys, so they come first.
  void make_list(Arena& arena) {
    int count = 0;
    for (int s = 0; s < args.sequences; s++) count += (queries(s) + block() - 1) / block() * args.cache.groups;
    list = arena.take<Item>(count);
    for (int s = 0; s < args.sequences; s++)
      for (int b = (queries(s) + block() - 1) / block() - 1; b >= 0; b--)
        for (int g = 0; g < args.cache.groups; g++) add_item(s, g, b * block());
  }

  void add_item(int s, int g, int query) {
    const int n = std::min(block(), queries(s) - query);
    const int keys = args.contexts[s] - queries(s) + query + n;  // what its last query sees
    const int chunk = chunk_pages * args.cache.page_keys;
    const int chunks = (keys + chunk - 1) / chunk;
    list[items++] = {s, g, query, n, chunks, parts};
    parts += chunks;
    work += int64_t(keys) * n * group * args.cache.d;
  }

  AttendState state(Arena& arena) const {
    return {arena.take<float>(max_rows), arena.take<float>(max_rows), arena.take<float>(size_t(max_rows) * dp)};
  }
};

// One worker's scratch, and what it does with an item.
struct Worker {
  float *q, *kf, *vf, *scores;
  AttendState part, total;

  Worker(const Attention& job, Arena& arena)
      : q(arena.take<float>(size_t(job.max_rows) * job.dp)),
        kf(arena.take<float>(size_t(ATTEND_KEYS) * job.dp)),
        vf(arena.take<float>(size_t(ATTEND_KEYS) * job.dp)),
        scores(arena.take<float>(size_t(job.max_rows) * ATTEND_KEYS)),
        part(job.state(arena)),
        total(job.state(arena)) {}

  // Scaled queries, row by row: query-major, the heads of the group side by side.
  void load_queries(const Attention& job, const Item& item) {
    const AttentionArgs& a = job.args;
    const int d = a.cache.d;
    for (int r = 0; r < item.queries * job.group; r++) {
      const int64_t token = a.starts[item.sequence] + item.query + r / job.group;
      const float* src = a.q + token * a.q_stride + int64_t(item.head * job.group + r % job.group) * d;
      float* dst = q + size_t(r) * job.dp;
      job.isa.formats[F32].unpack(reinterpret_cast<const uint8_t*>(src), d, a.scale, dst);
      std::fill(dst + d, dst + job.dp, 0.0f);
    }
  }

  void attend(const Attention& job, const Item& item, int chunk, const AttendState& state) {
    const AttentionArgs& a = job.args;
    const Cache& c = a.cache;
    const size_t plane = job.isa.formats[c.format].row_bytes(c.d) * c.page_keys;
    AttendItem run{};
    run.q = q, run.rows = item.queries * job.group, run.group = job.group, run.d = c.d, run.dp = job.dp;
    run.page_keys = c.page_keys, run.format = c.format;
    run.k = c.k + item.head * plane, run.v = c.v + item.head * plane, run.page_bytes = plane * c.groups;
    run.table = a.tables + size_t(item.sequence) * a.table_len;
    run.first = a.contexts[item.sequence] - job.queries(item.sequence) + item.query;
    run.kf = kf, run.vf = vf, run.scores = scores;
    const int keys = job.chunk_pages * c.page_keys;
    job.isa.attend(run, chunk * keys, (chunk + 1) * keys, state);
  }

  // An empty sum: the first part is taken as it is.
  void clear(int rows, int dp) {
    std::fill(total.m, total.m + rows, -std::numeric_limits<float>::infinity());
    std::fill(total.l, total.l + rows, 0.0f);
    std::fill(total.acc, total.acc + size_t(rows) * dp, 0.0f);
  }

  void finish(const Attention& job, const Item& item) const {
    const AttentionArgs& a = job.args;
    for (int r = 0; r < item.queries * job.group; r++) {
      const int64_t token = a.starts[item.sequence] + item.query + r / job.group;
      const int head = item.head * job.group + r % job.group;
      job.isa.attend_finish(total, r, job.dp, a.cache.d, a.out + (token * a.heads + head) * a.cache.d);
    }
  }
};

// Every item from its first chunk to its last by one worker.
void run_whole(const Attention& job, Worker& worker, Counter& counter) {
  for (int i = counter.next(); i < job.items; i = counter.next()) {
    const Item& item = job.list[i];
    const int rows = item.queries * job.group;
    worker.load_queries(job, item);
    worker.clear(rows, job.dp);
    for (int chunk = 0; chunk < item.chunks; chunk++) {
      worker.attend(job, item, chunk, worker.part);
      job.isa.attend_merge(worker.total, worker.part, rows, job.dp);
    }
    worker.finish(job, item);
  }
}

const Item& item_of_part(const Attention& job, int part) {
  const auto after = [](int p, const Item& item) { return p < item.part; };
  return *(std::upper_bound(job.list, job.list + job.items, part, after) - 1);
}

// Chunks by anybody into `states`, then every item's states joined in order.
void run_split(const Attention& job, Worker& worker, Team& team, const AttendState* states, Counter* counters) {
  for (int p = counters[0].next(); p < job.parts; p = counters[0].next()) {
    const Item& item = item_of_part(job, p);
    worker.load_queries(job, item);
    worker.attend(job, item, p - item.part, states[p]);
  }
  team.barrier();
  for (int i = counters[1].next(); i < job.items; i = counters[1].next()) {
    const Item& item = job.list[i];
    const int rows = item.queries * job.group;
    worker.clear(rows, job.dp);
    for (int chunk = 0; chunk < item.chunks; chunk++)
      job.isa.attend_merge(worker.total, states[item.part + chunk], rows, job.dp);
    worker.finish(job, item);
  }
}

}  // namespace

void attention(const AttentionArgs& args, Turn& turn) {
  Team& team = turn.team;
  const Attention job(args, turn);
  const bool solo = job.work < SMALL;
  const bool split = !solo && job.items < 4 * team.size() && job.parts > job.items;
  Worker* workers = team.arena.take<Worker>(team.size());
  for (int i = 0; i < team.size(); i++) new (workers + i) Worker(job, team.arena);
  AttendState* states = team.arena.take<AttendState>(split ? job.parts : 0);
  for (int p = 0; split && p < job.parts; p++) states[p] = job.state(team.arena);
  Counter counters[2];
  team.run(solo, [&](int worker) {
    if (split)
      run_split(job, workers[worker], team, states, counters);
    else
      run_whole(job, workers[worker], counters[0]);
  });
}

}  // namespace headrace
