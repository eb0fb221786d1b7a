// Cached rows of keys and values, as attention reads them, over any vec_*.h: where a row lies, vectors of its numbers, the
// whole of it as float32, and asking for it ahead of time.
//
// A row format is one struct here (`widen`, and `load` where rows can be read as they lie), one case of `with_rows`, and the
// order in which its numbers come:
// bfloat16 is widened pairwise, so that of 2 W numbers those at even places come first, then those at odd places, which
// takes a shift or a mask for each vector. Queries and sums of values lie in that order (`place_query`, `take_values`). Rows
// that few query rows share are read as they lie; others, and those that do not fill whole vectors, are widened to float32
// scratch first. Both give the same numbers in the same order, so the same sums.
#pragma once

#include "formats/floats.h"
#include "formats/q8_rows.h"

namespace headrace {
namespace {

constexpr int KEYS = ATTEND_KEYS, PAIR = 2 * W;

// Numbers c .. c + PAIR - 1 of a row are two vectors; c is a multiple of PAIR. MANY: registers are short. LOADS: whether rows
// can be read as they lie; scales: those of the row, of Q8_0.
struct F32Cached {
  static constexpr bool PAIRS = false, LOADS = true;
  template <int PART, bool MANY>
  static V load(const uint8_t* row, int c) {
    return headrace::load(reinterpret_cast<const float*>(row) + c + PART * W);
  }
  static void widen(const uint8_t* row, const uint8_t*, int d, float* out) { FloatFormat<F32Row>::unpack(row, d, 1.0f, out); }
};

struct Bf16Cached {
  static constexpr bool PAIRS = true, LOADS = true;
  template <int PART, bool MANY>
  static V load(const uint8_t* row, int c) {
    return load_bf16_part<PART, MANY>(row + size_t(c) * sizeof(uint16_t));
  }
  static void widen(const uint8_t* row, const uint8_t*, int d, float* out) {
    int c = 0;
    for (V even, odd; c + PAIR <= d; c += PAIR) {
      load_bf16_pairs(row + size_t(c) * sizeof(uint16_t), &even, &odd);
      store(out + c, even), store(out + c + W, odd);
    }
    if (c < d) FloatFormat<BF16Row>::unpack(row + size_t(c) * sizeof(uint16_t), d - c, 1.0f, out + c);
  }
};

struct Q8Cached {
  static constexpr bool PAIRS = false, LOADS = false;
  static void widen(const uint8_t* row, const uint8_t* scales, int d, float* out) { q8_unpack(row, scales, d, out); }
};

// fn(row format of this code), which is one of those that a cache can have.
template <class Fn>
inline auto with_rows(int format, const Fn& fn) {
  return format == F32 ? fn(F32Cached{}) : format == Q8_0 ? fn(Q8Cached{}) : fn(Bf16Cached{});
}

// How many numbers at the front of a row of `d` come in pairs.
inline int paired(int format, int d) {
  return with_rows(format, [](auto row) { return decltype(row)::PAIRS; }) ? d / PAIR * PAIR : 0;
}

// A query times `scale` in the order of keys, zeros behind its d numbers; rows that are none are not read.
inline void attend_query(const float* q, const AttendRows& keys, int format, float scale, int row, int, float* out) {
  if (!q) return;
  out += size_t(row) * keys.dp;
  const int pairs = paired(format, keys.d);
  for (int c = 0; c < pairs; c += PAIR)
    for (int i = 0; i < W; i++) out[c + i] = q[c + 2 * i] * scale, out[c + W + i] = q[c + 2 * i + 1] * scale;
  for (int c = pairs; c < keys.d; c++) out[c] = q[c] * scale;
  for (int c = keys.d; c < keys.dp; c++) out[c] = 0.0f;
}

// Sums of values times `scale` in their own order.
inline void take_values(const float* acc, const AttendRows& values, int format, float scale, float* out) {
  const int d = values.d, pairs = paired(format, values.row_d);
  int c = 0;
  for (; c + PAIR <= least(d, pairs); c += PAIR)
    for (int i = 0; i < W; i++) out[c + 2 * i] = acc[c + i] * scale, out[c + 2 * i + 1] = acc[c + W + i] * scale;
  if (c < pairs)  // values end within a pair of vectors of their keys
    for (int i = 0; c + i < d; i++) out[c + i] = acc[c + i / 2 + i % 2 * W] * scale;
  else
    for (; c < d; c++) out[c] = acc[c] * scale;
}

// The rows of keys or values of one step: that of place j at at[j], for places [from, n). Places beside them have some row
// of those.
struct RowPlaces {
  const uint8_t* at[KEYS];
  int from, n;

  void fill() {
    for (int j = 0; j < from; j++) at[j] = at[from];
    for (int j = n; j < KEYS; j++) at[j] = at[n - 1];
  }
};

// Where the rows of positions key0 + [from, n) lie: page by page.
inline void find_rows(const AttendItem& item, const AttendRows& rows, int key0, int from, int n, RowPlaces* places) {
  places->from = from, places->n = n;
  for (int j = from; j < n;) {
    const int page = (key0 + j) / item.page_keys, within = (key0 + j) % item.page_keys;
    const uint8_t* at = rows.first + size_t(item.table[page]) * rows.page_bytes + size_t(within) * rows.row_bytes;
    for (const int end = least(n, j + item.page_keys - within); j < end; j++, at += rows.row_bytes) places->at[j] = at;
  }
  places->fill();
}

// Where the scales of a row lie, which is number `within` of the Q8_0 rows of a page.
inline const uint8_t* scales_of(const AttendRows& rows, const uint8_t* row, int within, int page_keys) {
  return row + size_t(page_keys - within) * rows.row_bytes + within * halves(rows.row_bytes);
}

// The same rows as float32 in the scratch of `rows`, zeros behind their d numbers.
template <class Row>
inline void widen_rows(const AttendItem& item, const AttendRows& rows, int key0, RowPlaces* places) {
  for (int j = places->from; j < places->n; j++) {
    float* wide = rows.wide + size_t(j) * rows.dp;
    const int within = (key0 + j) % item.page_keys;
    Row::widen(places->at[j], scales_of(rows, places->at[j], within, item.page_keys), rows.d, wide);
    for (int i = rows.d; i < rows.dp; i++) wide[i] = 0.0f;
    places->at[j] = reinterpret_cast<const uint8_t*>(wide);
  }
  places->fill();
}

// Asks for rows that come next, some of them at a time between the products of others: pages lie anywhere, no hardware sees
// them coming, and asked for all at once they would be waited for.
class AskAhead {
 public:
  // In about `turns` calls of `some`; places null: nothing.
  AskAhead(const RowPlaces* places, size_t row_bytes, int turns) {
    if (!places || places->from >= places->n) return;
    at_ = places->at + places->from, end_ = places->at + places->n, bytes_ = row_bytes;
    each_ = (places->n - places->from + turns - 1) / most(1, turns);
  }

  void some() {
    for (const auto stop = at_ + least(each_, int(end_ - at_)); at_ < stop; at_++)
      for (size_t at = 0; at < bytes_; at += LINE) __builtin_prefetch(*at_ + at);
  }

 private:
  static constexpr size_t LINE = 64;
  const uint8_t *const *at_ = nullptr, *const *end_ = nullptr;
  size_t bytes_ = 0;
  int each_ = 0;
};

}  // namespace
}  // namespace headrace
