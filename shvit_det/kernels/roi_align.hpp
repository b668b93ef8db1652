// RoIAlign (arXiv 1703.06870): each bin of a region is a weighted sum of pixels.
//
// The samples of a bin share pixels, and their weights are products of one along each axis, so that the weights are
// added up along the axes first.

#pragma once

#include <cmath>

#include "interface.hpp"
#include "memory.hpp"
#include "numbers.hpp"

namespace shvit {

// What the pixels along one axis weigh in the bins of a region: `counts[bin]` pixels from `firsts[bin]` on.
struct Axis {
    Size *firsts, *counts;
    float* weights;  // (bins, size)

    static Size bytes(Size bins, Size size) { return bins * (2 * sizeof(Size) + size * sizeof(float)); }

    Axis(void* memory, Size bins, Size size)
        : firsts(static_cast<Size*>(memory)), counts(firsts + bins), weights(reinterpret_cast<float*>(counts + bins)) {
        std::fill(counts, counts + bins, 0);
        std::fill(weights, weights + bins * size, 0.0f);
    }

    // Adds up the weights of the samples; order of operations, and with it rounding, are torchvision's.
    void fill(float start, float extent, Size bins, Size size, Size ratio) {
        const float length = extent / static_cast<float>(bins);
        const float wanted = ratio > 0 ? static_cast<float>(ratio) : std::ceil(length);
        const Size samples = wanted >= 1 && wanted < 2147483648.0f ? static_cast<Size>(wanted) : 0;  // none for NaN
        const float number = static_cast<float>(samples);
        for (Size bin = 0; bin < bins; ++bin) {
            Size least = size, most = -1;
            float* of_bin = weights + bin * size;
            for (Size sample = 0; sample < samples; ++sample) {
                float place =
                    start + static_cast<float>(bin) * length + (static_cast<float>(sample) + 0.5f) * length / number;
                if (!(place >= -1 && place <= static_cast<float>(size))) continue;
                place = std::clamp(place, 0.0f, static_cast<float>(size - 1));
                const Size before = static_cast<Size>(place), after = std::min(before + 1, size - 1);
                const float nearness = place - static_cast<float>(before), share = 1 / number;
                of_bin[before] += share * (1 - nearness);
                of_bin[after] += share * nearness;
                least = std::min(least, before);
                most = std::max(most, after);
            }
            firsts[bin] = least;
            counts[bin] = std::max<Size>(0, most - least + 1);
        }
    }
};

template <class Type>
struct RoIAlign {
    using Number = typename Type::Number;
    const Level* levels;
    const int64_t* level_of;  // of each region
    const float* regions;     // (count, 5): the image's index and two corners
    Size count, channels, out_height, out_width, ratio;
    bool aligned, planar;  // whether results are (channels, out_height, out_width)

    void run(Number* out, Size num_levels, int threads) const {
        Size height = 0, width = 0;
        for (Size level = 0; level < num_levels; ++level) {
            height = std::max(height, levels[level].height);
            width = std::max(width, levels[level].width);
        }
        const Pieces row_memory(Axis::bytes(out_height, height), threads);
        const Pieces column_memory(Axis::bytes(out_width, width), threads);
        const Size bins = out_height * out_width;
        const Pieces result_memory(planar ? bins * channels * sizeof(Number) : 0, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
        for (Size region = 0; region < count; ++region) {
            const Level& level = levels[level_of[region]];
            const float* corners = regions + 5 * region;
            const float shift = aligned ? 0.5f : 0.0f;
            const auto place = [&](int i) { return corners[1 + i] * level.scale - shift; };
            const auto extent = [&](int i) {
                const float length = place(i + 2) - place(i);
                return aligned || !(length < 1) ? length : 1;  // NaN stays
            };
            Axis rows(row_memory.mine<void>(), out_height, level.height);
            Axis columns(column_memory.mine<void>(), out_width, level.width);
            rows.fill(place(1), extent(1), out_height, level.height, ratio);
            columns.fill(place(0), extent(0), out_width, level.width, ratio);
            const Number* map = static_cast<const Number*>(level.map) +
                                static_cast<Size>(corners[0]) * level.height * level.width * channels;
            Number* result = out + region * bins * channels;
            Number* to = planar ? result_memory.mine<Number>() : result;
            for (Size i = 0; i < out_height; ++i)
                for (Size j = 0; j < out_width; ++j, to += channels) {
                    Size c = 0;
                    for (; c + MOST * LANES <= channels; c += MOST * LANES)
                        add_up<MOST>(map, level, rows, i, columns, j, c, to);
                    for (; c < channels; c += LANES) add_up<1>(map, level, rows, i, columns, j, c, to);
                }
            if (planar)
                for (Size c = 0; c < channels; ++c)
                    for (Size bin = 0; bin < bins; ++bin) *result++ = (to - bins * channels)[bin * channels + c];
        }
    }

  private:
    static constexpr int MOST = REGISTERS / 2;  // vectors of channels at once

    // Some channels of a bin, from number `c` on.
    template <int VECTORS>
    void add_up(const Number* map, const Level& level, const Axis& rows, Size i, const Axis& columns, Size j, Size c,
                Number* out) const {
        const Lanes some = lanes(channels - c);  // if there are several vectors, they are whole
        Vector sums[VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sums[v] = Vector{};
        for (Size row = 0; row < rows.counts[i]; ++row) {
            const Size y = rows.firsts[i] + row;
            const float of_row = rows.weights[i * level.height + y];
            const Number* pixel = map + (y * level.width + columns.firsts[j]) * channels + c;
            const float* of_columns = columns.weights + j * level.width + columns.firsts[j];
            for (Size column = 0; column < columns.counts[j]; ++column, pixel += channels) {
                const float share = of_row * of_columns[column];
                if (share == 0) continue;  // between two samples, whatever the pixel holds
                const Vector weight = all(share);
#pragma GCC unroll 16
                for (int v = 0; v < VECTORS; ++v) sums[v] = fused(Type::load(pixel + v * LANES, some), weight, sums[v]);
            }
        }
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) Type::store(out + c + v * LANES, some, sums[v]);
    }
};

}  // namespace shvit
