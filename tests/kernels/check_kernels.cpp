// Holds each kind of step, and the pooling of regions, against loops in double.
//
// check_kernels [--cases NUMBER] [KIND...] draws so many cases of the kinds, in each type, and tells the largest error
// of each kind, relative to the largest magnitude of the result. At the first result that is wrong it says what was
// computed, and ends with status 1.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <list>
#include <random>
#include <string>
#include <vector>

#include "interface.hpp"

using namespace shvit;
using Numbers = std::vector<double>;

constexpr double TOLERANCE = 1e-4, ROUNDING = 1.0 / 256;  // of the largest magnitude; the latter for bfloat16
constexpr double LEAST = 0.1;                             // taken for the largest magnitude if that is smaller
constexpr Size MOST_TERMS = 400000;                       // of a case, so that the loops do not take long
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

std::string running;  // what is computed at the moment

[[noreturn]] void fail(const std::string& reason) {
    std::printf("\nFAILED: %s\n%s", reason.c_str(), running.c_str());
    std::fflush(stdout);
    _exit(1);
}

void outside(int) { fail("memory was read or written that does not belong to the maps or weights"); }

// ---------------------------------------------------------------------------------------------- numbers and memory

uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // ties to even
}

float from_bfloat16(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

double rounded(double x, bool bfloat16) {
    const float narrow = static_cast<float>(x);
    return bfloat16 ? from_bfloat16(to_bfloat16(narrow)) : narrow;
}

// Memory that ends, but for what alignment takes, where a page begins that nobody may touch.
class Memory {
  public:
    Memory(Size bytes, Size alignment = 1) : bytes_(bytes) {
        const Size page = sysconf(_SC_PAGESIZE), size = (bytes + alignment - 1) / alignment * alignment;
        mapped_ = (size + page - 1) / page * page + page;
        start_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (start_ == MAP_FAILED) fail("no memory");
        mprotect(start_ + mapped_ - page, page, PROT_NONE);
        data_ = start_ + mapped_ - page - size;
        std::memset(data_, 0xff, size);  // NaN in either type
    }
    Memory(const Memory&) = delete;
    ~Memory() { munmap(start_, mapped_); }

    char* data() const { return data_; }
    Size bytes() const { return bytes_; }

    void write(const Numbers& numbers, bool bfloat16) {
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            const float number = static_cast<float>(numbers[i]);
            if (bfloat16)
                reinterpret_cast<uint16_t*>(data_)[i] = to_bfloat16(number);
            else
                reinterpret_cast<float*>(data_)[i] = number;
        }
        mprotect(start_, mapped_ - sysconf(_SC_PAGESIZE), PROT_READ);
    }

  private:
    Size bytes_, mapped_;
    char *start_, *data_;
};

Size size_of(bool bfloat16) { return bfloat16 ? sizeof(uint16_t) : sizeof(float); }

// Memory for a result, between two zones that must stay as they are.
class Result {
  public:
    explicit Result(Size bytes) : bytes_(bytes), memory_(bytes + 2 * ZONE) {
        std::memset(memory_.data(), PATTERN, ZONE);
        std::memset(memory_.data() + ZONE + bytes, PATTERN, ZONE);
    }

    char* data() const { return memory_.data() + ZONE; }

    void check_zones() const {
        for (const char* zone : {memory_.data(), memory_.data() + ZONE + bytes_})
            for (Size i = 0; i < ZONE; ++i)
                if (zone[i] != PATTERN)
                    fail(std::string("written ") + (zone == memory_.data() ? "before" : "behind") + " a result");
    }

    double number(std::size_t i, bool bfloat16) const {
        return bfloat16 ? from_bfloat16(reinterpret_cast<const uint16_t*>(data())[i])
                        : reinterpret_cast<const float*>(data())[i];
    }

  private:
    static constexpr Size ZONE = 256;  // bytes
    static constexpr char PATTERN = 0x5a;
    Size bytes_;
    Memory memory_;
};

// The same on every machine, unlike the distributions of the standard library.
class Random {
  public:
    explicit Random(const std::vector<uint32_t>& seed) {
        std::seed_seq sequence(seed.begin(), seed.end());
        engine_.seed(sequence);
    }

    Size below(Size limit) { return static_cast<Size>(engine_() % static_cast<uint64_t>(limit)); }
    double number() { return static_cast<double>(engine_() >> 11) / (1ull << 52) - 1; }  // between -1 and 1
    bool one_in(Size count) { return below(count) == 0; }
    Size among(std::initializer_list<Size> choices) { return choices.begin()[below(choices.size())]; }
    Size channels() { return among({1, 2, 3, 4, 5, 8, 12, 15, 16, 17, 24, 25, 31, 32, 33, 40, 48, 65}); }

  private:
    std::mt19937_64 engine_;
};

// A map in NHWC, and its place in the list of maps.
struct Map {
    Size batch, height, width, channels;
    Size index = 0;
    Numbers numbers = Numbers(batch * height * width * channels);

    double& at(Size image, Size y, Size x, Size c) {
        return numbers[((image * height + y) * width + x) * channels + c];
    }
    double at(Size image, Size y, Size x, Size c) const { return const_cast<Map*>(this)->at(image, y, x, c); }
    bool has(Size y, Size x) const { return y >= 0 && y < height && x >= 0 && x < width; }

    // Calls a function with the places of all numbers.
    template <class Function>
    void each(Function function) const {
        for (Size image = 0; image < batch; ++image)
            for (Size y = 0; y < height; ++y)
                for (Size x = 0; x < width; ++x)
                    for (Size c = 0; c < channels; ++c) function(image, y, x, c);
    }

    // The numbers in the order of NCHW.
    Numbers planar() const {
        Numbers ordered;
        Map{batch, channels, height, width}.each(
            [&](Size image, Size c, Size y, Size x) { ordered.push_back(at(image, y, x, c)); });
        return ordered;
    }
};

double rectified(double x, bool relu) { return relu && x < 0 ? 0 : x; }  // NaN stays, as with torch

// -------------------------------------------------------------------------------------------------- steps and plans

// Weights (kernel, kernel, channels, out_channels) and biases.
struct Weights {
    Size kernel, channels, out_channels;
    Numbers numbers, biases;

    double at(Size row, Size column, Size c, Size o) const {
        return numbers[((row * kernel + column) * channels + c) * out_channels + o];
    }
};

// Some steps with what they compute from; the functions below add steps to it.
class Plan {
  public:
    Plan(bool bfloat16, Size threads, uint32_t kind, uint32_t number)
        : bfloat16(bfloat16), threads(threads), random({kind, number, bfloat16}) {
        nan_in_map_ = random.one_in(8);
        nan_in_biases_ = !nan_in_map_ && random.one_in(8);
    }

    const bool bfloat16;
    const Size threads;
    Random random;
    bool exact = false;         // whether numbers are only moved
    bool spreads_nan = false;   // whether NaN may come out where loops have none
    double most_roundings = 1;  // from the input to the result

    // Channels in one step of a product.
    Size depth() const { return bfloat16 ? 2 : 1; }

    // Channels of what a product is of: about a number drawn, as many as the type can have.
    Size channels() { return whole(random.channels()); }
    Size whole(Size channels) const { return (channels + depth() - 1) / depth() * depth(); }

    // A map with a random number of positions; `terms` is what the loops add up for each.
    Map input(Size channels, Size terms, bool planar = false) {
        Size batch, height, width;
        do {
            const auto side = [&] { return random.among({1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 16, 17, 33, 50, 70}); };
            batch = random.among({1, 1, 2, 3}), height = side(), width = side();
        } while (batch * height * width * terms > MOST_TERMS);
        return input(batch, height, width, channels, planar);
    }

    Map input(Size batch, Size height, Size width, Size channels, bool planar = false) {
        Map map{batch, height, width, channels};
        const double mean = random.one_in(2) ? 0 : random.number();
        for (double& number : map.numbers) number = rounded(random.number() + mean, bfloat16);
        if (nan_in_map_ && !has_nan_) {
            map.numbers[random.below(static_cast<Size>(map.numbers.size()))] = NOT_A_NUMBER;
            has_nan_ = true;
        }
        map.index = static_cast<Size>(maps_.size());
        maps_.push_back(stored_numbers(planar ? map.planar() : map.numbers, bfloat16, size_of(bfloat16)));
        return map;
    }

    Weights weights(Size kernel, Size channels, Size out_channels, double scale = 1) {
        Weights made{kernel, channels, out_channels, Numbers(kernel * kernel * channels * out_channels), {}};
        scale *= std::sqrt(3.0 / static_cast<double>(std::max<Size>(1, kernel * kernel * channels)));
        for (double& weight : made.numbers) weight = rounded(scale * random.number(), bfloat16);
        for (Size o = 0; o < out_channels; ++o) made.biases.push_back(rounded(scale * random.number(), false));
        if (nan_in_biases_) made.biases[random.below(out_channels)] = NOT_A_NUMBER;
        nan_in_biases_ = false;
        return made;
    }

    // Appends a step that computes `out` from `x`, which its caller completes.
    Step& add(Kind kind, const Map& x, Map& out) {
        Step step{};
        step.kind = kind, step.bfloat16 = bfloat16;
        step.batch = x.batch, step.height = x.height, step.width = x.width, step.channels = x.channels;
        step.out_height = out.height, step.out_width = out.width, step.out_channels = out.channels;
        step.x = x.index, step.residual = step.own = -1;
        step.out = out.index = static_cast<Size>(maps_.size());
        maps_.push_back(nullptr);
        steps_.push_back(step);
        return steps_.back();
    }

    // Joins the step that was added last with the one that will be.
    void join() { steps_.back().joined = true; }

    // A further map for what a step keeps in between.
    void give_memory(Step& step, Size bytes) {
        memory_.emplace_back(bytes, ALIGNMENT);
        step.own = static_cast<Size>(maps_.size()), step.own_bytes = bytes;
        maps_.push_back(memory_.back().data());
    }

    const void* data(const Map& map) const { return maps_[map.index]; }

    // Weights in panels.
    const void* keep(const Numbers& panels, bool as_bfloat16) { return stored_numbers(panels, as_bfloat16, ALIGNMENT); }

    // Numbers in float32 that no panel is made of; without alignment, so that their end is that of the memory.
    const float* keep_plain(const Numbers& numbers) {
        return reinterpret_cast<float*>(stored_numbers(numbers, false, sizeof(float)));
    }

    // Biases with zeros up to a whole number of panels.
    const float* keep_biases(Numbers biases) {
        biases.resize((biases.size() + shvit_panel() - 1) / shvit_panel() * shvit_panel());
        return static_cast<const float*>(keep(biases, false));
    }

    // Computes all steps and compares what the last one made; returns the error.
    double run(const Map& expected) {
        running = description();
        std::list<Result> results;
        for (const Step& step : steps_)
            if (!step.joined) {  // nobody writes what is between joined steps
                results.emplace_back(step.batch * step.out_height * step.out_width * step.out_channels *
                                     size_of(bfloat16));
                maps_[step.out] = results.back().data();
            }
        if (shvit_run(steps_.data(), static_cast<Size>(steps_.size()), maps_.data(), static_cast<int>(threads)))
            fail("no memory");
        for (const Result& result : results) result.check_zones();
        return compare(results.back(), expected.numbers);
    }

    double compare(const Result& result, const Numbers& expected) const {
        double largest = LEAST, error = 0;
        for (const double number : expected)
            if (!std::isnan(number)) largest = std::max(largest, std::abs(number));
        const double allowed = exact ? 0 : TOLERANCE + (bfloat16 ? most_roundings * ROUNDING : 0);
        for (std::size_t i = 0; i < expected.size(); ++i) {
            const double found = result.number(i, bfloat16);
            if (std::isnan(found) ? std::isnan(expected[i]) || (spreads_nan && has_nan_)
                                  : std::abs(found - expected[i]) <= allowed * largest) {
                if (!std::isnan(found)) error = std::max(error, std::abs(found - expected[i]));
                continue;
            }
            fail("number " + std::to_string(i) + " of the result is " + std::to_string(found) + " instead of " +
                 std::to_string(expected[i]) + "; the largest is " + std::to_string(largest));
        }
        return error / largest;
    }

  private:
    static constexpr Size ALIGNMENT = 64;  // of weights and of memory in between: torch's

    char* stored_numbers(const Numbers& numbers, bool as_bfloat16, Size alignment) {
        memory_.emplace_back(static_cast<Size>(numbers.size()) * size_of(as_bfloat16), alignment);
        memory_.back().write(numbers, as_bfloat16);
        return memory_.back().data();
    }

    std::string description() const {
        static const char* const names[] = {"CONVOLVE",   "TRANSPOSED",         "LINEAR",   "FEED_FORWARD",
                                            "ATTENTION",  "DEPTHWISE",          "WINOGRAD", "SQUEEZE_EXCITE",
                                            "INTERLEAVE", "TRANSPOSED_WINOGRAD"};
        std::string text = bfloat16 ? "  bfloat16" : "  float32";
        text += ", threads " + std::to_string(threads) + ":\n";
        for (const Step& step : steps_) {
            const auto shape = [](Size height, Size width, Size channels) {
                return std::to_string(height) + "x" + std::to_string(width) + "x" + std::to_string(channels);
            };
            text += std::string("  ") + names[step.kind] + " of " + std::to_string(step.batch) + " maps " +
                    shape(step.height, step.width, step.channels) + " to " +
                    shape(step.out_height, step.out_width, step.out_channels);
            const std::pair<const char*, Size> fields[] = {
                {"kernel", step.kernel}, {"stride", step.stride},       {"padding", step.padding},
                {"hidden", step.hidden}, {"query", step.query},         {"relu", step.relu},
                {"planar", step.planar}, {"own bytes", step.own_bytes}, {"residual", step.residual + 1},
                {"joined", step.joined}};
            for (const auto& [name, value] : fields)
                if (value) text += std::string(", ") + name + " " + std::to_string(value);
            text += "\n";
        }
        return text;
    }

    bool nan_in_map_, nan_in_biases_, has_nan_ = false;  // wanted in the first map or the first biases; in a map
    std::vector<Step> steps_;
    std::vector<void*> maps_;
    std::list<Memory> memory_;
};

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

void keep_convolution(Plan& plan, Step& step, int operand, const Weights& weights) {
    Numbers packed;
    pack(packed, weights.kernel * weights.kernel, weights.channels, weights.out_channels, plan.depth(),
         [&](Size tap, Size c, Size o) { return weights.at(tap / weights.kernel, tap % weights.kernel, c, o); });
    step.weights[operand] = plan.keep(packed, plan.bfloat16);
    step.biases[operand] = plan.keep_biases(weights.biases);
}

// How much each tap counts in each of the six products along an axis: a polynomial's values at points and at infinity.
std::array<std::array<double, 3>, 6> shares_of_taps(Size taps) {
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

// ------------------------------------------------------------------------------ steps, each with what it is to compute

double convolved(const Map& x, const Weights& weights, Size image, Size top, Size left, Size o) {
    double sum = weights.biases[o];
    for (Size row = 0; row < weights.kernel; ++row)
        for (Size column = 0; column < weights.kernel; ++column)
            if (x.has(top + row, left + column))
                for (Size c = 0; c < x.channels; ++c)
                    sum += x.at(image, top + row, left + column, c) * weights.at(row, column, c, o);
    return sum;
}

Map convolved(const Map& x, const Weights& weights, Size stride, Size padding, bool relu) {
    const auto size = [&](Size side) { return (side + 2 * padding - weights.kernel) / stride + 1; };
    Map out{x.batch, size(x.height), size(x.width), weights.out_channels};
    out.each([&](Size image, Size row, Size column, Size o) {
        out.at(image, row, column, o) =
            rectified(convolved(x, weights, image, row * stride - padding, column * stride - padding, o), relu);
    });
    return out;
}

Map convolve(Plan& plan, const Map& x, Size out_channels, Size kernel, Size stride, Size padding, bool relu) {
    const Weights weights = plan.weights(kernel, x.channels, out_channels);
    Map out = convolved(x, weights, stride, padding, relu);
    Step& step = plan.add(CONVOLVE, x, out);
    step.kernel = kernel, step.stride = stride, step.padding = padding, step.relu = relu;
    keep_convolution(plan, step, 0, weights);
    return out;
}

Map winograd(Plan& plan, const Map& x, Size out_channels, bool relu) {
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
Numbers packed_transposed(const Weights& weights, Size stride, Size depth, bool by_winograd) {
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

Map transposed(Plan& plan, const Map& x, Size out_channels, Size kernel, Size stride, Size padding, bool relu,
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

Map linear(Plan& plan, const Map& x, Size out_channels, bool relu, const Map* residual = nullptr) {
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

Map feed_forward(Plan& plan, const Map& x, Size hidden) {
    const Weights expand = plan.weights(1, x.channels, hidden), reduce = plan.weights(1, hidden, x.channels);
    Map out = convolved(convolved(x, expand, 1, 0, true), reduce, 1, 0, false);
    for (std::size_t i = 0; i < out.numbers.size(); ++i) out.numbers[i] += x.numbers[i];
    Step& step = plan.add(FEED_FORWARD, x, out);
    step.hidden = hidden;
    keep_convolution(plan, step, 0, expand);
    keep_convolution(plan, step, 1, reduce);
    return out;
}

Map depthwise(Plan& plan, const Map& x, Size stride, bool relu) {
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

Map squeeze_excite(Plan& plan, const Map& x, Size hidden) {
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

Map interleave(Plan& plan, const Map& x, Size out_channels, bool planar) {
    Map out{x.batch, x.height, x.width, out_channels};
    x.each([&](Size image, Size y, Size left, Size c) { out.at(image, y, left, c) = x.at(image, y, left, c); });
    plan.add(INTERLEAVE, x, out).planar = planar;
    return out;
}

// The first channels of all positions, normalised over all of them.
Map normalised(const Map& x, Size attending, const Weights& norm, double epsilon) {
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

Map attention(Plan& plan, const Map& x, Size attending, Size query, double sharpness) {
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

// ------------------------------------------------------------------------------------------------------ random cases

double check_convolve(Plan& plan) {
    Random& random = plan.random;
    const Size kernel = random.among({1, 2, 3, 3, 5}), stride = random.among({1, 2, 3}), out = random.channels();
    const Size channels = plan.channels(), terms = kernel * kernel * channels * out;
    const Map x = plan.input(channels, terms);
    const Size most = std::max<Size>(0, kernel - std::min(x.height, x.width));  // so that a result is there
    const Size padding = std::max((most + 1) / 2, random.below(kernel + 1));
    return plan.run(convolve(plan, x, out, kernel, stride, padding, random.one_in(2)));
}

double check_transposed(Plan& plan) {
    Random& random = plan.random;
    const Size kernel = random.among({1, 2, 3, 4, 5, 7}), stride = random.among({1, 2, 3});
    const Size channels = plan.channels(), out = random.channels();
    const Map x = plan.input(channels, kernel * kernel * channels * out);
    const Size room = (stride * (std::min(x.height, x.width) - 1) + kernel - 1) / 2;
    return plan.run(
        transposed(plan, x, out, kernel, stride, std::min(room, random.below(kernel + 1)), random.one_in(2), false));
}

double check_transposed_winograd(Plan& plan) {
    Random& random = plan.random;
    plan.spreads_nan = true;
    const Size stride = random.among({1, 2, 3}), kernel = stride + random.below(stride + 1);
    const Size channels = random.among({1, 3, 15, 16, 17, 24, 33}), out = random.among({1, 2, 16, 17, 25, 33, 40});
    const Map x = plan.input(channels, kernel * kernel * channels * out);
    const Size room = (stride * (std::min(x.height, x.width) - 1) + kernel - 1) / 2;
    return plan.run(
        transposed(plan, x, out, kernel, stride, std::min(room, random.below(kernel + 1)), random.one_in(2), true));
}

double check_winograd(Plan& plan) {
    Random& random = plan.random;
    plan.spreads_nan = true;
    const Size channels = random.channels(), out = random.channels();
    const auto side = [&] { return random.among({1, 2, 3, 5, 6, 7, 14}); };
    const Size batch = random.among({4, 5, 9, 10}), height = side(), width = side();
    const bool several = batch * height * width * 9 * channels * out <= MOST_TERMS;  // small images on one sheet
    const Map x = several ? plan.input(batch, height, width, channels) : plan.input(channels, 9 * channels * out);
    return plan.run(winograd(plan, x, out, random.one_in(2)));
}

double check_linear(Plan& plan) {
    const Size channels = plan.channels(), out = plan.random.channels();
    const Map x = plan.input(channels, channels * out);
    if (plan.random.one_in(2)) return plan.run(linear(plan, x, out, plan.random.one_in(2)));
    const Map residual = plan.input(x.batch, x.height, x.width, out);
    return plan.run(linear(plan, x, out, false, &residual));
}

double check_feed_forward(Plan& plan) {
    const Size channels = plan.channels(), hidden = plan.channels();
    plan.most_roundings = 2;
    return plan.run(feed_forward(plan, plan.input(channels, 2 * channels * hidden), hidden));
}

double check_attention(Plan& plan) {
    Random& random = plan.random;
    const Size channels = plan.channels(), attending = 1 + random.below(channels), query = random.among({1, 5, 16, 17});
    plan.most_roundings = 6;  // what is normed, queries, keys, values, what is joined, the result
    const Size batch = random.among({1, 2, 3}), height = random.among({1, 2, 5, 7, 9, 12});
    const Map x = plan.input(batch, height, random.among({1, 2, 3, 7, 8}), channels);
    return plan.run(attention(plan, x, attending, query, plan.bfloat16 || random.one_in(2) ? 0.5 : 2));
}

double check_depthwise(Plan& plan) {
    const Size channels = plan.random.channels();
    const Map x = plan.input(channels, 9 * channels);
    return plan.run(depthwise(plan, x, plan.random.among({1, 2}), plan.random.one_in(2)));
}

double check_squeeze_excite(Plan& plan) {
    const Size channels = plan.channels(), hidden = plan.channels();
    plan.most_roundings = 4;
    return plan.run(squeeze_excite(plan, plan.input(channels, channels), hidden));
}

double check_interleave(Plan& plan) {
    plan.exact = true;
    const Size channels = plan.random.among({1, 2, 3, 3, 4, 5, 17}), more = plan.random.below(4);
    const bool planar = plan.random.one_in(2);
    const Map x = plan.input(channels, channels + more, planar);
    return plan.run(interleave(plan, x, channels + more, planar));
}

// Steps that are joined as in a backbone, and others after them.
double check_joined(Plan& plan) {
    Random& random = plan.random;
    const auto narrow = [&] { return plan.whole(random.among({1, 2, 3, 6, 8, 16, 17})); };
    const Size out = plan.whole(random.among({3, 16, 33, 40}));
    if (random.one_in(2)) {
        plan.most_roundings = 5;
        const bool planar = random.one_in(2);
        Map x = plan.input(random.among({1, 2, 3}), 400, planar);
        x = interleave(plan, x, plan.whole(x.channels + random.below(2)), planar);
        for (Size left = 1 + random.below(4); left > 0; --left) {
            plan.join();
            x = convolve(plan, x, left == 1 ? out : narrow(), 3, random.among({1, 2, 2}), 1, random.one_in(2));
        }
        return plan.run(x);
    }
    plan.most_roundings = 6;
    Map x = plan.input(narrow(), 400);
    x = linear(plan, x, out, random.one_in(2));
    plan.join();
    x = depthwise(plan, x, random.among({1, 2}), random.one_in(2));
    if (random.one_in(2)) x = squeeze_excite(plan, x, narrow());
    if (random.one_in(2)) {
        const Map before = x;
        x = linear(plan, linear(plan, x, narrow(), true), out, false, &before);
    }
    return plan.run(x);
}

// Where the samples of a bin are along an axis, as torchvision has it: in float32, since rounding decides what they
// see.
std::vector<float> places(float from, float to, float scale, Size bin, Size bins, Size ratio, bool aligned) {
    const float shift = aligned ? 0.5f : 0.0f, start = from * scale - shift;
    float extent = to * scale - shift - start;
    if (!aligned) extent = std::max(extent, 1.0f);
    const float length = extent / static_cast<float>(bins);
    const Size count = ratio > 0 ? ratio : static_cast<Size>(std::max(0.0f, std::ceil(length)));
    std::vector<float> found;
    for (Size i = 0; i < count; ++i)
        found.push_back(start + static_cast<float>(bin) * length +
                        (static_cast<float>(i) + 0.5f) * length / static_cast<float>(count));
    return found;
}

// A channel of a map between pixels; zero farther outside than a pixel.
double interpolated(const Map& map, Size image, double y, double x, Size c) {
    if (!(y >= -1 && y <= static_cast<double>(map.height) && x >= -1 && x <= static_cast<double>(map.width))) return 0;
    y = std::clamp(y, 0.0, static_cast<double>(map.height - 1));
    x = std::clamp(x, 0.0, static_cast<double>(map.width - 1));
    const Size top = static_cast<Size>(y), left = static_cast<Size>(x);
    const Size bottom = std::min(top + 1, map.height - 1), right = std::min(left + 1, map.width - 1);
    const double down = y - static_cast<double>(top), across = x - static_cast<double>(left);
    const auto part = [&](double share, Size row, Size column) {
        return share == 0 ? 0 : share * map.at(image, row, column, c);  // NaN does not count where nothing is seen
    };
    return part((1 - down) * (1 - across), top, left) + part((1 - down) * across, top, right) +
           part(down * (1 - across), bottom, left) + part(down * across, bottom, right);
}

double check_roi_align(Plan& plan) {
    Random& random = plan.random;
    const Size channels = random.among({1, 3, 15, 16, 17, 33, 100, 128, 256, 300}), batch = random.among({1, 2, 3});
    const Size bins_down = random.among({1, 2, 3, 7}), bins_across = random.among({1, 2, 7});
    const Size bins = bins_down * bins_across, ratio = random.below(4), count = random.below(30);
    const bool aligned = random.one_in(2), planar = random.one_in(2);
    std::vector<Map> maps;
    std::vector<Level> levels;
    for (Size left = random.among({1, 2, 4}); left > 0; --left) {
        const auto side = [&] { return random.among({1, 2, 5, 9, 16, 23}); };
        const Size height = side();
        maps.push_back(plan.input(batch, height, side(), channels));
        levels.push_back({plan.data(maps.back()), maps.back().height, maps.back().width,
                          1 / static_cast<float>(random.among({1, 2, 4, 16}))});
    }
    std::vector<int64_t> level_of;
    Numbers regions;
    Map expected{count, bins_down, bins_across, channels};
    for (Size region = 0; region < count; ++region) {
        level_of.push_back(random.below(static_cast<Size>(levels.size())));
        const Level& level = levels[level_of.back()];
        // Some have their corners in eighths of a pixel, so that samples lie on pixels and borders; some are outside,
        // have no area or are turned around.
        const double whole = random.one_in(2) ? 8 : 1e6, reach = static_cast<double>(random.among({1, 1, 2, 5}));
        const auto corner = [&](Size side) {
            const double place = (0.5 + reach * random.number()) * static_cast<double>(side);
            return std::round(place * whole) / whole / level.scale;
        };
        const double left = corner(level.width), top = corner(level.height);
        const double right = random.one_in(8) ? left : corner(level.width);
        const double bottom = random.one_in(8) ? top : corner(level.height);
        const double numbers[] = {static_cast<double>(random.below(batch)), std::min(left, right), top, right, bottom};
        regions.insert(regions.end(), numbers, numbers + 5);
        if (random.one_in(20)) regions.end()[-4] = NOT_A_NUMBER;
        const Numbers corners(regions.end() - 5, regions.end());
        for (Size row = 0; row < bins_down; ++row)
            for (Size column = 0; column < bins_across; ++column) {
                const auto along = [&](int axis, Size bin, Size of) {
                    return places(static_cast<float>(corners[1 + axis]), static_cast<float>(corners[3 + axis]),
                                  level.scale, bin, of, ratio, aligned);
                };
                const auto down = along(1, row, bins_down), across = along(0, column, bins_across);
                const Map& map = maps[level_of.back()];
                for (Size c = 0; c < channels; ++c) {
                    double sum = 0;
                    for (const float y : down)
                        for (const float x : across) sum += interpolated(map, static_cast<Size>(corners[0]), y, x, c);
                    expected.at(region, row, column, c) =
                        down.empty() || across.empty() ? 0 : sum / static_cast<double>(down.size() * across.size());
                }
            }
    }
    running = std::string(plan.bfloat16 ? "  bfloat16" : "  float32") + ", threads " + std::to_string(plan.threads) +
              ": " + std::to_string(count) + " regions with " + std::to_string(channels) + " channels on " +
              std::to_string(levels.size()) + " levels, " + std::to_string(bins_down) + "x" +
              std::to_string(bins_across) + " bins, ratio " + std::to_string(ratio) + (aligned ? ", aligned" : "") +
              (planar ? ", planar" : "") + "\n";
    const Result result(count * bins * channels * size_of(plan.bfloat16));
    if (shvit_roi_align(plan.bfloat16, levels.data(), static_cast<Size>(levels.size()), level_of.data(),
                        plan.keep_plain(regions), count, channels, bins_down, bins_across, ratio, aligned, planar,
                        result.data(), static_cast<int>(plan.threads)))
        fail("no memory");
    result.check_zones();
    return plan.compare(result, planar ? expected.planar() : expected.numbers);
}

// ------------------------------------------------------------------------------------------------------ the program

struct Check {
    const char* name;
    double (*run)(Plan&);
};

constexpr Check CHECKS[] = {
    {"convolve", check_convolve},     {"transposed", check_transposed},
    {"linear", check_linear},         {"feed_forward", check_feed_forward},
    {"attention", check_attention},   {"depthwise", check_depthwise},
    {"winograd", check_winograd},     {"squeeze_excite", check_squeeze_excite},
    {"interleave", check_interleave}, {"transposed_winograd", check_transposed_winograd},
    {"joined", check_joined},         {"roi_align", check_roi_align},
};

int main(int count, char** arguments) {
    uint32_t cases = 1000;
    std::vector<std::string> wanted;
    for (int i = 1; i < count; ++i) {
        const std::string argument = arguments[i];
        if (argument == "--cases" && i + 1 < count)
            cases = static_cast<uint32_t>(std::atoi(arguments[++i]));
        else if (std::any_of(std::begin(CHECKS), std::end(CHECKS), [&](const Check& c) { return argument == c.name; }))
            wanted.push_back(argument);
        else
            return std::fprintf(stderr, "there is no kind or option %s\n", argument.c_str()), 2;
    }
    if (!shvit_runs_here()) return std::printf("this processor lacks the instruction set\n"), 77;
    std::signal(SIGSEGV, outside);
    std::signal(SIGBUS, outside);
    std::printf("panels of %d\n", shvit_panel());
    for (const Check& check : CHECKS) {
        if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), check.name) == wanted.end()) continue;
        std::printf("%s:", check.name);
        for (const bool bfloat16 : {false, true}) {
            double largest = 0;
            for (uint32_t number = 0; number < cases; ++number) {
                Plan plan(bfloat16, 1 + number % 3, static_cast<uint32_t>(&check - CHECKS), number);
                largest = std::max(largest, check.run(plan));
            }
            std::printf("%s %u cases in %s, largest error %.1e", bfloat16 ? ";" : "", cases,
                        bfloat16 ? "bfloat16" : "float32", largest);
        }
        std::printf("\n");
        std::fflush(stdout);
    }
    return 0;
}
