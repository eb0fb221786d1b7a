// The mailbox under a thread that plays the GPU's part: run by tests/graphs/test_mailbox.py, also under ThreadSanitizer.
//
//   mailbox_test SCENARIO [ROUNDS]      prints "ok", or what was wrong and ends with 1
//
// The work is arithmetic of the test's own on the thread team, so that every value that crosses can be checked.
#include "runtime/mailbox.h"
#include "runtime/team.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include <pthread.h>
#include <unistd.h>

using namespace headrace;
using std::chrono::microseconds;
using std::chrono::milliseconds;

namespace {

using Clock = std::chrono::steady_clock;

const MailboxShape SHAPE{6, 2, 20, false, {1, 3}};
constexpr auto TIMEOUT = milliseconds(400);

#define CHECK(what)                                              \
  do {                                                           \
    if (!(what)) {                                               \
      std::printf("line %d: not so: %s\n", __LINE__, #what);     \
      std::fflush(stdout);                                       \
      _exit(1);                                                  \
    }                                                            \
  } while (0)

struct Memory {
  uint8_t* data = static_cast<uint8_t*>(std::aligned_alloc(4096, (SHAPE.bytes() + 4095) / 4096 * 4096));
  Memory() { std::memset(data, 0xFF, SHAPE.bytes()); }
  ~Memory() { std::free(data); }
  uint8_t* slot(int layer, int batch) const { return data + SHAPE.offset(layer, batch); }
};

enum Trouble { NONE, STUCK, DEAD, THROWS };

int threads = 2;  // of the team

struct Work {
  std::atomic<int> trouble{NONE};
  std::atomic<bool> release{false};
  int team_every = 1;  // of so many layers one is computed by all workers, the others by the coordinator

  static void run(void* context, const Job& job) {
    Work& work = *static_cast<Work*>(context);
    if (work.trouble == THROWS && job.layer == 3) throw std::out_of_range("expert id 77 in a bank of 8");
    TeamTurn turn(threads);
    turn.team.run(job.layer % work.team_every != 0, [&](int worker) {
      if (worker == 1 && work.trouble == STUCK && job.layer == 2)
        while (!work.release) std::this_thread::sleep_for(milliseconds(1));
      if (worker == 1 && work.trouble == DEAD && job.layer == 2) pthread_exit(nullptr);
      const Range mine = part_of(job.tokens * job.hidden, turn.team.active(), worker);
      for (int i = mine.begin; i < mine.end; i++) {
        const int t = i / job.hidden;
        float sum = static_cast<const float*>(job.x)[i];
        for (int k = 0; k < job.top_k; k++) sum += job.weights[t * job.top_k + k] * float(job.ids[t * job.top_k + k]);
        job.y[i] = sum;
      }
    });
  }
};

// What the stream writes before a flag: different in every round.
void write_job(const Memory& memory, int layer, int batch, uint64_t round) {
  uint8_t* slot = memory.slot(layer, batch);
  const SlotMap map = SHAPE.slot(batch);
  const int tokens = SHAPE.batches[batch];
  for (int i = 0; i < tokens * SHAPE.top_k; i++) {
    reinterpret_cast<int32_t*>(slot + map.ids)[i] = int(round % 97) + i;
    reinterpret_cast<float*>(slot + map.weights)[i] = 2.0f;
  }
  for (int i = 0; i < tokens * SHAPE.hidden; i++)
    reinterpret_cast<float*>(slot + map.x)[i] = float(round % 8191) + float(i);
}

bool is_right(const Memory& memory, int layer, int batch, uint64_t round) {
  const float* y = reinterpret_cast<const float*>(memory.slot(layer, batch) + SHAPE.slot(batch).y);
  for (int i = 0; i < SHAPE.batches[batch] * SHAPE.hidden; i++) {
    const int t = i / SHAPE.hidden;
    float wanted = float(round % 8191) + float(i);
    for (int k = 0; k < SHAPE.top_k; k++) wanted += 2.0f * float(int(round % 97) + t * SHAPE.top_k + k);
    if (y[i] != wanted) return false;
  }
  return true;
}

std::unique_ptr<Mailbox> start(const Memory& memory, Work& work, microseconds timeout = TIMEOUT) {
  return std::make_unique<Mailbox>(SHAPE, memory.data, Work::run, &work, nullptr, timeout, microseconds(500));
}

// One step of the GPU's part; the layer whose wait was answered with a failure, or -1.
int step(Mailbox& mailbox, const Memory& memory, int batch, uint64_t& round) {
  CHECK(mailbox.begin(batch));
  for (int layer = 0; layer < SHAPE.layers; layer++, round++) {
    write_job(memory, layer, batch, round);
    post_job(memory.slot(layer, batch));
    if (wait_done(memory.slot(layer, batch)) != DONE) return layer;
    CHECK(is_right(memory, layer, batch, round));
  }
  return -1;
}

void rounds(uint64_t count, int team_every) {
  Memory memory;
  Work work;
  work.team_every = team_every;
  const auto mailbox = start(memory, work, std::chrono::seconds(60));
  uint64_t round = 0;
  std::thread gpu([&] {
    for (int s = 0; round < count; s++) CHECK(step(*mailbox, memory, s % 2, round) == -1);
  });
  gpu.join();
  CHECK(mailbox->served() == round);
  CHECK(mailbox->failure().kind == Failure::NONE);
  CHECK(mailbox->stop());
}

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A worker that never comes back: every wait ends within the timeout, and so do those of later steps.
void lost_worker(Trouble trouble) {
  threads = 2;
  Memory memory;
  Work work;
  auto mailbox = start(memory, work);
  uint64_t round = 0;
  CHECK(step(*mailbox, memory, 1, round) == -1);
  work.trouble = trouble;
  auto begun = Clock::now();
  CHECK(step(*mailbox, memory, 1, round) == 2);
  CHECK(since(begun) > 0.3 && since(begun) < 2.0);
  const Failure failure = mailbox->failure();
  CHECK(failure.kind == Failure::NO_RESULT);
  CHECK(failure.layer == 2 && failure.batch == 1);
  CHECK(failure.seconds >= 0.4 && failure.seconds < 1.5);
  begun = Clock::now();
  CHECK(step(*mailbox, memory, 0, round) == 0);
  CHECK(step(*mailbox, memory, 1, round) == 0);
  CHECK(since(begun) < 0.3);
  CHECK(!mailbox->stop());
  work.release = true;
  if (trouble == STUCK) {  // the coordinator is left behind with what it needs; it ends by itself
    mailbox.reset();
    TeamTurn turn(threads);
  }
  std::puts("ok");
  std::fflush(stdout);
  _exit(0);  // a team without its worker cannot be taken down
}

void throwing_work() {
  Memory memory;
  Work work;
  const auto mailbox = start(memory, work);
  uint64_t round = 0;
  work.trouble = THROWS;
  CHECK(step(*mailbox, memory, 0, round) == 3);
  const Failure failure = mailbox->failure();
  CHECK(failure.kind == Failure::ERROR && failure.layer == 3 && failure.batch == 0);
  CHECK(failure.what == "expert id 77 in a bank of 8");
  CHECK(step(*mailbox, memory, 0, round) == 0);
  CHECK(mailbox->stop());
}

void absent_gpu() {
  Memory memory;
  Work work;
  const auto mailbox = start(memory, work);
  uint64_t round = 0;
  CHECK(step(*mailbox, memory, 0, round) == -1);
  std::this_thread::sleep_for(TIMEOUT * 2);  // idle is no failure
  CHECK(step(*mailbox, memory, 0, round) == -1);
  CHECK(mailbox->begin(1));
  write_job(memory, 0, 1, round);
  post_job(memory.slot(0, 1));
  CHECK(wait_done(memory.slot(0, 1)) == DONE);
  std::this_thread::sleep_for(TIMEOUT * 2);
  const Failure failure = mailbox->failure();
  CHECK(failure.kind == Failure::NO_JOB && failure.layer == 1 && failure.batch == 1);
  CHECK(failure.seconds >= 0.4 && failure.seconds < 0.9);
  CHECK(mailbox->stop());
}

// Stopped while idle, while spinning for a job, while asleep; steps that queue; a wait at the time of the stop ends.
void stops() {
  Memory memory;
  Work work;
  for (int after : {0, 200, 2000, 20000}) {
    auto mailbox = start(memory, work);
    if (after != 200) CHECK(mailbox->begin(0));
    std::this_thread::sleep_for(microseconds(after));
    CHECK(mailbox->stop());
    CHECK(wait_done(memory.slot(1, 0)) == FAILED);
    CHECK(mailbox->stop());
  }
  auto mailbox = start(memory, work);
  for (int i = 0; i < 64; i++) CHECK(mailbox->begin(0));
  CHECK(!mailbox->begin(0));
  CHECK(mailbox->steps_left() == 64);
}

void queued_steps() {
  Memory memory;
  Work work;
  const auto mailbox = start(memory, work);
  CHECK(mailbox->begin(0) && mailbox->begin(1) && mailbox->begin(0));
  uint64_t round = 5;
  for (int batch : {0, 1, 0})
    for (int layer = 0; layer < SHAPE.layers; layer++, round++) {
      write_job(memory, layer, batch, round);
      post_job(memory.slot(layer, batch));
      CHECK(wait_done(memory.slot(layer, batch)) == DONE && is_right(memory, layer, batch, round));
    }
  CHECK(mailbox->stop() && mailbox->steps_left() == 0);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string scenario = argc > 1 ? argv[1] : "";
  const uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1000;
  threads = scenario == "solo" ? 1 : 2;
  if (scenario == "solo" || scenario == "team")
    rounds(count, 1);
  else if (scenario == "stuck")
    lost_worker(STUCK);
  else if (scenario == "dead")
    lost_worker(DEAD);
  else if (scenario == "throws")
    throwing_work();
  else if (scenario == "absent")
    absent_gpu();
  else if (scenario == "stops")
    stops();
  else if (scenario == "queued")
    queued_steps();
  else
    return std::printf("no scenario '%s'\n", scenario.c_str()), 2;
  end_teams();
  std::puts("ok");
  return 0;
}
