// What is not an op: instruction set, threads, memory, and what the machine can do at best.
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/address.h"
#include "bind/bind.h"
#include "bind/numbers.h"
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
void make_context(Context* to, const char* isa, bool exact, int threads, std::array<size_t, 2> prefetch, bool pairs, const nb::dict& tiles_from) {
  const Kernels* table = find_isa(isa);
  if (!table) throw nb::value_error(("no instruction set " + std::string(isa) + " on this CPU").c_str());
  Context made{table, exact, threads, {prefetch[0], prefetch[1]}, pairs, {}};
  for (const auto& [format, tokens] : tiles_from) made.tiles_from[nb::cast<int>(format)] = nb::cast<int>(tokens);
  new (to) Context(std::move(made));
}

CpuLists cpu_lists(const nb::list& lists) {
  CpuLists found;
  for (const nb::handle one : lists) found.push_back(numbers<int>(one));
  return found;
}

void bind_context(nb::module_& m) {
  nb::class_<Context>(m, "Context")
      .def("__init__", &make_context, nb::kw_only(), "isa"_a, "exact"_a, "threads"_a, "prefetch"_a, "pairs"_a,
           "tiles_from"_a)
      .def("has_pairs", [](const Context& context) { return context.isa->attend_bf16 != nullptr; })
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
  m.def("node_cpus", [](const char* root) { return node_cpus(root); });
  m.def("spread_cores", [](const nb::list& cores, const nb::list& nodes) {
    return spread_cores(cpu_lists(cores), cpu_lists(nodes));
  });
  m.def("interleave", [](Address data, size_t bytes, const nb::list& nodes) {
    const std::vector<int> found = numbers<int>(nodes);
    nb::gil_scoped_release unlocked;
    return interleave(at(data), bytes, found);
  });
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
