// Which function tables this CPU could use. isa.cpp asks the CPU; who computes has a Context (context.h) that names one.
#pragma once

#include <string>
#include <vector>

#include "isa/table.h"

namespace headrace {

const Kernels* find_isa(const std::string& name);  // null: unknown, or not on this CPU
std::vector<std::string> available_isas();         // worst first
bool prefetch_helps();                             // on CPUs of this kind, as far as it was measured
std::vector<std::string> cpu_features();           // those that decide, in the kernel's spelling

}  // namespace headrace
