// Asks the processor whether it has the instruction set that the kernels are compiled for. This file is compiled for
// any processor of its kind, since it runs before the answer is known.

#include "interface.hpp"

#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP2_BF16
#define HWCAP2_BF16 (1 << 14)
#endif
#endif

int shvit_runs_here() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#if defined(SHVIT_SET_avx2)
    return avx2;
#else
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(SHVIT_SET_avx512)
    return avx512;
#else
    return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#endif
#elif defined(SHVIT_SET_neon_bf16)
    return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#else
    return 1;
#endif
}

const char* shvit_sources() { return SHVIT_SOURCES; }
