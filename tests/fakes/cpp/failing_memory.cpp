// Memory that fails on request, to be loaded before all else (LD_PRELOAD): one allocation, or thread, of a library and no
// other.
//
//   memory_watch(part)   the library whose file name holds `part`; false: it is not loaded
//   memory_fail(n)       its n-th allocation from now on fails, counted over all threads; 0: none, they are counted alone
//   memory_count()       how many there were since
//
// An allocation is the library's if it asks for it, or if it calls what asks (libstdc++'s strings and streams do).
#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

struct Range {
  uintptr_t begin = 0, end = 0;
  bool has(const void* address) const { return uintptr_t(address) >= begin && uintptr_t(address) < end; }
};

Range library, standard;
std::atomic<bool> armed{false};
std::atomic<int64_t> failing{0}, counted{0};
thread_local bool looking = false;

struct Search {
  const char* part;
  Range found;
};

int look_at(dl_phdr_info* info, size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  const char* name = std::strrchr(info->dlpi_name, '/');
  if (!name || !std::strstr(name, search->part)) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
    search->found = {uintptr_t(info->dlpi_addr) + part.p_vaddr, uintptr_t(info->dlpi_addr) + part.p_vaddr + part.p_memsz};
  }
  return 1;
}

Range range_of(const char* part) {
  Search search{part, {}};
  dl_iterate_phdr(look_at, &search);
  return search.found;
}

// Whether the caller of an allocation is the library, or the standard library on its behalf.
bool is_ours(const void* caller) {
  if (library.has(caller)) return true;
  if (!standard.has(caller) || looking) return false;
  looking = true;
  void* frames[12];
  const int depth = backtrace(frames, 12);
  looking = false;
  int i = 0;
  while (i < depth && !standard.has(frames[i])) i++;
  while (i < depth && standard.has(frames[i])) i++;
  return i < depth && library.has(frames[i]);
}

bool fails(const void* caller) {
  if (!armed.load(std::memory_order_relaxed) || !is_ours(caller)) return false;
  return counted.fetch_add(1) + 1 == failing.load();
}

void* made(size_t size, const void* caller) {
  void* found = fails(caller) ? nullptr : __libc_malloc(size ? size : 1);
  if (!found) throw std::bad_alloc();
  return found;
}

void* made(size_t size, std::align_val_t align, const void* caller) {
  void* found = fails(caller) ? nullptr : __libc_memalign(size_t(align), size ? size : 1);
  if (!found) throw std::bad_alloc();
  return found;
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {

bool memory_watch(const char* part) {
  void* frames[4];
  backtrace(frames, 4);  // it allocates when it is called first
  library = range_of(part), standard = range_of("libstdc++");
  return library.end != 0;
}

void memory_fail(int64_t n) {
  failing = n, counted = 0;
  armed = true;
}

int64_t memory_count() {
  armed = false;
  return counted;
}

void* malloc(size_t size) {
  if (!fails(CALLER)) return __libc_malloc(size);
  errno = ENOMEM;
  return nullptr;
}

void* calloc(size_t count, size_t size) {
  if (!fails(CALLER)) return __libc_calloc(count, size);
  errno = ENOMEM;
  return nullptr;
}

void* realloc(void* from, size_t size) {
  if (!fails(CALLER)) return __libc_realloc(from, size);
  errno = ENOMEM;
  return nullptr;
}

void* aligned_alloc(size_t align, size_t size) {
  if (!fails(CALLER)) return __libc_memalign(align, size);
  errno = ENOMEM;
  return nullptr;
}

int posix_memalign(void** to, size_t align, size_t size) {
  void* found = fails(CALLER) ? nullptr : __libc_memalign(align, size);
  if (!found) return ENOMEM;
  *to = found;
  return 0;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* with) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return fails(CALLER) ? EAGAIN : create(thread, how, run, with);
}
}

void* operator new(size_t size) { return made(size, CALLER); }
void* operator new[](size_t size) { return made(size, CALLER); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return fails(CALLER) ? nullptr : __libc_malloc(size ? size : 1); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return fails(CALLER) ? nullptr : __libc_malloc(size ? size : 1); }
void* operator new(size_t size, std::align_val_t align) { return made(size, align, CALLER); }
void* operator new[](size_t size, std::align_val_t align) { return made(size, align, CALLER); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }
