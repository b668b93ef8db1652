// How the numbers of a data type are read, written and multiplied. Sums are float32 in either.

#pragma once

#include "vectors.hpp"

namespace shvit {

struct Float32 {
    using Number = float;
    static constexpr int DEPTH = 1;                             // channels in one step of a product
    static constexpr int MOST_ROWS = NUM_SUMS / PANEL_VECTORS;  // positions at once
    static Vector load(const float* p, Lanes some) { return shvit::load(p, some); }
    static void store(float* p, Lanes some, Vector v) { shvit::store(p, some, v); }

    template <class Some>
    static Some add_product(Some sum, const float* x, const float* weights) {
        return fused(all<Some>(*x), load_whole<Some>(weights), sum);
    }
};

// Products take two channels at a time, which lie side by side in the packed weights.
struct BFloat16 {
    using Number = uint16_t;
    static constexpr int DEPTH = 2;
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    static constexpr int MOST_ROWS = Float32::MOST_ROWS;
#else
    static constexpr int MOST_ROWS = Float32::MOST_ROWS - 2;  // registers for both channels of a pair in float32
#endif

    static Vector load(const uint16_t* p, Lanes some) { return bits_as<Vector>(widen(shvit::load(p, some)) << 16); }

    static void store(uint16_t* p, Lanes some, Vector v) { shvit::store(p, some, rounded(v)); }

    template <class Some>
    static Some add_product(Some sum, const uint16_t* x, const uint16_t* weights) {
        uint32_t pair;
        std::memcpy(&pair, x, sizeof pair);
#if defined(__AVX512BF16__)
        if constexpr (sizeof(Some) == sizeof(Vector))
            return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)load_whole<__m512i>(weights));
        else
            return _mm256_dpbf16_ps(sum, (__m256bh)_mm256_set1_epi32(pair), (__m256bh)load_whole<__m256i>(weights));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
        return vbfdotq_f32(sum, vreinterpretq_bf16_u32(vdupq_n_u32(pair)), load_whole<bfloat16x8_t>(weights));
#else
        using Bits = typename VectorOf<uint32_t, sizeof(Some) / sizeof(uint32_t)>::type;
        const Bits both = load_whole<Bits>(weights);
        Bits inputs = pair - Bits{};
        keep_in_vector(inputs);
        const auto first = [](const Bits& bits) { return bits_as<Some>(bits << 16); };
        const auto second = [](const Bits& bits) { return bits_as<Some>(bits & 0xffff0000u); };
        return fused(second(inputs), second(both), fused(first(inputs), first(both), sum));
#endif
    }

  private:
    // To the nearest, and to the even one of two.
    static Shorts rounded(Vector v) {
#if defined(__AVX512BF16__)
        return (Shorts)_mm512_cvtneps_pbh(v);
#else
        const Words bits = bits_as<Words>(v), even = (bits >> 16) & 1;
        const Words nearest = (bits + (even + 0x7fff)) >> 16, nan = (bits >> 16) | 64;
        return __builtin_convertvector(v == v ? nearest : nan, Shorts);
#endif
    }
};

}  // namespace shvit
