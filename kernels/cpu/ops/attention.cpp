// Causal attention over the paged cache: cuts the work into items, gives them to the team, joins the parts.
//
//   item = one sequence x one key/value head x a block of queries, all query heads of the group together (32 at most)
//
// Where queries are few and chunks many, an item has several heads of keys: they lie side by side in pages, and are read so.
//
// The context is cut into chunks of about 512 positions. Every chunk starts from an empty softmax state, and the states are
// joined in the order of the chunks: by the worker that does the whole item when items are plenty, or when they are few by
// all: so many chunks spread over the team, their states joined, and on with the next ones. Both give the same bits. No
// memory grows with the context.
//
// Chunks lie at the same positions for every query, so a window's first one may be a part. A head's sink is what its sum
// begins with: a score without a value. Where a model itself attends within chunks, no item has queries of two of them.
#include <algorithm>
#include <limits>
#include <new>
#include <optional>

#include "ops/mixers/cache_rows.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int CHUNK = 512;      // positions
constexpr int MANY_HEADS = 32;  // of a group in one item: their queries and sums stay in the second cache
constexpr int MERGE_ROWS = 8;   // of a head of keys whose states are joined by one worker
constexpr int ROOM = 4;         // rows of a head have room for so many, or twice as many and so on
constexpr int PARTS = 4;        // chunks for each of a team, that items have fewer heads of keys for
constexpr int ROUND = 64;       // chunks whose states are kept at once; where the team is large, more
constexpr int TURNS = 8;        // of a worker in a round at least: one that is late leaves the rest to others
constexpr int64_t SMALL = 16384;  // score values x d: less than this is done by the caller alone

struct Item {
  int sequence, group, groups;  // heads of keys [group, group + groups)
  int head, heads;              // query heads [head, head + heads) of those that share one
  int query, queries = 0, first_key = 0, first_chunk = 0, chunks = 0;
  int part = 0;  // its first chunk among all chunks of all items

  int rows() const { return queries * heads; }  // of a head of keys
  int room() const { return int(round_up(rows(), ROOM)); }
};

struct Attention {
  const AttentionArgs& args;
  const Kernels& isa;
  int group, heads, dp, dvp, max_rows, chunk_pages;  // heads: of a group, in one item
  const AttendKernels* way = nullptr;
  int items = 0, parts = 0;
  int64_t work = 0;
  Item* list = nullptr;

  Attention(const AttentionArgs& a, Turn& turn) : args(a), isa(turn.isa) {
    group = a.heads / a.cache.groups;
    const int pieces = (group + MANY_HEADS - 1) / MANY_HEADS;
    heads = (group + pieces - 1) / pieces;
    dp = int(round_up(a.cache.d, 2 * LANES_MAX)), dvp = int(round_up(a.cache.values.d, 2 * LANES_MAX));
    max_rows = ATTEND_ROWS / heads * heads;
    chunk_pages = std::max(1, CHUNK / a.cache.page_keys);
    way = turn.context.pairs && isa.attend_bf16 && isa.attend_bf16->takes(keys(0), values(0), a.cache.format)
              ? isa.attend_bf16
              : &isa.attend;
    make_list(turn);
  }

  // Keys and values of a head, without scratch.
  AttendRows keys(int group) const {
    const Cache& c = args.cache;
    const CacheRows rows(isa, c);
    const size_t plane = rows.plane();
    return {c.k + group * plane, plane * c.groups, rows.row(), c.d, c.d, dp, nullptr};
  }
  AttendRows values(int group) const {
    const Values& v = args.cache.values;
    const int row_d = v.data == args.cache.k ? args.cache.d : v.d;
    return {v.data + group * v.plane, v.page, v.row, v.d, row_d, dvp, nullptr};
  }

  int block() const { return max_rows / heads; }  // queries of one item
  int queries(int s) const { return args.starts[s + 1] - args.starts[s]; }
  int position(const Item& item) const {  // of its first query
    return args.contexts[item.sequence] - queries(item.sequence) + item.query;
  }
  int64_t token(const Item& item, int row) const { return args.starts[item.sequence] + item.query + row / item.heads; }
  int head_of(const Item& item, int g, int row) const { return (item.group + g) * group + item.head + row % item.heads; }

  // Of how many heads of keys sequence s makes one item: those whose rows fit, while a team has chunks enough.
  int side_by_side(int s, int team) const {
    if (group > heads || !queries(s)) return 1;
    const int rows = std::min(queries(s), block()) * heads, chunk = chunk_pages * args.cache.page_keys;
    const int seen = std::min(args.contexts[s], args.window), chunks = (seen + chunk - 1) / chunk * args.cache.groups;
    int n = std::min(args.cache.groups, ATTEND_ROWS / int(round_up(rows, ROOM)));
    while (n > 1 && int64_t(chunks) * args.sequences < int64_t(PARTS) * team * n) n = (n + 1) / 2;
    return n;
  }

  // The last blocks see most keys, so they come first.
  void make_list(Turn& turn) {
    const int pieces = args.cache.groups * ((group + heads - 1) / heads);
    int count = 0;
    for (int s = 0; s < args.sequences; s++)
      for (int end = queries(s); end > 0; end = block_before(s, end)) count += pieces;
    list = turn.team.arena.take<Item>(count);
    for (int s = 0; s < args.sequences; s++) {
      const int n = side_by_side(s, turn.team.size());
      for (int end = queries(s); end > 0; end = block_before(s, end))
        for (int g = 0; g < args.cache.groups; g += n)
          for (int head = 0; head < group; head += heads)
            add_item({s, g, std::min(n, args.cache.groups - g), head, std::min(heads, group - head), block_before(s, end)}, end);
    }
  }

  // The first query of the block that ends in front of query `end`.
  int block_before(int s, int end) const {
    const int first = (end - 1) / block() * block(), before = args.contexts[s] - queries(s);  // tokens before the first query
    return args.chunk ? std::max(first, (before + end - 1) / args.chunk * args.chunk - before) : first;
  }

  void add_item(Item item, int query_end) {
    item.queries = query_end - item.query, item.part = parts;
    item.first_key = args.chunk ? position(item) / args.chunk * args.chunk : 0;
    const int begin = std::max(item.first_key, position(item) + 1 - args.window);  // what its first query sees
    const int end = position(item) + item.queries;                    // what its last one does
    const int chunk = chunk_pages * args.cache.page_keys;
    item.first_chunk = begin / chunk;
    item.chunks = (end + chunk - 1) / chunk - item.first_chunk;
    list[items++] = item;
    parts += item.chunks;
    work += int64_t(end - begin) * item.rows() * item.groups * args.cache.d;
  }

  AttendState state(Arena& arena) const {
    return {arena.take<float>(ATTEND_ROWS), arena.take<float>(ATTEND_ROWS), arena.take<float>(size_t(ATTEND_ROWS) * dvp)};
  }

  // A state's rows from `row` on.
  AttendState from_row(const AttendState& all, int row) const {
    return {all.m + row, all.l + row, all.acc + size_t(row) * dvp};
  }
};

// One worker's scratch, and what it does with an item.
struct Worker {
  float *q, *wide, *scores;
  AttendState part, total;
  const Item* loaded = nullptr;  // whose queries are there

  Worker(const Attention& job, Arena& arena)
      : q(arena.take<float>(size_t(ATTEND_ROWS) * job.dp)),
        wide(arena.take<float>(size_t(ATTEND_KEYS) * std::max(job.dp, job.dvp))),
        scores(arena.take<float>(size_t(ATTEND_ROWS) * ATTEND_KEYS)),
        part(job.state(arena)),
        total(job.state(arena)) {}

  // Scaled queries of each head of keys, row by row: query-major, the heads of the item side by side.
  void load_queries(const Attention& job, const Item& item) {
    if (loaded == &item) return;
    loaded = &item;
    const AttentionArgs& a = job.args;
    const AttendRows rows = job.keys(item.group);
    for (int g = 0; g < item.groups; g++)
      for (int r = 0; r < item.room(); r++) {
        const float* src = nullptr;
        if (r < item.rows()) src = a.q + job.token(item, r) * a.q_stride + int64_t(job.head_of(item, g, r)) * a.cache.d;
        job.way->query(src, rows, a.cache.format, a.scale, r, item.rows(), q + size_t(g) * item.room() * job.dp);
      }
  }

  // Head g of an item's keys.
  AttendItem head(const Attention& job, const Item& item, int g, bool read_on) const {
    const AttentionArgs& a = job.args;
    AttendItem run{};
    run.q = q + size_t(g) * item.room() * job.dp, run.rows = item.rows(), run.group = item.heads;
    run.page_keys = a.cache.page_keys, run.format = a.cache.format;
    run.k = job.keys(item.group + g), run.v = job.values(item.group + g), run.k.wide = run.v.wide = wide;
    run.table = a.tables + size_t(item.sequence) * a.table_len;
    run.first = job.position(item), run.window = a.window;
    run.scores = scores, run.read_on = read_on;
    return run;
  }

  // read_on: its next chunk too is for this worker.
  void attend(const Attention& job, const Item& item, int chunk, bool read_on, const AttendState& state) {
    AttendItem heads[ATTEND_ROWS / ROOM];
    AttendState states[ATTEND_ROWS / ROOM];
    for (int g = 0; g < item.groups; g++)
      heads[g] = head(job, item, g, read_on), states[g] = job.from_row(state, g * item.room());
    const int span = job.chunk_pages * job.args.cache.page_keys;
    const int begin = std::max(item.first_key, (item.first_chunk + chunk) * span);
    job.way->attend(heads, item.groups, begin, (item.first_chunk + chunk + 1) * span, states);
  }

  // An empty sum of rows first .. first + rows of head g of keys: the first part is taken as it is. With a sink, a sum of that
  // alone.
  static void clear(const Attention& job, const Item& item, int g, int first, int rows, const AttendState& total) {
    const float nothing = -std::numeric_limits<float>::infinity();
    for (int r = 0; r < rows; r++) {
      const float sink = job.args.sinks ? job.args.sinks[job.head_of(item, g, first + r)] : nothing;
      total.m[r] = sink, total.l[r] = sink == nothing ? 0.0f : 1.0f;
    }
    std::fill(total.acc, total.acc + size_t(rows) * job.dvp, 0.0f);
  }

  // Rows first .. first + rows of head g of the item's keys, which are those of `total`.
  void finish(const Attention& job, const Item& item, int g, int first, int rows, const AttendState& total) const {
    const AttentionArgs& a = job.args;
    const AttendRows rows_of = job.values(item.group + g);
    for (int r = 0; r < rows; r++) {
      float* out = a.out + job.token(item, first + r) * a.out_stride;
      out += int64_t(job.head_of(item, g, first + r)) * rows_of.d;
      job.way->finish(total, r, rows_of, a.cache.format, out);
    }
  }
};

// Every item from its first chunk to its last by one worker.
void run_whole(const Attention& job, Worker& worker, Counter& counter) {
  for (int i = counter.next(); i < job.items; i = counter.next()) {
    const Item& item = job.list[i];
    const int rows = item.rows();
    worker.load_queries(job, item);
    const auto of = [&](const AttendState& all, int g) { return job.from_row(all, g * item.room()); };
    for (int g = 0; g < item.groups; g++) worker.clear(job, item, g, 0, rows, of(worker.total, g));
    for (int chunk = 0; chunk < item.chunks; chunk++) {
      worker.attend(job, item, chunk, true, worker.part);
      for (int g = 0; g < item.groups; g++)
        job.isa.attend_merge(of(worker.total, g), of(worker.part, g), rows, job.dvp);
    }
    for (int g = 0; g < item.groups; g++) worker.finish(job, item, g, 0, rows, of(worker.total, g));
  }
}

const Item& item_of_part(const Attention& job, int part) {
  const auto after = [](int p, const Item& item) { return p < item.part; };
  return *(std::upper_bound(job.list, job.list + job.items, part, after) - 1);
}

// What a team shares that does the chunks of few items together.
struct Split {
  const int round, run;          // chunks, and those that a worker takes in one turn, so that it asks for them ahead
  AttendState *states, *totals;  // of the chunks of a round, of the items
  Counter turns, merges;

  Split(const Attention& job, Team& team)
      : round(std::min(job.parts, std::max(ROUND, 4 * team.size()))), run(std::max(1, round / (TURNS * team.size()))) {
    states = team.arena.take<AttendState>(round), totals = team.arena.take<AttendState>(job.items);
    for (int p = 0; p < round; p++) states[p] = job.state(team.arena);
    for (int i = 0; i < job.items; i++) totals[i] = job.state(team.arena);
  }

  int next(int begin) { return begin + turns.next() * run; }  // the first chunk of a turn
};

// Joins the states of chunks [begin, end) of item i to its total, a few rows of one of its heads. Its first chunk begins it, its
// last one ends it.
void merge_rows(const Attention& job, const Worker& worker, const Split& split, int i, int block, int begin, int end) {
  const Item& item = job.list[i];
  const int each = (item.rows() + MERGE_ROWS - 1) / MERGE_ROWS, g = block / each, first = block % each * MERGE_ROWS;
  const int rows = std::min(MERGE_ROWS, item.rows() - first), last = item.part + item.chunks;
  const int from = std::max(begin, item.part), to = std::min(end, last), row = g * item.room() + first;
  if (g >= item.groups || from >= to) return;
  const AttendState total = job.from_row(split.totals[i], row);
  if (from == item.part) worker.clear(job, item, g, first, rows, total);
  for (int p = from; p < to; p++)
    job.isa.attend_merge(total, job.from_row(split.states[p - begin], row), rows, job.dvp);
  if (to == last) worker.finish(job, item, g, first, rows, total);
}

// A round of chunks by anybody, their states joined in order, a few rows at a time, and the next ones.
void run_split(const Attention& job, Worker& worker, int number, Team& team, Split& split) {
  int blocks = 0;  // of an item at most
  for (int i = 0; i < job.items; i++)
    blocks = std::max(blocks, (job.list[i].rows() + MERGE_ROWS - 1) / MERGE_ROWS * job.list[i].groups);
  for (int begin = 0; begin < job.parts; begin += split.round) {
    const int end = std::min(begin + split.round, job.parts);
    for (int first = split.next(begin); first < end; first = split.next(begin)) {
      const int last = std::min(first + split.run, end) - 1;
      for (int p = first; p <= last; p++) {
        const Item& item = item_of_part(job, p);
        worker.load_queries(job, item);
        worker.attend(job, item, p - item.part, p < last, split.states[p - begin]);
      }
    }
    team.barrier();
    if (number == 0) split.turns.value = 0;
    for (int m = split.merges.next(); m < job.items * blocks; m = split.merges.next())
      merge_rows(job, worker, split, m / blocks, m % blocks, begin, end);
    team.barrier();
    if (number == 0) split.merges.value = 0;
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
  Counter counter;
  std::optional<Split> shared;
  if (split) shared.emplace(job, team);
  team.run(solo, [&](int worker) {
    if (split)
      run_split(job, workers[worker], worker, team, *shared);
    else
      run_whole(job, workers[worker], counter);
  });
}

}  // namespace headrace
