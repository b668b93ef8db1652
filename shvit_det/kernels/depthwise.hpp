// Depthwise 3x3 convolutions with padding 1. Weights are float32, (kernel rows, kernel columns, channels).

#pragma once

#include "layer.hpp"

namespace shvit {

template <class Type, int STRIDE>
struct Depthwise : Layer<Type> {
    using Number = typename Type::Number;
    static constexpr int KERNEL = 3;
    static constexpr int AT_ONCE = 4;  // results that share pixels and taps in registers
    const float *weights = nullptr, *bias = nullptr;
    bool relu = false;

    // What lies beyond the border is read from zeros.
    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, Own own) const override {
        Number* zeros = static_cast<Number*>(own.memory);
        std::fill(zeros, zeros + this->channels, Number(0));
        for (Size row = top; row < bottom; ++row) {
            const Size y = row * STRIDE - 1;
            for (Size column = 0; column < this->out_width;) {
                const Size left = column * STRIDE - 1;
                const auto pixel = [&](Size i, Size j) {
                    const bool seen = y + i >= 0 && y + i < this->height && left + j >= 0 && left + j < this->width;
                    return seen ? x.at(y + i) + (left + j) * this->channels : zeros;
                };
                Number* to = out.at(row) + column * this->channels;
                if (column + AT_ONCE <= this->out_width) {
                    neighbours<AT_ONCE>(pixel, to);
                    column += AT_ONCE;
                } else {
                    neighbours<1>(pixel, to);
                    ++column;
                }
            }
        }
    }

    Size own_bytes(Size) const override { return this->channels * sizeof(Number); }

  private:
    // Some neighbouring results of a row.
    template <int COUNT, class Pixel>
    void neighbours(Pixel pixel, Number* out) const {
        constexpr int COLUMNS = (COUNT - 1) * STRIDE + KERNEL;
        const Number* from[KERNEL][COLUMNS];
        for (Size i = 0; i < KERNEL; ++i)
            for (Size j = 0; j < COLUMNS; ++j) from[i][j] = pixel(i, j);
        const Size channels = this->channels;
        const Number* next = from[KERNEL - 1][COLUMNS - 1] + channels;  // only the last row is seen for the first time
        for (Size c = 0; c < channels; c += LANES) {
            const Lanes some = lanes(channels - c);
#pragma GCC unroll 8
            for (int line = 0; line < COUNT * STRIDE; ++line)
                __builtin_prefetch(next + (COUNT * STRIDE * c + LANES * line));
            Vector sums[COUNT];
            const Vector start = load(bias + c, some);
#pragma GCC unroll 4
            for (int position = 0; position < COUNT; ++position) sums[position] = start;
#pragma GCC unroll 3
            for (int i = 0; i < KERNEL; ++i) {
                Vector taps[KERNEL];
#pragma GCC unroll 3
                for (int j = 0; j < KERNEL; ++j) taps[j] = load(weights + (i * KERNEL + j) * channels + c, some);
#pragma GCC unroll 9
                for (int j = 0; j < COLUMNS; ++j) {
                    const Vector value = Type::load(from[i][j] + c, some);
#pragma GCC unroll 4
                    for (int position = 0; position < COUNT; ++position) {
                        const int tap = j - position * STRIDE;
                        if (tap >= 0 && tap < KERNEL) sums[position] = fused(value, taps[tap], sums[position]);
                    }
                }
            }
#pragma GCC unroll 4
            for (int position = 0; position < COUNT; ++position) {
                const Vector sum = relu ? rectified(sums[position]) : sums[position];
                Type::store(out + position * channels + c, some, sum);
            }
        }
    }
};

}  // namespace shvit
