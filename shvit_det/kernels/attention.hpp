// Attention with a single head, from norm to residual.

#pragma once

#include <cmath>

#include "linear.hpp"

namespace shvit {

// Replaces scores by e to their power, all times a common factor, and returns what they still have to be multiplied by.
inline float softmax(float* scores, Size count) {
    Vector largest = all(-INFINITY), sum{};
    for (Size i = 0; i < count; i += LANES) {
        const Lanes some = lanes(count - i);
        largest = maximum(largest, select(some, load(scores + i, some), largest));
    }
    const Vector top = all(largest_of(largest));
    for (Size i = 0; i < count; i += LANES) {
        const Lanes some = lanes(count - i);
        const Vector value = exponential(load(scores + i, some) - top);
        sum += select(some, value, Vector{});
        store(scores + i, some, value);
    }
    return 1 / sum_of(sum);
}

// x + project(relu(cat(attention(norm(x[:attending])), x[attending:]))) with a single head and a GroupNorm of one
// group; scores and what they weigh are float32. The scale of the scores is in the weights of the queries.
template <class Type>
struct Attention {
    using Number = typename Type::Number;
    static constexpr Size AT_ONCE = 36;
    Size tokens, channels, attending, query;
    const float *scale, *shift;
    float epsilon;
    Linear<Type> project_in, project_out;  // the first one's channels: `attending`, and one of zeros if that is odd

    void normalise(const Number* x, Number* out) const {
        const auto mean_of = [&](auto function) {
            double total = 0;
            for (Size token = 0; token < tokens; ++token) {
                Vector sum{};
                for (Size c = 0; c < attending; c += LANES) {
                    const Lanes some = lanes(attending - c);
                    sum += select(some, function(Type::load(x + token * channels + c, some)), Vector{});
                }
                total += sum_of(sum);
            }
            return static_cast<float>(total / (static_cast<double>(tokens) * attending));
        };
        const Vector mean = all(mean_of([](Vector value) { return value; }));
        const float variance = mean_of([&](Vector value) {
            const Vector distance = value - mean;
            return distance * distance;
        });
        const Vector factor = all(1 / std::sqrt(variance + epsilon));
        for (Size token = 0; token < tokens; ++token)
            for (Size c = 0; c < attending; c += LANES) {
                const Lanes some = lanes(attending - c);
                const Vector distance = Type::load(x + token * channels + c, some) - mean;
                Type::store(out + token * project_in.channels + c, some,
                            fused(distance * factor, load(scale + c, some), load(shift + c, some)));
            }
    }

    // Queries (tokens, query); keys and values in panels, as weights are, of the tokens [first, last).
    void lay_out(const Number* projected, Size first, Size last, float* queries, float* keys, float* values) const {
        for (Size token = first; token < last; ++token) {
            const Number* from = projected + token * project_in.out_channels;
            alignas(64) float key[LANES];
            for (Size c = 0; c < query; c += LANES) {
                const Lanes some = lanes(query - c);
                store(queries + token * query + c, some, Type::load(from + c, some));
                store_whole(key, Type::load(from + query + c, some));
                for (Size i = c; i < std::min(query, c + LANES); ++i)
                    keys[(token / PANEL * query + i) * PANEL + token % PANEL] = key[i - c];
            }
            for (Size c = 0; c < attending; c += LANES)
                store_whole(values + (c / PANEL * tokens + token) * PANEL + c % PANEL,
                            Type::load(from + 2 * query + c, lanes(attending - c)));
        }
    }

    // relu(cat(attended * factor, x[attending:])) of one token.
    void join(const float* attended, float factor, const Number* x, Number* joined) const {
        const Vector by = all(factor);
        for (Size c = 0; c < attending; c += LANES) {
            const Lanes some = lanes(attending - c);
            Type::store(joined + c, some, rectified(load(attended + c, some) * by));
        }
        for (Size c = attending; c < channels; c += LANES) {
            const Lanes some = lanes(channels - c);
            Type::store(joined + c, some, rectified(Type::load(x + c, some)));
        }
    }

    void run(const Number* x, Size batch, Number* out, int threads) const {
        const Size panels = (tokens + PANEL - 1) / PANEL, value_panels = (attending + PANEL - 1) / PANEL;
        const Size blocks = (tokens + AT_ONCE - 1) / AT_ONCE;
        const Buffer normed_memory = buffer(tokens * project_in.channels * sizeof(Number));
        const Buffer projected_memory = buffer(tokens * project_in.out_channels * sizeof(Number));
        const Buffer query_memory = buffer(tokens * query * sizeof(float));
        const Buffer key_memory = buffer(panels * query * PANEL * sizeof(float));
        const Buffer value_memory = buffer(value_panels * tokens * PANEL * sizeof(float));
        const Pieces score_memory(AT_ONCE * tokens * sizeof(float), threads);
        const Pieces attended_memory(AT_ONCE * attending * sizeof(float), threads);
        const Pieces joined_memory(AT_ONCE * channels * sizeof(Number), threads);
        Number* normed = static_cast<Number*>(normed_memory.get());
        Number* projected = static_cast<Number*>(projected_memory.get());
        float* queries = static_cast<float*>(query_memory.get());
        float* keys = static_cast<float*>(key_memory.get());
        float* values = static_cast<float*>(value_memory.get());
        const Finish<Float32> plain{nullptr, nullptr, 0, false};
        std::fill(normed, normed + tokens * project_in.channels, Number(0));
        std::fill(keys, keys + panels * query * PANEL, 0.0f);
        for (Size image = 0; image < batch; ++image, x += tokens * channels, out += tokens * channels) {
            normalise(x, normed);
#pragma omp parallel num_threads(threads)
            {
                float *scores = score_memory.mine<float>(), *attended = attended_memory.mine<float>();
                Number* joined = joined_memory.mine<Number>();
                bool cold = image == 0;  // weights; not those of blocks after the first
#pragma omp for schedule(static)
                for (Size block = 0; block < blocks; ++block) {
                    const Size first = block * tokens / blocks, last = (block + 1) * tokens / blocks;
                    project_in.run(last - first, normed + first * project_in.channels,
                                   projected + first * project_in.out_channels, nullptr, cold);
                    lay_out(projected, first, last, queries, keys, values);
                    cold = false;
                }
                cold = image == 0;
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
                    project_out.run(count, joined, out + first * channels, x + first * channels, cold);
                    cold = false;
                }
            }
        }
    }
};

}  // namespace shvit
