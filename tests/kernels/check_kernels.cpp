// Holds each kind of step, and the pooling of regions, against loops in double.
//
// check_kernels [--cases NUMBER] [KIND...] draws so many cases of the kinds, in each type, and tells the largest error
// of each kind, relative to the largest magnitude of the result. At the first result that is wrong it says what was
// computed, and ends with status 1.

#include <csignal>
#include <cstdlib>

#include "layers.hpp"

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

double check_paste_masks(Plan& plan) {
    Random& random = plan.random;
    const Size rows = random.among({1, 2, 7, 28}), columns = random.among({1, 3, 14, 28}), count = random.below(8);
    const Size height = 1 + random.below(60), width = 1 + random.below(60);
    const float threshold = random.one_in(5) ? 0 : 0.5f;
    Numbers samples, boxes;
    for (Size i = 0; i < count * rows * columns; ++i) samples.push_back(random.number() + 0.5);
    for (Size mask = 0; mask < count; ++mask) {
        const auto corner = [&](Size side) {
            const double place =
                (0.5 + random.number() * static_cast<double>(random.among({1, 3}))) * static_cast<double>(side);
            return random.one_in(3) ? std::round(place) : place;
        };
        const double left = corner(width), top = corner(height);
        const double right = random.one_in(8) ? left : corner(width), bottom = random.one_in(8) ? top : corner(height);
        const double numbers[] = {left, top, right, bottom};
        boxes.insert(boxes.end(), numbers, numbers + 4);
        if (random.one_in(20)) boxes.end()[-1 - random.below(4)] = NOT_A_NUMBER;
    }
    running = "  " + std::to_string(count) + " masks of " + std::to_string(rows) + "x" + std::to_string(columns) +
              " in " + std::to_string(height) + "x" + std::to_string(width) + ", threads " +
              std::to_string(plan.threads) + "\n";
    const Result result(count * height * width);
    if (shvit_paste_masks(plan.keep_plain(samples), plan.keep_plain(boxes), count, rows, columns, height, width,
                          threshold, reinterpret_cast<uint8_t*>(result.data()), static_cast<int>(plan.threads)))
        fail("no memory");
    result.check_zones();
    for (Size mask = 0; mask < count; ++mask)
        for (Size y = 0; y < height; ++y)
            for (Size x = 0; x < width; ++x) {
                // The place of a pixel among the samples, in float32: rounding decides what it sees.
                const auto place = [&](int axis, Size pixel, Size size) {
                    const float from = static_cast<float>(boxes[mask * 4 + axis]);
                    const float to = static_cast<float>(boxes[mask * 4 + 2 + axis]);
                    float along = (static_cast<float>(pixel) + 0.5f - from) / (to - from) * 2 - 1;
                    if (std::isinf(along)) along = 0;
                    return ((along + 1) * static_cast<float>(size) - 1) / 2;
                };
                const auto near = [&](int axis, Size pixel) {
                    const float at = static_cast<float>(pixel);
                    return at >= std::floor(static_cast<float>(boxes[mask * 4 + axis])) - 1 &&
                           at < std::ceil(static_cast<float>(boxes[mask * 4 + 2 + axis])) + 1;
                };
                const double down = place(1, y, rows), across = place(0, x, columns);
                double value = 0;
                for (Size row = 0; row < rows; ++row)
                    for (Size column = 0; column < columns; ++column) {
                        const double share = std::max(0.0, 1 - std::abs(down - static_cast<double>(row))) *
                                             std::max(0.0, 1 - std::abs(across - static_cast<double>(column)));
                        if (share > 0) value += share * samples[(mask * rows + row) * columns + column];
                    }
                const bool inside = near(0, x) && near(1, y);
                const bool found = reinterpret_cast<const uint8_t*>(result.data())[(mask * height + y) * width + x];
                if (std::abs(value - threshold) > 1e-5 && found != (inside && value >= threshold))
                    fail("another mask: pixel " + std::to_string(y) + ", " + std::to_string(x));
            }
    return 0;
}

void outside(int) { fail("memory beyond the maps and weights, or not aligned, was read or written"); }

struct Check {
    const char* name;
    double (*run)(Plan&);
};

constexpr Check CHECKS[] = {
    {"convolve", check_convolve},       {"transposed", check_transposed},
    {"linear", check_linear},           {"feed_forward", check_feed_forward},
    {"attention", check_attention},     {"depthwise", check_depthwise},
    {"winograd", check_winograd},       {"squeeze_excite", check_squeeze_excite},
    {"interleave", check_interleave},   {"transposed_winograd", check_transposed_winograd},
    {"joined", check_joined},           {"roi_align", check_roi_align},
    {"paste_masks", check_paste_masks},
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
