// The coordinator and the watchdog of a mailbox. mailbox.h has the byte map, the protocol and why it is right.
#include "runtime/mailbox.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#ifdef __linux__
#include <unistd.h>
#endif

#include "runtime/team.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int RING = 64;      // steps that may be under way
constexpr int LOOKS = 256;    // between two looks at the clock
constexpr auto NAP = std::chrono::microseconds(50);
constexpr int TICKS = 16;     // of the watchdog in a timeout

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The flags lie in memory that a device writes too, so they are no std::atomic objects.
Flag* flag(void* slot, size_t at) { return reinterpret_cast<Flag*>(static_cast<uint8_t*>(slot) + at); }
Flag load(const Flag* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
void store(Flag* flag, Flag value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
void store_relaxed(Flag* flag, Flag value) { __atomic_store_n(flag, value, __ATOMIC_RELAXED); }

size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

int process() {
#ifdef __linux__
  return getpid();
#else
  return 0;
#endif
}

}  // namespace

SlotMap MailboxShape::slot(int batch) const {
  const size_t tokens = size_t(batches[batch]), values = tokens * hidden;
  SlotMap map;
  map.ids = JOB_AT;
  map.weights = map.ids + lines(tokens * top_k * sizeof(int32_t));
  map.x = map.weights + lines(tokens * top_k * sizeof(float));
  map.y = map.x + lines(values * (half ? 2 : sizeof(float)));
  map.bytes = map.y + lines(values * sizeof(float));
  return map;
}

size_t MailboxShape::before(int batch) const {
  size_t all = 0;
  for (int b = 0; b < batch; b++) all += slot(b).bytes * layers;
  return all;
}

size_t MailboxShape::offset(int layer, int batch) const { return before(batch) + slot(batch).bytes * layer; }

size_t MailboxShape::bytes() const { return before(int(batches.size())); }

// Everything that the threads use: theirs as long as they run, also where the Mailbox itself is gone.
struct Mailbox::State {
  MailboxShape shape;
  uint8_t* memory;
  Work work;
  void* context;
  std::shared_ptr<void> keep;
  Micros timeout, spin;
  std::vector<size_t> offsets;  // of slots, [batch, layer]
  std::vector<SlotMap> maps;    // of slots, by batch
  const int owner = process();

  struct Step {
    int batch;
    bool patient;
  };
  Step steps[RING];                                  // `begun` hands an entry over
  alignas(128) std::atomic<uint64_t> begun{0};       // steps
  alignas(128) std::atomic<uint64_t> ended{0};       // steps
  alignas(128) std::atomic<uint64_t> served{0};      // jobs that were seen, and jobs that were answered: two a job
  std::atomic<int64_t> busy_ns{0};                   // of work for jobs that were answered
  std::atomic<int> layer{0}, batch{0};               // where the coordinator is
  std::atomic<bool> computing{false}, patient{false};
  alignas(128) std::atomic<bool> stopping{false};
  std::atomic<bool> failed{false};

  std::mutex mutex;  // of what follows
  std::condition_variable wake, watched, left;
  Failure failure;
  bool coordinator_left = false;
  std::thread coordinator, watchdog;

  uint8_t* slot(int l, int b) const { return memory + offsets[size_t(b) * shape.layers + l]; }
  bool over() const { return stopping.load(std::memory_order_acquire) || failed.load(std::memory_order_acquire); }

  Job job(int l, int b) const {
    uint8_t* at = slot(l, b);
    const SlotMap& map = maps[b];
    return {l, b, shape.batches[b], shape.top_k, shape.hidden, shape.half,
            reinterpret_cast<const int32_t*>(at + map.ids), reinterpret_cast<const float*>(at + map.weights),
            at + map.x, reinterpret_cast<float*>(at + map.y)};
  }

  void fail(Failure why) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      if (failed) return;  // the first reason counts
      failure = std::move(why);
      failed.store(true, std::memory_order_release);
    }
    watched.notify_all();
    wake.notify_all();
  }

  // Waits for a step beyond `seen`: spins, then sleeps until `begin` rings.
  bool await_step(uint64_t seen) {
    const auto until = Clock::now() + spin;
    for (int i = 1; begun.load(std::memory_order_acquire) == seen && !over(); i++) {
      pause_cpu();
      if (i % LOOKS != 0 || Clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return begun.load(std::memory_order_acquire) != seen || over(); });
    }
    return !over();
  }

  // Waits for the job of a slot: spins, then naps. The watchdog sees to it that this ends.
  bool await_job(const Flag* ready) const {
    const auto until = Clock::now() + spin;
    for (int i = 1; load(ready) == 0; i++) {
      pause_cpu();
      if (i % LOOKS != 0) continue;
      if (over()) return false;
      if (Clock::now() >= until) std::this_thread::sleep_for(NAP);
    }
    return !over();
  }

  bool serve(int l, int b) {
    uint8_t* at = slot(l, b);
    layer.store(l, std::memory_order_relaxed);
    batch.store(b, std::memory_order_relaxed);
    if (!await_job(flag(at, READY_AT))) return false;
    store_relaxed(flag(at, READY_AT), 0);
    computing.store(true, std::memory_order_relaxed);
    served.fetch_add(1, std::memory_order_relaxed);
    const auto start = Clock::now();
    try {
      work(context, job(l, b));
    } catch (const std::exception& error) {
      fail({Failure::ERROR, l, b, 0, error.what()});
    }
    if (failed.load(std::memory_order_acquire)) return false;  // the watchdog has answered, or is about to
    const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
    busy_ns.fetch_add(took.count(), std::memory_order_relaxed);  // before the answer: whoever saw it finds it counted
    store(flag(at, DONE_AT), DONE);
    computing.store(false, std::memory_order_relaxed);
    served.fetch_add(1, std::memory_order_relaxed);
    return true;
  }

  void run_steps() {
    for (uint64_t step = 0; await_step(step);) {
      const Step now = steps[step % RING];
      patient.store(now.patient, std::memory_order_relaxed);
      const ExpectWork expected(spin);
      for (int l = 0; l < shape.layers; l++)
        if (!serve(l, now.batch)) return;
      ended.store(++step, std::memory_order_release);
    }
  }

  // Until it stops: a failure of its own finding, or the answer to one.
  void watch_steps() {
    uint64_t last = 0;
    auto since = Clock::now();
    std::unique_lock<std::mutex> lock(mutex);
    while (!stopping && !failed) {
      watched.wait_for(lock, timeout / TICKS, [&] { return stopping || failed; });
      const uint64_t steps_begun = begun.load(), progress = steps_begun + served.load();
      const auto now = Clock::now();
      const bool may_wait = steps_begun == ended.load() || (patient && !computing);
      if (may_wait || progress != last) last = progress, since = now;
      if (now - since < timeout || stopping) continue;
      const auto kind = computing ? Failure::NO_RESULT : Failure::NO_JOB;
      const double seconds = std::chrono::duration<double>(now - since).count();
      lock.unlock();
      fail({kind, layer.load(), batch.load(), seconds, ""});
      lock.lock();
    }
    while (!stopping) {
      lock.unlock();
      answer_all();
      lock.lock();
      watched.wait_for(lock, NAP, [&] { return stopping.load(); });
    }
    lock.unlock();
    answer_all();
  }

  // FAILED for every slot that waits or could. Where the GPU writes its 0 just after, it makes the slot ready next, and
  // the next round answers that.
  void answer_all() const {
    for (int b = 0; b < int(shape.batches.size()); b++)
      for (int l = 0; l < shape.layers; l++) {
        uint8_t* at = slot(l, b);
        store_relaxed(flag(at, READY_AT), 0);
        store(flag(at, DONE_AT), FAILED);
      }
  }
};

void Mailbox::coordinate(const std::shared_ptr<State>& state) {
  state->run_steps();
  std::lock_guard<std::mutex> lock(state->mutex);
  state->coordinator_left = true;
  state->left.notify_all();
}

void Mailbox::watch(const std::shared_ptr<State>& state) { state->watch_steps(); }

Mailbox::Mailbox(const MailboxShape& shape, uint8_t* memory, Work work, void* context, std::shared_ptr<void> keep,
                 Micros timeout, Micros spin)
    : state_(std::make_shared<State>()) {
  State& s = *state_;
  s.shape = shape, s.memory = memory, s.work = work, s.context = context, s.keep = std::move(keep);
  s.timeout = timeout, s.spin = spin;
  for (int b = 0; b < int(shape.batches.size()); b++) {
    s.maps.push_back(shape.slot(b));
    for (int l = 0; l < shape.layers; l++) {
      s.offsets.push_back(shape.offset(l, b));
      store_relaxed(flag(s.slot(l, b), READY_AT), 0);
      store_relaxed(flag(s.slot(l, b), DONE_AT), 0);
    }
  }
  s.coordinator = std::thread([state = state_] { coordinate(state); });
  try {
    s.watchdog = std::thread([state = state_] { watch(state); });
  } catch (...) {  // the system gives no more threads
    stop();
    throw;
  }
}

Mailbox::~Mailbox() { stop(); }

bool Mailbox::begin(int batch, bool patient) {
  State& s = *state_;
  const uint64_t step = s.begun.load(std::memory_order_relaxed);
  if (step - s.ended.load(std::memory_order_acquire) >= RING) return false;
  s.steps[step % RING] = {batch, patient};
  {
    std::lock_guard<std::mutex> lock(s.mutex);  // so that a coordinator about to sleep does not miss it
    s.begun.store(step + 1, std::memory_order_release);
  }
  s.wake.notify_one();
  return true;
}

int Mailbox::steps_left() const { return int(state_->begun.load() - state_->ended.load()); }

Failure Mailbox::failure() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->failure;
}

uint64_t Mailbox::served() const { return state_->served.load() / 2; }

double Mailbox::busy() const { return double(state_->busy_ns.load()) * 1e-9; }

bool Mailbox::stop() {
  State& s = *state_;
  if (s.owner != process()) {  // a forked child: the threads stayed with the parent, and nothing here can be waited for
    new std::shared_ptr<State>(state_);
    return false;
  }
  bool left;
  {
    std::unique_lock<std::mutex> lock(s.mutex);
    if (s.stopping) return s.coordinator_left;
    s.stopping = true;
    s.wake.notify_all();
    s.watched.notify_all();
    left = s.left.wait_for(lock, s.timeout, [&] { return s.coordinator_left; });
  }
  if (s.watchdog.joinable()) s.watchdog.join();
  if (s.coordinator.joinable()) left ? s.coordinator.join() : s.coordinator.detach();
  return left;
}

void post_job(void* slot) {
  store_relaxed(flag(slot, DONE_AT), 0);
  store(flag(slot, READY_AT), 1);
}

Flag wait_done(void* slot, std::chrono::microseconds timeout) {
  constexpr int SPINS = 1 << 14;  // about as long as the experts of a layer take; then others may want the core
  const Flag* done = flag(slot, DONE_AT);
  const auto until = Clock::now() + timeout;
  for (int i = 1;; i++) {
    if (const Flag value = load(done)) return value;
    pause_cpu();
    if (i > SPINS) std::this_thread::yield();
    if (i % LOOKS == 0 && Clock::now() >= until) return 0;
  }
}

Flag wait_done(void* slot) {
  for (;;)
    if (const Flag value = wait_done(slot, std::chrono::hours(1))) return value;
}

void host_post(void* slot) { post_job(slot); }

void host_wait(void* slot) { wait_done(slot); }

double play(Mailbox& mailbox, const MailboxShape& shape, uint8_t* memory, int batch, int steps,
            std::chrono::nanoseconds gap) {
  double seconds = 0;
  bool failed = false;
  for (int step = 0; step < steps && !failed; step++) {
    if (!mailbox.begin(batch)) return -1;
    for (int layer = 0; layer < shape.layers && !failed; layer++) {
      const auto until = Clock::now() + gap;
      while (gap.count() > 0 && Clock::now() < until) pause_cpu();
      uint8_t* slot = memory + shape.offset(layer, batch);
      const auto start = Clock::now();
      post_job(slot);
      failed = wait_done(slot) != DONE;
      seconds += std::chrono::duration<double>(Clock::now() - start).count();
    }
  }
  return failed ? -1 : seconds;
}

}  // namespace headrace
