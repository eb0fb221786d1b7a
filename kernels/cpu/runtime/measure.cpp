// What the machine and the team can do at best: reading memory, an empty region, a barrier.
//
// stream_read: each worker reads its own contiguous share as two streams (its two halves), plain vector loads added up.
// peak_rate: arithmetic on registers alone, the ceiling that a kernel's share is held against.
#include <chrono>

#include "ops/ops.h"
#include "runtime/turn.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

double stream_read(const uint8_t* data, size_t bytes, Turn& turn) {
  constexpr size_t LINE = 4096;
  Team& team = turn.team;
  std::atomic<uint64_t> total{0};
  const Kernels& isa = turn.isa;
  const auto start = Clock::now();
  team.run(false, [&](int worker) {
    const Range mine = part_of(int(bytes / LINE), team.active(), worker);
    const bool last = worker == team.active() - 1;
    const size_t begin = mine.begin * LINE, end = last ? bytes : mine.end * LINE;
    total += isa.stream_sum(data + begin, end - begin);
  });
  const double seconds = seconds_since(start);
  volatile uint64_t sink = total;  // the sum counts as used
  (void)sink;
  return seconds;
}

double peak_rate(Peak which, Turn& turn) {
  const Kernels& isa = turn.isa;
  const bool tiles = which == Peak::bf16_tiles || which == Peak::int8_tiles;
  const auto loop = which == Peak::floats       ? isa.float_peak
                    : which == Peak::int8_dots  ? isa.int8_peak
                    : which == Peak::bf16_dots  ? isa.bf16_peak
                    : which == Peak::int8_tiles ? isa.int8_tiles_peak
                                                : isa.bf16_tiles_peak;
  if (!loop) return 0.0;
  std::vector<double> done(turn.team.size());
  const auto measure = [&](int rounds) {
    const auto start = Clock::now();
    turn.team.run(false, [&](int worker) {
      if (tiles) isa.tiles_begin();
      done[worker] = loop(rounds);
      if (tiles) isa.tiles_end();
    });
    return seconds_since(start);
  };
  constexpr int ROUNDS = 100'000;  // about 2 ms
  measure(ROUNDS);
  const double seconds = measure(ROUNDS);
  double operations = 0;
  for (double part : done) operations += part;
  return operations / seconds;
}

double region_ns(int rounds, Turn& turn) {
  turn.team.run(false, [](int) {});
  const auto start = Clock::now();
  for (int i = 0; i < rounds; i++) turn.team.run(false, [](int) {});
  return seconds_since(start) / rounds * 1e9;
}

double barrier_ns(int rounds, Turn& turn) {
  double seconds = 0;
  turn.team.run(false, [&](int worker) {
    turn.team.barrier();
    const auto start = Clock::now();
    for (int i = 0; i < rounds; i++) turn.team.barrier();
    if (worker == 0) seconds = seconds_since(start);
  });
  return seconds / rounds * 1e9;
}

}  // namespace headrace
