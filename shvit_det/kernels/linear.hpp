// Linear layers of the channels, and two of them with a residual.

#pragma once

#include "layer.hpp"
#include "product.hpp"

namespace shvit {

// out = [relu] ([residual +] x . weights + bias), for `count` rows of x; `cold` as in products.
template <class Type>
struct Linear {
    using Number = typename Type::Number;
    Size channels, out_channels;
    const Number* weights;
    const float* bias;
    bool relu;

    void run(Size count, const Number* x, Number* out, const Number* residual, bool cold) const {
        for (Size channel = 0; channel < out_channels; channel += PANEL)
            products<Type>(count, x, channels, weights + channel * channels, 1, channels, 0, 0, out + channel,
                           out_channels, out_channels - channel,
                           {bias + channel, residual ? residual + channel : nullptr, out_channels, relu}, cold);
    }
};

template <class Type>
struct Pointwise : Layer<Type> {
    using Number = typename Type::Number;
    Linear<Type> linear;
    const Number* residual = nullptr;  // of all images

    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, Own own) const override {
        linear.run((bottom - top) * this->width, x.at(top), out.at(top),
                   residual ? residual + top * this->out_line() : nullptr, own.first);
    }

    bool sees_one_position() const override { return true; }
};

// x + reduce(relu(expand(x))): some positions at a time, whose hidden channels stay in the cache.
template <class Type>
struct FeedForward : Layer<Type> {
    using Number = typename Type::Number;
    Linear<Type> expand, reduce;

    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, Own own) const override {
        Number* hidden = static_cast<Number*>(own.memory);
        for (Size row = top; row < bottom;) {
            const Size rows = std::min(bottom - row, at_once());
            expand.run(rows * this->width, x.at(row), hidden, nullptr, own.first);
            reduce.run(rows * this->width, hidden, out.at(row), x.at(row), own.first);
            own.first = false;
            row += rows;
        }
    }

    Size own_bytes(Size) const override { return at_once() * this->width * expand.out_channels * sizeof(Number); }

    Size positions() const override { return 72; }

    bool sees_one_position() const override { return true; }

  private:
    Size at_once() const { return std::max<Size>(1, positions() / this->width); }
};

}  // namespace shvit
