// Vectors of 16 numbers, how the numbers of a type are read and written, and memory.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef __AVX512F__
#error "this processor has no AVX-512"
#endif

namespace shvit {

using Vector = __m512;
using Half = __m256;
using Size = std::ptrdiff_t;
constexpr int LANES = 16;
constexpr int PANEL = 2 * LANES;  // output channels at once

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

// Aligned memory; to be asked for outside of parallel regions, which no exception can leave.
inline Buffer buffer(Size bytes) {
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) throw std::bad_alloc();
    return Buffer(memory);
}

inline int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Memory of which each thread has its own piece.
class Pieces {
  public:
    Pieces(Size bytes, int threads) : bytes_((bytes + 63) / 64 * 64), memory_(buffer(bytes_ * threads)) {}

    template <class Number>
    Number* mine() const {
        return reinterpret_cast<Number*>(static_cast<char*>(memory_.get()) + this_thread() * bytes_);
    }

  private:
    Size bytes_;
    Buffer memory_;
};

// The lanes of a vector that are below `count`.
inline __mmask16 lanes(Size count) { return count >= LANES ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// How the numbers of a type are read, written and multiplied; sums are float32 in either.
struct Float32 {
    using Number = float;
    static constexpr int DEPTH = 1;  // channels in one step of a product
    static Vector load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
    static void store(float* p, __mmask16 mask, Vector v) { _mm512_mask_storeu_ps(p, mask, v); }
    static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
    static Vector add_product(Vector sum, Vector x, const float* weights) {
        return _mm512_fmadd_ps(x, _mm512_load_ps(weights), sum);
    }
    static Half add_product(Half sum, Vector x, const float* weights) {
        return _mm256_fmadd_ps(_mm512_castps512_ps256(x), _mm256_load_ps(weights), sum);
    }
};

#ifdef __AVX512BF16__
struct BFloat16 {
    using Number = uint16_t;
    static constexpr int DEPTH = 2;
    static Vector load(const uint16_t* p, __mmask16 mask) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
    }
    static void store(uint16_t* p, __mmask16 mask, Vector v) {
        _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
    }
    static Vector broadcast(const uint16_t* p) {
        return _mm512_castsi512_ps(_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)));
    }
    static Vector add_product(Vector sum, Vector x, const uint16_t* weights) {
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)_mm512_load_si512(weights));
    }
    static Half add_product(Half sum, Vector x, const uint16_t* weights) {
        return _mm256_dpbf16_ps(sum, (__m256bh)_mm512_castps512_ps256(x),
                                (__m256bh)_mm256_load_ps((const float*)weights));
    }
};
#endif

// e to the power of x for x <= 0, to about the rounding of float32: a power of two times a polynomial.
inline Vector exponential(Vector x) {
    const Vector scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.442695041f));
    const Vector power = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT);
    Vector rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first one exact
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    Vector sum = _mm512_set1_ps(1.0f / 5040);
    for (const float next : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
    return _mm512_scalef_ps(sum, power);
}

}  // namespace shvit
