// downsample_layernorm and its backward. Mean, variance and output are passes over a
// token's patches where they lie: it stays in the first-level cache, and a copy of it would cost
// more than to widen it again.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "blocks.h"
#include "numbers.h"
#include "passes.h"
#include "stream.h"

namespace vila_mc {
namespace {

// A run of one token of the backward: adds to the gradients of weight and bias, sets `normal` to
// the normalised run and `scaled` to grad * weight, and adds the sums of the latter two to `sums`.
template <class T>
VILA_MC_CLONES void backward_sums(const T* grad, const T* from, const T* weight, Wide<T> mean,
                                  Wide<T> rstd, Wide<T>* normal, Wide<T>* scaled,
                                  Wide<T>* weight_grad, Wide<T>* bias_grad, Wide<T>* sums,
                                  int64_t width) {
    Wide<T> plain = 0, along = 0;
#pragma omp simd reduction(+ : plain, along)
    for (int64_t i = 0; i < width; ++i) {
        normal[i] = (widen<T>(from[i]) - mean) * rstd;
        const Wide<T> d = widen<T>(grad[i]);
        weight_grad[i] += d * normal[i];
        bias_grad[i] += d;
        scaled[i] = d * widen<T>(weight[i]);
        plain += scaled[i];
        along += scaled[i] * normal[i];
    }
    sums[0] += plain;
    sums[1] += along;
}

template <class T>
VILA_MC_CLONES void backward_run(const Wide<T>* normal, const Wide<T>* scaled, Wide<T> plain,
                                 Wide<T> along, Wide<T> rstd, T* out, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
        out[i] = narrow<T>((scaled[i] - plain - normal[i] * along) * rstd);
}

template <class W>
VILA_MC_CLONES void add(const W* from, W* to, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] += from[i];
}

// The features of all images, by the runs of a token.
template <class T>
class Runs {
  public:
    Runs(const Blocks& blocks, const T* features)
        : blocks_(blocks), features_(features), zeros_(blocks.factor * blocks.width, T(0.0f)) {}

    // Calls run(channel, from, width) for each contiguous run; padding is a run of zeros.
    template <class Function>
    void operator()(int64_t token, Function run) const {
        for_runs(blocks_, token, [&](int64_t channel, int64_t patch, int64_t width) {
            run(channel, patch < 0 ? zeros_.data() : features_ + patch * blocks_.width, width);
        });
    }

    // Asks for a token's patches while there is something else to do.
    void prefetch(int64_t token) const {
        (*this)(token, [](int64_t, const T* from, int64_t width) {
            for (int64_t i = 0; i < width; i += kLine / int64_t(sizeof(T)))
                __builtin_prefetch(from + i);
        });
    }

  private:
    const Blocks& blocks_;
    const T* features_;
    std::vector<T> zeros_;
};

// Checked inputs of the forward, and room for the statistics.
struct Inputs {
    Inputs(const Tensor& features, const Tensor& weight, const Tensor& bias, int64_t factor,
           bool has_cls)
        : blocks(blocks_of_features(features, factor, has_cls)),
          features(torch::stable::contiguous(features)),
          weight(torch::stable::contiguous(weight)),
          bias(torch::stable::contiguous(bias)) {
        const ScalarType dtype = features.scalar_type();
        check_like("weight", weight, features, {blocks.channels()}, dtype);
        check_like("bias", bias, features, {blocks.channels()}, dtype);
        mean = torch::stable::new_empty(features, {blocks.images, blocks.tokens()}, wide(dtype));
        rstd = torch::stable::new_empty(features, {blocks.images, blocks.tokens()}, wide(dtype));
    }

    int64_t rows() const { return blocks.images * blocks.tokens(); }
    Tensor output() const {
        return torch::stable::new_empty(features,
                                        {blocks.images, blocks.tokens(), blocks.channels()});
    }

    template <class T>
    Runs<T> runs() const {
        return Runs<T>(blocks, static_cast<const T*>(features.const_data_ptr()));
    }

    // Calls each(token, mean, rstd) for every token, on several threads.
    template <class T, class Each>
    void for_tokens(const Runs<T>& runs, double eps, Each each) const {
        const int64_t channels = blocks.channels();
        auto* means = static_cast<Wide<T>*>(mean.mutable_data_ptr());
        auto* rstds = static_cast<Wide<T>*>(rstd.mutable_data_ptr());
        for_rows(rows(), channels, [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) {
                PartialSums<Wide<T>> values, squares;
                runs(token, [&](int64_t, const T* from, int64_t width) {
                    add_values(from, width, values);
                });
                const Wide<T> middle = values.total() / channels;
                if (token + 1 < end) runs.prefetch(token + 1);
                runs(token, [&](int64_t, const T* from, int64_t width) {
                    add_squares(from, middle, width, squares);
                });
                means[token] = middle;
                rstds[token] = 1 / std::sqrt(squares.total() / channels + Wide<T>(eps));
                each(token, means[token], rstds[token]);
            }
            stream_fence();
        });
    }

    Blocks blocks;
    Tensor features, weight, bias, mean, rstd;
};

std::tuple<Tensor, Tensor, Tensor> downsample_layernorm(const Tensor& features,
                                                        const Tensor& weight, const Tensor& bias,
                                                        int64_t factor, bool has_cls, double eps) {
    const Inputs inputs(features, weight, bias, factor, has_cls);
    Tensor out = inputs.output();
    with_float(features.scalar_type(), [&](auto number) {
        using T = decltype(number);
        const int64_t channels = inputs.blocks.channels();
        const T* scale = static_cast<const T*>(inputs.weight.const_data_ptr());
        const T* shift = static_cast<const T*>(inputs.bias.const_data_ptr());
        T* to = static_cast<T*>(out.mutable_data_ptr());
        const bool is_streamed = inputs.rows() * channels * sizeof(T) >= kStreamedBytes;
        const Runs<T> runs = inputs.runs<T>();
        inputs.for_tokens(runs, eps, [&](int64_t token, Wide<T> mean, Wide<T> rstd) {
            runs(token, [&](int64_t channel, const T* from, int64_t width) {
                T* const there = to + token * channels + channel;
                const T *gamma = scale + channel, *beta = shift + channel;
                if (is_streamed)
                    normalize_streamed(from, mean, rstd, gamma, beta, there, width);
                else
                    normalize(from, mean, rstd, gamma, beta, there, width);
            });
        });
    });
    return {out, inputs.mean, inputs.rstd};
}

// Sums of the weight's and the bias's gradients over a fixed share of the tokens, so that the
// result does not depend on the number of threads.
template <class W>
struct Partials {
    Partials(int64_t rows, int64_t channels)
        : count(std::min<int64_t>(64, (rows + 15) / 16)),
          rows(rows),
          channels(channels),
          values(2 * count * channels) {}

    W* weight(int64_t part) { return values.data() + 2 * part * channels; }
    W* bias(int64_t part) { return weight(part) + channels; }
    int64_t begin(int64_t part) const { return rows * part / count; }

    template <class T>
    void write(T* weight_grad, T* bias_grad) {
        std::vector<W> total(2 * channels);
        for (int64_t part = 0; part < count; ++part) add(weight(part), total.data(), 2 * channels);
        for (int64_t i = 0; i < channels; ++i) {
            weight_grad[i] = narrow<T>(total[i]);
            bias_grad[i] = narrow<T>(total[channels + i]);
        }
    }

    int64_t count, rows, channels;
    std::vector<W> values;
};

template <class T>
void layernorm_backward(const Blocks& blocks, const T* grad, const T* features, const T* weight,
                        const Wide<T>* mean, const Wide<T>* rstd, T* features_grad, T* weight_grad,
                        T* bias_grad) {
    const int64_t channels = blocks.channels(), rows = blocks.images * blocks.tokens();
    Partials<Wide<T>> partials(rows, channels);
    const Runs<T> runs(blocks, features);
    const auto run_part = [&](int64_t part, Wide<T>* normal, Wide<T>* scaled) {
        for (int64_t token = partials.begin(part); token < partials.begin(part + 1); ++token) {
            Wide<T> sums[2] = {};
            runs(token, [&](int64_t channel, const T* from, int64_t width) {
                backward_sums(grad + token * channels + channel, from, weight + channel,
                              mean[token], rstd[token], normal + channel, scaled + channel,
                              partials.weight(part) + channel, partials.bias(part) + channel, sums,
                              width);
            });
            for_runs(blocks, token, [&](int64_t channel, int64_t patch, int64_t width) {
                if (patch >= 0)
                    backward_run(normal + channel, scaled + channel, sums[0] / channels,
                                 sums[1] / channels, rstd[token],
                                 features_grad + patch * blocks.width, width);
            });
        }
    };
    for_rows(partials.count, channels * 16, [&](int64_t begin, int64_t end) {
        std::vector<Wide<T>> normal(channels), scaled(channels);
        for (int64_t part = begin; part < end; ++part) run_part(part, normal.data(), scaled.data());
    });
    partials.write(weight_grad, bias_grad);
}

std::tuple<Tensor, Tensor, Tensor> downsample_layernorm_backward(
    const Tensor& given_grad, const Tensor& given_features, const Tensor& given_weight,
    const Tensor& given_mean, const Tensor& given_rstd, int64_t factor, bool has_cls) {
    const Blocks blocks = blocks_of_features(given_features, factor, has_cls);
    const ScalarType dtype = given_features.scalar_type();
    check_like("grad", given_grad, given_features,
               {blocks.images, blocks.tokens(), blocks.channels()}, dtype);
    check_like("weight", given_weight, given_features, {blocks.channels()}, dtype);
    for (const auto& [name, tensor] : {std::pair("mean", given_mean), {"rstd", given_rstd}})
        check_like(name, tensor, given_features, {blocks.images, blocks.tokens()}, wide(dtype));
    const Tensor grad = torch::stable::contiguous(given_grad),
                 features = torch::stable::contiguous(given_features),
                 weight = torch::stable::contiguous(given_weight),
                 mean = torch::stable::contiguous(given_mean),
                 rstd = torch::stable::contiguous(given_rstd);
    Tensor features_grad = torch::stable::empty_like(features);
    Tensor weight_grad = torch::stable::empty_like(weight);
    Tensor bias_grad = torch::stable::empty_like(weight);
    with_float(dtype, [&](auto number) {
        using T = decltype(number);
        T* out = static_cast<T*>(features_grad.mutable_data_ptr());
        if (has_cls)
            for (int64_t image = 0; image < blocks.images; ++image)
                std::fill_n(out + image * blocks.patches() * blocks.width, blocks.width, T(0.0f));
        layernorm_backward<T>(blocks, static_cast<const T*>(grad.const_data_ptr()),
                              static_cast<const T*>(features.const_data_ptr()),
                              static_cast<const T*>(weight.const_data_ptr()),
                              static_cast<const Wide<T>*>(mean.const_data_ptr()),
                              static_cast<const Wide<T>*>(rstd.const_data_ptr()), out,
                              static_cast<T*>(weight_grad.mutable_data_ptr()),
                              static_cast<T*>(bias_grad.mutable_data_ptr()));
    });
    return {features_grad, weight_grad, bias_grad};
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CPU, m) {
    m.impl("downsample_layernorm", TORCH_BOX(&vila_mc::downsample_layernorm));
    m.impl("downsample_layernorm_backward", TORCH_BOX(&vila_mc::downsample_layernorm_backward));
}
