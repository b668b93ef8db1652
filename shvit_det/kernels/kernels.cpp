// Layers for inference on a CPU, of maps that lie in memory as NHWC. This file is compiled once for each instruction
// set.
//
// Weights come packed in panels of PANEL output channels, (panels, kernel rows, kernel columns, channels, PANEL), and
// for bfloat16 in pairs of channels, (panels, ..., channels / 2, PANEL, 2); biases are float32 and padded to whole
// panels.

#include "attention.hpp"
#include "convolution.hpp"
#include "depthwise.hpp"
#include "image.hpp"
#include "interface.hpp"
#include "linear.hpp"
#include "paste_masks.hpp"
#include "roi_align.hpp"
#include "squeeze_excite.hpp"
#include "transposed_winograd.hpp"
#include "winograd.hpp"

namespace shvit {

template <class Type>
class Run {
  public:
    using Number = typename Type::Number;

    Run(void* const* maps, int threads) : maps_(maps), threads_(threads) {}

    // Computes a step and those that it is joined with; returns the first one after them.
    const Step* operator()(const Step* step) const {
        std::vector<std::unique_ptr<Layer<Type>>> layers;
        std::vector<const Layer<Type>*> chain;
        const Step& first = *step;
        for (;; ++step) {
            std::unique_ptr<Layer<Type>> layer = layer_of(*step);
            if (!layer) {
                whole(*step);
                return step + 1;
            }
            chain.push_back(layer.get());
            layers.push_back(std::move(layer));
            if (!step->joined) break;
        }
        Size images = first.batch;
        const auto alone = [](const auto& layer) { return layer->sees_one_position(); };
        if (std::all_of(layers.begin(), layers.end(), alone)) {  // then all images are one
            for (auto& layer : layers) layer->height *= images, layer->out_height *= images;
            images = 1;
        }
        Chain<Type>(chain).run(map(first.x), images, map(step->out), threads_);
        return step + 1;
    }

  private:
    Number* map(Size index) const { return index < 0 ? nullptr : static_cast<Number*>(maps_[index]); }

    static Linear<Type> linear(const Step& step, int operands, Size channels, Size out_channels, bool relu) {
        return {channels, out_channels, static_cast<const Number*>(step.weights[operands]), step.biases[operands],
                relu};
    }

    // A layer that computes rows; none if the step is one that needs the whole map.
    std::unique_ptr<Layer<Type>> layer_of(const Step& step) const {
        switch (step.kind) {
            case CONVOLVE: {
                auto layer = with_shape<Convolution<Type>>(step);
                layer->kernel = layer->kernel_width = step.kernel;
                layer->stride = step.stride;
                layer->above = layer->before = step.padding;
                layer->out_step = step.out_channels;
                layer->weights = static_cast<const Number*>(step.weights[0]);
                layer->bias = step.biases[0];
                layer->relu = step.relu;
                return layer;
            }
            case LINEAR: {
                auto layer = with_shape<Pointwise<Type>>(step);
                layer->linear = linear(step, 0, step.channels, step.out_channels, step.relu);
                layer->residual = map(step.residual);
                return layer;
            }
            case FEED_FORWARD: {
                auto layer = with_shape<FeedForward<Type>>(step);
                layer->expand = linear(step, 0, step.channels, step.hidden, true);
                layer->reduce = linear(step, 1, step.hidden, step.channels, false);
                return layer;
            }
            case DEPTHWISE:
                return step.stride == 1 ? depthwise<1>(step) : depthwise<2>(step);
            case INTERLEAVE: {
                auto layer = with_shape<Interleave<Type>>(step);
                layer->planar = step.planar;
                return layer;
            }
        }
        return nullptr;
    }

    template <int STRIDE>
    std::unique_ptr<Layer<Type>> depthwise(const Step& step) const {
        auto layer = with_shape<Depthwise<Type, STRIDE>>(step);
        layer->kernel = 3;
        layer->stride = STRIDE;
        layer->above = 1;
        layer->weights = static_cast<const float*>(step.weights[0]);
        layer->bias = step.biases[0];
        layer->relu = step.relu;
        return layer;
    }

    template <class Kind>
    static std::unique_ptr<Kind> with_shape(const Step& step) {
        auto layer = std::make_unique<Kind>();
        layer->height = step.height, layer->width = step.width, layer->channels = step.channels;
        layer->out_height = step.out_height, layer->out_width = step.out_width;
        layer->out_channels = step.out_channels;
        return layer;
    }

    // A step that needs the whole map.
    void whole(const Step& step) const {
        const Number* x = map(step.x);
        Number* out = map(step.out);
        switch (step.kind) {
            case TRANSPOSED:
                transposed<Type>(x, step.batch, step.height, step.width, step.channels, out, step.out_height,
                                 step.out_width, step.out_channels, step.kernel, step.stride, step.padding,
                                 static_cast<const Number*>(step.weights[0]), step.biases[0], step.relu, threads_);
                break;
            case ATTENTION: {
                const Size inputs = (step.hidden + Type::DEPTH - 1) / Type::DEPTH * Type::DEPTH;
                const Attention<Type> layer{step.height * step.width,
                                            step.channels,
                                            step.hidden,
                                            step.query,
                                            static_cast<const float*>(step.weights[0]),
                                            step.biases[0],
                                            step.epsilon,
                                            linear(step, 1, inputs, 2 * step.query + step.hidden, false),
                                            linear(step, 2, step.channels, step.channels, false)};
                layer.run(x, step.batch, out, threads_);
                break;
            }
            case SQUEEZE_EXCITE: {
                const SqueezeExcite<Type> layer{step.height * step.width,
                                                linear(step, 0, step.channels, step.hidden, true),
                                                linear(step, 1, step.hidden, step.channels, false)};
                layer.run(x, step.batch, out, threads_);
                break;
            }
            case TRANSPOSED_WINOGRAD: {
                const TransposedWinograd<Type> layer{step.batch,
                                                     step.height,
                                                     step.width,
                                                     step.channels,
                                                     step.out_height,
                                                     step.out_width,
                                                     step.out_channels,
                                                     step.kernel,
                                                     step.stride,
                                                     step.padding,
                                                     static_cast<const float*>(step.weights[0]),
                                                     step.biases[0],
                                                     step.relu != 0};
                layer.run(x, out, static_cast<float*>(maps_[step.own]), step.own_bytes / sizeof(float), threads_);
                break;
            }
            case WINOGRAD:
                Winograd<Type>(step.batch, step.height, step.width, step.channels, step.out_channels,
                               static_cast<const float*>(step.weights[0]), step.biases[0], step.relu)
                    .run(x, out, threads_);
        }
    }

    void* const* maps_;
    int threads_;
};

}  // namespace shvit

extern "C" {

int shvit_panel() { return shvit::PANEL; }

int shvit_run(const shvit::Step* steps, shvit::Size count, void* const* maps, int threads) {
    try {
        for (const shvit::Step *step = steps, *end = steps + count; step < end;)
            step = step->bfloat16 ? shvit::Run<shvit::BFloat16>(maps, threads)(step)
                                  : shvit::Run<shvit::Float32>(maps, threads)(step);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int shvit_paste_masks(const float* samples, const float* boxes, shvit::Size count, shvit::Size sample_rows,
                      shvit::Size sample_columns, shvit::Size height, shvit::Size width, float threshold, uint8_t* out,
                      int threads) {
    try {
        shvit::PasteMasks{samples, boxes, sample_rows, sample_columns, height, width, threshold}.run(count, out,
                                                                                                     threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int shvit_roi_align(int bfloat16, const shvit::Level* levels, shvit::Size num_levels, const int64_t* level_of,
                    const float* regions, shvit::Size count, shvit::Size channels, shvit::Size out_height,
                    shvit::Size out_width, shvit::Size ratio, int aligned, int planar, void* out, int threads) {
    const auto run = [&](auto type) {
        using Type = decltype(type);
        const shvit::RoIAlign<Type> layer{levels,     level_of,  regions, count,        channels,
                                          out_height, out_width, ratio,   aligned != 0, planar != 0};
        layer.run(static_cast<typename Type::Number*>(out), num_levels, threads);
    };
    try {
        if (bfloat16)
            run(shvit::BFloat16());
        else
            run(shvit::Float32());
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
}
