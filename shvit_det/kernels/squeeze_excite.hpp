// Squeeze-excite: channels times a weight between 0 and 1 that the mean of all channels decides.

#pragma once

#include "linear.hpp"

namespace shvit {

template <class Type>
struct SqueezeExcite {
    using Number = typename Type::Number;
    Size positions;
    Linear<Type> reduce, expand;

    void run(const Number* x, Size batch, Number* out, int threads) const {
        const Size channels = reduce.channels, hidden = reduce.out_channels;
        const Pieces weight_memory((channels + LANES) * sizeof(float), threads);
        const Pieces number_memory((2 * channels + hidden) * sizeof(Number), threads);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (Size image = 0; image < batch; ++image) {
            float* weights = weight_memory.mine<float>();
            Number *mean = number_memory.mine<Number>(), *middle = mean + channels, *expanded = middle + hidden;
            const Number* from = x + image * positions * channels;
            Number* to = out + image * positions * channels;
            average(from, weights, mean);
            reduce.run(1, mean, middle, nullptr);
            expand.run(1, middle, expanded, nullptr);
            for (Size c = 0; c < channels; c += LANES) {
                const __mmask16 mask = lanes(channels - c);
                _mm512_mask_storeu_ps(weights + c, mask, sigmoid(Type::load(expanded + c, mask)));
            }
            for (Size position = 0; position < positions; ++position, from += channels, to += channels)
                for (Size c = 0; c < channels; c += LANES) {
                    const __mmask16 mask = lanes(channels - c);
                    Type::store(to + c, mask,
                                _mm512_mul_ps(Type::load(from + c, mask), _mm512_maskz_loadu_ps(mask, weights + c)));
                }
        }
    }

  private:
    // The mean of all positions, by sums that are kept in between.
    void average(const Number* x, float* sums, Number* mean) const {
        const Size channels = reduce.channels;
        std::fill(sums, sums + channels, 0.0f);
        for (Size position = 0; position < positions; ++position, x += channels)
            for (Size c = 0; c < channels; c += LANES) {
                const __mmask16 mask = lanes(channels - c);
                const Vector sum = _mm512_maskz_loadu_ps(mask, sums + c);
                _mm512_mask_storeu_ps(sums + c, mask, _mm512_add_ps(sum, Type::load(x + c, mask)));
            }
        const Vector share = _mm512_set1_ps(1.0f / static_cast<float>(positions));
        for (Size c = 0; c < channels; c += LANES) {
            const __mmask16 mask = lanes(channels - c);
            Type::store(mean + c, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, sums + c), share));
        }
    }

    // 1 / (1 + e^-x), by e to the power of what is below zero.
    static Vector sigmoid(Vector x) {
        const Vector one = _mm512_set1_ps(1), power = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
        const Vector of_negative = _mm512_div_ps(power, _mm512_add_ps(one, power));
        const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
        return _mm512_mask_sub_ps(of_negative, positive, one, of_negative);
    }
};

}  // namespace shvit
