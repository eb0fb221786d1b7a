// Ops that move values from one format to another, row by row: quantize, dequantize, embed.
//
// Rows are handed to the workers in pieces; each row is the business of one format's pack or unpack.
#include <cstring>
#include <stdexcept>
#include <string>

#include "formats/layout.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

constexpr int SMALL = 16384;  // values: less than this is done by the caller alone
constexpr int PIECE = 4;      // rows taken at a time

// fn(row, worker) for every row, in pieces handed out on demand.
template <class Fn>
void each_row(Team& team, int rows, int cols, const Fn& fn) {
  Counter counter;
  team.run(int64_t(rows) * cols < SMALL, [&](int worker) {
    for (int first = counter.next() * PIECE; first < rows; first = counter.next() * PIECE)
      for (int row = first; row < rows && row < first + PIECE; row++) fn(row, worker);
  });
}

}  // namespace

void quantize(const uint8_t* values, int values_format, int rows, int cols, int format, uint8_t* out, Turn& turn) {
  const FormatKernels &from = turn.isa.formats[values_format], &to = turn.isa.formats[format];
  const size_t in_bytes = from.row_bytes(cols), out_bytes = to.row_bytes(cols);
  float* scratch = turn.team.arena.take<float>(size_t(turn.team.size()) * cols);
  each_row(turn.team, rows, cols, [&](int row, int worker) {
    const uint8_t* src = values + row * in_bytes;
    uint8_t* dst = out + row * out_bytes;
    if (format == values_format) {
      std::memcpy(dst, src, in_bytes);
    } else if (values_format == F32) {
      to.pack(reinterpret_cast<const float*>(src), cols, dst);
    } else {
      from.unpack(src, cols, 1.0f, scratch + size_t(worker) * cols);
      to.pack(scratch + size_t(worker) * cols, cols, dst);
    }
  });
}

void dequantize(const Weights& matrix, float* out, Turn& turn) {
  const FormatKernels& format = turn.isa.formats[matrix.format];
  const size_t bytes = format.row_bytes(matrix.cols);
  each_row(turn.team, matrix.rows, matrix.cols, [&](int row, int) {
    format.unpack(matrix.data + row * bytes, matrix.cols, 1.0f, out + size_t(row) * matrix.cols);
  });
}

void embed(const Weights& table, const int64_t* ids, int tokens, float scale, float* out, Turn& turn) {
  const FormatKernels& format = turn.isa.formats[table.format];
  const size_t bytes = format.row_bytes(table.cols);
  for (int t = 0; t < tokens; t++)
    if (ids[t] < 0 || ids[t] >= table.rows)
      throw std::out_of_range("token id " + std::to_string(ids[t]) + " in a table of " + std::to_string(table.rows));
  each_row(turn.team, tokens, table.cols, [&](int t, int) {
    format.unpack(table.data + size_t(ids[t]) * bytes, table.cols, scale, out + size_t(t) * table.cols);
  });
}

}  // namespace headrace
