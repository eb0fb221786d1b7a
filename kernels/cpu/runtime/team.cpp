// The thread team: start, spin, sleep, fork. See team.h for what it promises.
//
// Waiting: a few thousand pauses (about 50 us) for a job, fewer inside a region before the CPU is offered to others, so
// that more threads than CPUs make progress. Where work is expected a worker goes on looking and offers the CPU to others
// between looks: a thread that wakes up beside as many spinning workers as there are CPUs runs at once. Whoever then
// computes for long has the core to himself until the scheduler takes it away, while a worker that slept would get it as
// soon as it is woken: so for a while that worker sleeps as if nothing were expected. A sleeper counts itself in before it looks a last time, the caller
// publishes the job before it looks for sleepers: both are sequentially consistent, so no wake-up is lost.
#include "runtime/team.h"

#include "runtime/numa.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <new>
#include <string>

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#include <sys/mman.h>
#endif

namespace headrace {
namespace {

constexpr auto SPIN_TIME = std::chrono::microseconds(50);
constexpr auto LONG_AWAY = std::chrono::microseconds(500);  // others only look after something in less
constexpr auto CROWDED_FOR = std::chrono::milliseconds(50);
constexpr int SPINS_BEFORE_YIELD = 4000;
constexpr size_t HUGE_PAGE = size_t(2) << 20;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `ready()`; after a while it lets other threads have the CPU between looks.
template <class Ready>
void spin_until(const Ready& ready) {
  for (int i = 0; !ready(); i++) {
    if (i < SPINS_BEFORE_YIELD)
      pause_cpu();
    else
      std::this_thread::yield();
  }
}

// The CPUs that this process may use, by physical core: one list a core, in turns from each node of memory.
CpuLists cores() {
  CpuLists found;
#ifdef __linux__
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return found;
  std::map<std::string, size_t> seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    const auto [at, fresh] = seen.emplace(siblings, found.size());
    if (fresh) found.emplace_back();
    found[at->second].push_back(cpu);
  }
#endif
  return spread_cores(found, node_cpus("/sys/devices/system/node"));
}

int current_cpu() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

void pin(std::thread::native_handle_type thread, int cpu) {
#ifdef __linux__
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  pthread_setaffinity_np(thread, sizeof mask, &mask);  // a refusal leaves it free, which works too
#else
  (void)thread, (void)cpu;
#endif
}

}  // namespace

Range part_of(int total, int parts, int i, int grain) {
  const int64_t grains = (int64_t(total) + grain - 1) / grain;
  const auto cut = [&](int64_t part) { return int(std::min<int64_t>(total, grains * part / parts * grain)); };
  return {cut(i), cut(i + 1)};
}

void Arena::Free::operator()(void* p) const { std::free(p); }

static std::atomic<bool> poisoned{false};

void Arena::poison(bool on) { poisoned = on; }

void Arena::reset() {
  if (slabs_.size() > 1) {  // the last op outgrew the slab: one that would have held it all
    slabs_.clear();
    const size_t size = total_;
    size_ = total_ = 0;
    take_bytes(size);
  }
  used_ = 0;
}

void* Arena::take_bytes(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (slabs_.empty() || used_ + bytes > size_) {
    const size_t size = (std::max(bytes, HUGE_PAGE) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    Slab slab(std::aligned_alloc(HUGE_PAGE, size));
    if (!slab) throw std::bad_alloc();
#ifdef __linux__
    madvise(slab.get(), size, MADV_HUGEPAGE);  // a wish, not a need
#endif
    slabs_.push_back(std::move(slab));
    size_ = size;
    total_ += size;
    used_ = 0;
  }
  void* taken = static_cast<uint8_t*>(slabs_.back().get()) + used_;
  used_ += bytes;
  if (poisoned) std::memset(taken, 0xFF, bytes);
  return taken;
}

void Patience::more(std::chrono::nanoseconds spin) {
  longer_ns_ = spin.count();
  expecting_++;
}

std::chrono::nanoseconds Patience::spin() const {
  const std::chrono::nanoseconds usual = SPIN_TIME;
  return expecting_.load(std::memory_order_relaxed) == 0 ? usual : std::max(usual, std::chrono::nanoseconds(longer_ns_));
}

Team::Team(int size, Arena& arena_, const Patience& patience) : arena(arena_), size_(size), patience_(patience) {
  const auto found = cores();
  const bool enough = size <= int(found.size());
  for (size_t core = 0; enough && core < found.size(); core++) {
    cpu_of_core_.push_back(found[core][0]);
    worker_of_core_.push_back(int(core) < size ? int(core) : 0);
    for (int cpu : found[core]) {
      core_of_cpu_.resize(std::max<size_t>(core_of_cpu_.size(), cpu + 1), -1);
      core_of_cpu_[cpu] = int(core);
    }
  }
  threads_.reserve(size - 1);
  try {
    for (int worker = 1; worker < size; worker++) {
      threads_.emplace_back([this, worker] { work(worker); });
      if (enough) pin(threads_.back().native_handle(), cpu_of_core_[worker]);
    }
  } catch (...) {  // of a thread that the system does not give: those that run wait in here
    end_threads();
    throw;
  }
}

// Where the caller runs on a worker's core now, that worker goes to a core without one.
void Team::make_way() {
  const int cpu = current_cpu();
  if (cpu < 0 || cpu >= int(core_of_cpu_.size()) || core_of_cpu_[cpu] < 0) return;
  int& worker = worker_of_core_[core_of_cpu_[cpu]];
  if (worker == 0) return;
  const auto free = std::find(worker_of_core_.begin(), worker_of_core_.end(), 0);
  *free = worker;
  worker = 0;
  pin(threads_[*free - 1].native_handle(), cpu_of_core_[free - worker_of_core_.begin()]);
}

void Team::pin_caller() {
  thread_local const auto alive = std::make_shared<int>();
  const auto free = std::find(worker_of_core_.begin(), worker_of_core_.end(), 0);
  if (free == worker_of_core_.end() || !pinned_caller_.expired()) return;
  pinned_caller_ = alive;
  pin(pthread_self(), cpu_of_core_[free - worker_of_core_.begin()]);
}

Team::~Team() { end_threads(); }

void Team::end_threads() {
  stop_ = true;
  jobs_++;
  {
    std::lock_guard<std::mutex> lock(mutex_);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool Team::wait_for_job(uint32_t seen, Clock::time_point& crowded_until) {
  const auto since = Clock::now();
  for (int i = 1; jobs_.load(std::memory_order_acquire) == seen; i++) {
    pause_cpu();
    if (i % 64 != 0) continue;
    const auto now = Clock::now();
    if (now - since < SPIN_TIME) continue;
    const bool expected = now - since < patience_.spin();
    if (expected && now >= crowded_until) {
      std::this_thread::yield();
      if (const auto back = Clock::now(); back - now > LONG_AWAY) crowded_until = back + CROWDED_FOR;
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_++;
    (expected ? gave_way_ : slept_)++;
    wake_.wait(lock, [&] { return jobs_.load() != seen; });
    asleep_--;
  }
  return !stop_;
}

void Team::work(int worker) {
  Clock::time_point crowded_until{};
  for (uint32_t seen = 0; wait_for_job(seen, crowded_until); seen++) {
    job_(context_, worker);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void Team::run_job(bool solo, Job job, const void* context) {
  active_ = solo ? 1 : size_;
  if (active_ == 1) return job(context, 0);
  make_way();
  job_ = job;
  context_ = context;
  running_.store(size_ - 1, std::memory_order_relaxed);
  jobs_++;
  if (asleep_.load() > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a sleeper between its last look and its sleep is through by now
    woken_++;
    wake_.notify_all();
  }
  job(context, 0);
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void Team::barrier() {
  if (active_ == 1) return;
  const uint32_t round = barriers_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    barriers_.store(round + 1, std::memory_order_release);
  } else {
    spin_until([&] { return barriers_.load(std::memory_order_acquire) != round; });
  }
}

namespace {

// The teams of this process, by size. A forked child drops the parent's unseen: threads and locks did not come along.
struct Home {
  std::mutex mutex;
  Arena arena;
  Patience patience;
  std::map<int, std::unique_ptr<Team>> teams;
};

std::atomic<Home*> home_pointer{nullptr};
std::mutex start_mutex;

void forget_home() {
  if (home_pointer.load()) home_pointer = new (std::nothrow) Home;  // without memory: the first op asks once more
}

Home& home() {
  if (Home* there = home_pointer.load(std::memory_order_acquire)) return *there;
  std::lock_guard<std::mutex> lock(start_mutex);
  if (!home_pointer.load()) {
#ifdef __linux__
    if (pthread_atfork(nullptr, nullptr, forget_home) != 0) throw std::bad_alloc();
#endif
    home_pointer = new Home;  // never destroyed: threads may be waiting in it when the process ends
  }
  return *home_pointer.load();
}

Team& team_of(Home& home, int threads) {
  std::unique_ptr<Team>& team = home.teams[threads];
  if (!team) team = std::make_unique<Team>(threads, home.arena, home.patience);
  return *team;
}

}  // namespace

TeamTurn::TeamTurn(int threads) : lock_(home().mutex), team(team_of(home(), threads)) { team.arena.reset(); }

ExpectWork::ExpectWork(std::chrono::nanoseconds spin) : patience_(home().patience) { patience_.more(spin); }

void end_teams() {
  std::lock_guard<std::mutex> lock(home().mutex);
  home().teams.clear();
}

int default_threads() { return std::max(1, int(cores().size())); }

}  // namespace headrace
