// The hand-off between a GPU's stream and the CPU's experts: job slots in memory that both see, and who answers them.
//
// One slot for each layer with experts and each batch size that is captured in a graph, all addresses fixed, so that a
// graph replays unchanged. Every part of a slot starts on a cache line of its own:
//
//        0  ready   u64      1: a job lies here             written 1 by the GPU, 0 by the coordinator
//       64  done    u64      0: wait, 1: y lies here,       written 0 by the GPU, 1 by the coordinator,
//                            2: it failed                   2 by the watchdog
//      128  ids     i32 [T, K]   -1: this expert is computed elsewhere
//        .  weights f32 [T, K]
//        .  x       f32 or bf16 [T, D]
//        .  y       f32 [T, D]   all zeros where no id is ours
//
// The GPU's part, for each layer in turn:      the coordinator's part, for each layer in turn:
//   write ids, weights, x                        wait until ready is 1    (acquire)
//   done := 0                                    ready := 0               (relaxed)
//   ready := 1          (release)                compute y
//   other work                                   done := 1                (release)
//   wait until done >= 1, read y  (acquire)
//
// Why that is enough:
//  - The job before its flag. On a GPU, writes of kernels and copies come before a later write of a value in the same
//    stream, at system scope, and PCIe keeps the order of posted writes. Here the acquire of `ready` pairs with it.
//  - y before its flag. All workers' stores come before the end of the region (each counts itself out with a release,
//    worker 0 reads the count with acquire), and the release of `done` hands them all on. Kernels that store past the
//    caches fence before the region ends (tiles.h).
//  - No flag is lost. `done := 0` precedes `ready := 1` in the stream, and the coordinator writes `done` only after it
//    saw that `ready`, so its 1 is never overwritten by the 0 of the same job. `ready := 0` precedes `done := 1`, and
//    the GPU writes the next `ready := 1` only after it saw that `done`, so a 1 is never overwritten by an old 0.
//  - x, ids and weights are written anew only after the GPU saw `done`, y only after the next `ready`, which comes
//    later in the stream than whoever reads y.
//
// The coordinator is one thread, C++ alone: it takes no interpreter lock, makes no CUDA call and allocates nothing after
// its first jobs, so nothing that the waiting GPU holds up can hold it up. It knows from `begin` which batch comes and
// looks at one flag, that of the next layer. Between steps it spins for a while and then sleeps until `begin`; inside a
// step it spins, then naps, and workers of the team spin as long between two layers' jobs: a sleeping team would have to
// be woken up in every layer.
//
// A wait inside a GPU's stream never times out, so nobody may leave it alone. A watchdog looks whether the step goes on.
// After `timeout` without progress (a worker is gone, the team is held by another, the GPU does not come), or when the
// work throws, it keeps the reason, and from then on writes `done := 2` into every slot and into every slot that is made
// ready later. So every wait ends, with numbers that must not be used: `failure` says why, and the caller asks after each
// step. A mailbox that failed stays failed.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace headrace {

using Flag = uint64_t;
constexpr size_t READY_AT = 0, DONE_AT = 64, JOB_AT = 128;
constexpr Flag DONE = 1, FAILED = 2;

// Where the parts of a slot lie, in bytes from its start.
struct SlotMap {
  size_t ids, weights, x, y, bytes;
};

struct MailboxShape {
  int layers, top_k, hidden;
  bool half;                 // x is bfloat16
  std::vector<int> batches;  // tokens of each captured batch

  SlotMap slot(int batch) const;
  size_t before(int batch) const;             // bytes of all slots of the batches before
  size_t offset(int layer, int batch) const;  // of a slot; all layers of a batch lie one after another
  size_t bytes() const;
};

// What lies in a slot, for whoever computes it.
struct Job {
  int layer, batch, tokens, top_k, hidden;
  bool half;
  const int32_t* ids;
  const float* weights;
  const void* x;
  float* y;
};

struct Failure {
  enum Kind { NONE, NO_JOB, NO_RESULT, ERROR };  // the GPU did not come; the work did not end; the work threw
  Kind kind = NONE;
  int layer = 0, batch = 0;
  double seconds = 0;  // without progress
  std::string what;    // of ERROR
};

class Mailbox {
 public:
  using Work = void (*)(void* context, const Job& job);
  using Micros = std::chrono::microseconds;

  // `memory` is `shape.bytes()` on a 64-byte boundary, and stays until `stop` has returned true. `keep` is held as long
  // as a thread may still use `context`.
  Mailbox(const MailboxShape& shape, uint8_t* memory, Work work, void* context, std::shared_ptr<void> keep,
          Micros timeout, Micros spin);
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // A step over all layers of this batch is about to run on the GPU. Up to 64 may be under way; false: there are more.
  // Of a patient step the GPU may take any time between two jobs: it compiles kernels.
  bool begin(int batch, bool patient = false);
  int steps_left() const;  // begun and not yet served
  Failure failure() const;
  uint64_t served() const;  // jobs
  double busy() const;      // seconds of work for all jobs that were answered: the coordinator's own clock

  // Answers every wait, ends both threads. False: the coordinator still sits in its work after `timeout`; it is left
  // behind, and the memory of the slots must stay where it is.
  bool stop();

 private:
  struct State;
  static void coordinate(const std::shared_ptr<State>& state);
  static void watch(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
};

// The other side, for a host: what the stream's operations do on a GPU. `slot` is the start of a slot.
void post_job(void* slot);          // done := 0, ready := 1
Flag wait_done(void* slot);         // spins until `done` is not 0, yielding after a while; never ends by itself
Flag wait_done(void* slot, std::chrono::microseconds timeout);  // 0: nothing came
void host_post(void* slot);         // both as callbacks of a stream (cuLaunchHostFunc)
void host_wait(void* slot);

// Plays the GPU's part with what lies in the slots: `steps` steps of this batch, `gap` of spinning before each job, as
// if the stream did something else. Seconds of all jobs, from ready to done; negative: a job was answered with FAILED.
double play(Mailbox& mailbox, const MailboxShape& shape, uint8_t* memory, int batch, int steps,
            std::chrono::nanoseconds gap);

}  // namespace headrace
