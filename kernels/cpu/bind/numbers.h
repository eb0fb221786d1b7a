// Lists of numbers as vectors. The binding library's own converters may not fail: one that gets no memory ends the
// process. So what allocates is converted here, where a failure is a MemoryError.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

namespace headrace {

template <class T>
std::vector<T> numbers(nanobind::handle list) {
  std::vector<T> found;
  found.reserve(nanobind::len(list));
  for (const nanobind::handle one : list) found.push_back(nanobind::cast<T>(one));
  return found;
}

}  // namespace headrace
