// Policies that have a number of slots in every layer, as engine/policies/slotted.py and its subclasses.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "replay/replay.h"

namespace headrace {
namespace {

constexpr double MOST_GAIN = 18446744073709551616.0;  // 2^64: counts are scaled before they grow out of a double
constexpr int64_t NEVER = -1;

}  // namespace

std::vector<int64_t> first_places(const ReplayTrace& trace) {
  std::vector<int64_t> first(trace.layers + 1, 0);
  for (int layer = 0; layer < trace.layers; ++layer) first[layer + 1] = first[layer] + trace.experts[layer];
  return first;
}

Slotted::Slotted(const ReplayTrace& trace, const ReplayPolicy& policy)
    : trace_(trace), policy_(policy), first_(first_places(trace)), there_(trace.layers) {
  const size_t all = size_t(first_.back());
  last_.assign(all, NEVER);
  missed_.assign(all, -policy.window - 1);
  guarded_.assign(all, NEVER);
  counts_.assign(all, 0.0);
  classes_.assign(all, class_of(0.0));
  guarded_count_.assign(trace.layers, 0);
  resident_.assign(policy.at_start, policy.at_start + all);
  chosen_.assign(all, 0);
  unused_.assign(all, 0);
  if (policy.kind == PolicyKind::next_layer) {
    is_likely_.assign(all, 0);
    followers_ = std::make_unique<Followers>(trace);
  }
  for (int layer = 0; layer < trace.layers; ++layer)
    for (int64_t place = first_[layer]; place < first_[layer + 1]; ++place)
      if (resident_[place]) there_[layer].push_back(place);
}

ReplayMoves Slotted::layer(int64_t step, int layer, const uint16_t* chosen, int count) {
  ReplayMoves moves;
  const int64_t first = first_[layer];
  coming_.clear();
  for (int i = 0; i < count; ++i) {
    const int64_t place = first + chosen[i];
    if (!resident_[place]) {
      coming_.push_back(chosen[i]);
      moves.stored += policy_.stored[place];
    } else if (unused_[place]) {
      unused_[place] = 0;
      ++moves.early;
    }
  }
  moves.missing = int64_t(coming_.size());
  moves.hits = count - moves.missing;
  if (policy_.kind == PolicyKind::fixed) return moves;
  see(step, layer, chosen, count);
  if (!coming_.empty()) bring(step, layer, chosen, count, moves);
  if (followers_ && layer + 1 < trace_.layers) prefetch(layer, chosen, count, moves);
  return moves;
}

// Of the missing those that are wanted, each in a free slot or in the place of the one that is worth least.
void Slotted::bring(int64_t step, int layer, const uint16_t* chosen, int count, ReplayMoves& moves) {
  const int64_t first = first_[layer];
  want(step, layer);
  for (int i = 0; i < count; ++i) chosen_[first + chosen[i]] = 1;
  for (const uint16_t expert : coming_) {
    const int64_t place = first + expert;
    if (int64_t(there_[layer].size()) >= policy_.slots[layer]) {
      const size_t at = worst(layer);
      if (at == NOBODY) break;
      int64_t& leaves = there_[layer][at];
      if (policy_.kind == PolicyKind::classes && classes_[place] < classes_[leaves]) break;
      resident_[leaves] = unused_[leaves] = 0;
      guarded_count_[layer] -= guarded_[leaves] != NEVER;
      guarded_[leaves] = NEVER;
      leaves = place;
      ++moves.evicted;
    } else {
      there_[layer].push_back(place);
    }
    resident_[place] = 1;
    ++moves.fetched;
  }
  for (int i = 0; i < count; ++i) chosen_[first + chosen[i]] = 0;
}

// A choice now is worth 2^(step / age) of one at the start: the same as halving all others.
void Slotted::see(int64_t step, int layer, const uint16_t* chosen, int count) {
  const int64_t first = first_[layer];
  if (policy_.kind == PolicyKind::split) {  // those that were used most recently come first
    std::sort(coming_.begin(), coming_.end(), [&](uint16_t a, uint16_t b) {
      return last_[first + a] > last_[first + b] || (last_[first + a] == last_[first + b] && a < b);
    });
  }
  for (int i = 0; i < count; ++i) last_[first + chosen[i]] = step;
  if (followers_) followers_->see(layer, chosen, count);
  if (policy_.kind == PolicyKind::slru) protect(step, layer, chosen, count);
  if (policy_.kind != PolicyKind::lfu && policy_.kind != PolicyKind::classes) return;
  const double gain = std::pow(2.0, double(step - counted_from_) / policy_.age);
  for (int i = 0; i < count; ++i) classify(first + chosen[i], counts_[first + chosen[i]] + gain);
  if (gain > MOST_GAIN) {
    for (size_t place = 0; place < counts_.size(); ++place) classify(int64_t(place), counts_[place] / gain);
    counted_from_ = step;
  }
}

// Notes a count, and the power of two that it has reached: evictions ask for it far more often than it changes.
void Slotted::classify(int64_t place, double count) {
  counts_[place] = count;
  if (policy_.kind == PolicyKind::classes) classes_[place] = class_of(count);
}

// Residents that were used again, as many as their share of the slots; the oldest lose their protection.
void Slotted::protect(int64_t step, int layer, const uint16_t* chosen, int count) {
  const int64_t first = first_[layer];
  int64_t& guarded = guarded_count_[layer];
  for (int i = 0; i < count; ++i) {
    const int64_t place = first + chosen[i];
    if (!resident_[place]) continue;
    guarded += guarded_[place] == NEVER;
    guarded_[place] = step;
  }
  const int64_t most = int64_t(policy_.protected_share * double(policy_.slots[layer]));
  for (; guarded > most; --guarded) {
    int64_t oldest = NEVER;
    for (const int64_t place : there_[layer]) {
      if (guarded_[place] == NEVER) continue;
      const bool is_older = oldest == NEVER || guarded_[place] < guarded_[oldest] ||
                            (guarded_[place] == guarded_[oldest] && place < oldest);
      if (is_older) oldest = place;
    }
    guarded_[oldest] = NEVER;
  }
}

// Of the missing those that are to come.
void Slotted::want(int64_t step, int layer) {
  const int64_t first = first_[layer];
  if (policy_.kind == PolicyKind::admit2) {
    size_t kept = 0;
    for (const uint16_t expert : coming_) {
      int64_t& missed = missed_[first + expert];
      const bool again = step - missed <= policy_.window;
      missed = step;
      if (again) coming_[kept++] = expert;
    }
    coming_.resize(kept);
  }
  if (policy_.kind == PolicyKind::split) {
    const size_t number = std::min(coming_.size(), policy_.fetched.size() - 1);
    coming_.resize(std::min(coming_.size(), size_t(policy_.fetched[number])));
  }
}

double Slotted::class_of(double count) const {
  return count > 0 ? std::floor(std::log2(count)) : -std::numeric_limits<double>::infinity();
}

// Of those that are not chosen now.
size_t Slotted::worst(int layer) const {
  const auto passed = [&](int64_t place) { return chosen_[place] != 0; };
  const auto by = [&](const auto& first) {
    return least_of(layer, passed, [&](int64_t place) { return std::pair(first(place), last_[place]); });
  };
  switch (policy_.kind) {
    case PolicyKind::lfu: return by([&](int64_t place) { return counts_[place]; });
    case PolicyKind::classes: return by([&](int64_t place) { return classes_[place]; });
    case PolicyKind::slru: return by([&](int64_t place) { return guarded_[place] != NEVER; });
    default: return least_of(layer, passed, [&](int64_t place) { return last_[place]; });
  }
}

}  // namespace headrace
