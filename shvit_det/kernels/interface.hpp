// What the libraries offer; interface.py has the same structures for Python.

#pragma once

#include <cstddef>
#include <cstdint>

namespace shvit {

using Size = std::ptrdiff_t;

enum Kind : int {
    CONVOLVE,
    TRANSPOSED,
    LINEAR,
    FEED_FORWARD,
    ATTENTION,
    DEPTHWISE,
    WINOGRAD,
    SQUEEZE_EXCITE,
    INTERLEAVE,
    TRANSPOSED_WINOGRAD,
};

// One layer: its kind, the shapes of the maps, where they are in the list of maps, its weights.
struct Step {
    int kind, bfloat16, relu, planar;
    int joined;  // whether the next step takes its rows as they are computed
    float epsilon;
    Size batch, height, width, channels, out_height, out_width, out_channels;
    Size kernel, stride, padding;
    Size hidden;            // channels: inside a feed-forward layer or squeeze-excite; that attend
    Size query;             // channels of a query and of a key
    Size x, residual, out;  // maps; -1 if there is no residual
    Size own, own_bytes;    // memory for what is in between, if the step wants it given: a further map
    const void* weights[3];
    const float* biases[3];
};

// One of the maps that regions are on.
struct Level {
    const void* map;
    Size height, width;
    float scale;  // of the map, over that of the regions
};

}  // namespace shvit

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

// 1 if the processor has the instruction set that the library is compiled for, otherwise 0.
EXPORTED int shvit_runs_here();

// Which sources the library is compiled from.
EXPORTED const char* shvit_sources();

// Output channels that are computed at once, whose weights are packed together.
EXPORTED int shvit_panel();

// Computes steps one after the other, all of one type; returns 1 if there is not enough memory, otherwise 0.
EXPORTED int shvit_run(const shvit::Step* steps, shvit::Size count, void* const* maps, int threads);

// Pools regions, each from its level, into (count, out_height, out_width, channels), or with the channels before the
// bins if planar; returns 1 if there is not enough memory, otherwise 0.
EXPORTED int shvit_roi_align(int bfloat16, const shvit::Level* levels, shvit::Size num_levels, const int64_t* level_of,
                             const float* regions, shvit::Size count, shvit::Size channels, shvit::Size out_height,
                             shvit::Size out_width, shvit::Size ratio, int aligned, int planar, void* out, int threads);

// Writes for each box (left, top, right, bottom) which pixels of an image are at least `threshold` between its samples
// (rows, columns), into (count, height, width); returns 1 if there is not enough memory, otherwise 0.
EXPORTED int shvit_paste_masks(const float* samples, const float* boxes, shvit::Size count, shvit::Size sample_rows,
                               shvit::Size sample_columns, shvit::Size height, shvit::Size width, float threshold,
                               uint8_t* out, int threads);
}
