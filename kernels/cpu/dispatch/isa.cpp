// Asks the CPU what it has and finds function tables. Compiled for the baseline: runs before anything else is known.
//
// The compiler's __builtin_cpu_supports checks CPUID and that the operating system saves the wide registers.
#include "dispatch/isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {
namespace {

struct Choice {
  const Kernels* table;
  bool there;
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

#if defined(HEADRACE_BF16)
const Kernels* bf16_table() {
  static const Kernels made = with_bf16(kernels_avx512);
  return &made;
}
#endif

// The table for AVX-512, with products of bf16 where the CPU has them.
const Kernels* avx512_table() {
#if defined(HEADRACE_BF16)
  if (has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi")) return bf16_table();
#endif
  return &kernels_avx512;
}

#if defined(HEADRACE_AMX)
// Tiles are 8 KB of state a thread, which Linux hands out only on request: once, for the whole process, forks included.
// The answer is no where a signal stack of the process is too small for them.
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d, extended;
  if (!has_avx512() || !__get_cpuid_count(7, 1, &extended, &b, &c, &d) || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
    return false;
  const bool tiles = d & (1u << 24), bf16_tiles = d & (1u << 22), int8_tiles = d & (1u << 25),
             bf16 = extended & (1u << 5);
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  static const bool granted =
      tiles && bf16_tiles && int8_tiles && bf16 && __builtin_cpu_supports("avx512vbmi") &&
      syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  return granted;
#else
  return false;
#endif
}

const Kernels* amx_table() {
  static const Kernels with_tiles = with_amx(*avx512_table());
  return &with_tiles;
}
#endif
#endif

std::vector<Choice> choices() {
  std::vector<Choice> all{{&kernels_portable, true}};
#if defined(__x86_64__)
  all.push_back({&kernels_avx2, has_avx2()});
  all.push_back({avx512_table(), has_avx512()});
#if defined(HEADRACE_AMX)
  if (has_amx()) all.push_back({amx_table(), true});
#endif
#endif
  return all;
}

}  // namespace

size_t prefetch_far = 0, prefetch_near = 0;

bool prefetch_helps() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

const Kernels* find_isa(const std::string& name) {
  for (const Choice& choice : choices())
    if (choice.there && name == choice.table->name) return choice.table;
  return nullptr;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Choice& choice : choices())
    if (choice.there) names.push_back(choice.table->name);
  return names;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
#define HEADRACE_FEATURE(name) \
  if (__builtin_cpu_supports(name)) found.push_back(name)
  HEADRACE_FEATURE("avx2");
  HEADRACE_FEATURE("fma");
  HEADRACE_FEATURE("f16c");
  HEADRACE_FEATURE("avx512f");
  HEADRACE_FEATURE("avx512bw");
  HEADRACE_FEATURE("avx512vl");
  HEADRACE_FEATURE("avx512dq");
  HEADRACE_FEATURE("avx512vnni");
  HEADRACE_FEATURE("avx512bf16");
  HEADRACE_FEATURE("avx512vbmi");
#undef HEADRACE_FEATURE
#if defined(HEADRACE_AMX)
  if (has_amx()) found.push_back("amx_bf16");
#endif
#endif
  return found;
}

}  // namespace headrace
