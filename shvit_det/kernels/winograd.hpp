// 3x3 convolutions with stride 1 and padding 1 in a quarter of the multiplications.

#pragma once

#include <cmath>
#include <vector>

#include "memory.hpp"
#include "product.hpp"

namespace shvit {

// Winograd's F(4x4, 3x3) with the points 0, 0.75, -0.75, 1.5, -1.5 and infinity, as in winograd.py: six inputs to six
// values, six products to four results, along one axis.
constexpr int TILE = 4, SPAN = 6, PLACES = SPAN * SPAN;
constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;

// Numbers by which the channels of a pixel are fetched before they are read: the processor foresees what is read in a
// row, but not in the 36 rows that the pixels of a tile are.
constexpr Size PIXEL_AHEAD = 4 * ALIGNED / sizeof(float);

inline void to_values(const Vector x[SPAN], Vector values[SPAN]) {
    const auto minus = [](Vector v, float factor, Vector u) { return fused_minus(all(factor), u, v); };
    const auto ends = [&](Vector v0, Vector v2, Vector v4) { return fused(all(AA * BB), v0, minus(v4, AA + BB, v2)); };
    const Vector even_a = minus(x[4], BB, x[2]), odd_a = A * minus(x[3], BB, x[1]);
    const Vector even_b = minus(x[4], AA, x[2]), odd_b = B * minus(x[3], AA, x[1]);
    values[0] = ends(x[0], x[2], x[4]);
    values[1] = even_a + odd_a;
    values[2] = even_a - odd_a;
    values[3] = even_b + odd_b;
    values[4] = even_b - odd_b;
    values[5] = ends(x[1], x[3], x[5]);
}

// COUNT results: 4 of three taps, or 5 of two.
template <int COUNT>
void to_results(const Vector m[SPAN], Vector results[COUNT]) {
    const auto sum = [](float first, Vector v, float second, Vector u) { return fused(all(first), v, second * u); };
    const Vector even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const Vector even_b = m[3] + m[4], odd_b = m[3] - m[4];
    float a = 1, b = 1;  // powers of the points
#pragma GCC unroll 5
    for (int i = 0; i < COUNT; ++i, a *= A, b *= B)
        results[i] = i % 2 ? sum(a, odd_a, b, odd_b) : sum(a, even_a, b, even_b);
    results[0] += m[0];
    results[COUNT - 1] += m[5];
}

template <class Type>
class Winograd {
  public:
    using Number = typename Type::Number;

    // Weights: (panels, 36, channels, PANEL).
    Winograd(Size batch, Size height, Size width, Size channels, Size out_channels, const float* weights,
             const float* bias, bool relu)
        : batch_(batch),
          height_(height),
          width_(width),
          channels_(channels),
          out_channels_(out_channels),
          weights_(weights),
          bias_(bias),
          relu_(relu) {
        const Size apart = batch * tiles(height) * tiles(width);
        const Size side = static_cast<Size>(std::ceil(std::sqrt(static_cast<double>(batch))));
        const Size lines = (batch + side - 1) / side;
        const Size down = tiles(lines * (height + 1) - 1), across = tiles(side * (width + 1) - 1);
        if (down * across < apart)
            sheet_ = {batch, side, height + 1, width + 1, down, across};
        else
            sheet_ = {1, 1, height, width, tiles(height), tiles(width)};
        tiles_ = (batch + sheet_.images - 1) / sheet_.images * sheet_.down * sheet_.across;
    }

    void run(const Number* x, Number* out, int threads) const {
        const Size at_once = std::clamp<Size>((tiles_ + threads - 1) / threads, 1, tiles_at_once());
        const Size blocks = (tiles_ + at_once * threads - 1) / (at_once * threads) * threads;
        const Size most = (tiles_ + blocks - 1) / blocks;
        const Size panels = (out_channels_ + PANEL - 1) / PANEL;
        // From one tile, and from one place, to the next: odd numbers of lines, which do not compete in the cache.
        const Size step = (channels_ + LINE - 1) / LINE * LINE | LINE;
        const Size place_step = (most | 1) * step, product_step = (most | 1) * PANEL;
        const Pieces values_memory(PLACES * place_step * sizeof(float), threads);
        const Pieces products_memory(PLACES * product_step * sizeof(float), threads);
        const std::vector<Number> zeros(channels_, Number(0));
#pragma omp parallel num_threads(threads)
        {
            float *values = values_memory.mine<float>(), *places = products_memory.mine<float>();
#pragma omp for schedule(static)
            for (Size block = 0; block < blocks; ++block) {
                const Size first = block * tiles_ / blocks, count = (block + 1) * tiles_ / blocks - first;
                for (Size t = 0; t < count; ++t)
                    to_values_of(x, first + t, zeros.data(), values + t * step, place_step);
                for (Size panel = 0; panel < panels; ++panel) {
                    for (Size place = 0; place < PLACES; ++place)
                        products<Float32>(count, values + place * place_step, step,
                                          weights_ + (panel * PLACES + place) * channels_ * PANEL, 1, channels_, 0, 0,
                                          places + place * product_step, PANEL, PANEL, {nullptr, nullptr, 0, false},
                                          true);
                    for (Size t = 0; t < count; ++t)
                        to_results_of(places + t * PANEL, product_step, first + t, panel, out);
                }
            }
        }
    }

  private:
    // Small images lie together on a sheet, a row and a column of zeros apart, so that tiles may cover parts of
    // several.
    struct Sheet {
        Size images, images_across;
        Size cell_height, cell_width;  // from one image to the next
        Size down, across;             // tiles
    };

    static constexpr Size LINE = 64 / sizeof(float);        // numbers in a cache line
    static constexpr Size SECOND_CACHE = 512 << 10;         // bytes, or more
    static constexpr Size FEW_TILES = 12, MANY_TILES = 96;  // for which the weights are read once

    // Many tiles where the weights of a panel do not stay in the second cache, so that they are read less often. With
    // AVX-512 they were not faster.
    Size tiles_at_once() const {
        const Size bytes = PLACES * channels_ * PANEL * sizeof(float);
        return LANES < 16 && bytes > SECOND_CACHE ? MANY_TILES : FEW_TILES;
    }

    static Size tiles(Size size) { return (size + TILE - 1) / TILE; }

    // The positions of some rows and columns of a sheet, from `top` and `left` on, in the batch; -1 of what is zero.
    template <int COUNT>
    void positions(Size tile, Size border, Size found[COUNT][COUNT]) const {
        const Size sheet = tile / (sheet_.down * sheet_.across);
        const Size top = tile / sheet_.across % sheet_.down * TILE - border,
                   left = tile % sheet_.across * TILE - border;
        for (Size i = 0; i < COUNT; ++i) {
            const Size y = top + i, line = y / sheet_.cell_height, row = y % sheet_.cell_height;
            for (Size j = 0; j < COUNT; ++j) {
                const Size x = left + j, number = x / sheet_.cell_width, column = x % sheet_.cell_width;
                const Size on_sheet = line * sheet_.images_across + number, image = sheet * sheet_.images + on_sheet;
                const bool there = y >= 0 && x >= 0 && row < height_ && column < width_ &&
                                   number < sheet_.images_across && on_sheet < sheet_.images && image < batch_;
                found[i][j] = there ? (image * height_ + row) * width_ + column : -1;
            }
        }
    }

    // The values (36, ..., channels) of a tile, `place_step` numbers from one place to the next.
    void to_values_of(const Number* x, Size tile, const Number* zeros, float* values, Size place_step) const {
        Size found[SPAN][SPAN];
        positions<SPAN>(tile, 1, found);
        const Number* from[SPAN][SPAN];
        for (Size i = 0; i < SPAN; ++i)
            for (Size j = 0; j < SPAN; ++j) from[i][j] = found[i][j] < 0 ? zeros : x + found[i][j] * channels_;
        for (Size channel = 0; channel < channels_; channel += LANES) {
            const Lanes some = lanes(channels_ - channel);
            Vector columns[SPAN][SPAN];
            for (Size j = 0; j < SPAN; ++j) {
                Vector pixels[SPAN];
                for (Size i = 0; i < SPAN; ++i) {
                    __builtin_prefetch(from[i][j] + channel + PIXEL_AHEAD);
                    pixels[i] = Type::load(from[i][j] + channel, some);
                }
                to_values(pixels, columns[j]);
            }
            for (Size i = 0; i < SPAN; ++i) {
                Vector along[SPAN], made[SPAN];
                for (Size j = 0; j < SPAN; ++j) along[j] = columns[j][i];
                to_values(along, made);
                for (Size j = 0; j < SPAN; ++j) store(values + (i * SPAN + j) * place_step + channel, some, made[j]);
            }
        }
    }

    // The results of a tile from products (36, ..., PANEL) of one panel, `place_step` numbers from one place to the
    // next.
    void to_results_of(const float* products, Size place_step, Size tile, Size panel, Number* out) const {
        Size found[TILE][TILE];
        positions<TILE>(tile, 0, found);
        for (Size channel = panel * PANEL; channel < std::min(out_channels_, (panel + 1) * PANEL); channel += LANES) {
            const Lanes some = lanes(out_channels_ - channel);
            const float* of_tile = products + channel % PANEL;
            Vector columns[SPAN][TILE];
            for (Size j = 0; j < SPAN; ++j) {
                Vector places[SPAN];
                for (Size i = 0; i < SPAN; ++i) places[i] = load_whole(of_tile + (i * SPAN + j) * place_step);
                to_results<TILE>(places, columns[j]);
            }
            const Vector start = load_whole(bias_ + channel);
            for (Size i = 0; i < TILE; ++i) {
                Vector along[SPAN], made[TILE];
                for (Size j = 0; j < SPAN; ++j) along[j] = columns[j][i];
                to_results<TILE>(along, made);
                for (Size j = 0; j < TILE; ++j) {
                    if (found[i][j] < 0) continue;
                    const Vector result = made[j] + start;
                    Type::store(out + found[i][j] * out_channels_ + channel, some, relu_ ? rectified(result) : result);
                }
            }
        }
    }

    Size batch_, height_, width_, channels_, out_channels_;
    const float *weights_, *bias_;
    bool relu_;
    Sheet sheet_;
    Size tiles_;
};

}  // namespace shvit
