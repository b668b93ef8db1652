// Convolutions for inference on processors with AVX-512, of images that lie in memory as NHWC.
//
// A convolution is a product of matrices whose rows are positions of the result: with NHWC, what one kernel row sees
// of the image at a position is one run of numbers in memory, so that nothing has to be gathered. At the border, where
// a kernel would leave the image, those kernel rows and columns are left out. 3x3 convolutions with stride 1 have a
// shorter way (Winograd's), and depthwise ones are sums of nine.
//
// Weights come packed in panels of 32 output channels, (panels, kernel rows, kernel columns, channels, 32), and in pairs
// of channels for bfloat16, (panels, ..., channels / 2, 32, 2); biases are float32 and padded to whole panels.

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#ifndef __AVX512F__
#error "this processor has no AVX-512"
#endif

namespace {

using Vector = __m512;
using Size = std::ptrdiff_t;
constexpr int LANES = 16;
constexpr int PANEL = 2 * LANES;  // output channels at once
constexpr int AHEAD = 8;       // steps of a product by which weights are fetched before they are used
constexpr int MOST_ROWS = 12;  // positions at once; 14 would fill the registers, and are slower

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

Buffer buffer(Size bytes) { return Buffer(std::aligned_alloc(64, (bytes + 63) / 64 * 64)); }

// The lanes of a vector that are below `count`.
__mmask16 lanes(Size count) { return count >= LANES ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// How the numbers of a type are read, written and multiplied; sums are float32 in either.
struct Float32 {
    using Number = float;
    static constexpr int DEPTH = 1;  // channels in one step of a product
    static Vector load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
    static void store(float* p, __mmask16 mask, Vector v) { _mm512_mask_storeu_ps(p, mask, v); }
    static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
    static Vector add_product(Vector sum, Vector x, const float* weights) {
        return _mm512_fmadd_ps(x, _mm512_load_ps(weights), sum);
    }
};

#ifdef __AVX512BF16__
struct BFloat16 {
    using Number = uint16_t;
    static constexpr int DEPTH = 2;
    static Vector load(const uint16_t* p, __mmask16 mask) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
    }
    static void store(uint16_t* p, __mmask16 mask, Vector v) {
        _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
    }
    static Vector broadcast(const uint16_t* p) {
        return _mm512_castsi512_ps(_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)));
    }
    static Vector add_product(Vector sum, Vector x, const uint16_t* weights) {
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)_mm512_load_si512(weights));
    }
};
#endif

// What is done with sums before they are written.
template <class Type>
struct Finish {
    const float* bias;                      // of the panel; none if null
    const typename Type::Number* residual;  // at the first position and channel; none if null
    Size residual_step;                     // from one position to the next
    bool relu;
};

// A product: ROWS positions of the result, a panel of channels or its first half.
template <class Type, int VECTORS, int ROWS>
void product(const typename Type::Number* x, Size x_step,                    // first position; to the next one
             const typename Type::Number* weights,                           // of the panel
             Size runs, Size run, Size x_run_step, Size weights_run_step,    // runs, their length; to the next run
             typename Type::Number* out, Size out_step, Size channels,      // channels to be written of the panel
             const Finish<Type>& finish) {
    Vector sums[ROWS][VECTORS];
    const Vector zero = _mm512_setzero_ps();
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
        const Vector start = finish.bias ? _mm512_load_ps(finish.bias + v * LANES) : zero;
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) sums[row][v] = start;
    }
    for (Size r = 0; r < runs; ++r) {
        const typename Type::Number* panel = weights + r * weights_run_step;
        const typename Type::Number* start = x + r * x_run_step;
        for (Size k = 0; k < run; k += Type::DEPTH, panel += PANEL * Type::DEPTH) {
            for (int v = 0; v < VECTORS; ++v)
                _mm_prefetch(panel + (AHEAD * PANEL + v * LANES) * Type::DEPTH, _MM_HINT_T0);
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; ++row) {
                const Vector value = Type::broadcast(start + row * x_step + k);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    sums[row][v] = Type::add_product(sums[row][v], value, panel + v * LANES * Type::DEPTH);
            }
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
        const __mmask16 mask = lanes(channels - v * LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            Vector sum = sums[row][v];
            if (finish.residual)
                sum = _mm512_add_ps(sum, Type::load(finish.residual + row * finish.residual_step + v * LANES, mask));
            if (finish.relu) sum = _mm512_max_ps(sum, zero);
            Type::store(out + row * out_step + v * LANES, mask, sum);
        }
    }
}

template <class Type>
using Product = void (*)(const typename Type::Number*, Size, const typename Type::Number*, Size, Size, Size, Size,
                         typename Type::Number*, Size, Size, const Finish<Type>&);

template <class Type, int VECTORS, std::size_t... I>
constexpr std::array<Product<Type>, sizeof...(I)> sizes(std::index_sequence<I...>) {
    return {product<Type, VECTORS, I + 1>...};
}

// Computes `count` positions that lie at equal steps, in groups of about equal size.
template <class Type>
void products(Size count, const typename Type::Number* x, Size x_step, const typename Type::Number* weights, Size runs,
              Size run, Size x_run_step, Size weights_run_step, typename Type::Number* out, Size out_step,
              Size channels, Finish<Type> finish) {
    static constexpr auto halves = sizes<Type, 1>(std::make_index_sequence<MOST_ROWS>());
    static constexpr auto panels = sizes<Type, 2>(std::make_index_sequence<MOST_ROWS>());
    const auto& choice = channels > LANES ? panels : halves;
    for (Size groups = (count + MOST_ROWS - 1) / MOST_ROWS; groups > 0; --groups) {
        const Size rows = (count + groups - 1) / groups;
        choice[rows - 1](x, x_step, weights, runs, run, x_run_step, weights_run_step, out, out_step, channels, finish);
        count -= rows;
        x += rows * x_step;
        out += rows * out_step;
        if (finish.residual) finish.residual += rows * finish.residual_step;
    }
}

// A convolution of one image, and where its operands lie.
template <class Type>
struct Convolution {
    using Number = typename Type::Number;
    Size height, width, channels;
    Size out_height, out_width, out_channels;
    Size kernel, stride, padding;
    const Number* weights;
    const float* bias;
    bool relu;

    // Rows [top, bottom) and columns [left, right) of the result, which see the same rows and columns of the kernel.
    void region(const Number* x, Number* out, Size panel, Size top, Size bottom, Size left, Size right) const {
        const Size first_y = top * stride - padding, first_x = left * stride - padding;
        const Size skip_y = std::max<Size>(0, -first_y), skip_x = std::max<Size>(0, -first_x);
        const Size rows = std::min(kernel, height - first_y) - skip_y;
        const Size run = (std::min(kernel, width - first_x) - skip_x) * channels;
        const Number* corner = x + ((first_y + skip_y) * width + first_x + skip_x) * channels;
        const Number* part =
            weights + ((panel * kernel + skip_y) * kernel + skip_x) * channels * PANEL;
        const Size channel = panel * PANEL;
        const Size position = top * out_width + left;
        const bool across = right - left >= bottom - top;  // long runs of positions
        const Size lines = across ? bottom - top : right - left, count = across ? right - left : bottom - top;
        const Size next = across ? 1 : width, next_out = across ? 1 : out_width;
        const Size line = across ? width : 1, line_out = across ? out_width : 1;
        for (Size l = 0; l < lines; ++l) {
            const Size at = position + l * line_out;
            products<Type>(count, corner + l * line * stride * channels, next * stride * channels, part, rows, run,
                           width * channels, kernel * channels * PANEL, out + at * out_channels + channel,
                           next_out * out_channels, out_channels - channel, {bias + channel, nullptr, 0, relu});
        }
    }

    // Where along an axis results see the whole kernel: [first, last).
    void inside(Size size, Size out_size, Size& first, Size& last) const {
        first = std::min(out_size, (padding + stride - 1) / stride);
        const Size room = size + padding - kernel;
        last = room < 0 ? first : std::max(first, std::min(out_size, room / stride + 1));
    }

    // Rows [top, bottom) of the result.
    void rows(const Number* x, Number* out, Size panel, Size top, Size bottom) const {
        Size upper, lower, left, right;
        inside(height, out_height, upper, lower);
        inside(width, out_width, left, right);
        const auto columns = [&](Size from, Size to) {
            for (Size column = 0; column < left; ++column) region(x, out, panel, from, to, column, column + 1);
            if (left < right) region(x, out, panel, from, to, left, right);
            for (Size column = right; column < out_width; ++column) region(x, out, panel, from, to, column, column + 1);
        };
        for (Size row = top; row < std::min(bottom, upper); ++row) columns(row, row + 1);
        const Size from = std::max(top, upper), to = std::min(bottom, lower);
        if (from < to) columns(from, to);
        for (Size row = std::max(top, lower); row < bottom; ++row) columns(row, row + 1);
    }
};

// About so many positions are computed with one panel before the next, so that their inputs stay in the cache.
constexpr Size POSITIONS = 224;

template <class Type>
void convolve(const typename Type::Number* x, Size batch, typename Type::Number* out, const Convolution<Type>& c,
              int threads) {
    const Size panels = (c.out_channels + PANEL - 1) / PANEL;
    const Size height = std::max<Size>(1, POSITIONS / std::max<Size>(1, c.out_width));
    const Size blocks = (c.out_height + height - 1) / height;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size work = 0; work < batch * blocks * panels; ++work) {
        const Size image = work / (blocks * panels), block = work / panels % blocks, panel = work % panels;
        c.rows(x + image * c.height * c.width * c.channels, out + image * c.out_height * c.out_width * c.out_channels,
               panel, block * height, std::min(c.out_height, (block + 1) * height));
    }
}

// out = [residual +] [relu] (x . weights + bias), for `count` rows of x.
template <class Type>
struct Linear {
    using Number = typename Type::Number;
    Size channels, out_channels;
    const Number* weights;
    const float* bias;
    bool relu;

    Size panels() const { return (out_channels + PANEL - 1) / PANEL; }

    void run(Size count, const Number* x, Number* out, const Number* residual, Size panel) const {
        const Size channel = panel * PANEL;
        products<Type>(count, x, channels, weights + channel * channels, 1, channels, 0, 0, out + channel, out_channels,
                       out_channels - channel,
                       {bias + channel, residual ? residual + channel : nullptr, out_channels, relu});
    }
};

template <class Type>
void linear(const typename Type::Number* x, Size count, typename Type::Number* out,
            const typename Type::Number* residual, const Linear<Type>& layer, int threads) {
    const Size panels = layer.panels();
    const Size blocks = (count + POSITIONS - 1) / POSITIONS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size work = 0; work < blocks * panels; ++work) {
        const Size block = work / panels, first = block * count / blocks, last = (block + 1) * count / blocks;
        const Size done = first * layer.out_channels;
        layer.run(last - first, x + first * layer.channels, out + done, residual ? residual + done : nullptr,
                  work % panels);
    }
}

// x + reduce(relu(expand(x))): some positions at a time, whose hidden channels stay in the cache.
template <class Type>
void feed_forward(const typename Type::Number* x, Size count, typename Type::Number* out, const Linear<Type>& expand,
                  const Linear<Type>& reduce, int threads) {
    constexpr Size AT_ONCE = 6 * MOST_ROWS;
    using Number = typename Type::Number;
    const Size blocks = std::max<Size>((count + AT_ONCE - 1) / AT_ONCE, threads);
    const Size most = (count + blocks - 1) / blocks;
#pragma omp parallel num_threads(threads)
    {
        const Buffer memory = buffer(most * expand.out_channels * sizeof(Number));
        Number* hidden = static_cast<Number*>(memory.get());
#pragma omp for schedule(static)
        for (Size block = 0; block < blocks; ++block) {
            const Size first = block * count / blocks, last = (block + 1) * count / blocks;
            const Number* here = x + first * expand.channels;
            for (Size panel = 0; panel < expand.panels(); ++panel)
                expand.run(last - first, here, hidden, nullptr, panel);
            for (Size panel = 0; panel < reduce.panels(); ++panel)
                reduce.run(last - first, hidden, out + first * reduce.out_channels, here, panel);
        }
    }
}

// A depthwise convolution, 16 channels at a time. Weights are float32, (kernel rows, kernel columns, channels).
template <class Type>
void depthwise(const typename Type::Number* x, Size batch, Size height, Size width, Size channels,
               typename Type::Number* out, Size out_height, Size out_width, Size stride, const float* weights,
               const float* bias, bool relu, int threads) {
    constexpr Size KERNEL = 3;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size line = 0; line < batch * out_height; ++line) {
        const Size y = line % out_height * stride - 1;
        const auto* image = x + line / out_height * height * width * channels;
        const Size top = std::max<Size>(0, -y), bottom = std::min(KERNEL, height - y);
        for (Size channel = 0; channel < channels; channel += LANES) {
            const __mmask16 mask = lanes(channels - channel);
            Vector taps[KERNEL][KERNEL];
            for (Size row = 0; row < KERNEL; ++row)
                for (Size column = 0; column < KERNEL; ++column)
                    taps[row][column] =
                        _mm512_maskz_loadu_ps(mask, weights + (row * KERNEL + column) * channels + channel);
            const Vector start = _mm512_maskz_loadu_ps(mask, bias + channel);
            for (Size position = 0; position < out_width; ++position) {
                const Size left = position * stride - 1;
                const auto* corner = image + (y * width + left) * channels + channel;
                Vector sum = start;
                const bool whole = bottom - top == KERNEL && left >= 0 && left + KERNEL <= width;
                const auto tap = [&](Size row, Size column) {
                    const Vector value = Type::load(corner + (row * width + column) * channels, mask);
                    sum = _mm512_fmadd_ps(value, taps[row][column], sum);
                };
                if (whole) {
#pragma GCC unroll 3
                    for (Size row = 0; row < KERNEL; ++row)
#pragma GCC unroll 3
                        for (Size column = 0; column < KERNEL; ++column) tap(row, column);
                } else {
                    for (Size row = top; row < bottom; ++row)
                        for (Size column = 0; column < KERNEL; ++column)
                            if (left + column >= 0 && left + column < width) tap(row, column);
                }
                if (relu) sum = _mm512_max_ps(sum, _mm512_setzero_ps());
                Type::store(out + (line * out_width + position) * channels + channel, mask, sum);
            }
        }
    }
}

// Winograd's F(4x4, 3x3) with the points 0, 0.75, -0.75, 1.5, -1.5 and infinity, as in winograd.py: six inputs to six
// values, six products to four results, along one axis.
constexpr int TILE = 4, SPAN = 6, PLACES = SPAN * SPAN;
constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;

void to_values(const Vector x[SPAN], Vector values[SPAN]) {
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

void to_results(const Vector m[SPAN], Vector results[TILE]) {
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
#pragma omp parallel num_threads(threads)
        {
            const Buffer values_memory = buffer(PLACES * most * channels * sizeof(float));
            const Buffer products_memory = buffer(PLACES * most * PANEL * sizeof(float));
            float* values = static_cast<float*>(values_memory.get());
            float* places = static_cast<float*>(products_memory.get());
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

template <class Type>
void run_convolve(const void* x, Size batch, Size height, Size width, Size channels, void* out, Size out_height,
                  Size out_width, Size out_channels, Size kernel, Size stride, Size padding, const void* weights,
                  const float* bias, bool relu, int threads) {
    using Number = typename Type::Number;
    convolve<Type>(static_cast<const Number*>(x), batch, static_cast<Number*>(out),
                   {height, width, channels, out_height, out_width, out_channels, kernel, stride, padding,
                    static_cast<const Number*>(weights), bias, relu},
                   threads);
}

template <class Type>
void run_linear(const void* x, Size count, Size channels, void* out, Size out_channels, const void* weights,
                const float* bias, const void* residual, bool relu, int threads) {
    using Number = typename Type::Number;
    linear<Type>(static_cast<const Number*>(x), count, static_cast<Number*>(out), static_cast<const Number*>(residual),
                 {channels, out_channels, static_cast<const Number*>(weights), bias, relu}, threads);
}

template <class Type>
void run_feed_forward(const void* x, Size count, Size channels, Size hidden, void* out, const void* expand,
                      const float* expand_bias, const void* reduce, const float* reduce_bias, int threads) {
    using Number = typename Type::Number;
    feed_forward<Type>(static_cast<const Number*>(x), count, static_cast<Number*>(out),
                       {channels, hidden, static_cast<const Number*>(expand), expand_bias, true},
                       {hidden, channels, static_cast<const Number*>(reduce), reduce_bias, false}, threads);
}

template <class Type>
void run_depthwise(const void* x, Size batch, Size height, Size width, Size channels, void* out, Size out_height,
                   Size out_width, Size stride, const float* weights, const float* bias, bool relu, int threads) {
    using Number = typename Type::Number;
    depthwise<Type>(static_cast<const Number*>(x), batch, height, width, channels, static_cast<Number*>(out),
                    out_height, out_width, stride, weights, bias, relu, threads);
}

}  // namespace

// The functions below take the type of the numbers first: 0 for float32, 1 for bfloat16.
#ifdef __AVX512BF16__
#define CHOOSE(function, ...) (type == 0 ? function<Float32>(__VA_ARGS__) : function<BFloat16>(__VA_ARGS__))
#else
#define CHOOSE(function, ...) function<Float32>(__VA_ARGS__)
#endif

extern "C" {

int shvit_has_bfloat16() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

void shvit_convolve(int type, const void* x, Size batch, Size height, Size width, Size channels, void* out,
                    Size out_height, Size out_width, Size out_channels, Size kernel, Size stride, Size padding,
                    const void* weights, const float* bias, int relu, int threads) {
    CHOOSE(run_convolve, x, batch, height, width, channels, out, out_height, out_width, out_channels, kernel, stride,
           padding, weights, bias, relu, threads);
}

void shvit_linear(int type, const void* x, Size count, Size channels, void* out, Size out_channels,
                  const void* weights, const float* bias, const void* residual, int relu, int threads) {
    CHOOSE(run_linear, x, count, channels, out, out_channels, weights, bias, residual, relu, threads);
}

void shvit_feed_forward(int type, const void* x, Size count, Size channels, Size hidden, void* out, const void* expand,
                        const float* expand_bias, const void* reduce, const float* reduce_bias, int threads) {
    CHOOSE(run_feed_forward, x, count, channels, hidden, out, expand, expand_bias, reduce, reduce_bias, threads);
}

void shvit_depthwise(int type, const void* x, Size batch, Size height, Size width, Size channels, void* out,
                     Size out_height, Size out_width, Size stride, const float* weights, const float* bias, int relu,
                     int threads) {
    CHOOSE(run_depthwise, x, batch, height, width, channels, out, out_height, out_width, stride, weights, bias, relu,
           threads);
}

void shvit_winograd(const float* x, Size batch, Size height, Size width, Size channels, float* out, Size out_channels,
                    const float* weights, const float* bias, int relu, int threads) {
    const Winograd layer{height,  width, channels, out_channels, weights, bias, relu != 0, (height + TILE - 1) / TILE,
                         (width + TILE - 1) / TILE};
    layer.run(x, batch, out, threads);
}

}
