// Adds layers to plans, with random weights, and computes what they are to compute by loops in double.

#pragma once

#include <array>

#include "plan.hpp"

// Appends weights of (taps, channels, out_channels) in panels: (panels, taps, channels / depth, PANEL, depth).
template <class Function>
void pack(Numbers& packed, Size taps, Size channels, Size out_channels, Size depth, Function weight) {
    const Size panel = shvit_panel();
    for (Size first = 0; first < out_channels; first += panel)
        for (Size tap = 0; tap < taps; ++tap)
            for (Size c = 0; c < channels; c += depth)
                for (Size o = first; o < first + panel; ++o)
                    for (Size d = c; d < c + depth; ++d)
                        packed.push_back(o < out_channels && d < channels ? weight(tap, d, o) : 0);
}

inline void keep_convolution(Plan& plan, Step& step, int operand, const Weights& weights) {
    Numbers packed;
    pack(packed, weights.kernel * weights.kernel, weights.channels, weights.out_channels, plan.depth(),
         [&](Size tap, Size c, Size o) { return weights.at(tap / weights.kernel, tap % weights.kernel, c, o); });
    step.weights[operand] = plan.keep(packed, plan.bfloat16);
    step.biases[operand] = plan.keep_biases(weights.biases);
}

// How much each tap counts in each of the six products along an axis: a polynomial's values at points and at infinity.
inline std::array<std::array<double, 3>, 6> shares_of_taps(Size taps) {
    const double points[] = {0, 0.75, -0.75, 1.5, -1.5};
    std::array<std::array<double, 3>, 6> shares{};
    for (Size product = 0; product < 5; ++product)
        for (Size tap = 0; tap < taps; ++tap) {
            shares[product][tap] = std::pow(points[product], static_cast<double>(tap));
            for (Size other = 0; other < 5; ++other)
                if (other != product) shares[product][tap] /= points[product] - points[other];
        }
    shares[5][taps - 1] = 1;
    if (taps == 1) shares[0][0] = 1;  // and no other product
    return shares;
}

// The taps of a kernel as they count in a product, one of those along rows and those along columns.
template <class Function>
double sum_of_taps(Size product, Size down, Size across, Function weight) {
    static const std::array shares = {shares_of_taps(1), shares_of_taps(2), shares_of_taps(3)};
    const Size products_across = across == 1 ? 1 : 6;
    const auto &of_rows = shares[down - 1][product / products_across],
               &of_columns = shares[across - 1][product % products_across];
    double sum = 0;
    for (Size row = 0; row < down; ++row)
        for (Size column = 0; column < across; ++column) sum += of_rows[row] * of_columns[column] * weight(row, column);
    return sum;
}

inline double convolved(const Map& x, const Weights& weights, Size image, Size top, Size left, Size o) {
    double sum = weights.biases[o];
    for (Size row = 0; row < weights.kernel; ++row)
        for (Size column = 0; column < weights.kernel; ++column)
            if (x.has(top + row, left + column))
                for (Size c = 0; c < x.channels; ++c)
                    sum += x.at(image, top + row, left + column, c) * weights.at(row, column, c, o);
    return sum;
}

inline Map convolved(const Map& x, const Weights& weights, Size stride, Size padding, bool relu) {
    const auto size = [&](Size side) { return (side + 2 * padding - weights.kernel) / stride + 1; };
    Map out{x.batch, size(x.height), size(x.width), weights.out_channels};
    out.each([&](Size image, Size row, Size column, Size o) {
        out.at(image, row, column, o) =
            rectified(convolved(x, weights, image, row * stride - padding, column * stride - padding, o), relu);
    });
    return out;
}

inline Map convolve(Plan& plan, const Map& x, Size out_channels, Size kernel, Size stride, Size padding, bool relu) {
    const Weights weights = plan.weights(kernel, x.channels, out_channels);
    Map out = convolved(x, weights, stride, padding, relu);
    Step& step = plan.add(CONVOLVE, x, out);
    step.kernel = kernel, step.stride = stride, step.padding = padding, step.relu = relu;
    keep_convolution(plan, step, 0, weights);
    return out;
}

inline Map winograd(Plan& plan, const Map& x, Size out_channels, bool relu) {
    const Weights weights = plan.weights(3, x.channels, out_channels);
    Map out = convolved(x, weights, 1, 1, relu);
    Step& step = plan.add(WINOGRAD, x, out);
    step.relu = relu;
    Numbers packed;
    pack(packed, 36, x.channels, out_channels, 1, [&](Size place, Size c, Size o) {
        return sum_of_taps(place, 3, 3, [&](Size row, Size column) { return weights.at(row, column, c, o); });
    });
    step.weights[0] = plan.keep(packed, false);
    step.biases[0] = plan.keep_biases(weights.biases);
    return out;
}

// The weights of a transposed convolution for results with a pair of remainders: every stride-th tap, backwards.
inline Numbers packed_transposed(const Weights& weights, Size stride, Size depth, bool by_winograd) {
    Numbers packed;
    for (Size row_rest = 0; row_rest < stride; ++row_rest)
        for (Size column_rest = 0; column_rest < stride; ++column_rest) {
            const auto taps = [&](Size rest) {
                return std::max<Size>(0, (weights.kernel - rest + stride - 1) / stride);
            };
            const Size down = taps(row_rest), across = taps(column_rest);
            const auto weight = [&](Size row, Size column, Size c, Size o) {
                return weights.at(row_rest + (down - 1 - row) * stride, column_rest + (across - 1 - column) * stride, c,
                                  o);
            };
            if (!by_winograd) {
                pack(packed, down * across, weights.channels, weights.out_channels, depth,
                     [&](Size tap, Size c, Size o) { return weight(tap / across, tap % across, c, o); });
                continue;
            }
            const auto products = [](Size taps) { return taps == 1 ? 1 : 6; };
            for (Size place = 0; place < products(down) * products(across); ++place)
                pack(packed, 1, weights.channels, weights.out_channels, 1, [&](Size, Size c, Size o) {
                    return sum_of_taps(place, down, across,
                                       [&](Size row, Size column) { return weight(row, column, c, o); });
                });
        }
    return packed;
}

inline Map transposed(Plan& plan, const Map& x, Size out_channels, Size kernel, Size stride, Size padding, bool relu,
                      bool by_winograd) {
    const Weights weights = plan.weights(kernel, x.channels, out_channels);
    const auto size = [&](Size side) { return stride * (side - 1) + kernel - 2 * padding; };
    Map out{x.batch, size(x.height), size(x.width), out_channels};
    for (std::size_t i = 0; i < out.numbers.size(); ++i) out.numbers[i] = weights.biases[i % out_channels];
    x.each([&](Size image, Size y, Size left, Size c) {
        for (Size row = 0; row < kernel; ++row)
            for (Size column = 0; column < kernel; ++column) {
                const Size to_y = stride * y + row - padding, to_x = stride * left + column - padding;
                if (!out.has(to_y, to_x)) continue;
                for (Size o = 0; o < out_channels; ++o)
                    out.at(image, to_y, to_x, o) += x.at(image, y, left, c) * weights.at(row, column, c, o);
            }
    });
    for (double& number : out.numbers) number = rectified(number, relu);
    Step& step = plan.add(by_winograd ? TRANSPOSED_WINOGRAD : TRANSPOSED, x, out);
    step.kernel = kernel, step.stride = stride, step.padding = padding, step.relu = relu;
    step.weights[0] =
        plan.keep(packed_transposed(weights, stride, plan.depth(), by_winograd), plan.bfloat16 && !by_winograd);
    step.biases[0] = plan.keep_biases(weights.biases);
    if (by_winograd) {  // enough for so many tiles at once
        const Size panel = shvit_panel(), whole = (out_channels + panel - 1) / panel * panel;
        const Size tile = 36 * (x.channels + 2 * panel + whole) * sizeof(float);
        plan.give_memory(step, plan.random.among({1, 3, 20}) * tile);
    }
    return out;
}

inline Map linear(Plan& plan, const Map& x, Size out_channels, bool relu, const Map* residual = nullptr) {
    const Weights weights = plan.weights(1, x.channels, out_channels);
    Map out = convolved(x, weights, 1, 0, relu);
    if (residual)
        for (std::size_t i = 0; i < out.numbers.size(); ++i) out.numbers[i] += residual->numbers[i];
    Step& step = plan.add(LINEAR, x, out);
    step.relu = relu;
    if (residual) step.residual = residual->index;
    keep_convolution(plan, step, 0, weights);
    return out;
}

inline Map feed_forward(Plan& plan, const Map& x, Size hidden) {
    const Weights expand = plan.weights(1, x.channels, hidden), reduce = plan.weights(1, hidden, x.channels);
    Map out = convolved(convolved(x, expand, 1, 0, true), reduce, 1, 0, false);
    for (std::size_t i = 0; i < out.numbers.size(); ++i) out.numbers[i] += x.numbers[i];
    Step& step = plan.add(FEED_FORWARD, x, out);
    step.hidden = hidden;
    keep_convolution(plan, step, 0, expand);
    keep_convolution(plan, step, 1, reduce);
    return out;
}

inline Map depthwise(Plan& plan, const Map& x, Size stride, bool relu) {
    const Weights weights = plan.weights(3, 1, x.channels);
    Map out{x.batch, (x.height - 1) / stride + 1, (x.width - 1) / stride + 1, x.channels};
    out.each([&](Size image, Size row, Size column, Size c) {
        double sum = weights.biases[c];
        for (Size i = 0; i < 3; ++i)
            for (Size j = 0; j < 3; ++j) {
                const Size y = row * stride - 1 + i, left = column * stride - 1 + j;
                if (x.has(y, left)) sum += x.at(image, y, left, c) * weights.at(i, j, 0, c);
            }
        out.at(image, row, column, c) = rectified(sum, relu);
    });
    Step& step = plan.add(DEPTHWISE, x, out);
    step.stride = stride, step.relu = relu;
    step.weights[0] = plan.keep_plain(weights.numbers);
    step.biases[0] = plan.keep_plain(weights.biases);
    return out;
}

inline Map squeeze_excite(Plan& plan, const Map& x, Size hidden) {
    const Weights reduce = plan.weights(1, x.channels, hidden), expand = plan.weights(1, hidden, x.channels, 3);
    Map mean{x.batch, 1, 1, x.channels}, out = x;
    x.each([&](Size image, Size row, Size column, Size c) {
        mean.at(image, 0, 0, c) += x.at(image, row, column, c) / static_cast<double>(x.height * x.width);
    });
    const Map wanted = convolved(convolved(mean, reduce, 1, 0, true), expand, 1, 0, false);
    out.each([&](Size image, Size row, Size column, Size c) {
        out.at(image, row, column, c) /= 1 + std::exp(-wanted.at(image, 0, 0, c));
    });
    Step& step = plan.add(SQUEEZE_EXCITE, x, out);
    step.hidden = hidden;
    keep_convolution(plan, step, 0, reduce);
    keep_convolution(plan, step, 1, expand);
    return out;
}

inline Map interleave(Plan& plan, const Map& x, Size out_channels, bool planar) {
    Map out{x.batch, x.height, x.width, out_channels};
    x.each([&](Size image, Size y, Size left, Size c) { out.at(image, y, left, c) = x.at(image, y, left, c); });
    plan.add(INTERLEAVE, x, out).planar = planar;
    return out;
}

// The first channels of all positions, normalised over all of them.
inline Map normalised(const Map& x, Size attending, const Weights& norm, double epsilon) {
    Map out{x.batch, x.height, x.width, attending};
    for (Size image = 0; image < x.batch; ++image) {
        const Map alone{1, x.height, x.width, attending};
        double sum = 0, squares = 0;
        const double count = static_cast<double>(x.height * x.width * attending);
        alone.each([&](Size, Size y, Size left, Size c) { sum += x.at(image, y, left, c); });
        alone.each(
            [&](Size, Size y, Size left, Size c) { squares += std::pow(x.at(image, y, left, c) - sum / count, 2); });
        alone.each([&](Size, Size y, Size left, Size c) {
            out.at(image, y, left, c) =
                (x.at(image, y, left, c) - sum / count) / std::sqrt(squares / count + epsilon) * norm.numbers[c] +
                norm.biases[c];
        });
    }
    return out;
}

inline Map attention(Plan& plan, const Map& x, Size attending, Size query, double sharpness) {
    const Size tokens = x.height * x.width, inputs = plan.whole(attending);
    const float epsilon = 1e-5f;
    const Weights norm = plan.weights(1, 1, attending);
    Weights project_in = plan.weights(1, attending, 2 * query + attending, sharpness);
    const Weights project_out = plan.weights(1, x.channels, x.channels);
    const Map projected = convolved(normalised(x, attending, norm, epsilon), project_in, 1, 0, false);
    Map joined = x;
    for (Size image = 0; image < x.batch; ++image)
        for (Size token = 0; token < tokens; ++token) {
            const auto of = [&](Size some, Size c) { return projected.at(image, some / x.width, some % x.width, c); };
            Numbers shares(tokens);
            double largest = -HUGE_VAL, total = 0;
            for (Size other = 0; other < tokens; ++other) {
                for (Size c = 0; c < query; ++c) shares[other] += of(token, c) * of(other, query + c);
                largest = std::max(largest, shares[other]);
            }
            for (double& share : shares) total += share = std::exp(share - largest);
            for (Size c = 0; c < attending; ++c) {
                double sum = 0;
                for (Size other = 0; other < tokens; ++other) sum += shares[other] * of(other, 2 * query + c);
                joined.at(image, token / x.width, token % x.width, c) = sum / total;
            }
        }
    for (double& number : joined.numbers) number = rectified(number, true);
    Map out = convolved(joined, project_out, 1, 0, false);
    for (std::size_t i = 0; i < out.numbers.size(); ++i) out.numbers[i] += x.numbers[i];

    Step& step = plan.add(ATTENTION, x, out);
    step.hidden = attending, step.query = query, step.epsilon = epsilon;
    step.weights[0] = plan.keep_plain(norm.numbers);
    step.biases[0] = plan.keep_plain(norm.biases);
    const auto weight = [&](Size, Size c, Size o) { return c < attending ? project_in.at(0, 0, c, o) : 0; };
    Numbers packed;
    pack(packed, 1, inputs, project_in.out_channels, plan.depth(), weight);
    step.weights[1] = plan.keep(packed, plan.bfloat16);
    step.biases[1] = plan.keep_biases(project_in.biases);
    keep_convolution(plan, step, 2, project_out);
    return out;
}
