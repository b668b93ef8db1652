// 3x3 convolutions with stride 1 and padding 1 in a quarter of the multiplications.

#pragma once

#include "product.hpp"

namespace shvit {

// Winograd's F(4x4, 3x3) with the points 0, 0.75, -0.75, 1.5, -1.5 and infinity, as in winograd.py: six inputs to six
// values, six products to four results, along one axis.
constexpr int TILE = 4, SPAN = 6, PLACES = SPAN * SPAN;
constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;

inline void to_values(const Vector x[SPAN], Vector values[SPAN]) {
    const auto times = [](float factor, Vector v) { return _mm512_mul_ps(_mm512_set1_ps(factor), v); };
    const auto minus = [](Vector v, float factor, Vector u) { return _mm512_fnmadd_ps(_mm512_set1_ps(factor), u, v); };
    const auto ends = [&](Vector v0, Vector v2, Vector v4) {
        return _mm512_fmadd_ps(_mm512_set1_ps(AA * BB), v0, minus(v4, AA + BB, v2));
    };
    const Vector even_a = minus(x[4], BB, x[2]), odd_a = times(A, minus(x[3], BB, x[1]));
    const Vector even_b = minus(x[4], AA, x[2]), odd_b = times(B, minus(x[3], AA, x[1]));
    values[0] = ends(x[0], x[2], x[4]);
    values[1] = _mm512_add_ps(even_a, odd_a);
    values[2] = _mm512_sub_ps(even_a, odd_a);
    values[3] = _mm512_add_ps(even_b, odd_b);
    values[4] = _mm512_sub_ps(even_b, odd_b);
    values[5] = ends(x[1], x[3], x[5]);
}

inline void to_results(const Vector m[SPAN], Vector results[TILE]) {
    const auto sum = [](float first, Vector v, float second, Vector u) {
        return _mm512_fmadd_ps(_mm512_set1_ps(first), v, _mm512_mul_ps(_mm512_set1_ps(second), u));
    };
    const Vector even_a = _mm512_add_ps(m[1], m[2]), odd_a = _mm512_sub_ps(m[1], m[2]);
    const Vector even_b = _mm512_add_ps(m[3], m[4]), odd_b = _mm512_sub_ps(m[3], m[4]);
    results[0] = _mm512_add_ps(m[0], _mm512_add_ps(even_a, even_b));
    results[1] = sum(A, odd_a, B, odd_b);
    results[2] = sum(AA, even_a, BB, even_b);
    results[3] = _mm512_add_ps(m[5], sum(A * AA, odd_a, B * BB, odd_b));
}

struct Winograd {
    Size height, width, channels, out_channels;
    const float *weights, *bias;  // weights: (panels, 36, channels, 32)
    bool relu;
    Size down, across;  // tiles

    // Values (36, count, channels) of some tiles, from number `first` on.
    void inputs(const float* x, Size first, Size count, float* values) const {
        for (Size t = 0; t < count; ++t) {
            const Size tile = first + t, image = tile / (down * across);
            const Size top = tile / across % down * TILE - 1, left = tile % across * TILE - 1;
            const float* start = x + image * height * width * channels;
            for (Size channel = 0; channel < channels; channel += LANES) {
                const __mmask16 mask = lanes(channels - channel);
                Vector columns[SPAN][SPAN];
                for (Size column = 0; column < SPAN; ++column) {
                    Vector pixels[SPAN];
                    const bool seen = left + column >= 0 && left + column < width;
                    for (Size row = 0; row < SPAN; ++row) {
                        const Size y = top + row;
                        const float* pixel = start + (y * width + left + column) * channels + channel;
                        pixels[row] = seen && y >= 0 && y < height ? _mm512_maskz_loadu_ps(mask, pixel)
                                                                   : _mm512_setzero_ps();
                    }
                    to_values(pixels, columns[column]);
                }
                for (Size row = 0; row < SPAN; ++row) {
                    Vector along[SPAN], out[SPAN];
                    for (Size column = 0; column < SPAN; ++column) along[column] = columns[column][row];
                    to_values(along, out);
                    for (Size column = 0; column < SPAN; ++column)
                        _mm512_mask_storeu_ps(values + ((row * SPAN + column) * count + t) * channels + channel, mask,
                                              out[column]);
                }
            }
        }
    }

    // Results of some tiles from products (36, count, 32), of one panel.
    void outputs(const float* all, Size first, Size count, Size panel, float* out) const {
        for (Size t = 0; t < count; ++t) {
            const Size tile = first + t, image = tile / (down * across);
            const Size top = tile / across % down * TILE, left = tile % across * TILE;
            for (Size half = 0; half < 2; ++half) {
                const Size channel = panel * PANEL + half * LANES;
                if (channel >= out_channels) break;
                const __mmask16 mask = lanes(out_channels - channel);
                const Vector start = _mm512_load_ps(bias + channel);
                Vector columns[SPAN][TILE];
                for (Size column = 0; column < SPAN; ++column) {
                    Vector places[SPAN];
                    for (Size row = 0; row < SPAN; ++row)
                        places[row] = _mm512_load_ps(all + ((row * SPAN + column) * count + t) * PANEL + half * LANES);
                    to_results(places, columns[column]);
                }
                for (Size row = 0; row < std::min<Size>(TILE, height - top); ++row) {
                    Vector along[SPAN], results[TILE];
                    for (Size column = 0; column < SPAN; ++column) along[column] = columns[column][row];
                    to_results(along, results);
                    for (Size column = 0; column < std::min<Size>(TILE, width - left); ++column) {
                        Vector result = _mm512_add_ps(results[column], start);
                        if (relu) result = _mm512_max_ps(result, _mm512_setzero_ps());
                        const Size position = (image * height + top + row) * width + left + column;
                        _mm512_mask_storeu_ps(out + position * out_channels + channel, mask, result);
                    }
                }
            }
        }
    }

    void run(const float* x, Size batch, float* out, int threads) const {
        const Size tiles = batch * down * across;
        const Size blocks = std::max<Size>((tiles + MOST_ROWS - 1) / MOST_ROWS, std::min<Size>(threads, tiles));
        const Size most = (tiles + blocks - 1) / blocks;
        const Size panels = (out_channels + PANEL - 1) / PANEL;
        const Pieces values_memory(PLACES * most * channels * sizeof(float), threads);
        const Pieces products_memory(PLACES * most * PANEL * sizeof(float), threads);
#pragma omp parallel num_threads(threads)
        {
            float *values = values_memory.mine<float>(), *places = products_memory.mine<float>();
#pragma omp for schedule(static)
            for (Size block = 0; block < blocks; ++block) {
                const Size first = block * tiles / blocks, count = (block + 1) * tiles / blocks - first;
                inputs(x, first, count, values);
                for (Size panel = 0; panel < panels; ++panel) {
                    for (Size place = 0; place < PLACES; ++place)
                        products<Float32>(count, values + place * count * channels, channels,
                                         weights + (panel * PLACES + place) * channels * PANEL, 1, channels, 0, 0,
                                         places + place * count * PANEL, PANEL, PANEL, {nullptr, nullptr, 0, false});
                    outputs(places, first, count, panel, out);
                }
            }
        }
    }
};

}  // namespace shvit
