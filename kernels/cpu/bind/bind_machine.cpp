// What is not an op: instruction set, threads, memory, and what the machine can do at best.
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/address.h"
#include "bind/bind.h"
#include "dispatch/context.h"
#include "ops/ops.h"
#include "runtime/numa.h"
#include "runtime/stopwatch.h"
#include "runtime/turn.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

// Asks for huge pages under the whole 4 KB pages inside the buffer.
bool advise_huge(Address data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr Address PAGE = 4096;
  const Address begin = (data + PAGE - 1) / PAGE * PAGE, end = (data + bytes) / PAGE * PAGE;
  return end > begin && madvise(at(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  return (void)data, (void)bytes, false;
#endif
}

// isa: its name; ValueError where this CPU has none of it. tiles_from: by format code; left out: as the table says.
void make_context(Context* to, const std::string& isa, bool exact, int threads, bool prefetch,
                  const std::map<int, int>& tiles_from) {
  const Kernels* table = find_isa(isa);
  if (!table) throw nb::value_error(("no instruction set " + isa + " on this CPU").c_str());
  new (to) Context{table, exact, threads, prefetch, {}};
  for (const auto& [format, tokens] : tiles_from) to->tiles_from[format] = tokens;
}

void bind_context(nb::module_& m) {
  nb::class_<Context>(m, "Context")
      .def("__init__", &make_context, nb::kw_only(), "isa"_a, "exact"_a, "threads"_a, "prefetch"_a, "tiles_from"_a)
      .def("tile_tokens", &Context::tile_tokens)
      .def("tile_group", &Context::tile_group);
}

}  // namespace

void bind_machine(nb::module_& m) {
  bind_context(m);
  m.def("available_isas", &available_isas);
  m.def("cpu_features", &cpu_features);
  m.def("default_threads", &default_threads);
  m.def("prefetch_helps", &prefetch_helps);
  m.def("advise_huge", &advise_huge, Unlocked());
  m.def("node_cpus", &node_cpus);
  m.def("spread_cores", &spread_cores);
  m.def("interleave", [](Address data, size_t bytes, const std::vector<int>& nodes) {
    return interleave(at(data), bytes, nodes);
  }, Unlocked());
  m.def("poison_arena", [](bool on) { Arena::poison(on); });
  m.def("arena_bytes", [] { return TeamTurn(1).team.arena.held(); });
  m.def("stream_read", [](const Context& context, Address data, size_t bytes) {
    Turn turn(context);
    return stream_read(at<uint8_t>(data), bytes, turn);
  }, Unlocked());
  m.def("peak_rate", [](const Context& context, int which) {
    Turn turn(context);
    return peak_rate(Peak(which), turn);
  }, Unlocked());
  m.def("team_sleeps", [](const Context& context) {  // slept, gave way, woken, asleep
    const Sleeps now = TeamTurn(context.threads).team.sleeps();
    return std::make_tuple(now.slept, now.gave_way, now.woken, now.asleep);
  }, Unlocked());
  nb::class_<ExpectWork>(m, "ExpectWork").def("__init__", [](ExpectWork* to, double seconds) {
    new (to) ExpectWork(std::chrono::nanoseconds(int64_t(seconds * 1e9)));
  });
  m.def("take_part_seconds", &take_part_seconds);
  m.def("region_ns", [](const Context& context, int rounds) {
    Turn turn(context);
    return region_ns(rounds, turn);
  }, Unlocked());
  m.def("barrier_ns", [](const Context& context, int rounds) {
    Turn turn(context);
    return barrier_ns(rounds, turn);
  }, Unlocked());
  nb::dict peaks;
  for (const auto& [name, code] : PEAKS) peaks[name] = int(code);
  m.attr("PEAKS") = peaks;  // of peak_rate, by name
}

}  // namespace headrace
