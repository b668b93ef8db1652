// Transposed convolutions in about a third of the multiplications.

#pragma once

#include "winograd.hpp"

namespace shvit {

// A transposed convolution by Winograd's way. Results with the same remainders divided by the stride are a convolution
// whose kernel has two taps along an axis, or one. Of two taps, five neighbouring results are made of six products,
// F(5, 2), with the points of F(4x4, 3x3) and so the same values; one tap takes the inputs as they are. Weights are
// (places, panels, channels, PANEL) for each pair of remainders, places being the products along rows times those along
// columns.
template <int TAPS>
struct Taps {
    static constexpr int TILE = TAPS == 2 ? 5 : 1, SPAN = TILE + TAPS - 1;

    static void values(const Vector x[SPAN], Vector values[SPAN]) {
        if constexpr (TAPS == 2)
            to_values(x, values);
        else
            values[0] = x[0];
    }

    static void results(const Vector m[SPAN], Vector results[TILE]) {
        if constexpr (TAPS == 2) {
            to_results<TILE>(m, results);
        } else {
            results[0] = m[0];
        }
    }
};

// Results with one remainder along one axis: how many there are, the first of them, and which input that sees first.
struct Rest {
    Size taps, count, first_out, first_in;

    Rest(Size rest, Size out_size, Size kernel, Size stride, Size padding) {
        const Size first = std::max<Size>(0, (padding - rest + stride - 1) / stride);
        taps = (kernel - rest + stride - 1) / stride;
        first_out = first * stride + rest - padding;
        first_in = first - (taps - 1);
        count = std::max<Size>(0, (out_size - first_out + stride - 1) / stride);
    }

    bool same_inputs(const Rest& other) const { return taps == other.taps && first_in == other.first_in; }
};

template <class Type>
struct TransposedWinograd {
    using Number = typename Type::Number;
    Size batch, height, width, channels, out_height, out_width, out_channels, kernel, stride, padding;
    const float *weights, *bias;
    bool relu;

    Size panels() const { return (out_channels + PANEL - 1) / PANEL; }
    Size weights_of(const Rest& row, const Rest& column) const {
        const auto span = [](const Rest& rest) { return rest.taps == 2 ? Taps<2>::SPAN : Taps<1>::SPAN; };
        return span(row) * span(column) * panels() * channels * PANEL;
    }

    // Some tiles of the results with the same inputs.
    template <int DOWN, int ACROSS>
    struct Tiles {
        using Rows = Taps<DOWN>;
        using Columns = Taps<ACROSS>;
        static constexpr int PLACES = Rows::SPAN * Columns::SPAN;
        const TransposedWinograd& layer;
        Size down, across, first_row, first_column;  // tiles; where the first of them begins in the input

        Size number() const { return layer.batch * down * across; }

        // Values (PLACES, ..., channels) of one tile, `place_step` numbers from one place to the next.
        void inputs(const Number* x, Size tile, float* values, Size place_step) const {
            const Size height = layer.height, width = layer.width, channels = layer.channels;
            const Size top = tile / across % down * Rows::TILE + first_row;
            const Size left = tile % across * Columns::TILE + first_column;
            const Number* image = x + tile / (down * across) * height * width * channels;
            for (Size channel = 0; channel < channels; channel += LANES) {
                const Lanes some = lanes(channels - channel);
                Vector columns[Columns::SPAN][Rows::SPAN];
                for (int column = 0; column < Columns::SPAN; ++column) {
                    Vector pixels[Rows::SPAN];
                    const bool seen = left + column >= 0 && left + column < width;
                    for (int row = 0; row < Rows::SPAN; ++row) {
                        const Size y = top + row;
                        const Number* pixel = image + (y * width + left + column) * channels + channel;
                        __builtin_prefetch(pixel + PIXEL_AHEAD);
                        pixels[row] = seen && y >= 0 && y < height ? Type::load(pixel, some) : Vector{};
                    }
                    Rows::values(pixels, columns[column]);
                }
                for (int row = 0; row < Rows::SPAN; ++row) {
                    Vector along[Columns::SPAN], out[Columns::SPAN];
                    for (int column = 0; column < Columns::SPAN; ++column) along[column] = columns[column][row];
                    Columns::values(along, out);
                    for (int column = 0; column < Columns::SPAN; ++column)
                        store_whole(values + (row * Columns::SPAN + column) * place_step + channel, out[column]);
                }
            }
        }

        // Results of one tile, those with a pair of remainders, from products (PLACES, count, step).
        void outputs(const float* products, Size tile, const Rest& of_row, const Rest& of_column, Number* out,
                     Size place_step) const {
            const Size top = tile / across % down * Rows::TILE, left = tile % across * Columns::TILE;
            const Size rows = std::min<Size>(Rows::TILE, of_row.count - top);
            const Size in_row = std::min<Size>(Columns::TILE, of_column.count - left);
            const Size image = tile / (down * across) * layer.out_height;
            const Size y = of_row.first_out + top * layer.stride, x = of_column.first_out + left * layer.stride;
            Number* corner = out + ((image + y) * layer.out_width + x) * layer.out_channels;
            for (Size channel = 0; channel < layer.out_channels; channel += LANES) {
                const Lanes some = lanes(layer.out_channels - channel);
                const Vector start = load_whole(layer.bias + channel);
                Vector columns[Columns::SPAN][Rows::TILE];
                for (int column = 0; column < Columns::SPAN; ++column) {
                    Vector places[Rows::SPAN];
                    for (int row = 0; row < Rows::SPAN; ++row)
                        places[row] = load_whole(products + (row * Columns::SPAN + column) * place_step + channel);
                    Rows::results(places, columns[column]);
                }
                for (int row = 0; row < Rows::TILE; ++row) {
                    if (row >= rows) break;
                    Vector along[Columns::SPAN], results[Columns::TILE];
                    for (int column = 0; column < Columns::SPAN; ++column) along[column] = columns[column][row];
                    Columns::results(along, results);
                    Number* line = corner + row * layer.stride * layer.out_width * layer.out_channels + channel;
                    for (int column = 0; column < Columns::TILE; ++column) {
                        if (column >= in_row) break;
                        const Vector result = results[column] + start;
                        Type::store(line + column * layer.stride * layer.out_channels, some,
                                    layer.relu ? rectified(result) : result);
                    }
                }
            }
        }

        // All pairs of `rows` and `columns`, each with its weights; `memory` holds as many floats as given.
        template <class Pairs>
        void run(const Number* x, Number* out, const Pairs& pairs, float* memory, Size floats, int threads) const {
            // From one tile to the next: odd numbers of vectors, which do not compete in the cache.
            const Size whole = layer.panels() * PANEL | LANES;
            const Size step = (layer.channels + LANES - 1) / LANES * LANES | LANES;
            const Size most = std::max<Size>(1, floats / (PLACES * (step + whole)));
            const Size parts = (number() + most - 1) / most;
            for (Size part = 0; part < parts; ++part) {
                const Size first = part * number() / parts, count = (part + 1) * number() / parts - first;
                float *places = memory, *values = memory + PLACES * count * whole;
#pragma omp parallel num_threads(threads)
                {
#pragma omp for schedule(static)
                    for (Size t = 0; t < count; ++t) inputs(x, first + t, values + t * step, count * step);
                    for (const auto& pair : pairs) {
#pragma omp for schedule(static)
                        for (Size work = 0; work < PLACES * layer.panels(); ++work) {
                            const Size place = work / layer.panels(), panel = work % layer.panels();
                            products<Float32>(count, values + place * count * step, step,
                                              pair.weights + work * layer.channels * PANEL, 1, layer.channels, 0, 0,
                                              places + place * count * whole + panel * PANEL, whole, PANEL,
                                              {nullptr, nullptr, 0, false}, true);
                        }
#pragma omp for schedule(static)
                        for (Size t = 0; t < count; ++t)
                            outputs(places + t * whole, first + t, pair.row, pair.column, out, count * whole);
                    }
                }
            }
        }
    };

    struct Pair {
        Rest row, column;
        const float* weights;
    };

    template <int DOWN, int ACROSS>
    void run_tiles(const Number* x, Number* out, const std::vector<Pair>& pairs, float* memory, Size floats,
                   int threads) const {
        Size rows = 0, columns = 0;
        for (const Pair& pair : pairs) {
            rows = std::max(rows, pair.row.count);
            columns = std::max(columns, pair.column.count);
        }
        const Tiles<DOWN, ACROSS> tiles{*this, (rows + Taps<DOWN>::TILE - 1) / Taps<DOWN>::TILE,
                                        (columns + Taps<ACROSS>::TILE - 1) / Taps<ACROSS>::TILE, pairs[0].row.first_in,
                                        pairs[0].column.first_in};
        tiles.run(x, out, pairs, memory, floats, threads);
    }

    void run(const Number* x, Number* out, float* memory, Size floats, int threads) const {
        std::vector<std::vector<Pair>> groups;  // of the same inputs
        const float* next = weights;
        for (Size row_rest = 0; row_rest < stride; ++row_rest)
            for (Size column_rest = 0; column_rest < stride; ++column_rest) {
                const Pair pair{Rest(row_rest, out_height, kernel, stride, padding),
                                Rest(column_rest, out_width, kernel, stride, padding), next};
                next += weights_of(pair.row, pair.column);
                if (pair.row.count == 0 || pair.column.count == 0) continue;
                const auto group = std::find_if(groups.begin(), groups.end(), [&](const std::vector<Pair>& some) {
                    return some[0].row.same_inputs(pair.row) && some[0].column.same_inputs(pair.column);
                });
                if (group == groups.end())
                    groups.push_back({pair});
                else
                    group->push_back(pair);
            }
        for (const auto& pairs : groups) {
            const bool down = pairs[0].row.taps == 2, across = pairs[0].column.taps == 2;
            if (down && across)
                run_tiles<2, 2>(x, out, pairs, memory, floats, threads);
            else if (down)
                run_tiles<2, 1>(x, out, pairs, memory, floats, threads);
            else if (across)
                run_tiles<1, 2>(x, out, pairs, memory, floats, threads);
            else
                run_tiles<1, 1>(x, out, pairs, memory, floats, threads);
        }
    }
};

}  // namespace shvit
