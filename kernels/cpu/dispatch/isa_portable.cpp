// The function table for plain C++, any CPU: see vec_portable.h and ints_portable.h.
#include "isa/ints_portable.h"

#include "dispatch/fill_table.h"

namespace headrace {
constexpr Kernels kernels_portable = fill_table<>("portable", exact_portable);
}
