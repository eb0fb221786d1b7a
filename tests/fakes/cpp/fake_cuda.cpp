// A CUDA driver without a GPU: the calls of engine/driver.py on plain memory, each stream a thread. tests/fakes/fake_cuda.py
// compiles it against the real cuda.h, so that prototypes and layouts are the driver's.
//
// A device address is the host's plus 2^44, and every operation checks that its address lies in registered memory, so
// that an address of the host, or memory that was never registered, is an error as it would be on a GPU.
//
//   FAKE_CUDA_LOG=FILE          a line for each call
//   FAKE_CUDA_NO_MEMOPS=1       the device has no 64-bit memory operations
//   FAKE_CUDA_HANG=eager|graph  waits in a stream, or in a graph, never end
//   FAKE_CUDA_HOST_US=N         a host function starts N microseconds late
//   FAKE_CUDA_PIN_LIMIT=N       no more than N bytes can be registered
//   FAKE_CUDA_PIN_MS=N          registering takes N milliseconds
#include <cuda.h>

#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr CUdeviceptr OFFSET = CUdeviceptr(1) << 44;

struct Op {
  enum Kind { WRITE, WAIT, HOST } kind;
  uint64_t* at;
  uint64_t value;
  CUhostFn fn;
  void* data;
  bool hangs;
};

std::mutex mutex;  // of `registered` and the log
std::map<uintptr_t, size_t> registered;

long setting(const char* name) {
  const char* text = std::getenv(name);
  return text ? std::atol(text) : 0;
}

void note(const char* format, ...) {
  const char* path = std::getenv("FAKE_CUDA_LOG");
  if (!path) return;
  std::lock_guard<std::mutex> lock(mutex);
  FILE* file = std::fopen(path, "a");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(file, format, arguments);
  va_end(arguments);
  std::fputc('\n', file);
  std::fclose(file);
}

// The host's address behind a device address of 8 bytes; null if it is none.
uint64_t* host_address(CUdeviceptr address) {
  std::lock_guard<std::mutex> lock(mutex);
  if (address < OFFSET || address % 8) return nullptr;
  const uintptr_t at = address - OFFSET;
  auto next = registered.upper_bound(at);
  if (next == registered.begin()) return nullptr;
  --next;
  return at + 8 <= next->first + next->second ? reinterpret_cast<uint64_t*>(at) : nullptr;
}

bool hangs(const char* where) {
  const char* text = std::getenv("FAKE_CUDA_HANG");
  return text && std::strcmp(text, where) == 0;
}

void execute(const Op& op) {
  using namespace std::chrono;
  if (op.kind == Op::WRITE) __atomic_store_n(op.at, op.value, __ATOMIC_RELEASE);
  if (op.kind == Op::HOST) {
    std::this_thread::sleep_for(microseconds(setting("FAKE_CUDA_HOST_US")));
    op.fn(op.data);
  }
  if (op.kind == Op::WAIT) {
    while (op.hangs) std::this_thread::sleep_for(seconds(1));
    while (int64_t(__atomic_load_n(op.at, __ATOMIC_ACQUIRE) - op.value) < 0) std::this_thread::yield();
  }
}

}  // namespace

struct CUgraph_st {
  std::vector<Op> ops;
};
struct CUgraphExec_st {
  std::vector<Op> ops;
};

struct CUstream_st {
  std::mutex lock;
  std::condition_variable changed;
  std::deque<Op> queue;
  std::vector<Op> recorded;
  bool capturing = false, closed = false, busy = false;
  std::thread thread{[this] { run(); }};

  void run() {
    std::unique_lock<std::mutex> hold(lock);
    for (;;) {
      changed.wait(hold, [&] { return closed || !queue.empty(); });
      if (queue.empty()) return;
      const Op op = queue.front();
      queue.pop_front();
      busy = true;
      hold.unlock();
      execute(op);
      hold.lock();
      busy = false;
      changed.notify_all();
    }
  }

  void add(std::vector<Op> ops, bool in_graph) {
    std::lock_guard<std::mutex> hold(lock);
    for (Op& op : ops) {
      if (!capturing) op.hangs = hangs(in_graph ? "graph" : "eager");
      capturing ? recorded.push_back(op) : queue.push_back(op);
    }
    changed.notify_all();
  }
};

extern "C" {

CUresult cuInit(unsigned int flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 13010, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
  return *device = 40, CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (device != 40) return CUDA_ERROR_INVALID_DEVICE;
  const bool has = attribute == CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS && !setting("FAKE_CUDA_NO_MEMOPS");
  *value = has || attribute == CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  if (device != 40) return CUDA_ERROR_INVALID_DEVICE;
  return *context = reinterpret_cast<CUcontext>(0x77), CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  return context == reinterpret_cast<CUcontext>(0x77) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  note("stream %u", flags);
  return *stream = new CUstream_st, CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
  {
    std::lock_guard<std::mutex> hold(stream->lock);
    stream->closed = true;
  }
  stream->changed.notify_all();
  stream->thread.join();
  delete stream;
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
  std::unique_lock<std::mutex> hold(stream->lock);
  if (stream->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  stream->changed.wait(hold, [&] { return stream->queue.empty() && !stream->busy; });
  return CUDA_SUCCESS;
}

CUresult cuStreamBatchMemOp(CUstream stream, unsigned int count, CUstreamBatchMemOpParams* params, unsigned int flags) {
  if (setting("FAKE_CUDA_NO_MEMOPS")) return CUDA_ERROR_NOT_SUPPORTED;
  if (flags || !count || count > 256) return CUDA_ERROR_INVALID_VALUE;
  std::vector<Op> ops;
  for (unsigned i = 0; i < count; i++) {
    const bool wait = params[i].operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
    if (!wait && params[i].operation != CU_STREAM_MEM_OP_WRITE_VALUE_64) return CUDA_ERROR_INVALID_VALUE;
    const auto& of_wait = params[i].waitValue;
    const auto& of_write = params[i].writeValue;
    uint64_t* at = host_address(wait ? of_wait.address : of_write.address);
    const uint64_t value = wait ? of_wait.value64 : of_write.value64;
    if (!at || (wait ? of_wait.flags : of_write.flags)) return CUDA_ERROR_INVALID_VALUE;
    note("%s %llu", wait ? "wait" : "write", static_cast<unsigned long long>(value));
    ops.push_back({wait ? Op::WAIT : Op::WRITE, at, value, nullptr, nullptr, false});
  }
  stream->add(ops, false);
  return CUDA_SUCCESS;
}
CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags) {
  CUstreamBatchMemOpParams params{};
  params.writeValue = {CU_STREAM_MEM_OP_WRITE_VALUE_64, address, {}, flags, 0};
  params.writeValue.value64 = value;
  return cuStreamBatchMemOp(stream, 1, &params, 0);
}
CUresult cuStreamWaitValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags) {
  CUstreamBatchMemOpParams params{};
  params.waitValue = {CU_STREAM_MEM_OP_WAIT_VALUE_64, address, {}, flags, 0};
  params.waitValue.value64 = value;
  return cuStreamBatchMemOp(stream, 1, &params, 0);
}
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void* data) {
  note("host");
  stream->add({{Op::HOST, nullptr, 0, fn, data, false}}, false);
  return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void* address, size_t bytes, unsigned int flags) {
  note("register %zu %u", bytes, flags);
  std::this_thread::sleep_for(std::chrono::milliseconds(setting("FAKE_CUDA_PIN_MS")));
  std::lock_guard<std::mutex> lock(mutex);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  if (flags != (CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP)) return CUDA_ERROR_INVALID_VALUE;
  size_t total = bytes;
  for (const auto& [at, size] : registered) {  // the driver pins whole pages
    total += size;
    if (begin / 4096 <= (at + size - 1) / 4096 && at / 4096 <= (end - 1) / 4096)
      return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  }
  if (const long limit = setting("FAKE_CUDA_PIN_LIMIT"); limit && total > size_t(limit)) return CUDA_ERROR_OUT_OF_MEMORY;
  registered[begin] = bytes;
  return CUDA_SUCCESS;
}
CUresult cuMemHostUnregister(void* address) {
  note("unregister");
  std::lock_guard<std::mutex> lock(mutex);
  return registered.erase(reinterpret_cast<uintptr_t>(address)) ? CUDA_SUCCESS
                                                                : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}
CUresult cuMemHostGetDevicePointer(CUdeviceptr* out, void* address, unsigned int flags) {
  const CUdeviceptr at = reinterpret_cast<uintptr_t>(address) + OFFSET;
  if (flags || !host_address(at / 8 * 8)) return CUDA_ERROR_INVALID_VALUE;
  return *out = at, CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  note("capture %d", int(mode));
  std::lock_guard<std::mutex> hold(stream->lock);
  stream->capturing = true;
  return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  std::lock_guard<std::mutex> hold(stream->lock);
  if (!stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capturing = false;
  *graph = new CUgraph_st{std::move(stream->recorded)};
  stream->recorded.clear();
  return CUDA_SUCCESS;
}
CUresult cuGraphInstantiate(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
  note("graph of %zu nodes", graph->ops.size());
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  return *exec = new CUgraphExec_st{graph->ops}, CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  note("launch");
  stream->add(exec->ops, true);
  return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec exec) { return delete exec, CUDA_SUCCESS; }
CUresult cuGraphDestroy(CUgraph graph) { return delete graph, CUDA_SUCCESS; }

CUresult cuGetErrorName(CUresult error, const char** text) {
  static const std::map<int, const char*> names{{1, "CUDA_ERROR_INVALID_VALUE"},       {2, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                {712, "CUDA_ERROR_ALREADY_REGISTERED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"}};
  const auto found = names.find(error);
  if (found == names.end()) return CUDA_ERROR_INVALID_VALUE;
  return *text = found->second, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "said the fake driver", CUDA_SUCCESS; }

}  // extern "C"
