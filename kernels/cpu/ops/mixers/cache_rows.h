// How the rows of a cache lie: [page][group] planes of page_keys rows side by side, of Q8_0 their codes, and then their
// scales.
#pragma once

#include "formats/layout.h"
#include "ops/ops.h"

namespace headrace {

// Rows of d numbers in a format.
struct CacheRows {
  const Kernels& isa;
  int format, d, page_keys;

  CacheRows(const Kernels& isa, const Cache& cache) : CacheRows(isa, cache.format, cache.d, cache.page_keys) {}
  CacheRows(const Kernels& isa, int format, int d, int page_keys) : isa(isa), format(format), d(d), page_keys(page_keys) {}

  size_t row() const { return format == Q8_0 ? size_t(d) : isa.formats[format].row_bytes(d); }
  size_t scales() const { return format == Q8_0 ? halves(d) : 0; }  // of a row
  size_t plane() const { return page_keys * (row() + scales()); }

  // Row `at` of a plane.
  void pack(const float* x, uint8_t* plane, size_t at) const {
    if (format == Q8_0)
      isa.q8_pack(x, d, plane + at * row(), plane + page_keys * row() + at * scales());
    else
      isa.formats[format].pack(x, d, plane + at * row());
  }

  void unpack(const uint8_t* plane, size_t at, float* x) const {
    if (format == Q8_0)
      isa.q8_unpack(plane + at * row(), plane + page_keys * row() + at * scales(), d, x);
    else
      isa.formats[format].unpack(plane + at * row(), d, 1.0f, x);
  }
};

}  // namespace headrace
