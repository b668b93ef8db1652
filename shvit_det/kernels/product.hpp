// Products of matrices whose rows are positions of a map.

#pragma once

#include <array>
#include <utility>

#include "memory.hpp"
#include "numbers.hpp"

namespace shvit {

constexpr int AHEAD = 8;  // steps of a product by which its own weights are fetched before they are used
constexpr int UNROLLED = LANES == 8 ? 4 : 1;  // steps that are written out; with AVX2 faster, with AVX-512 slower
constexpr int SHARING = 3;  // positions that are reached from one address: with one for each, registers run out

// What is done with sums before they are written.
template <class Type>
struct Finish {
    const float* bias;                      // of the panel; none if null
    const typename Type::Number* residual;  // at the first position and channel; none if null
    Size residual_step;                     // from one position to the next
    bool relu;
};

template <class Type>
constexpr int STEP_BYTES = PANEL * Type::DEPTH * sizeof(typename Type::Number);  // of the weights of a step

// What a product fetches into the cache while it computes: in each step the lines of one step's weights, `step` bytes
// further than in the step before.
struct Fetch {
    const char* at;
    Size step;
};

// A product: ROWS positions of the result and the first CHANNELS of a panel, in whole vectors and maybe half a one,
// which takes half the time.
template <class Type, int CHANNELS, int ROWS>
void product(const typename Type::Number* x, Size x_step,                  // first position; to the next one
             const typename Type::Number* weights,                         // of the panel
             Size runs, Size run, Size x_run_step, Size weights_run_step,  // runs, their length; to the next run
             typename Type::Number* out, Size out_step, Size channels,     // channels to be written of the panel
             const Finish<Type>& finish, Fetch fetch) {
    constexpr int VECTORS = CHANNELS / LANES, BASES = (ROWS + SHARING - 1) / SHARING;
    constexpr bool HALF = CHANNELS % LANES != 0;
    Vector sums[ROWS][VECTORS];
    Half halves[ROWS];
    const auto start_of = [&](int v, auto none) {
        return finish.bias ? load_whole<decltype(none)>(finish.bias + v * LANES) : none;
    };
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[row][v] = start_of(v, Vector{});
        if constexpr (HALF) halves[row] = start_of(VECTORS, Half{});
    }
    for (Size r = 0; r < runs; ++r) {
        const typename Type::Number* panel = weights + r * weights_run_step;
        const typename Type::Number* start = x + r * x_run_step;
        const char* ahead = fetch.at + r * fetch.step * (run / Type::DEPTH);
        const typename Type::Number* bases[BASES];
#pragma GCC unroll 4
        for (int base = 0; base < BASES; ++base) bases[base] = start + SHARING * base * x_step;
#pragma GCC unroll UNROLLED
        for (const typename Type::Number* end = start + run; bases[0] < end; panel += PANEL * Type::DEPTH) {
#pragma GCC unroll 4
            for (int byte = 0; byte < CHANNELS * STEP_BYTES<Type> / PANEL; byte += ALIGNED)
                __builtin_prefetch(ahead + byte);
            ahead += fetch.step;
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; ++row) {
                const typename Type::Number* value = bases[row / SHARING] + row % SHARING * x_step;
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v)
                    sums[row][v] = Type::add_product(sums[row][v], value, panel + v * LANES * Type::DEPTH);
                if constexpr (HALF)
                    halves[row] = Type::add_product(halves[row], value, panel + VECTORS * LANES * Type::DEPTH);
            }
#pragma GCC unroll 4
            for (int base = 0; base < BASES; ++base) bases[base] += Type::DEPTH;
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS + HALF; ++v) {
        const Lanes some = lanes(channels - v * LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
            Vector sum{};
            if (v < VECTORS)
                sum = sums[row][v];
            else
                std::memcpy(&sum, &halves[row], sizeof(Half));
            if (finish.residual) sum += Type::load(finish.residual + row * finish.residual_step + v * LANES, some);
            if (finish.relu) sum = rectified(sum);
            Type::store(out + row * out_step + v * LANES, some, sum);
        }
    }
}

template <class Type>
using Product = void (*)(const typename Type::Number*, Size, const typename Type::Number*, Size, Size, Size, Size,
                         typename Type::Number*, Size, Size, const Finish<Type>&, Fetch);

template <class Type, int CHANNELS, std::size_t... I>
constexpr std::array<Product<Type>, Type::MOST_ROWS> of_rows(std::index_sequence<I...>) {
    return {product<Type, CHANNELS, I + 1>...};
}

// Products are for one vector of channels or more, in steps of so many channels, and for one row or more.
constexpr int CHANNEL_STEP = std::min(LANES, 8), NUM_WIDTHS = (PANEL - LANES) / CHANNEL_STEP + 1;

template <class Type, std::size_t... I>
constexpr std::array<std::array<Product<Type>, Type::MOST_ROWS>, NUM_WIDTHS> of_widths(std::index_sequence<I...>) {
    return {of_rows<Type, LANES + I * CHANNEL_STEP>(std::make_index_sequence<Type::MOST_ROWS>())...};
}

// Computes `count` positions that lie at equal steps, in groups of about equal size. Where weights are not in the cache
// (`cold`), those of the next panel, which lie behind, are fetched meanwhile: reading them from memory takes longer
// than using them once.
template <class Type>
void products(Size count, const typename Type::Number* x, Size x_step, const typename Type::Number* weights, Size runs,
              Size run, Size x_run_step, Size weights_run_step, typename Type::Number* out, Size out_step,
              Size channels, Finish<Type> finish, bool cold = false) {
    static constexpr auto CHOICES = of_widths<Type>(std::make_index_sequence<NUM_WIDTHS>());
    if (count <= 0) return;
    const Size more = std::clamp<Size>(channels, LANES, PANEL) - LANES;
    const auto& choice = CHOICES[(more + CHANNEL_STEP - 1) / CHANNEL_STEP];
    Size groups = (count + Type::MOST_ROWS - 1) / Type::MOST_ROWS;
    const Size share = cold ? (STEP_BYTES<Type> + groups - 1) / groups : STEP_BYTES<Type>;
    const Size ahead = cold ? runs * run * PANEL : AHEAD * PANEL * Type::DEPTH;
    Fetch fetch{reinterpret_cast<const char*>(weights + ahead), share};
    for (; groups > 0; --groups) {
        const Size rows = (count + groups - 1) / groups;
        choice[rows - 1](x, x_step, weights, runs, run, x_run_step, weights_run_step, out, out_step, channels, finish,
                         fetch);
        if (cold) fetch.at += runs * run / Type::DEPTH * share;
        count -= rows;
        x += rows * x_step;
        out += rows * out_step;
        if (finish.residual) finish.residual += rows * finish.residual_step;
    }
}

}  // namespace shvit
