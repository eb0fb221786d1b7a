// Teams of threads for all CPU work, one of each size that is asked for, and the memory that their ops borrow.
//
//   run(fn)      one parallel region: fn(worker) on every worker; the caller is worker 0, and returns when all have
//   barrier()    inside a region: nobody goes on before everybody has come
//   arena        scratch of the op whose turn it is: handed out in order, taken back at the next turn, kept for later
//
// Workers 1.. are pinned to one core each where there are enough. The caller is left free, because threads that it
// starts later would inherit its mask; where it turns up on a worker's core, that worker moves to the free one (left to
// the scheduler, both shared a core for minutes, with a region at 100 us instead of 0.5). A thread that does nothing but
// call the team is pinned to the free core (`pin_caller`). Between regions a worker spins for about 50 us, then sleeps;
// where somebody expects the next region soon (ExpectWork) it spins longer, unless others use its core. A fork leaves the
// threads behind: the child starts teams of its own at first use. One op at a time in the process, whichever team it
// takes: a TeamTurn holds them all. So teams share the arena; one that nobody uses sleeps.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

struct Range {
  int begin, end;
};

// Part `i` of `parts` of 0 .. total, cut at multiples of `grain`.
Range part_of(int total, int parts, int i, int grain = 1);

class Arena {
 public:
  void reset();
  size_t held() const { return total_; }  // bytes, at the most so far

  static void poison(bool on);  // for tests: what is taken is filled with 0xFF (NaN)

  // `count` uninitialised values on a 64-byte boundary, valid until the next reset.
  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

  // What is taken while one lives is given back at its end: for a loop whose rounds need it one after the other.
  class Loan {
   public:
    explicit Loan(Arena& arena) : arena_(arena), slabs_(arena.slabs_.size()), used_(arena.used_) {}
    ~Loan() { arena_.used_ = arena_.slabs_.size() == slabs_ ? used_ : 0; }  // a new slab holds nothing else
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;

   private:
    Arena& arena_;
    const size_t slabs_, used_;
  };

 private:
  struct Free {
    void operator()(void* p) const;
  };
  using Slab = std::unique_ptr<void, Free>;

  void* take_bytes(size_t bytes);

  std::vector<Slab> slabs_;
  size_t size_ = 0, used_ = 0, total_ = 0;  // of the last slab, in the last slab, of all slabs
};

// Numbers handed out one after the other to whoever asks first; on a cache line of its own.
struct alignas(128) Counter {
  std::atomic<int> value{0};
  int next() { return value.fetch_add(1, std::memory_order_relaxed); }
};

// How long workers spin between regions: longer as long as anybody expects work.
class Patience {
 public:
  void more(std::chrono::nanoseconds spin);
  void less() { expecting_--; }
  std::chrono::nanoseconds spin() const;

 private:
  std::atomic<int> expecting_{0};
  std::atomic<int64_t> longer_ns_{0};  // as who came last wants it
};

// How often workers went to sleep because nothing came, and sooner because others use their core too; how many regions
// had somebody to wake up, and how many sleep now.
struct Sleeps {
  uint64_t slept, gave_way, woken;
  int asleep;
};

class Team {
 public:
  Team(int size, Arena& arena, const Patience& patience);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  int active() const { return active_; }  // workers of the running region
  Sleeps sleeps() const { return {slept_.load(), gave_way_.load(), woken_.load(), asleep_.load()}; }

  // Pins the calling thread to the core that no worker has. To be asked by a thread that starts no others: they would
  // inherit its mask. Nothing happens where workers are not pinned either, or while a thread runs that asked before.
  void pin_caller();

  // Small work is better done by the caller alone: `solo` runs fn(0) here, and barriers let it through.
  template <class Fn>
  void run(bool solo, const Fn& fn) {
    run_job(solo, [](const void* f, int worker) { (*static_cast<const Fn*>(f))(worker); }, &fn);
  }

  void barrier();

  Arena& arena;

 private:
  using Clock = std::chrono::steady_clock;
  using Job = void (*)(const void* context, int worker);

  void run_job(bool solo, Job job, const void* context);  // a job throws nothing: others are in it
  void end_threads();
  void work(int worker);
  bool wait_for_job(uint32_t seen, Clock::time_point& crowded_until);
  void make_way();

  const int size_;
  const Patience& patience_;
  std::vector<int> cpu_of_core_;     // cores of the process, one CPU each; empty: too few, nothing is pinned
  std::vector<int> core_of_cpu_;     // -1: not ours
  std::vector<int> worker_of_core_;  // 0: free for the caller
  std::weak_ptr<void> pinned_caller_;
  int active_ = 1;
  Job job_ = nullptr;
  const void* context_ = nullptr;
  alignas(128) std::atomic<uint32_t> jobs_{0};  // number of regions started; a change is the signal to start
  std::atomic<bool> stop_{false};
  alignas(128) std::atomic<int> running_{0};  // workers still inside the region
  alignas(128) std::atomic<int> arrived_{0};
  alignas(128) std::atomic<uint32_t> barriers_{0};
  alignas(128) std::atomic<int> asleep_{0};
  std::atomic<uint64_t> slept_{0}, gave_way_{0}, woken_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

// Holds all teams of this process for one op that takes the one of so many threads, the arena emptied.
class TeamTurn {
  std::unique_lock<std::mutex> lock_;  // before `team`: taken first

 public:
  explicit TeamTurn(int threads);
  Team& team;
};

// As long as one lives, workers of all teams spin for `spin` between regions, if that is longer than usual.
class ExpectWork {
 public:
  explicit ExpectWork(std::chrono::nanoseconds spin);
  ~ExpectWork() { patience_.less(); }
  ExpectWork(const ExpectWork&) = delete;
  ExpectWork& operator=(const ExpectWork&) = delete;

 private:
  Patience& patience_;
};

void end_teams();       // joins their threads; the next turn starts its own
int default_threads();  // physical cores in this process's affinity mask

}  // namespace headrace
