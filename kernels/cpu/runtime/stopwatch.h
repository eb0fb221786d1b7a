// Where the time of a decoder's layers goes: a few clock readings of 25 ns a layer, always on. An op that is called by
// itself counts too, where it is one of the parts that hold a watch.
//
//   Stopwatch watch;  ...  watch.lap(Part::qkv);  ...  watch.lap(Part::attention);
//
// Each lap adds the time since the one before to its part. Python takes the sums (take_part_seconds), which empties them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace headrace {

enum class Part { norm, qkv, place, by_head, conv, attention, delta, output, route, experts, dense, COUNT };

class Stopwatch {
 public:
  void lap(Part part) {
    const Clock::time_point now = Clock::now();
    add(part, std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_).count());
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static void add(Part part, int64_t ns);

  Clock::time_point last_ = Clock::now();
};

std::vector<std::pair<std::string, double>> take_part_seconds();  // by name, since they were last taken

}  // namespace headrace
