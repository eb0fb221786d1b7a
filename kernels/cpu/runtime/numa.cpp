// Reading what Linux says of nodes, and mbind by its number, so that no library is needed. See numa.h.
#include "runtime/numa.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {

std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> found;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int first, last;
    char dash;
    std::istringstream range(part);
    if (!(range >> first)) continue;
    if (!(range >> dash >> last)) last = first;
    for (int cpu = first; cpu <= last; cpu++) found.push_back(cpu);
  }
  return found;
}

CpuLists node_cpus(const std::string& root) {
  CpuLists nodes;
  std::ifstream online(root + "/online");
  std::string text;
  if (!std::getline(online, text)) return nodes;
  for (int node : parse_cpu_list(text)) {
    nodes.resize(std::max<size_t>(nodes.size(), node + 1));
    std::ifstream file(root + "/node" + std::to_string(node) + "/cpulist");
    if (std::getline(file, text)) nodes[node] = parse_cpu_list(text);
  }
  return nodes;
}

CpuLists spread_cores(const CpuLists& cores, const CpuLists& nodes) {
  std::vector<CpuLists> by_node(nodes.size() + 1);  // the last: cores of no node
  for (const std::vector<int>& core : cores) {
    size_t node = 0;
    while (node < nodes.size() && std::find(nodes[node].begin(), nodes[node].end(), core[0]) == nodes[node].end()) node++;
    by_node[node].push_back(core);
  }
  CpuLists order;
  for (size_t turn = 0; order.size() < cores.size(); turn++)
    for (const CpuLists& mine : by_node)
      if (turn < mine.size()) order.push_back(mine[turn]);
  return order;
}

bool interleave(void* data, size_t bytes, const std::vector<int>& nodes) {
#if defined(__linux__) && defined(SYS_mbind)
  constexpr int MPOL_INTERLEAVE = 3;
  constexpr uintptr_t PAGE = 4096;
  constexpr size_t MASK_BITS = 1024, WORD = 8 * sizeof(unsigned long);
  unsigned long mask[MASK_BITS / WORD] = {};
  for (int node : nodes) {
    if (node < 0 || size_t(node) >= MASK_BITS) return false;
    mask[node / WORD] |= 1ul << (node % WORD);
  }
  const uintptr_t at = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (at + PAGE - 1) / PAGE * PAGE, end = (at + bytes) / PAGE * PAGE;
  return end > begin && syscall(SYS_mbind, begin, end - begin, MPOL_INTERLEAVE, mask, MASK_BITS, 0) == 0;
#else
  return (void)data, (void)bytes, (void)nodes, false;
#endif
}

}  // namespace headrace
