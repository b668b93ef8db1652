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
            reduce.run(1, mean, middle, nullptr, true);
            expand.run(1, middle, expanded, nullptr, true);
            for (Size c = 0; c < channels; c += LANES) {
                const Lanes some = lanes(channels - c);
                store(weights + c, some, sigmoid(Type::load(expanded + c, some)));
            }
            for (Size position = 0; position < positions; ++position, from += channels, to += channels)
                for (Size c = 0; c < channels; c += LANES) {
                    const Lanes some = lanes(channels - c);
                    Type::store(to + c, some, Type::load(from + c, some) * load(weights + c, some));
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
                const Lanes some = lanes(channels - c);
                store(sums + c, some, load(sums + c, some) + Type::load(x + c, some));
            }
        const Vector share = all(1.0f / static_cast<float>(positions));
        for (Size c = 0; c < channels; c += LANES) {
            const Lanes some = lanes(channels - c);
            Type::store(mean + c, some, load(sums + c, some) * share);
        }
    }

    // 1 / (1 + e^-x), by e to the power of what is below zero.
    static Vector sigmoid(Vector x) {
        const Vector power = exponential(x > 0 ? -x : x), of_negative = power / (1 + power);
        return x >= 0 ? 1 - of_negative : of_negative;
    }
};

}  // namespace shvit
