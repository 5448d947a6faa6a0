// A kernel's arithmetic, the file ARITHMETIC, once for this build's processors and once for those
// with wider vectors; has_wide_vectors says which of them this processor has.

#define LANES_OF plain
#if defined(__AVX__)
#define LANE_BYTES 32
#else
#define LANE_BYTES 16
#endif
namespace {
#include ARITHMETIC
}
#undef LANES_OF
#undef LANE_BYTES

// (Whether threads meet does not depend on how wide vectors are: one build is enough for that check.)
#if HPC_STRES_FMA && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define HPC_STRES_WIDE 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#define LANES_OF wide
#define LANE_BYTES 64
namespace {
#include ARITHMETIC
}
#undef LANES_OF
#undef LANE_BYTES
#pragma GCC pop_options
#endif

namespace {

bool has_wide_vectors() {
#if HPC_STRES_WIDE
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
#else
  return false;
#endif
}

}  // namespace
