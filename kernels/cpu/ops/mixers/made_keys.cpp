// A prompt on keys and values that are made of the latents of its context: a cache in the arena, of some heads at a time, on
// which attention runs as on any. It is of the type of the real cache, bf16 beside a q8_0 one, and the projection it is made
// with too.
//
// The up-projection of keys lies as queries want it, n numbers for each of a latent's. Keys want it the other way round, so
// that each head's is turned over first.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/each_token.h"
#include "ops/mixers/cache_rows.h"
#include "ops/mixers/latent.h"

namespace headrace {
namespace {

constexpr int PAGE = 32;      // keys of a page
constexpr int SEGMENT = 512;  // tokens whose keys are made at once
constexpr int TURNING = 8;    // tokens whose keys and values take as long as turning the projection over

// One sequence, and heads [head, head + count) of it.
struct Made {
  const LatentMixer& mixer;
  const LatentShape& shape;
  int code;                     // of the format of the cache that is made
  const FormatKernels& format;
  const int32_t* table;         // of the real cache
  int context, head, count;

  size_t bytes(int numbers) const { return format.row_bytes(numbers); }
  int pages() const { return (context + PAGE - 1) / PAGE; }

  // The projection of these heads turned over, [count n, l], by one head after the other.
  Weights turn_over(Turn& turn) const {
    const FormatKernels& from = turn.context.format(mixer.k_up.format);
    Arena& arena = turn.team.arena;
    const int l = shape.l, n = shape.n;
    auto* turned = arena.take<uint8_t>(bytes(l) * count * n);
    const size_t room = size_t(l) * (n + 1);
    float* scratch = arena.take<float>(room * turn.team.size());
    Counter heads;
    turn.team.run(false, [&](int worker) {
      float *rows = scratch + worker * room, *column = rows + size_t(l) * n;
      for (int i = heads.next(); i < count; i = heads.next()) {
        const uint8_t* first = mixer.k_up.data + size_t(head + i) * l * from.row_bytes(n);
        for (int j = 0; j < l; j++) from.unpack(first + j * from.row_bytes(n), n, 1.0f, rows + size_t(j) * n);
        for (int k = 0; k < n; k++) {
          for (int j = 0; j < l; j++) column[j] = rows[size_t(j) * n + k];
          format.pack(column, l, turned + (size_t(i) * n + k) * bytes(l));
        }
      }
    });
    return {code, count * n, l, turned};
  }

  Weights value_rows(Turn& turn) const {
    const size_t row = turn.context.format(mixer.v_up.format).row_bytes(shape.l);
    return {mixer.v_up.format, count * shape.v, shape.l, mixer.v_up.data + size_t(head) * shape.v * row};
  }

  // Latents and rotated parts of tokens [first, first + n): [n, l] and [n, 2 r].
  void load(int first, int n, float* latents, float* rotated, Turn& turn) const {
    const Cache& cache = mixer.cache;
    const CacheRows rows(turn.isa, cache);
    const Arena::Loan loan(turn.team.arena);
    float* wide = turn.team.arena.take<float>(size_t(n) * cache.d);
    each_token(turn.team, n, int64_t(n) * cache.d, [&](int t) {
      const int at = first + t;
      float* row = wide + size_t(t) * cache.d;
      rows.unpack(cache.k + table[at / cache.page_keys] * rows.plane(), at % cache.page_keys, row);
      std::memcpy(latents + size_t(t) * shape.l, row, size_t(shape.l) * sizeof(float));
      std::memcpy(rotated + size_t(t) * shape.rotated, row + shape.l, size_t(shape.rotated) * sizeof(float));
    });
  }

  // Keys and values of these tokens into the cache that is made.
  void make(int first, int n, const Weights& keys_of, const Weights& values_of, const Cache& to, Turn& turn) const {
    Arena& arena = turn.team.arena;
    const Arena::Loan loan(arena);
    const int keys_cols = keys_of.rows, values_cols = values_of.rows;
    float *latents = arena.take<float>(size_t(n) * shape.l), *rotated = arena.take<float>(size_t(n) * shape.rotated);
    float *keys = arena.take<float>(size_t(n) * keys_cols), *values = arena.take<float>(size_t(n) * values_cols);
    load(first, n, latents, rotated, turn);
    linear(latents, shape.l, n, keys_of, nullptr, keys, keys_cols, turn);
    linear(latents, shape.l, n, values_of, nullptr, values, values_cols, turn);
    const size_t key = bytes(shape.key()), value = bytes(shape.v);
    each_token(turn.team, n, int64_t(n) * (keys_cols + values_cols), [&](int t) {
      const int at = first + t;
      for (int i = 0; i < count; i++) {
        const size_t row = (size_t(at / PAGE) * count + i) * PAGE + at % PAGE, mine = size_t(t) * count + i;
        format.pack(keys + mine * shape.n, shape.n, to.k + row * key);
        format.pack(rotated + size_t(t) * shape.rotated, shape.rotated, to.k + row * key + bytes(shape.n));
        format.pack(values + mine * shape.v, shape.v, to.values.data + row * value);
      }
    });
  }

  // Keys and values of the whole context, [pages][heads][PAGE] rows each.
  Cache make_all(Turn& turn) const {
    Arena& arena = turn.team.arena;
    const size_t key = bytes(shape.key()), value = bytes(shape.v), rows = size_t(pages()) * count * PAGE;
    const Cache made{code, count, PAGE, shape.key(), arena.take<uint8_t>(rows * key),
                     {shape.v, value, PAGE * value, count * PAGE * value, arena.take<uint8_t>(rows * value)}};
    const Arena::Loan loan(arena);
    const Weights keys_of = turn_over(turn), values_of = value_rows(turn);
    for (int t = 0; t < context; t += SEGMENT) make(t, std::min(SEGMENT, context - t), keys_of, values_of, made, turn);
    return made;
  }
};

}  // namespace

bool makes_keys(const LatentShape& shape, int queries, int context) {
  const int64_t pairs = int64_t(queries) * context - int64_t(queries) * (queries - 1) / 2;
  const int64_t fewer = pairs * (2 * shape.l - shape.n - shape.v);
  return fewer > int64_t(context - queries + TURNING) * shape.l * (shape.n + shape.v);
}

void attend_made(const LatentMixer& mixer, const Places& places, int s, const float* q, float* out, Turn& turn,
                 Stopwatch& watch) {
  Arena& arena = turn.team.arena;
  const Arena::Loan loan(arena);
  const LatentShape shape(mixer);
  const int code = mixer.cache.format == Q8_0 ? int(BF16) : mixer.cache.format;
  const FormatKernels& format = turn.isa.formats[code];
  const int first = places.starts[s], context = places.contexts[s], starts[] = {0, places.starts[s + 1] - first};
  const int pages = (context + PAGE - 1) / PAGE;
  int32_t* table = arena.take<int32_t>(pages);
  std::iota(table, table + pages, 0);

  const size_t made = size_t(pages) * PAGE * format.row_bytes(shape.key() + shape.v);
  const size_t each = made + size_t(std::min(SEGMENT, context)) * (shape.n + shape.v) * sizeof(float);
  const int heads = int(std::clamp<size_t>(MADE_BYTES / each, 1, shape.heads));
  const int64_t q_stride = int64_t(shape.heads) * shape.key(), out_stride = int64_t(shape.heads) * shape.v;
  for (int head = 0; head < shape.heads; head += heads) {
    const Arena::Loan round(arena);
    const int count = std::min(heads, shape.heads - head);
    const int32_t* from = places.tables + size_t(s) * places.table_len;
    const Cache cache = Made{mixer, shape, code, format, from, context, head, count}.make_all(turn);
    watch.lap(Part::by_head);
    attention({q + first * q_stride + int64_t(head) * shape.key(), q_stride, cache, table, starts, &context, 1, pages, count,
               mixer.scale, NO_WINDOW, 0, nullptr, out + first * out_stride + int64_t(head) * shape.v, out_stride}, turn);
    watch.lap(Part::attention);
  }
}

}  // namespace headrace
