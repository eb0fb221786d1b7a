// Policies that have a number of slots in every layer, as engine/policies/slotted.py and its subclasses.
#include <algorithm>
#include <cmath>
#include <limits>

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
    : trace_(trace), policy_(policy), first_(first_places(trace)), there_(trace.layers, 0) {
  const size_t all = size_t(first_.back());
  last_.assign(all, NEVER);
  missed_.assign(all, -policy.window - 1);
  guarded_.assign(all, NEVER);
  counts_.assign(all, 0.0);
  resident_.assign(policy.at_start, policy.at_start + all);
  chosen_.assign(all, 0);
  for (int layer = 0; layer < trace.layers; ++layer)
    there_[layer] = std::count(resident_.begin() + first_[layer], resident_.begin() + first_[layer + 1], 1);
}

ReplayMoves Slotted::layer(int64_t step, int layer, const uint16_t* chosen, int count) {
  ReplayMoves moves;
  const int64_t first = first_[layer];
  coming_.clear();
  for (int i = 0; i < count; ++i)
    if (!resident_[first + chosen[i]]) coming_.push_back(chosen[i]);
  moves.missing = int64_t(coming_.size());
  moves.hits = count - moves.missing;
  if (policy_.kind == PolicyKind::fixed) return moves;
  see(step, layer, chosen, count);
  if (coming_.empty()) return moves;
  want(step, layer);
  for (int i = 0; i < count; ++i) chosen_[first + chosen[i]] = 1;
  const size_t wanted = coming_.size();
  for (size_t i = 0; i < wanted; ++i) {
    const int64_t place = first + coming_[i];
    if (there_[layer] >= policy_.slots[layer]) {
      const int64_t leaves = worst(layer);
      if (leaves < 0) break;
      if (policy_.kind == PolicyKind::classes && class_of(place) < class_of(leaves)) break;
      resident_[leaves] = 0;
      --there_[layer];
      ++moves.evicted;
    }
    resident_[place] = 1;
    ++there_[layer];
    ++moves.fetched;
  }
  for (int i = 0; i < count; ++i) chosen_[first + chosen[i]] = 0;
  return moves;
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
  if (policy_.kind == PolicyKind::slru) protect(step, layer, chosen, count);
  if (policy_.kind != PolicyKind::lfu && policy_.kind != PolicyKind::classes) return;
  const double gain = std::pow(2.0, double(step - counted_from_) / policy_.age);
  for (int i = 0; i < count; ++i) counts_[first + chosen[i]] += gain;
  if (gain > MOST_GAIN) {
    for (double& value : counts_) value /= gain;
    counted_from_ = step;
  }
}

// Residents that were used again, as many as their share of the slots; the oldest lose their protection.
void Slotted::protect(int64_t step, int layer, const uint16_t* chosen, int count) {
  const int64_t first = first_[layer], end = first_[layer + 1];
  int64_t guarded = 0;
  for (int64_t place = first; place < end; ++place) {
    if (!resident_[place]) guarded_[place] = NEVER;
    guarded += guarded_[place] != NEVER;
  }
  for (int i = 0; i < count; ++i) {
    const int64_t place = first + chosen[i];
    if (!resident_[place]) continue;
    guarded += guarded_[place] == NEVER;
    guarded_[place] = step;
  }
  const int64_t most = int64_t(policy_.protected_share * double(policy_.slots[layer]));
  for (; guarded > most; --guarded) {
    int64_t oldest = NEVER;
    for (int64_t place = first; place < end; ++place)
      if (guarded_[place] != NEVER && (oldest == NEVER || guarded_[place] < guarded_[oldest])) oldest = place;
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

double Slotted::class_of(int64_t place) const {
  return counts_[place] > 0 ? std::floor(std::log2(counts_[place])) : -std::numeric_limits<double>::infinity();
}

Slotted::Worth Slotted::worth(int64_t place) const {
  switch (policy_.kind) {
    case PolicyKind::lfu: return {counts_[place], last_[place]};
    case PolicyKind::classes: return {class_of(place), last_[place]};
    case PolicyKind::slru: return {guarded_[place] != NEVER ? 1.0 : 0.0, last_[place]};
    default: return {0.0, last_[place]};
  }
}

// The resident that is worth least and is not chosen now; -1: there is none.
int64_t Slotted::worst(int layer) const {
  int64_t found = -1;
  Worth least{};
  for (int64_t place = first_[layer]; place < first_[layer + 1]; ++place) {
    if (!resident_[place] || chosen_[place]) continue;
    const Worth its = worth(place);
    if (found < 0 || its < least) found = place, least = its;
  }
  return found;
}

}  // namespace headrace
