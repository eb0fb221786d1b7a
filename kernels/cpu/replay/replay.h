// A trace through one of the policies of engine/policies, a hundred times as fast as their Python does it: the same
// residents, counts and seconds (tests/policies/test_fast_replay.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace headrace {

// What a policy is, by number; as engine/policies/replay/fast.py has them.
enum class PolicyKind : int { fixed, lru, lfu, slru, admit2, classes, split, belady, next_layer };

struct ReplayTrace {
  int layers;
  int64_t passes;
  const int32_t* experts;    // by layer
  const int64_t* sizes;      // by layer, bytes of one expert
  const int64_t* offsets;    // [passes * layers + 1] into `chosen`
  const uint16_t* chosen;    // of each pass and layer, each once, in rising order
};

struct ReplayPolicy {
  PolicyKind kind;
  int64_t budget;             // bytes
  const int64_t* slots;       // by layer; of kinds that have slots
  const uint8_t* at_start;    // by layer and expert, whether it is resident; belady has its own start
  const uint8_t* stored;      // by layer and expert, whether it lies in a second fast memory
  std::vector<int64_t> fetched;  // split: by missing experts how many to fetch
  double age, protected_share;
  int64_t window, followers;  // followers: next_layer: experts of the next layer that come for a layer
};

// Bytes a second, and seconds of a pass besides; 0 bytes a second: time is not asked for. in_turn: the memories of a
// layer are read one after another. ram: what the CPU and the link read together; 0: nothing holds them up.
struct ReplayRates {
  double cpu, link, gpu, fixed_s, store;
  bool in_turn;
  double ram;
};

struct ReplayCounts {
  int64_t hits = 0, early = 0, fetched = 0, admitted = 0, prefetched = 0, on_cpu = 0, evicted = 0, gpu_bytes = 0,
          link_bytes = 0, cpu_bytes = 0, store_hits = 0, store_bytes = 0;
  double seconds = 0;
};

ReplayCounts replay(const ReplayTrace& trace, const ReplayPolicy& policy, const ReplayRates& rates);

// What all kinds share: by layer the place of its first expert among all.
std::vector<int64_t> first_places(const ReplayTrace& trace);

// Moves of a layer of a pass. hits: `early` ones too; missing: `stored` ones too; prefetched: of the next layer.
struct ReplayMoves {
  int64_t hits = 0, early = 0, missing = 0, stored = 0, fetched = 0, admitted = 0, prefetched = 0, evicted = 0;
};

// What the experts of a layer are followed by in the next one, counted (engine/policies/ahead.py).
class Followers {
 public:
  explicit Followers(const ReplayTrace& trace);
  void see(int layer, const uint16_t* chosen, int count);

  // Of the next layer as many experts as this one chose, the likeliest first.
  const std::vector<uint16_t>& likely(int layer, const uint16_t* chosen, int count);

 private:
  uint32_t* row(int layer, int expert) { return &counts_[size_t(at_[layer] + expert * trace_.experts[layer + 1])]; }

  const ReplayTrace& trace_;
  std::vector<int64_t> at_;        // by layer where its rows begin
  std::vector<uint32_t> counts_;   // of each layer but the last [experts, experts of the next one]
  std::vector<int64_t> odds_;
  std::vector<uint16_t> before_, likely_;  // before_: what the last layer chose
  int before_layer_ = -1;
};

// Those with slots and those that never move, and the optimum, each a state that is asked layer by layer.
class Slotted {
 public:
  Slotted(const ReplayTrace& trace, const ReplayPolicy& policy);
  ReplayMoves layer(int64_t step, int layer, const uint16_t* chosen, int count);

 private:
  void bring(int64_t step, int layer, const uint16_t* chosen, int count, ReplayMoves& moves);
  void prefetch(int layer, const uint16_t* chosen, int count, ReplayMoves& moves);
  size_t oldest_unlikely(int layer) const;
  void see(int64_t step, int layer, const uint16_t* chosen, int count);
  void classify(int64_t place, double count);
  void protect(int64_t step, int layer, const uint16_t* chosen, int count);
  void want(int64_t step, int layer);
  template <class Passed, class Worth>
  size_t least_of(int layer, const Passed& passed, const Worth& worth) const;
  double class_of(double count) const;
  size_t worst(int layer) const;

  const ReplayTrace& trace_;
  const ReplayPolicy& policy_;
  std::vector<int64_t> first_, last_, missed_, guarded_;
  std::vector<std::vector<int64_t>> there_;  // by layer the places of its residents, in any order
  std::vector<double> counts_, classes_;
  std::vector<int64_t> guarded_count_;  // by layer
  std::vector<uint8_t> resident_, chosen_, unused_, is_likely_;  // unused_: was prefetched, and not chosen since
  std::vector<uint16_t> coming_;
  std::unique_ptr<Followers> followers_;  // of next_layer
  int64_t counted_from_ = 0;
};

constexpr size_t NOBODY = SIZE_MAX;

// Where in the list of residents the one is that is worth least, but for those that are passed over; NOBODY if none is left.
// worth: tuples of what counts, the least first; equal ones go by place.
template <class Passed, class Worth>
size_t Slotted::least_of(int layer, const Passed& passed, const Worth& worth) const {
  const std::vector<int64_t>& there = there_[layer];
  size_t found = NOBODY;
  decltype(worth(int64_t())) least{};
  for (size_t at = 0; at < there.size(); ++at) {
    const int64_t place = there[at];
    if (passed(place)) continue;
    const auto its = worth(place);
    if (found == NOBODY || its < least || (its == least && place < there[found])) found = at, least = its;
  }
  return found;
}

}  // namespace headrace
