// Causal attention over the paged cache: cuts the work into items, gives them to the team, joins the parts.
//
//   item = one sequence x one key/value head x a block of queries, all query heads of the group together
//
// The context is cut into chunks of about 512 positions, or 128 where many heads share a key (latent attention), whose
// arithmetic is much for what they read. Every chunk starts from an empty softmax state, and the states are joined in the
// order of the chunks: by the worker that does the whole item when items are plenty, or in a second phase when chunks were
// spread over the team because items were few. Both give the same bits. No memory grows with context^2.
//
// Chunks lie at the same positions for every query, so a window's first one may be a part. A head's sink is what its sum
// begins with: a score without a value. Where a model itself attends within chunks, no item has queries of two of them.
#include <algorithm>
#include <limits>
#include <new>

#include "formats/layout.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int CHUNK = 512, MANY_HEADS_CHUNK = 128;  // positions
constexpr int MANY_HEADS = 32;                      // of a group: from more on
constexpr int ITEM_ROWS = 64;                       // query rows of one item: queries x heads of the group
constexpr int MERGE_ROWS = 8;                       // of an item whose states are joined by one worker
constexpr int64_t SMALL = 16384;  // score values x d: less than this is done by the caller alone

struct Item {
  int sequence, head, query, queries, first_key, first_chunk, chunks, part;  // part: its first chunk among all chunks of all items
};

struct Attention {
  const AttentionArgs& args;
  const Kernels& isa;
  int group, dp, dvp, max_rows, chunk_pages;
  int items = 0, parts = 0;
  int64_t work = 0;
  Item* list = nullptr;

  Attention(const AttentionArgs& a, Turn& turn) : args(a), isa(turn.isa) {
    group = a.heads / a.cache.groups;
    dp = int(round_up(a.cache.d, LANES_MAX)), dvp = int(round_up(a.cache.values.d, LANES_MAX));
    max_rows = std::max(group, ITEM_ROWS / group * group);
    chunk_pages = std::max(1, (group > MANY_HEADS ? MANY_HEADS_CHUNK : CHUNK) / a.cache.page_keys);
    make_list(turn.team.arena);
  }

  int block() const { return max_rows / group; }  // queries of one item
  int queries(int s) const { return args.starts[s + 1] - args.starts[s]; }
  int position(const Item& item) const {  // of its first query
    return args.contexts[item.sequence] - queries(item.sequence) + item.query;
  }
  int rows(const Item& item) const { return item.queries * group; }

  // The last blocks see most keys, so they come first.
  void make_list(Arena& arena) {
    int count = 0;
    for (int s = 0; s < args.sequences; s++)
      for (int end = queries(s); end > 0; end = block_before(s, end)) count += args.cache.groups;
    list = arena.take<Item>(count);
    for (int s = 0; s < args.sequences; s++)
      for (int end = queries(s); end > 0; end = block_before(s, end))
        for (int g = 0; g < args.cache.groups; g++) add_item(s, g, block_before(s, end), end);
  }

  // The first query of the block that ends in front of query `end`.
  int block_before(int s, int end) const {
    const int first = (end - 1) / block() * block(), before = args.contexts[s] - queries(s);  // tokens before the first query
    return args.chunk ? std::max(first, (before + end - 1) / args.chunk * args.chunk - before) : first;
  }

  void add_item(int s, int g, int query, int query_end) {
    Item item{s, g, query, query_end - query, 0, 0, 0, parts};
    item.first_key = args.chunk ? position(item) / args.chunk * args.chunk : 0;
    const int begin = std::max(item.first_key, position(item) + 1 - args.window);  // what its first query sees
    const int end = position(item) + item.queries;                    // what its last one does
    const int chunk = chunk_pages * args.cache.page_keys;
    item.first_chunk = begin / chunk;
    item.chunks = (end + chunk - 1) / chunk - item.first_chunk;
    list[items++] = item;
    parts += item.chunks;
    work += int64_t(end - begin) * rows(item) * args.cache.d;
  }

  AttendState state(Arena& arena) const {
    return {arena.take<float>(max_rows), arena.take<float>(max_rows), arena.take<float>(size_t(max_rows) * dvp)};
  }

  // A state's rows from `row` on.
  AttendState from_row(const AttendState& all, int row) const {
    return {all.m + row, all.l + row, all.acc + size_t(row) * dvp};
  }
};

// One worker's scratch, and what it does with an item.
struct Worker {
  float *q, *kf, *vf, *scores;
  AttendState part, total;
  const Item* loaded = nullptr;  // whose queries are there

  Worker(const Attention& job, Arena& arena)
      : q(arena.take<float>(size_t(job.max_rows) * job.dp)),
        kf(arena.take<float>(size_t(ATTEND_KEYS) * job.dp)),
        vf(arena.take<float>(size_t(ATTEND_KEYS) * job.dvp)),
        scores(arena.take<float>(size_t(job.max_rows) * ATTEND_KEYS)),
        part(job.state(arena)),
        total(job.state(arena)) {}

  // Scaled queries, row by row: query-major, the heads of the group side by side.
  void load_queries(const Attention& job, const Item& item) {
    if (loaded == &item) return;
    loaded = &item;
    const AttentionArgs& a = job.args;
    const int d = a.cache.d;
    for (int r = 0; r < job.rows(item); r++) {
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
    const size_t row = job.isa.formats[c.format].row_bytes(c.d), plane = row * c.page_keys;
    AttendItem run{};
    run.q = q, run.rows = job.rows(item), run.group = job.group;
    run.page_keys = c.page_keys, run.format = c.format;
    run.k = {c.k + item.head * plane, plane * c.groups, row, c.d, job.dp, kf};
    run.v = {c.values.data + item.head * c.values.plane, c.values.page, c.values.row, c.values.d, job.dvp, vf};
    run.table = a.tables + size_t(item.sequence) * a.table_len;
    run.first = job.position(item), run.window = a.window;
    run.scores = scores;
    const int keys = job.chunk_pages * c.page_keys;
    const int begin = std::max(item.first_key, (item.first_chunk + chunk) * keys);
    job.isa.attend(run, begin, (item.first_chunk + chunk + 1) * keys, state);
  }

  // An empty sum: the first part is taken as it is. With a sink, a sum of that alone.
  void clear(const Attention& job, const Item& item, int first, int rows) {
    const float* sinks = job.args.sinks ? job.args.sinks + item.head * job.group : nullptr;
    const float nothing = -std::numeric_limits<float>::infinity();
    for (int r = 0; r < rows; r++) {
      const float sink = sinks ? sinks[(first + r) % job.group] : nothing;
      total.m[r] = sink, total.l[r] = sink == nothing ? 0.0f : 1.0f;
    }
    std::fill(total.acc, total.acc + size_t(rows) * job.dvp, 0.0f);
  }

  // Rows first .. first + rows of the item, which are those of `total`.
  void finish(const Attention& job, const Item& item, int first, int rows) const {
    const AttentionArgs& a = job.args;
    const int d = a.cache.values.d;
    for (int r = 0; r < rows; r++) {
      const int64_t token = a.starts[item.sequence] + item.query + (first + r) / job.group;
      const int head = item.head * job.group + (first + r) % job.group;
      job.isa.attend_finish(total, r, job.dvp, d, a.out + token * a.out_stride + int64_t(head) * d);
    }
  }
};

// Every item from its first chunk to its last by one worker.
void run_whole(const Attention& job, Worker& worker, Counter& counter) {
  for (int i = counter.next(); i < job.items; i = counter.next()) {
    const Item& item = job.list[i];
    const int rows = job.rows(item);
    worker.load_queries(job, item);
    worker.clear(job, item, 0, rows);
    for (int chunk = 0; chunk < item.chunks; chunk++) {
      worker.attend(job, item, chunk, worker.part);
      job.isa.attend_merge(worker.total, worker.part, rows, job.dvp);
    }
    worker.finish(job, item, 0, rows);
  }
}

const Item& item_of_part(const Attention& job, int part) {
  const auto after = [](int p, const Item& item) { return p < item.part; };
  return *(std::upper_bound(job.list, job.list + job.items, part, after) - 1);
}

// Chunks by anybody into `states`, then every item's states joined in order, a few rows at a time.
void run_split(const Attention& job, Worker& worker, Team& team, const AttendState* states, Counter* counters) {
  for (int p = counters[0].next(); p < job.parts; p = counters[0].next()) {
    const Item& item = item_of_part(job, p);
    worker.load_queries(job, item);
    worker.attend(job, item, p - item.part, states[p]);
  }
  team.barrier();
  const int blocks = (job.max_rows + MERGE_ROWS - 1) / MERGE_ROWS;
  for (int i = counters[1].next(); i < job.items * blocks; i = counters[1].next()) {
    const Item& item = job.list[i / blocks];
    const int first = i % blocks * MERGE_ROWS, rows = std::min(MERGE_ROWS, job.rows(item) - first);
    if (rows <= 0) continue;
    worker.clear(job, item, first, rows);
    for (int chunk = 0; chunk < item.chunks; chunk++)
      job.isa.attend_merge(worker.total, job.from_row(states[item.part + chunk], first), rows, job.dvp);
    worker.finish(job, item, first, rows);
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
