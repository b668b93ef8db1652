// Prints the instruction sets that this processor has and the kernels are built for, one in each line.

#include <cstdio>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

int main() {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("x86-64-v4");
    if (__builtin_cpu_supports("x86-64-v3")) std::puts("avx2");
    if (avx512) std::puts("avx512");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) std::puts("avx512_bf16");
#elif defined(__aarch64__)
    std::puts("aarch64");
#ifdef __linux__
    constexpr unsigned long BF16 = 1 << 14;  // HWCAP2_BF16, which older headers lack
    if (getauxval(AT_HWCAP2) & BF16) std::puts("aarch64_bf16");
#endif
#endif
}
