// The parts of the module, in the order in which it makes them: an op's signature names the structs before it.
#pragma once

#include <nanobind/nanobind.h>

namespace headrace {

void bind_machine(nanobind::module_& m);
void bind_structs(nanobind::module_& m);
void bind_ops(nanobind::module_& m);
void bind_streams(nanobind::module_& m);
void bind_mailbox(nanobind::module_& m);
void bind_replay(nanobind::module_& m);

}  // namespace headrace
