// The function table for plain C++, any CPU: see vec_portable.h and quants_portable.h.
#include "formats/quants_portable.h"

#include "dispatch/fill_table.h"

namespace headrace {
const Kernels kernels_portable = fill_table("portable");
}
