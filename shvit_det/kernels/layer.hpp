// Layers whose results can be computed some rows at a time, and chains of them.

#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "numbers.hpp"

namespace shvit {

// Rows of a map, from number `first` on.
template <class Number>
struct Rows {
    Number* data;
    Size first, line;  // numbers from one row to the next

    Number* at(Size row) const { return data + (row - first) * line; }
};

// What a thread has for a layer.
struct Own {
    void* memory;
    bool first = true;  // it has not computed any rows yet: the weights are not in its cache
};

template <class Type>
struct Layer {
    using Number = typename Type::Number;
    Size height, width, channels;
    Size out_height, out_width, out_channels;
    Size kernel = 1, stride = 1, above = 0;  // of rows; those by which the first results see beyond the image

    virtual ~Layer() = default;

    // Computes the rows [top, bottom) of the result from those that `first_seen` and `last_seen` name.
    virtual void compute(Rows<const Number> x, Rows<Number> out, Size top, Size bottom, Own own) const = 0;

    // Bytes of its own memory, for so many rows.
    virtual Size own_bytes(Size) const { return 0; }

    // About so many positions are computed at once, so that what they are computed from stays in the cache.
    virtual Size positions() const { return 224; }

    // Whether each result depends on one position only, so that the images of a batch may be taken for one.
    virtual bool sees_one_position() const { return false; }

    virtual Size line() const { return width * channels; }  // numbers from one row of the input to the next

    Size out_line() const { return out_width * out_channels; }
    Size first_seen(Size top) const { return std::clamp<Size>(top * stride - above, 0, height); }
    Size last_seen(Size bottom) const { return std::clamp<Size>((bottom - 1) * stride - above + kernel, 0, height); }
    Size most_seen(Size rows) const { return std::min(height, (rows - 1) * stride + kernel); }
};

constexpr Size MOST_KEPT = 640 << 10;  // bytes of rows between the layers of a chain, to stay in the cache

// Layers in a row, each computing rows as the next one wants them: the maps between them are never whole in memory.
template <class Type>
class Chain {
  public:
    using Number = typename Type::Number;

    explicit Chain(std::vector<const Layer<Type>*> layers) : layers_(std::move(layers)) {}

    // Results go to `out`, whose images are `out_image` numbers apart and whose rows are `out_line` numbers apart.
    void run(const Number* x, Size batch, Number* out, Size out_image, Size out_line, int threads) const {
        const Layer<Type>&first = *layers_.front(), &last = *layers_.back();
        const Size band = band_of(batch, threads), bands = (last.out_height + band - 1) / band;
        const std::vector<Size> rows = rows_for(band);
        std::vector<Pieces> kept, own;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            kept.emplace_back(i + 1 < layers_.size() ? bytes_of(i, rows[i]) : 0, threads);
            own.emplace_back(layers_[i]->own_bytes(rows[i]), threads);
        }
        const Size image_size = first.height * first.width * first.channels;
#pragma omp parallel num_threads(threads)
        {
            Worker worker{layers_, {}, {}};
            for (std::size_t i = 0; i < layers_.size(); ++i) {
                worker.between.push_back({{kept[i].template mine<Number>(), 0, layers_[i]->out_line()}, 0});
                worker.own.push_back({own[i].template mine<void>()});
            }
            Size before = -1;
#pragma omp for schedule(static)
            for (Size work = 0; work < batch * bands; ++work) {
                const Size image = work / bands, top = work % bands * band;
                if (image != before) worker.forget();
                before = image;
                worker.compute(layers_.size() - 1, {x + image * image_size, 0, first.line()},
                               {out + image * out_image, 0, out_line}, top, std::min(last.out_height, top + band));
            }
        }
    }

    void run(const Number* x, Size batch, Number* out, int threads) const {
        const Size line = layers_.back()->out_line();
        run(x, batch, out, layers_.back()->out_height * line, line, threads);
    }

  private:
    struct Between {
        Rows<Number> rows;
        Size last;  // rows [rows.first, last) are computed
    };

    struct Worker {
        const std::vector<const Layer<Type>*>& layers;
        std::vector<Between> between;  // each layer and the next
        std::vector<Own> own;

        void forget() {
            for (Between& b : between) b.last = b.rows.first = 0;
        }

        void compute(std::size_t index, Rows<const Number> image, Rows<Number> out, Size top, Size bottom) {
            const Layer<Type>& layer = *layers[index];
            const Size from = layer.first_seen(top), to = std::max(from, layer.last_seen(bottom));
            layer.compute(index ? provide(index - 1, image, from, to) : image, out, top, bottom, own[index]);
            own[index].first = false;
        }

        // Rows [top, bottom) of what a layer computes, of which some may be there from the time before.
        Rows<const Number> provide(std::size_t index, Rows<const Number> image, Size top, Size bottom) {
            Between& b = between[index];
            Size from = top;
            if (b.rows.first <= top && top < b.last) {
                from = std::min(b.last, bottom);
                std::memmove(b.rows.data, b.rows.at(top), (from - top) * b.rows.line * sizeof(Number));
            }
            b.rows.first = top;
            b.last = bottom;
            if (from < bottom) compute(index, image, b.rows, from, bottom);
            return {b.rows.data, top, b.rows.line};
        }
    };

    Size bytes_of(std::size_t index, Size rows) const { return rows * layers_[index]->out_line() * sizeof(Number); }

    // How many rows each layer has to provide at once for so many of the last one.
    std::vector<Size> rows_for(Size band) const {
        std::vector<Size> rows(layers_.size(), band);
        for (std::size_t i = layers_.size() - 1; i > 0; --i) rows[i - 1] = layers_[i]->most_seen(rows[i]);
        return rows;
    }

    // Rows of the result that are computed at once.
    Size band_of(Size batch, int threads) const {
        const Layer<Type>& last = *layers_.back();
        const Size share = (batch * last.out_height + threads - 1) / threads;  // so that all threads have some
        Size band = std::clamp<Size>(last.positions() / std::max<Size>(1, last.out_width), 1, std::max<Size>(1, share));
        band = std::min(band, std::max<Size>(1, last.out_height));
        const auto kept = [&] {
            const std::vector<Size> rows = rows_for(band);
            Size bytes = 0;
            for (std::size_t i = 0; i + 1 < layers_.size(); ++i) bytes += bytes_of(i, rows[i]);
            return bytes;
        };
        while (band > 1 && kept() > MOST_KEPT) --band;
        return band;
    }

    std::vector<const Layer<Type>*> layers_;
};

}  // namespace shvit
