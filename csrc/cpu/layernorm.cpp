// downsample_layernorm, its backward and its FP8 form. A token is widened once into a buffer that
// fits the first-level cache; mean, variance and output are passes over that.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "blocks.h"
#include "numbers.h"

namespace vila_mc {
namespace {

using torch::headeronly::Float8_e4m3fn;

constexpr float kFp8Max = 448.0f;

// Calls term(i) for i < width and sums what it returns, in four running sums of 16 numbers each:
// one would wait for itself. The order of the additions is the same for every instruction set.
template <class W, class Term>
VILA_MC_INLINE W sum_of(int64_t width, Term term) {
    constexpr int64_t kLanes = 64;
    W lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
    }
    for (int64_t lane = 0; i < width; ++i, ++lane) lanes[lane] += term(i);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

template <class T>
VILA_MC_CLONES Wide<T> widen_and_sum(const T* from, Wide<T>* to, int64_t width) {
    return sum_of<Wide<T>>(
        width, [=](int64_t i) __attribute__((always_inline)) { return to[i] = widen<T>(from[i]); });
}

template <class W>
VILA_MC_CLONES W squared_distance(const W* row, W mean, int64_t width) {
    return sum_of<W>(width, [=](int64_t i) __attribute__((always_inline)) {
        return (row[i] - mean) * (row[i] - mean);
    });
}

template <class T, class Out>
VILA_MC_CLONES void normalize(const Wide<T>* row, Wide<T> mean, Wide<T> rstd, const T* weight,
                              const T* bias, Out* out, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
        out[i] = narrow<Out>((row[i] - mean) * rstd * widen<T>(weight[i]) + widen<T>(bias[i]));
}

VILA_MC_CLONES float largest(const float* row, int64_t width) {
    float top = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < width; ++i) top = std::fabs(row[i]) > top ? std::fabs(row[i]) : top;
    return top;
}

// One token of the backward: adds to the gradients of weight and bias, replaces `normal` by the
// normalised token and `scaled` by grad * weight, and returns the sums of the latter two.
template <class T>
VILA_MC_CLONES void backward_sums(const T* grad, const T* weight, Wide<T> mean, Wide<T> rstd,
                                  Wide<T>* normal, Wide<T>* scaled, Wide<T>* weight_grad,
                                  Wide<T>* bias_grad, Wide<T>* sums, int64_t width) {
    Wide<T> plain = 0, along = 0;
#pragma omp simd reduction(+ : plain, along)
    for (int64_t i = 0; i < width; ++i) {
        normal[i] = (normal[i] - mean) * rstd;
        const Wide<T> d = widen<T>(grad[i]);
        weight_grad[i] += d * normal[i];
        bias_grad[i] += d;
        scaled[i] = d * widen<T>(weight[i]);
        plain += scaled[i];
        along += scaled[i] * normal[i];
    }
    sums[0] = plain;
    sums[1] = along;
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

template <class T>
Wide<T> gather_token(const Blocks& blocks, int64_t token, const T* features, Wide<T>* row) {
    Wide<T> sum = 0;
    for_runs(blocks, token, [&](int64_t channel, int64_t patch, int64_t width) {
        if (patch < 0)
            std::fill_n(row + channel, width, Wide<T>(0));
        else
            sum += widen_and_sum(features + patch * blocks.width, row + channel, width);
    });
    return sum;
}

// What forward and FP8 forward share: checked inputs, and room for the statistics.
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
    Tensor output(ScalarType dtype) const {
        return torch::stable::new_empty(features,
                                        {blocks.images, blocks.tokens(), blocks.channels()}, dtype);
    }

    // Calls each(token, row, mean, rstd) with every widened token, on several threads.
    template <class T, class Each>
    void for_tokens(double eps, Each each) const {
        const int64_t channels = blocks.channels();
        const T* from = static_cast<const T*>(features.const_data_ptr());
        auto* means = static_cast<Wide<T>*>(mean.mutable_data_ptr());
        auto* rstds = static_cast<Wide<T>*>(rstd.mutable_data_ptr());
        for_rows(rows(), channels, [&](int64_t begin, int64_t end) {
            std::vector<Wide<T>> row(channels);
            for (int64_t token = begin; token < end; ++token) {
                const Wide<T> middle = gather_token(blocks, token, from, row.data()) / channels;
                const Wide<T> variance = squared_distance(row.data(), middle, channels) / channels;
                means[token] = middle;
                rstds[token] = 1 / std::sqrt(variance + Wide<T>(eps));
                each(token, row.data(), means[token], rstds[token]);
            }
        });
    }

    Blocks blocks;
    Tensor features, weight, bias, mean, rstd;
};

std::tuple<Tensor, Tensor, Tensor> downsample_layernorm(const Tensor& features,
                                                        const Tensor& weight, const Tensor& bias,
                                                        int64_t factor, bool has_cls, double eps) {
    const Inputs inputs(features, weight, bias, factor, has_cls);
    Tensor out = inputs.output(features.scalar_type());
    with_float(features.scalar_type(), [&](auto number) {
        using T = decltype(number);
        const int64_t channels = inputs.blocks.channels();
        const T* scale = static_cast<const T*>(inputs.weight.const_data_ptr());
        const T* shift = static_cast<const T*>(inputs.bias.const_data_ptr());
        T* to = static_cast<T*>(out.mutable_data_ptr());
        inputs.for_tokens<T>(eps, [&](int64_t token, Wide<T>* row, Wide<T> mean, Wide<T> rstd) {
            normalize(row, mean, rstd, scale, shift, to + token * channels, channels);
        });
    });
    return {out, inputs.mean, inputs.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> downsample_layernorm_fp8(
    const Tensor& features, const Tensor& weight, const Tensor& bias, const Tensor& scale,
    int64_t factor, bool has_cls, double eps) {
    if (features.scalar_type() == ScalarType::Double)
        refuse("the number format is Double; for FP8 give Float, BFloat16 or Half.");
    check_like("scale", scale, features, {1}, ScalarType::Float);
    const Inputs inputs(features, weight, bias, factor, has_cls);
    const int64_t channels = inputs.blocks.channels(), rows = inputs.rows();
    Tensor out = inputs.output(ScalarType::Float8_e4m3fn);
    Tensor amax = torch::stable::new_empty(features, {1}, ScalarType::Float);
    auto* to = static_cast<Float8_e4m3fn*>(out.mutable_data_ptr());
    const float factor_in = *static_cast<const float*>(scale.const_data_ptr());
    std::vector<float> tops(rows);
    with_float(features.scalar_type(), [&](auto number) {
        using T =
            std::conditional_t<std::is_same_v<decltype(number), double>, float, decltype(number)>;
        const T* gamma = static_cast<const T*>(inputs.weight.const_data_ptr());
        const T* beta = static_cast<const T*>(inputs.bias.const_data_ptr());
        inputs.for_tokens<T>(eps, [&](int64_t token, float* row, float mean, float rstd) {
            normalize(row, mean, rstd, gamma, beta, row, channels);
            // A token with a NaN is NaN as a whole, its mean included; fabs and > would hide it.
            tops[token] = std::isnan(mean) ? mean : largest(row, channels);
            for (int64_t i = 0; i < channels; ++i) {
                const float scaled = row[i] * factor_in;
                to[token * channels + i] = Float8_e4m3fn(scaled > kFp8Max    ? kFp8Max
                                                         : scaled < -kFp8Max ? -kFp8Max
                                                                             : scaled);
            }
        });
    });
    float top = 0;
    for (const float one : tops) top = one > top || std::isnan(one) ? one : top;
    *static_cast<float*>(amax.mutable_data_ptr()) = top;
    return {out, amax, inputs.mean, inputs.rstd};
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
    const auto run_part = [&](int64_t part, Wide<T>* normal, Wide<T>* scaled) {
        for (int64_t token = partials.begin(part); token < partials.begin(part + 1); ++token) {
            gather_token(blocks, token, features, normal);
            Wide<T> sums[2];
            backward_sums(grad + token * channels, weight, mean[token], rstd[token], normal, scaled,
                          partials.weight(part), partials.bias(part), sums, channels);
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
    m.impl("downsample_layernorm_fp8", TORCH_BOX(&vila_mc::downsample_layernorm_fp8));
}
