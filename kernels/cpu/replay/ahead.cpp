// The policy that fetches experts of the next layer, as engine/policies/ahead.py.
#include <algorithm>
#include <cstdint>

#include "replay/replay.h"

namespace headrace {

Followers::Followers(const ReplayTrace& trace) : trace_(trace), at_(size_t(trace.layers), 0) {
  int64_t size = 0;
  for (int layer = 0; layer + 1 < trace.layers; ++layer) {
    at_[layer] = size;
    size += int64_t(trace.experts[layer]) * trace.experts[layer + 1];
  }
  counts_.assign(size_t(size), 0);
}

// Counts what a layer chose to what the one before it did.
void Followers::see(int layer, const uint16_t* chosen, int count) {
  if (before_layer_ >= 0 && before_layer_ == layer - 1) {
    for (const uint16_t expert : before_) {
      uint32_t* counts = row(before_layer_, expert);
      for (int i = 0; i < count; ++i) ++counts[chosen[i]];
    }
  }
  before_layer_ = layer;
  before_.assign(chosen, chosen + count);
}

const std::vector<uint16_t>& Followers::likely(int layer, const uint16_t* chosen, int count) {
  const int next = trace_.experts[layer + 1];
  odds_.assign(size_t(next), 0);
  for (int i = 0; i < count; ++i) {
    const uint32_t* counts = row(layer, chosen[i]);
    for (int expert = 0; expert < next; ++expert) odds_[expert] += counts[expert];
  }
  likely_.clear();
  for (int expert = 0; expert < next; ++expert)
    if (odds_[expert] > 0) likely_.push_back(uint16_t(expert));
  const size_t kept = std::min(size_t(count), likely_.size());
  std::partial_sort(likely_.begin(), likely_.begin() + int64_t(kept), likely_.end(), [&](uint16_t a, uint16_t b) {
    return odds_[a] > odds_[b] || (odds_[a] == odds_[b] && a < b);
  });
  likely_.resize(kept);
  return likely_;
}

// Of the next layer the likeliest that are not there come; of those that are not likely the least recently used leave.
void Slotted::prefetch(int layer, const uint16_t* chosen, int count, ReplayMoves& moves) {
  const int after = layer + 1;
  const int64_t first = first_[after];
  const std::vector<uint16_t>& likely = followers_->likely(layer, chosen, count);
  coming_.clear();
  for (const uint16_t expert : likely) {
    is_likely_[first + expert] = 1;
    if (!resident_[first + expert] && int64_t(coming_.size()) < policy_.followers) coming_.push_back(expert);
  }
  std::vector<int64_t>& there = there_[after];
  for (const uint16_t expert : coming_) {
    const int64_t place = first + expert;
    if (int64_t(there.size()) < policy_.slots[after]) {
      there.push_back(place);
    } else {
      const size_t at = oldest_unlikely(after);
      if (at == NOBODY) break;
      resident_[there[at]] = unused_[there[at]] = 0;
      there[at] = place;
      ++moves.evicted;
    }
    resident_[place] = unused_[place] = 1;
    ++moves.prefetched;
  }
  for (const uint16_t expert : likely) is_likely_[first + expert] = 0;
}

// Where in the list of residents the one is that was not used for longest and is not likely now.
size_t Slotted::oldest_unlikely(int layer) const {
  return least_of(
      layer, [&](int64_t place) { return is_likely_[place] != 0; }, [&](int64_t place) { return last_[place]; });
}

}  // namespace headrace
