// Convolutions for inference on processors with AVX-512, of images that lie in memory as NHWC.
//
// A convolution is a product of matrices whose rows are positions of the result: with NHWC, what one kernel row sees
// of the image at a position is one run of numbers in memory, so that nothing has to be gathered. At the border, where
// a kernel would leave the image, those kernel rows and columns are left out. 3x3 convolutions with stride 1 have a
// shorter way (Winograd's), and depthwise ones are sums of nine.
//
// Weights come packed in panels of 32 output channels, (panels, kernel rows, kernel columns, channels, 32), and for
// bfloat16 in pairs of channels, (panels, ..., channels / 2, 32, 2); biases are float32 and padded to whole panels.

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
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

// A convolution of one image, or a part of a transposed one, and where its operands lie.
template <class Type>
struct Convolution {
    using Number = typename Type::Number;
    Size height, width, channels;
    Size out_height, out_width, out_channels;
    Size out_line, out_step;  // numbers from one row, one position of the result to the next
    Size kernel_height, kernel_width, stride;
    Size above, before;  // rows and columns by which the first results see beyond the image
    const Number* weights;
    const float* bias;
    bool relu;

    // Rows [top, bottom) and columns [left, right) of the result, which see the same rows and columns of the kernel.
    void region(const Number* x, Number* out, Size panel, Size top, Size bottom, Size left, Size right) const {
        const Size first_y = top * stride - above, first_x = left * stride - before;
        const Size skip_y = std::max<Size>(0, -first_y), skip_x = std::max<Size>(0, -first_x);
        const Size rows = std::max<Size>(0, std::min(kernel_height, height - first_y) - skip_y);
        const Size columns = std::max<Size>(0, std::min(kernel_width, width - first_x) - skip_x);
        const Number* corner = x + ((first_y + skip_y) * width + first_x + skip_x) * channels;
        const Number* part = weights + ((panel * kernel_height + skip_y) * kernel_width + skip_x) * channels * PANEL;
        const Size channel = panel * PANEL;
        const bool across = right - left >= bottom - top;  // long runs of positions
        const Size lines = across ? bottom - top : right - left, count = across ? right - left : bottom - top;
        const Size next = (across ? 1 : width) * stride * channels, line = (across ? width : 1) * stride * channels;
        const Size next_out = across ? out_step : out_line, line_out = across ? out_line : out_step;
        Number* to = out + top * out_line + left * out_step + channel;
        for (Size l = 0; l < lines; ++l)
            products<Type>(count, corner + l * line, next, part, rows, columns * channels, width * channels,
                           kernel_width * channels * PANEL, to + l * line_out, next_out, out_channels - channel,
                           {bias + channel, nullptr, 0, relu});
    }

    // Where along an axis results see the whole kernel: [first, last).
    void inside(Size size, Size out_size, Size kernel, Size padding, Size& first, Size& last) const {
        first = std::clamp<Size>((padding + stride - 1) / stride, 0, out_size);
        const Size room = size + padding - kernel;
        last = room < 0 ? first : std::max(first, std::min(out_size, room / stride + 1));
    }

    // Rows [top, bottom) of the result.
    void rows(const Number* x, Number* out, Size panel, Size top, Size bottom) const {
        Size upper, lower, left, right;
        inside(height, out_height, kernel_height, above, upper, lower);
        inside(width, out_width, kernel_width, before, left, right);
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
void convolve(const typename Type::Number* x, Size batch, typename Type::Number* out, Size out_image,
              const Convolution<Type>& c, int threads) {
    const Size panels = (c.out_channels + PANEL - 1) / PANEL;
    const Size height = std::max<Size>(1, POSITIONS / std::max<Size>(1, c.out_width));
    const Size blocks = (c.out_height + height - 1) / height;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Size work = 0; work < batch * blocks * panels; ++work) {
        const Size image = work / (blocks * panels), block = work / panels % blocks, panel = work % panels;
        c.rows(x + image * c.height * c.width * c.channels, out + image * out_image, panel, block * height,
               std::min(c.out_height, (block + 1) * height));
    }
}

// A transposed convolution: the results whose row and column, plus the padding, leave the same rests divided by the
// stride are those of a convolution with every stride-th tap, backwards; its weights follow those of the rests before.
template <class Type>
void transposed(const typename Type::Number* x, Size batch, Size height, Size width, Size channels,
                typename Type::Number* out, Size out_height, Size out_width, Size out_channels, Size kernel,
                Size stride, Size padding, const typename Type::Number* weights, const float* bias, int threads) {
    const Size panels = (out_channels + PANEL - 1) / PANEL;
    for (Size row_rest = 0; row_rest < stride; ++row_rest) {
        for (Size column_rest = 0; column_rest < stride; ++column_rest) {
            const auto taps = [&](Size rest) { return std::max<Size>(0, (kernel - rest + stride - 1) / stride); };
            const auto first = [&](Size rest) { return std::max<Size>(0, (padding - rest + stride - 1) / stride); };
            const Size down = taps(row_rest), across = taps(column_rest);
            const Size first_row = first(row_rest), first_column = first(column_rest);
            const Size top = first_row * stride + row_rest - padding;
            const Size left = first_column * stride + column_rest - padding;
            if (top < out_height && left < out_width) {
                const Convolution<Type> part{height, width, channels, (out_height - top + stride - 1) / stride,
                                             (out_width - left + stride - 1) / stride, out_channels,
                                             stride * out_width * out_channels, stride * out_channels, down, across, 1,
                                             down - 1 - first_row, across - 1 - first_column, weights, bias, false};
                convolve<Type>(x, batch, out + (top * out_width + left) * out_channels,
                               out_height * out_width * out_channels, part, threads);
            }
            weights += panels * down * across * channels * PANEL;
        }
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

// e to the power of x for x <= 0, to about the rounding of float32: a power of two times a polynomial.
Vector exponential(Vector x) {
    const Vector scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.442695041f));
    const Vector power = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT);
    Vector rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first one exact
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    Vector sum = _mm512_set1_ps(1.0f / 5040);
    for (const float next : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
    return _mm512_scalef_ps(sum, power);
}

// Replaces scores by e to their power, all times a common factor, and returns what they still have to be multiplied by.
float softmax(float* scores, Size count) {
    Vector largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (Size i = 0; i < count; i += LANES)
        largest = _mm512_mask_max_ps(largest, lanes(count - i), largest,
                                     _mm512_maskz_loadu_ps(lanes(count - i), scores + i));
    const Vector top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (Size i = 0; i < count; i += LANES) {
        const __mmask16 mask = lanes(count - i);
        const Vector value = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + i), top));
        sum = _mm512_mask_add_ps(sum, mask, sum, value);
        _mm512_mask_storeu_ps(scores + i, mask, value);
    }
    return 1 / _mm512_reduce_add_ps(sum);
}

// x + project(relu(cat(attention(norm(x[:attending])), x[attending:]))) with a single head and a GroupNorm of one
// group; scores and what they weigh are float32. The scale of the scores is in the weights of the queries.
template <class Type>
struct Attention {
    using Number = typename Type::Number;
    static constexpr Size AT_ONCE = 3 * MOST_ROWS;
    Size tokens, channels, attending, query;
    const float *scale, *shift;
    float epsilon;
    Linear<Type> project_in, project_out;

    void normalise(const Number* x, Number* out) const {
        const auto mean_of = [&](auto function) {
            double total = 0;
            for (Size token = 0; token < tokens; ++token) {
                Vector sum = _mm512_setzero_ps();
                for (Size c = 0; c < attending; c += LANES) {
                    const __mmask16 mask = lanes(attending - c);
                    sum = _mm512_mask_add_ps(sum, mask, sum, function(Type::load(x + token * channels + c, mask)));
                }
                total += _mm512_reduce_add_ps(sum);
            }
            return static_cast<float>(total / (static_cast<double>(tokens) * attending));
        };
        const Vector mean = _mm512_set1_ps(mean_of([](Vector value) { return value; }));
        const float variance = mean_of([&](Vector value) {
            const Vector distance = _mm512_sub_ps(value, mean);
            return _mm512_mul_ps(distance, distance);
        });
        const Vector factor = _mm512_set1_ps(1 / std::sqrt(variance + epsilon));
        for (Size token = 0; token < tokens; ++token)
            for (Size c = 0; c < attending; c += LANES) {
                const __mmask16 mask = lanes(attending - c);
                const Vector distance = _mm512_sub_ps(Type::load(x + token * channels + c, mask), mean);
                Type::store(out + token * attending + c, mask,
                            _mm512_fmadd_ps(_mm512_mul_ps(distance, factor), _mm512_maskz_loadu_ps(mask, scale + c),
                                            _mm512_maskz_loadu_ps(mask, shift + c)));
            }
    }

    // Queries (tokens, query); keys and values in panels of 32, as weights are, of the tokens [first, last).
    void lay_out(const Number* projected, Size first, Size last, float* queries, float* keys, float* values) const {
        for (Size token = first; token < last; ++token) {
            const Number* from = projected + token * project_in.out_channels;
            alignas(64) float key[LANES];
            for (Size c = 0; c < query; c += LANES) {
                const __mmask16 mask = lanes(query - c);
                _mm512_mask_storeu_ps(queries + token * query + c, mask, Type::load(from + c, mask));
                _mm512_store_ps(key, Type::load(from + query + c, mask));
                for (Size i = c; i < std::min(query, c + LANES); ++i)
                    keys[(token / PANEL * query + i) * PANEL + token % PANEL] = key[i - c];
            }
            for (Size c = 0; c < attending; c += LANES)
                _mm512_store_ps(values + (c / PANEL * tokens + token) * PANEL + c % PANEL,
                                Type::load(from + 2 * query + c, lanes(attending - c)));
        }
    }

    // relu(cat(attended * factor, x[attending:])) of one token.
    void join(const float* attended, float factor, const Number* x, Number* joined) const {
        const Vector zero = _mm512_setzero_ps(), by = _mm512_set1_ps(factor);
        for (Size c = 0; c < attending; c += LANES) {
            const __mmask16 mask = lanes(attending - c);
            const Vector value = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, attended + c), by);
            Type::store(joined + c, mask, _mm512_max_ps(value, zero));
        }
        for (Size c = attending; c < channels; c += LANES) {
            const __mmask16 mask = lanes(channels - c);
            Type::store(joined + c, mask, _mm512_max_ps(Type::load(x + c, mask), zero));
        }
    }

    void run(const Number* x, Size batch, Number* out, int threads) const {
        const Size panels = (tokens + PANEL - 1) / PANEL, value_panels = (attending + PANEL - 1) / PANEL;
        const Size blocks = (tokens + AT_ONCE - 1) / AT_ONCE;
        const Buffer memory[] = {buffer(tokens * attending * sizeof(Number)),
                                 buffer(tokens * project_in.out_channels * sizeof(Number)),
                                 buffer(tokens * query * sizeof(float)), buffer(panels * query * PANEL * sizeof(float)),
                                 buffer(value_panels * tokens * PANEL * sizeof(float))};
        Number *normed = static_cast<Number*>(memory[0].get()), *projected = static_cast<Number*>(memory[1].get());
        float* queries = static_cast<float*>(memory[2].get());
        float *keys = static_cast<float*>(memory[3].get()), *values = static_cast<float*>(memory[4].get());
        const Finish<Float32> plain{nullptr, nullptr, 0, false};
        std::fill(keys, keys + panels * query * PANEL, 0.0f);
        for (Size image = 0; image < batch; ++image, x += tokens * channels, out += tokens * channels) {
            normalise(x, normed);
#pragma omp parallel num_threads(threads)
            {
                const Buffer own[] = {buffer(AT_ONCE * tokens * sizeof(float)),
                                      buffer(AT_ONCE * attending * sizeof(float)),
                                      buffer(AT_ONCE * channels * sizeof(Number))};
                float *scores = static_cast<float*>(own[0].get()), *attended = static_cast<float*>(own[1].get());
                Number* joined = static_cast<Number*>(own[2].get());
#pragma omp for schedule(static)
                for (Size block = 0; block < blocks; ++block) {
                    const Size first = block * tokens / blocks, last = (block + 1) * tokens / blocks;
                    for (Size panel = 0; panel < project_in.panels(); ++panel)
                        project_in.run(last - first, normed + first * attending,
                                       projected + first * project_in.out_channels, nullptr, panel);
                    lay_out(projected, first, last, queries, keys, values);
                }
#pragma omp for schedule(static)
                for (Size block = 0; block < blocks; ++block) {
                    const Size first = block * tokens / blocks, count = (block + 1) * tokens / blocks - first;
                    for (Size token = 0; token < tokens; token += PANEL)
                        products<Float32>(count, queries + first * query, query, keys + token * query, 1, query, 0, 0,
                                          scores + token, tokens, tokens - token, plain);
                    float factors[AT_ONCE];
                    for (Size i = 0; i < count; ++i) factors[i] = softmax(scores + i * tokens, tokens);
                    for (Size c = 0; c < attending; c += PANEL)
                        products<Float32>(count, scores, tokens, values + c * tokens, 1, tokens, 0, 0, attended + c,
                                          attending, attending - c, plain);
                    for (Size i = 0; i < count; ++i)
                        join(attended + i * attending, factors[i], x + (first + i) * channels, joined + i * channels);
                    for (Size panel = 0; panel < project_out.panels(); ++panel)
                        project_out.run(count, joined, out + first * channels, x + first * channels, panel);
                }
            }
        }
    }
};

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
    const Size out_line = out_width * out_channels;
    const Convolution<Type> layer{height, width, channels, out_height, out_width, out_channels, out_line, out_channels,
                                  kernel, kernel, stride, padding, padding, static_cast<const Number*>(weights), bias,
                                  relu};
    convolve<Type>(static_cast<const Number*>(x), batch, static_cast<Number*>(out), out_height * out_line, layer,
                   threads);
}

template <class Type>
void run_transposed(const void* x, Size batch, Size height, Size width, Size channels, void* out, Size out_height,
                    Size out_width, Size out_channels, Size kernel, Size stride, Size padding, const void* weights,
                    const float* bias, int threads) {
    using Number = typename Type::Number;
    transposed<Type>(static_cast<const Number*>(x), batch, height, width, channels, static_cast<Number*>(out),
                     out_height, out_width, out_channels, kernel, stride, padding, static_cast<const Number*>(weights),
                     bias, threads);
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
void run_attention(const void* x, Size batch, Size tokens, Size channels, Size attending, Size query,
                   const float* scale, const float* shift, float epsilon, const void* in, const float* in_bias,
                   const void* out_weights, const float* out_bias, void* out, int threads) {
    using Number = typename Type::Number;
    const Attention<Type> layer{
        tokens, channels, attending, query, scale, shift, epsilon,
        {attending, 2 * query + attending, static_cast<const Number*>(in), in_bias, false},
        {channels, channels, static_cast<const Number*>(out_weights), out_bias, false}};
    layer.run(static_cast<const Number*>(x), batch, static_cast<Number*>(out), threads);
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

void shvit_transposed(int type, const void* x, Size batch, Size height, Size width, Size channels, void* out,
                      Size out_height, Size out_width, Size out_channels, Size kernel, Size stride, Size padding,
                      const void* weights, const float* bias, int threads) {
    CHOOSE(run_transposed, x, batch, height, width, channels, out, out_height, out_width, out_channels, kernel, stride,
           padding, weights, bias, threads);
}

void shvit_linear(int type, const void* x, Size count, Size channels, void* out, Size out_channels,
                  const void* weights, const float* bias, const void* residual, int relu, int threads) {
    CHOOSE(run_linear, x, count, channels, out, out_channels, weights, bias, residual, relu, threads);
}

void shvit_feed_forward(int type, const void* x, Size count, Size channels, Size hidden, void* out, const void* expand,
                        const float* expand_bias, const void* reduce, const float* reduce_bias, int threads) {
    CHOOSE(run_feed_forward, x, count, channels, hidden, out, expand, expand_bias, reduce, reduce_bias, threads);
}

void shvit_attention(int type, const void* x, Size batch, Size tokens, Size channels, Size attending, Size query,
                     const float* scale, const float* shift, float epsilon, const void* in, const float* in_bias,
                     const void* out_weights, const float* out_bias, void* out, int threads) {
    CHOOSE(run_attention, x, batch, tokens, channels, attending, query, scale, shift, epsilon, in, in_bias, out_weights,
           out_bias, out, threads);
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
