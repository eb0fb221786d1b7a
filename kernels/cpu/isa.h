// Which function table is in use, and which this CPU could use. Chosen by name; isa.cpp asks the CPU once.
#pragma once

#include <string>
#include <vector>

#include "table.h"

namespace headrace {

const Kernels& kernels();                   // the table in use; the best one at start
const FormatKernels& format_kernels(int format);  // of that table, with int8 activations or without
void set_exact(bool on);                     // activations are not rounded to int8; off at start
int tile_tokens(int format);                 // from how many tokens on tiles are used; 0: never
bool takes_tiles(int format, int tokens);
void set_tile_tokens(int format, int tokens);  // for the whole process; 0: what the table says
bool use_isa(const std::string& name);      // false: unknown, or not on this CPU
std::vector<std::string> available_isas();  // worst first
std::vector<std::string> cpu_features();    // those that decide, in the kernel's spelling

}  // namespace headrace
