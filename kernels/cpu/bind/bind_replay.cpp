// The replay of traces.
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <map>

#include "bind/address.h"
#include "bind/bind.h"
#include "bind/numbers.h"
#include "replay/replay.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

std::map<std::string, double> run_replay(int kind, int64_t budget, Address slots, Address at_start, Address stored,
                                         const nb::list& fetched, double age, double protected_share,
                                         int64_t window, int64_t followers, int layers, int64_t passes,
                                         Address experts, Address sizes, Address offsets, Address chosen,
                                         const nb::list& rates_of) {
  const std::vector<double> rates = numbers<double>(rates_of);
  const ReplayTrace trace{layers,
                          passes,
                          at<const int32_t>(experts),
                          at<const int64_t>(sizes),
                          at<const int64_t>(offsets),
                          at<const uint16_t>(chosen)};
  const ReplayPolicy policy{
      PolicyKind(kind),   budget, at<const int64_t>(slots), at<const uint8_t>(at_start), at<const uint8_t>(stored),
      numbers<int64_t>(fetched), age,    protected_share,          window,                      followers};
  nb::gil_scoped_release unlocked;
  const ReplayCounts c = replay(
      trace, policy, {rates.at(0), rates.at(1), rates.at(2), rates.at(3), rates.at(4), rates.at(5) != 0, rates.at(6)});
  return {{"hits", double(c.hits)},
          {"early", double(c.early)},
          {"fetched", double(c.fetched)},
          {"admitted", double(c.admitted)},
          {"prefetched", double(c.prefetched)},
          {"on_cpu", double(c.on_cpu)},
          {"evicted", double(c.evicted)},
          {"gpu_bytes", double(c.gpu_bytes)},
          {"link_bytes", double(c.link_bytes)},
          {"cpu_bytes", double(c.cpu_bytes)},
          {"store_hits", double(c.store_hits)},
          {"store_bytes", double(c.store_bytes)},
          {"seconds", c.seconds}};
}

}  // namespace

void bind_replay(nb::module_& m) {
  m.def("replay", &run_replay, nb::kw_only(), "kind"_a, "budget"_a, "slots"_a, "at_start"_a, "stored"_a, "fetched"_a,
        "age"_a, "protected_share"_a, "window"_a, "followers"_a, "layers"_a, "passes"_a, "experts"_a, "sizes"_a, "offsets"_a, "chosen"_a,
        "rates"_a);
}

}  // namespace headrace
