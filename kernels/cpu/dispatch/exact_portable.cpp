// What products take of formats whose activations stay as they are, for plain C++.
#include "isa/ints_portable.h"

#include "dispatch/fill_table.h"

namespace headrace {
constexpr ExactTable exact_portable = fill_exact();
}
