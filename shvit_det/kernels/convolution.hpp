// Convolutions, transposed ones too.
//
// With NHWC, what one kernel row sees of the image at a position is one run of numbers in memory, so that a convolution
// is a product of matrices for which nothing has to be gathered. At the border, where a kernel would leave the image,
// those kernel rows and columns are left out.

#pragma once

#include "layer.hpp"
#include "product.hpp"

namespace shvit {

template <class Type>
struct Convolution : Layer<Type> {
    using Number = typename Type::Number;
    Size kernel_width = 1, before = 0;  // columns by which the first results see beyond the image
    Size out_step = 0;                  // numbers from one position of a row of the result to the next
    const Number* weights = nullptr;
    const float* bias = nullptr;
    bool relu = false;

    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, Own) const override {
        Size upper, lower, left, right;
        inside(this->height, this->out_height, this->kernel, this->above, upper, lower);
        inside(this->width, this->out_width, kernel_width, before, left, right);
        const Size from = std::max(top, upper), to = std::min(bottom, lower);
        for (Size panel = 0; panel * PANEL < this->out_channels; ++panel) {
            const auto columns = [&](Size first, Size last) {
                for (Size column = 0; column < left; ++column) region(x, out, panel, first, last, column, column + 1);
                if (left < right) region(x, out, panel, first, last, left, right);
                for (Size column = right; column < this->out_width; ++column)
                    region(x, out, panel, first, last, column, column + 1);
            };
            for (Size row = top; row < std::min(bottom, upper); ++row) columns(row, row + 1);
            if (from < to) columns(from, to);
            for (Size row = std::max(top, lower); row < bottom; ++row) columns(row, row + 1);
        }
    }

  private:
    // Rows [top, bottom) and columns [left, right) of the result, which see the same rows and columns of the kernel.
    void region(Rows<const Number> x, Rows<Number> out, Size panel, Size top, Size bottom, Size left,
                Size right) const {
        const Size channels = this->channels, stride = this->stride;
        const Size first_y = top * stride - this->above, first_x = left * stride - before;
        const Size skip_y = std::max<Size>(0, -first_y), skip_x = std::max<Size>(0, -first_x);
        const Size rows = std::max<Size>(0, std::min(this->kernel, this->height - first_y) - skip_y);
        const Size columns = std::max<Size>(0, std::min(kernel_width, this->width - first_x) - skip_x);
        const Number* corner = x.at(first_y + skip_y) + (first_x + skip_x) * channels;
        const Number* part = weights + ((panel * this->kernel + skip_y) * kernel_width + skip_x) * channels * PANEL;
        const Size channel = panel * PANEL;
        const bool across = right - left >= bottom - top;  // long runs of positions
        const Size lines = across ? bottom - top : right - left, count = across ? right - left : bottom - top;
        const Size column = stride * channels, row = stride * x.line;
        const Size next = across ? column : row, line = across ? row : column;
        const Size next_out = across ? out_step : out.line, line_out = across ? out.line : out_step;
        Number* to = out.at(top) + left * out_step + channel;
        for (Size l = 0; l < lines; ++l)
            products<Type>(count, corner + l * line, next, part, rows, columns * channels, x.line,
                           kernel_width * channels * PANEL, to + l * line_out, next_out, this->out_channels - channel,
                           {bias + channel, nullptr, 0, relu});
    }

    // Where along an axis results see the whole kernel: [first, last).
    void inside(Size size, Size out_size, Size kernel, Size padding, Size& first, Size& last) const {
        first = std::clamp<Size>((padding + this->stride - 1) / this->stride, 0, out_size);
        const Size room = size + padding - kernel;
        last = room < 0 ? first : std::max(first, std::min(out_size, room / this->stride + 1));
    }
};

// A transposed convolution: the results whose row and column, plus the padding, leave the same remainders divided by
// the stride are those of a convolution with every stride-th tap, backwards; its weights follow those of the remainders
// before.
template <class Type>
void transposed(const typename Type::Number* x, Size batch, Size height, Size width, Size channels,
                typename Type::Number* out, Size out_height, Size out_width, Size out_channels, Size kernel,
                Size stride, Size padding, const typename Type::Number* weights, const float* bias, bool relu,
                int threads) {
    const Size panels = (out_channels + PANEL - 1) / PANEL;
    const auto taps = [&](Size rest) { return std::max<Size>(0, (kernel - rest + stride - 1) / stride); };
    const auto first = [&](Size rest) { return std::max<Size>(0, (padding - rest + stride - 1) / stride); };
    for (Size row_rest = 0; row_rest < stride; ++row_rest) {
        for (Size column_rest = 0; column_rest < stride; ++column_rest) {
            const Size down = taps(row_rest), across = taps(column_rest);
            const Size first_row = first(row_rest), first_column = first(column_rest);
            const Size top = first_row * stride + row_rest - padding;
            const Size left = first_column * stride + column_rest - padding;
            if (top < out_height && left < out_width) {
                Convolution<Type> part;
                part.height = height, part.width = width, part.channels = channels;
                part.out_height = (out_height - top + stride - 1) / stride;
                part.out_width = (out_width - left + stride - 1) / stride;
                part.out_channels = out_channels;
                part.kernel = down, part.kernel_width = across;
                part.above = down - 1 - first_row, part.before = across - 1 - first_column;
                part.out_step = stride * out_channels;
                part.weights = weights, part.bias = bias, part.relu = relu;
                Chain<Type>({&part}).run(x, batch, out + (top * out_width + left) * out_channels,
                                         out_height * out_width * out_channels, stride * out_width * out_channels,
                                         threads);
            }
            weights += panels * down * across * channels * PANEL;
        }
    }
}

}  // namespace shvit
