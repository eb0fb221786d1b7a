// Nodes of memory: which there are, cores in turns from each, and memory spread over them.
//
// On a machine with several nodes every team of fewer threads than cores would otherwise sit on the first node, and the
// weights, filled by one thread, in its memory: half the channels would idle. Pages of the large weights are dealt out in
// turns instead, so that any worker may take any expert and all channels are read. A core then reads part of its bytes
// from afar; placing every expert beside the core that will read it would save that, and bind the schedule to it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace headrace {

using CpuLists = std::vector<std::vector<int>>;

std::vector<int> parse_cpu_list(const std::string& text);  // "0-3,8" as the kernel writes it
CpuLists node_cpus(const std::string& root);  // CPUs by number of the node; empty where there are no such files
CpuLists spread_cores(const CpuLists& cores, const CpuLists& nodes);  // the cores, in turns from each node

// Asks the system to deal out the pages of a buffer, not yet written, over these nodes; false: it would not.
bool interleave(void* data, size_t bytes, const std::vector<int>& nodes);

}  // namespace headrace
