// Vectors of float32, as wide as the registers of the instruction set that is compiled for. This file and numbers.hpp
// are the only ones that know instruction sets.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace shvit {

using Size = std::ptrdiff_t;

// PANEL_VECTORS: vectors of output channels that a product computes at once.
#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32, PANEL_VECTORS = 2;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16, PANEL_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32, PANEL_VECTORS = 4;
#else
#error "there are kernels for x86-64 with AVX2 and for 64-bit Arm only"
#endif
constexpr int PANEL = PANEL_VECTORS * LANES;  // output channels at once
constexpr int NUM_SUMS = REGISTERS / 4 * 3;   // vectors that a product adds up in registers; more are slower

template <class Number, int COUNT>
struct VectorOf {
    typedef Number type __attribute__((vector_size(COUNT * sizeof(Number))));
};
using Vector = VectorOf<float, LANES>::type;
using Half = VectorOf<float, LANES / 2>::type;
using Ints = VectorOf<int32_t, LANES>::type;
using Words = VectorOf<uint32_t, LANES>::type;
using Shorts = VectorOf<uint16_t, LANES>::type;

template <class To, class From>
To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "not of the same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class To = Vector, class Number>
To load_whole(const Number* p) {
    To v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class Some, class Number>
void store_whole(Number* p, const Some& v) {
    std::memcpy(p, &v, sizeof v);
}

// Keeps the compiler from computing what all lanes share in another kind of register, which then has to be copied.
template <class Some>
void keep_in_vector(Some& v) {
#if defined(__AVX2__)
    __asm__("" : "+v"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
}

template <class To = Vector>
To all(float x) {
    return x - To{};
}

// The first lanes of a vector: those below a count.
#if defined(__AVX512F__)
struct Lanes {
    __mmask16 mask;
};

inline Lanes lanes(Size count) {
    return {static_cast<__mmask16>(count >= LANES ? 0xffff : count <= 0 ? 0 : (1u << count) - 1)};
}

inline Vector load(const float* p, Lanes some) { return _mm512_maskz_loadu_ps(some.mask, p); }
inline void store(float* p, Lanes some, Vector v) { _mm512_mask_storeu_ps(p, some.mask, v); }
inline Shorts load(const uint16_t* p, Lanes some) { return (Shorts)_mm256_maskz_loadu_epi16(some.mask, p); }
inline void store(uint16_t* p, Lanes some, Shorts v) { _mm256_mask_storeu_epi16(p, some.mask, (__m256i)v); }
inline Vector select(Lanes some, Vector v, Vector other) { return _mm512_mask_blend_ps(some.mask, other, v); }

#else
struct Lanes {
    int count;
};

inline Lanes lanes(Size count) { return {static_cast<int>(std::clamp<Size>(count, 0, LANES))}; }

inline Vector select(Lanes some, Vector v, Vector other) {
    Ints index;
    for (int lane = 0; lane < LANES; ++lane) index[lane] = lane;
    return index < some.count ? v : other;
}

template <class Some, class Number>
Some load_some(const Number* p, Lanes some) {
    if (some.count == LANES) return load_whole<Some>(p);
    Number numbers[LANES] = {};
    for (int lane = 0; lane < some.count; ++lane) numbers[lane] = p[lane];
    return load_whole<Some>(numbers);
}

template <class Some, class Number>
void store_some(Number* p, Lanes some, Some v) {
    if (some.count == LANES) return store_whole(p, v);
    for (int lane = 0; lane < some.count; ++lane) p[lane] = v[lane];
}

inline Vector load(const float* p, Lanes some) { return load_some<Vector>(p, some); }
inline void store(float* p, Lanes some, Vector v) { store_some(p, some, v); }
inline Shorts load(const uint16_t* p, Lanes some) { return load_some<Shorts>(p, some); }
inline void store(uint16_t* p, Lanes some, Shorts v) { store_some(p, some, v); }
#endif

// The same numbers in 32 bits.
inline Words widen(Shorts v) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu16_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, Words);
#endif
}

// x * y + sum and sum - x * y, rounded once.
#if defined(__AVX512F__)
inline Vector fused(Vector x, Vector y, Vector sum) { return _mm512_fmadd_ps(x, y, sum); }
inline Vector fused_minus(Vector x, Vector y, Vector sum) { return _mm512_fnmadd_ps(x, y, sum); }
inline Half fused(Half x, Half y, Half sum) { return _mm256_fmadd_ps(x, y, sum); }
#elif defined(__AVX2__)
inline Vector fused(Vector x, Vector y, Vector sum) { return _mm256_fmadd_ps(x, y, sum); }
inline Vector fused_minus(Vector x, Vector y, Vector sum) { return _mm256_fnmadd_ps(x, y, sum); }
#else
inline Vector fused(Vector x, Vector y, Vector sum) { return vfmaq_f32(sum, x, y); }
inline Vector fused_minus(Vector x, Vector y, Vector sum) { return vfmsq_f32(sum, x, y); }
#endif

// The larger of both, and the second one if either is NaN.
inline Vector maximum(Vector x, Vector y) {
#if defined(__AVX512F__)
    return _mm512_max_ps(x, y);
#elif defined(__AVX2__)
    return _mm256_max_ps(x, y);
#else
    return x > y ? x : y;
#endif
}

inline Vector rectified(Vector x) { return maximum(Vector{}, x); }  // a ReLU, which keeps NaN as that of torch does

// All lanes as one number, by halves.
template <class Some, class Join>
float reduce(const Some& v, Join join) {
    if constexpr (sizeof(Some) == 2 * sizeof(float)) {
        return join(v[0], v[1]);
    } else {
        using Less = typename VectorOf<float, sizeof(Some) / sizeof(float) / 2>::type;
        Less parts[2];
        std::memcpy(parts, &v, sizeof v);
        return reduce<Less>(join(parts[0], parts[1]), join);
    }
}

inline float sum_of(Vector v) {
    return reduce(v, [](auto x, auto y) { return x + y; });
}

inline float largest_of(Vector v) {
    return reduce(v, [](auto x, auto y) { return x > y ? x : y; });
}

// e to the power of x for x <= 0, to about the rounding of float32: a power of two times a polynomial.
inline Vector exponential(Vector x) {
    const Vector shift = all(12582912.0f);      // 1.5 * 2^23: adding it rounds to whole numbers
    const Vector least = maximum(all(-88), x);  // below, results are less than what float32 has; NaN stays
    const Vector power = fused(least, all(1.442695041f), shift) - shift;
    Vector rest = fused_minus(power, all(0.693359375f), least);  // ln 2 in two parts, the first one exact
    rest = fused_minus(power, all(-2.12194440e-4f), rest);
    Vector sum = all(1.0f / 5040);
    for (const float next : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = fused(sum, rest, all(next));
    const Ints exponent = (__builtin_convertvector(power, Ints) + 127) << 23;
    return sum * bits_as<Vector>(exponent);
}

}  // namespace shvit
