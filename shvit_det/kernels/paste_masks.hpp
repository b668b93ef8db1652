// Masks of boxes in the size of their image.

#pragma once

#include <cmath>

#include "memory.hpp"

namespace shvit {

// Whether each pixel belongs to an object: the samples of a box (sample rows, sample columns) are interpolated between,
// are zero outside, and a pixel of at least the threshold belongs to it. As mmdet does, a mask ends one pixel outside
// of its box.
struct PasteMasks {
    const float *samples, *boxes;  // boxes are left, top, right, bottom, in pixels
    Size sample_rows, sample_columns, height, width;
    float threshold;

    void run(Size count, uint8_t* out, int threads) const {
        const Pieces place_memory((height + width) * sizeof(Place), threads);
        const Pieces line_memory((sample_columns + 2) * sizeof(float), threads);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (Size mask = 0; mask < count; ++mask) {
            Place *rows = place_memory.mine<Place>(), *columns = rows + height;
            float* line = line_memory.mine<float>();  // a zero before it and one after it
            const float *box = boxes + mask * 4, *from = samples + mask * sample_rows * sample_columns;
            uint8_t* to = out + mask * height * width;
            std::fill(to, to + height * width, uint8_t(0));
            const Range down(box[1], box[3], height), across(box[0], box[2], width);
            for (Size y = down.first; y < down.last; ++y) rows[y] = place(y, box[1], box[3], sample_rows);
            for (Size x = across.first; x < across.last; ++x) columns[x] = place(x, box[0], box[2], sample_columns);
            line[0] = line[sample_columns + 1] = 0;
            for (Size y = down.first; y < down.last; ++y) {
                const auto part = [&](Size row, float share, Size column) {
                    return row >= 0 && row < sample_rows ? share * from[row * sample_columns + column] : 0;
                };
                for (Size column = 0; column < sample_columns; ++column)
                    line[column + 1] = part(rows[y].before, rows[y].share_before, column) +
                                       part(rows[y].before + 1, rows[y].share_after, column);
                for (Size x = across.first; x < across.last; ++x) {
                    const float* near = line + columns[x].before + 1;
                    to[y * width + x] =
                        near[0] * columns[x].share_before + near[1] * columns[x].share_after >= threshold;
                }
            }
        }
    }

  private:
    // A pixel between two samples, the first of which may be number -1 and the second one beyond the last.
    struct Place {
        int before;
        float share_before, share_after;
    };

    // The pixels of a box, and one more on each side.
    struct Range {
        Size first, last;

        Range(float from, float to, Size size)
            : first(inside(std::floor(from) - 1, size)), last(inside(std::ceil(to) + 1, size)) {}

        // Zero for NaN too.
        static Size inside(float pixel, Size size) {
            return pixel > 0 ? static_cast<Size>(std::min(pixel, static_cast<float>(size))) : 0;
        }
    };

    static Place place(Size pixel, float from, float to, Size size) {
        float along = (static_cast<float>(pixel) + 0.5f - from) / (to - from) * 2 - 1;
        if (std::isinf(along)) along = 0;  // an empty box: the samples' centre
        const float sample = ((along + 1) * static_cast<float>(size) - 1) / 2, before = std::floor(sample);
        if (std::isnan(sample)) return {0, sample, sample};  // which is not above any threshold
        if (sample <= -1 || sample >= static_cast<float>(size)) return {0, 0, 0};
        return {static_cast<int>(before), before + 1 - sample, sample - before};
    }
};

}  // namespace shvit
