// What the files of this folder share: tensors come as addresses, and computations let go of the interpreter's lock.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace headrace {

using Address = uintptr_t;
using Unlocked = nanobind::call_guard<nanobind::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace headrace
