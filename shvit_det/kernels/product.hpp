// Products of matrices whose rows are positions of a map.

#pragma once

#include "numbers.hpp"

namespace shvit {

constexpr int AHEAD = 8;       // steps of a product by which weights are fetched before they are used
constexpr int MOST_ROWS = 12;  // positions at once; 14 would fill the registers, and are slower
constexpr int SHARING = 3;     // positions that are reached from one address: with one for each, registers run out

// What is done with sums before they are written.
template <class Type>
struct Finish {
    const float* bias;                      // of the panel; none if null
    const typename Type::Number* residual;  // at the first position and channel; none if null
    Size residual_step;                     // from one position to the next
    bool relu;
};

// A product: ROWS positions of the result and the first 16, 24 or 32 channels of a panel. Half a vector takes half the
// time of a whole one.
template <class Type, int CHANNELS, int ROWS>
void product(const typename Type::Number* x, Size x_step,                  // first position; to the next one
             const typename Type::Number* weights,                         // of the panel
             Size runs, Size run, Size x_run_step, Size weights_run_step,  // runs, their length; to the next run
             typename Type::Number* out, Size out_step, Size channels,     // channels to be written of the panel
             const Finish<Type>& finish) {
    constexpr int VECTORS = CHANNELS / LANES, BASES = (ROWS + SHARING - 1) / SHARING;
    constexpr bool HALF = CHANNELS % LANES != 0;
    Vector sums[ROWS][VECTORS];
    Half halves[ROWS];
    const Vector zero = _mm512_setzero_ps();
    const auto start_of = [&](int v) { return finish.bias ? _mm512_load_ps(finish.bias + v * LANES) : zero; };
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[row][v] = start_of(v);
        if constexpr (HALF) halves[row] = _mm512_castps512_ps256(start_of(VECTORS));
    }
    for (Size r = 0; r < runs; ++r) {
        const typename Type::Number* panel = weights + r * weights_run_step;
        const typename Type::Number* start = x + r * x_run_step;
        const typename Type::Number* bases[BASES];
#pragma GCC unroll 4
        for (int base = 0; base < BASES; ++base) bases[base] = start + SHARING * base * x_step;
        for (const typename Type::Number* end = start + run; bases[0] < end; panel += PANEL * Type::DEPTH) {
            for (int v = 0; v < VECTORS + HALF; ++v)
                _mm_prefetch(panel + (AHEAD * PANEL + v * LANES) * Type::DEPTH, _MM_HINT_T0);
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; ++row) {
                const Vector value = Type::broadcast(bases[row / SHARING] + row % SHARING * x_step);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    sums[row][v] = Type::add_product(sums[row][v], value, panel + v * LANES * Type::DEPTH);
                if constexpr (HALF)
                    halves[row] = Type::add_product(halves[row], value, panel + VECTORS * LANES * Type::DEPTH);
            }
#pragma GCC unroll 4
            for (int base = 0; base < BASES; ++base) bases[base] += Type::DEPTH;
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS + HALF; ++v) {
        const __mmask16 mask = lanes(channels - v * LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            Vector sum = v < VECTORS ? sums[row][v] : _mm512_castps256_ps512(halves[row]);
            if (finish.residual)
                sum = _mm512_add_ps(sum, Type::load(finish.residual + row * finish.residual_step + v * LANES, mask));
            if (finish.relu) sum = _mm512_max_ps(zero, sum);  // the second one if either is NaN
            Type::store(out + row * out_step + v * LANES, mask, sum);
        }
    }
}

template <class Type>
using Product = void (*)(const typename Type::Number*, Size, const typename Type::Number*, Size, Size, Size, Size,
                         typename Type::Number*, Size, Size, const Finish<Type>&);

template <class Type, int CHANNELS, std::size_t... I>
constexpr std::array<Product<Type>, sizeof...(I)> sizes(std::index_sequence<I...>) {
    return {product<Type, CHANNELS, I + 1>...};
}

// Computes `count` positions that lie at equal steps, in groups of about equal size.
template <class Type>
void products(Size count, const typename Type::Number* x, Size x_step, const typename Type::Number* weights, Size runs,
              Size run, Size x_run_step, Size weights_run_step, typename Type::Number* out, Size out_step,
              Size channels, Finish<Type> finish) {
    static constexpr std::array CHOICES = {sizes<Type, 16>(std::make_index_sequence<MOST_ROWS>()),
                                           sizes<Type, 24>(std::make_index_sequence<MOST_ROWS>()),
                                           sizes<Type, 32>(std::make_index_sequence<MOST_ROWS>())};
    const auto& choice = CHOICES[channels > 24 ? 2 : channels > 16 ? 1 : 0];
    for (Size groups = (count + MOST_ROWS - 1) / MOST_ROWS; groups > 0; --groups) {
        const Size rows = (count + groups - 1) / groups;
        choice[rows - 1](x, x_step, weights, runs, run, x_run_step, weights_run_step, out, out_step, channels, finish);
        count -= rows;
        x += rows * x_step;
        out += rows * out_step;
        if (finish.residual) finish.residual += rows * finish.residual_step;
    }
}

}  // namespace shvit
