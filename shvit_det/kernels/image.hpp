// Brings images into the order of the kernels.

#pragma once

#include "layer.hpp"

namespace shvit {

// Images in NCHW or NHWC as NHWC, with channels of zeros behind their own if there are to be more.
template <class Type>
struct Interleave : Layer<Type> {
    using Number = typename Type::Number;
    static constexpr int MOST_WORDS = 4;
    bool planar = false;

    void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, void*) const override {
        const bool in_words = planar && this->out_channels % Type::DEPTH == 0 && words() <= MOST_WORDS;
        for (Size row = top; row < bottom; ++row)
            in_words ? by_words(x.at(row), out.at(row)) : one_by_one(x.at(row), out.at(row));
    }

    Size line() const override { return planar ? this->width : this->width * this->channels; }

  private:
    // A position of the result consists of so many words of 32 bits.
    Size words() const { return this->out_channels / Type::DEPTH; }

    // Channel `c` of 16 neighbouring pixels, each in 32 bits.
    __m512i pixels(const Number* row, Size c, __mmask16 mask) const {
        if (c >= this->channels) return _mm512_setzero_si512();
        const Number* from = row + c * this->height * this->width;
        if constexpr (Type::DEPTH == 1)
            return _mm512_maskz_loadu_epi32(mask, from);
        else
            return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    }

    void by_words(const Number* row, Number* out) const {
        const Size count = words();
        __m512i places[MOST_WORDS];               // which of 16 pixels each word of the result is of,
        __mmask16 which[MOST_WORDS][MOST_WORDS];  // and which word of the pixel
        for (Size v = 0; v < count; ++v) {
            alignas(64) int32_t pixel[LANES];
            for (Size w = 0; w < count; ++w) which[v][w] = 0;
            for (Size lane = 0; lane < LANES; ++lane) {
                pixel[lane] = static_cast<int32_t>((v * LANES + lane) / count);
                which[v][(v * LANES + lane) % count] |= 1 << lane;
            }
            places[v] = _mm512_load_si512(pixel);
        }
        for (Size left = 0; left < this->width; left += LANES, out += LANES * this->out_channels) {
            const Size here = std::min<Size>(LANES, this->width - left);
            __m512i word[MOST_WORDS];
            for (Size w = 0; w < count; ++w) {
                word[w] = pixels(row + left, w * Type::DEPTH, lanes(here));
                if constexpr (Type::DEPTH == 2)
                    word[w] = _mm512_or_si512(
                        word[w], _mm512_slli_epi32(pixels(row + left, w * Type::DEPTH + 1, lanes(here)), 16));
            }
            for (Size v = 0; v < count; ++v) {
                __m512i result = _mm512_permutexvar_epi32(places[v], word[0]);
                for (Size w = 1; w < count; ++w)
                    result = _mm512_mask_permutexvar_epi32(result, which[v][w], places[v], word[w]);
                _mm512_mask_storeu_epi32(out + v * LANES * Type::DEPTH, lanes(here * count - v * LANES), result);
            }
        }
    }

    void one_by_one(const Number* row, Number* out) const {
        const Size channel_step = planar ? this->height * this->width : 1, step = planar ? 1 : this->channels;
        for (Size i = 0; i < this->width; ++i, row += step)
            for (Size c = 0; c < this->out_channels; ++c)
                *out++ = c < this->channels ? row[c * channel_step] : Number(0);
    }
};

}  // namespace shvit
