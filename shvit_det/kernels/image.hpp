// Brings images into the order of the kernels.

#pragma once

#include <array>
#include <utility>

#include "layer.hpp"

namespace shvit {

// Images in NCHW or NHWC as NHWC, with channels of zeros behind their own if there are to be more.
template <class Type>
struct Interleave : Layer<Type> {
    using Number = typename Type::Number;
    bool planar = false;

    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, Own) const override {
        static constexpr auto CHOICES = of_channels(std::make_index_sequence<MOST>());
        for (Size row = top; row < bottom; ++row)
            if (planar && this->channels <= MOST && this->out_channels <= this->channels + 1)
                (this->*CHOICES[this->channels - 1])(x.at(row), out.at(row));
            else
                one_by_one(x.at(row), out.at(row));
    }

    Size line() const override { return planar ? this->width : this->width * this->channels; }

  private:
    static constexpr Size MOST = 4;  // channels for which the loop over positions is made of vectors

    using Row = void (Interleave::*)(const Number*, Number*) const;

    template <std::size_t... I>
    static constexpr std::array<Row, MOST> of_channels(std::index_sequence<I...>) {
        return {&Interleave::planes<I + 1>...};
    }

    template <int CHANNELS>
    void planes(const Number* row, Number* out) const {
        this->out_channels == CHANNELS ? planes<CHANNELS, CHANNELS>(row, out)
                                       : planes<CHANNELS, CHANNELS + 1>(row, out);
    }

    // The number of channels is a constant, so that the compiler makes vectors of the loop.
    template <int CHANNELS, int OUT_CHANNELS>
    void planes(const Number* __restrict row, Number* __restrict out) const {
        const Size width = this->width, plane = this->height * width;
        for (Size i = 0; i < width; ++i)
            for (int c = 0; c < OUT_CHANNELS; ++c)
                out[i * OUT_CHANNELS + c] = c < CHANNELS ? row[c * plane + i] : Number(0);
    }

    void one_by_one(const Number* row, Number* out) const {
        const Size channel_step = planar ? this->height * this->width : 1, step = planar ? 1 : this->channels;
        for (Size i = 0; i < this->width; ++i, row += step)
            for (Size c = 0; c < this->out_channels; ++c)
                *out++ = c < this->channels ? row[c * channel_step] : Number(0);
    }
};

}  // namespace shvit
