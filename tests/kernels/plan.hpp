// Plans of steps that are run and compared with what is expected, on memory whose borders are watched.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "interface.hpp"

using namespace shvit;
using Numbers = std::vector<double>;

constexpr double TOLERANCE = 1e-4, ROUNDING = 1.0 / 256;  // of the largest magnitude; the latter for bfloat16
constexpr double LEAST = 0.1;                             // taken for the largest magnitude if that is smaller
constexpr Size MOST_TERMS = 400000;                       // of a case, so that the loops do not take long
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

inline std::string running;  // what is computed at the moment

[[noreturn]] inline void fail(const std::string& reason) {
    std::printf("\nFAILED: %s\n%s", reason.c_str(), running.c_str());
    std::fflush(stdout);
    _exit(1);
}

inline uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // ties to even
}

inline float from_bfloat16(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

inline double rounded(double x, bool bfloat16) {
    const float narrow = static_cast<float>(x);
    return bfloat16 ? from_bfloat16(to_bfloat16(narrow)) : narrow;
}

// Memory that ends, but for what alignment takes, where a page begins that nobody may touch.
class Memory {
  public:
    explicit Memory(Size bytes, Size alignment = 1) {
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
    Size mapped_;
    char *start_, *data_;
};

inline Size size_of(bool bfloat16) { return bfloat16 ? sizeof(uint16_t) : sizeof(float); }

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

inline double rectified(double x, bool relu) { return relu && x < 0 ? 0 : x; }  // NaN stays, as with torch

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
