// Replays a trace layer by layer, and the optimum, which knows the future (engine/policies/optimum.py).
#include "replay/replay.h"

#include <algorithm>
#include <queue>

namespace headrace {
namespace {

constexpr int32_t NEVER = INT32_MAX;

class Belady {
 public:
  Belady(const ReplayTrace& trace, const ReplayPolicy& policy)
      : trace_(trace), room_(policy.budget), first_(first_places(trace)), next_(size_t(first_.back()), ABSENT) {
    look_ahead();
    start();
  }

  // Comers are admitted behind the layer, so that one that is chosen now may leave for them.
  ReplayMoves layer(int64_t step, int layer, const uint16_t* chosen, int count) {
    ReplayMoves moves;
    const int64_t at = trace_.offsets[step * trace_.layers + layer];
    missing_.clear();
    for (int i = 0; i < count; ++i) {
      const int64_t place = first_[layer] + chosen[i];
      if (next_[place] == ABSENT) {
        missing_.push_back({after_[at + i], place});
      } else {
        keep(place, after_[at + i], layer);
      }
    }
    moves.missing = int64_t(missing_.size());
    moves.hits = count - moves.missing;
    std::sort(missing_.begin(), missing_.end());
    for (const auto& [next, place] : missing_) {
      const int64_t leaving = make_room(place, next, layer);
      if (leaving < 0) continue;
      ++moves.admitted;
      moves.evicted += leaving;
    }
    return moves;
  }

 private:
  static constexpr int32_t ABSENT = -1;

  struct Entry {
    int32_t next;
    int64_t place;
    bool operator<(const Entry& other) const {  // the top: the farthest next use, of equal ones the first place
      return next < other.next || (next == other.next && place > other.place);
    }
  };

  // By choice the next time that the same expert is chosen; times count layers of passes.
  void look_ahead() {
    const int64_t times = trace_.passes * trace_.layers;
    std::vector<int32_t> upcoming(size_t(first_.back()), NEVER);
    after_.resize(size_t(trace_.offsets[times]));
    for (int64_t time = times - 1; time >= 0; --time) {
      const int64_t base = first_[time % trace_.layers];
      for (int64_t i = trace_.offsets[time]; i < trace_.offsets[time + 1]; ++i) {
        int32_t& next = upcoming[base + trace_.chosen[i]];
        after_[i] = next;
        next = int32_t(time);
      }
    }
    soonest_ = std::move(upcoming);
  }

  // Resident at the start are those that are chosen first.
  void start() {
    std::vector<std::pair<int32_t, int64_t>> order;
    for (int64_t place = 0; place < first_.back(); ++place)
      if (soonest_[place] != NEVER) order.push_back({soonest_[place], place});
    std::sort(order.begin(), order.end());
    for (const auto& [next, place] : order) {
      const int layer = layer_of(place);
      if (trace_.sizes[layer] <= room_) keep(place, next, layer);
    }
  }

  int layer_of(int64_t place) const {
    return int(std::upper_bound(first_.begin(), first_.end(), place) - first_.begin()) - 1;
  }

  void keep(int64_t place, int32_t next, int layer) {
    if (next_[place] == ABSENT) room_ -= trace_.sizes[layer];
    next_[place] = next;
    farthest_.push({next, place});
  }

  // How many leave for one that comes, which is noted; -1 where it stays away.
  int64_t make_room(int64_t place, int32_t next, int layer) {
    if (next == NEVER) return -1;
    leaving_.clear();
    int64_t room = room_;
    while (room < trace_.sizes[layer]) {
      while (!farthest_.empty() && next_[farthest_.top().place] != farthest_.top().next) farthest_.pop();
      if (farthest_.empty() || farthest_.top().next <= next) {
        for (const Entry& other : leaving_) farthest_.push(other);
        return -1;
      }
      leaving_.push_back(farthest_.top());
      farthest_.pop();
      room += trace_.sizes[layer_of(leaving_.back().place)];
    }
    for (const Entry& other : leaving_) {
      room_ += trace_.sizes[layer_of(other.place)];
      next_[other.place] = ABSENT;
    }
    keep(place, next, layer);
    return int64_t(leaving_.size());
  }

  const ReplayTrace& trace_;
  int64_t room_;
  std::vector<int64_t> first_;
  std::vector<int32_t> next_, after_, soonest_;
  std::vector<std::pair<int32_t, int64_t>> missing_;
  std::vector<Entry> leaving_;
  std::priority_queue<Entry> farthest_;
};

// What a layer of a pass moved, added to the counts; its seconds and its bytes on the link. after: bytes of an expert
// of the next layer.
void book(ReplayCounts& to, const ReplayMoves& moves, int64_t size, int64_t after, const ReplayRates& rates,
          double& layers, int64_t& link) {
  const int64_t on_cpu = moves.missing - moves.fetched - moves.stored;
  const int64_t gpu = (moves.hits + moves.fetched) * size, cpu = on_cpu * size, stored = moves.stored * size;
  to.hits += moves.hits - moves.early;
  to.early += moves.early;
  to.fetched += moves.fetched;
  to.admitted += moves.admitted;
  to.prefetched += moves.prefetched;
  to.evicted += moves.evicted;
  to.on_cpu += on_cpu;
  to.store_hits += moves.stored;
  to.gpu_bytes += gpu;
  to.cpu_bytes += cpu;
  to.store_bytes += stored;
  link += (moves.fetched + moves.admitted) * size + moves.prefetched * after;
  if (rates.cpu <= 0) return;
  const double by_cpu = double(cpu) / rates.cpu, by_store = stored > 0 ? double(stored) / rates.store : 0.0;
  const double fetched = double(moves.fetched * size), by_gpu = fetched / rates.link + double(gpu) / rates.gpu;
  const double by_ram = rates.ram > 0 ? (double(cpu) + fetched) / rates.ram : 0.0;
  layers += rates.in_turn ? by_cpu + by_gpu + by_store : std::max({by_cpu, by_gpu, by_store, by_ram});
}

// What a pass cannot be shorter than: all that comes over the link, and what RAM is read for.
double least_seconds(const ReplayRates& rates, int64_t cpu, int64_t link) {
  const double by_link = double(link) / rates.link;
  return rates.ram > 0 ? std::max(by_link, double(cpu + link) / rates.ram) : by_link;
}

template <class Policy>
ReplayCounts run(const ReplayTrace& trace, Policy& policy, const ReplayRates& rates) {
  ReplayCounts counts;
  for (int64_t step = 0; step < trace.passes; ++step) {
    double layers = 0;
    int64_t link = 0;
    const int64_t before = counts.cpu_bytes;
    for (int layer = 0; layer < trace.layers; ++layer) {
      const int64_t* at = trace.offsets + step * trace.layers + layer;
      const int64_t after = layer + 1 < trace.layers ? trace.sizes[layer + 1] : 0;
      book(counts, policy.layer(step, layer, trace.chosen + at[0], int(at[1] - at[0])), trace.sizes[layer], after,
           rates, layers, link);
    }
    counts.link_bytes += link;
    if (rates.cpu > 0) counts.seconds += std::max(layers, least_seconds(rates, counts.cpu_bytes - before, link)) + rates.fixed_s;
  }
  return counts;
}

}  // namespace

ReplayCounts replay(const ReplayTrace& trace, const ReplayPolicy& policy, const ReplayRates& rates) {
  if (policy.kind == PolicyKind::belady) {
    Belady optimum(trace, policy);
    return run(trace, optimum, rates);
  }
  Slotted slotted(trace, policy);
  return run(trace, slotted, rates);
}

}  // namespace headrace
