// What bind.cpp takes from bind_mailbox.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace headrace {

void bind_mailbox(nanobind::module_& m);

}  // namespace headrace
