// Brings images into the order of the kernels.

#pragma once

#include "layer.hpp"

namespace shvit {

// Images of few channels in NCHW or NHWC as NHWC, with channels of zeros behind them if there are to be more.
template <class Type>
struct Interleave : Layer<Type> {
    using Number = typename Type::Number;
    bool planar = false;

    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, void*) const override {
        const Size channel_step = planar ? this->height * this->width : 1, step = planar ? 1 : this->channels;
        for (Size row = top; row < bottom; ++row)
            for (Size c = 0; c < this->out_channels; ++c) {
                const Number* from = x.at(row) + c * channel_step;
                Number* to = out.at(row) + c;
                if (c < this->channels)
                    for (Size i = 0; i < this->width; ++i) to[i * this->out_channels] = from[i * step];
                else
                    for (Size i = 0; i < this->width; ++i) to[i * this->out_channels] = Number(0);
            }
    }

    Size line() const override { return planar ? this->width : this->width * this->channels; }
};

}  // namespace shvit
