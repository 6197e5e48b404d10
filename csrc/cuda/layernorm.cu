// downsample_layernorm and its backward on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"
#include "layernorm.cuh"
#include "layernorm_backward.cuh"

namespace vila_mc {
namespace {

void check_norm(const Blocks& blocks) {
    if (blocks.channels() > kMaxNormWidth)
        refuse("a token has ", blocks.channels(), " channels; the CUDA kernel takes up to ",
               kMaxNormWidth, ". Use vila_mc.kernels.reference for wider ones.");
}

// Checked inputs of the forward, and room for the statistics.
struct Inputs {
    Inputs(const Tensor& given, const Tensor& given_weight, const Tensor& given_bias,
           int64_t factor, bool has_cls)
        : blocks(blocks_of_features(given, factor, has_cls)),
          features(torch::stable::contiguous(given)),
          weight(torch::stable::contiguous(given_weight)),
          bias(torch::stable::contiguous(given_bias)),
          mean(statistics()),
          rstd(statistics()) {
        check_norm(blocks);
        check_like("weight", weight, features, {blocks.channels()}, features.scalar_type());
        check_like("bias", bias, features, {blocks.channels()}, features.scalar_type());
    }

    Tensor statistics() const {
        return torch::stable::new_empty(features, {blocks.images, blocks.tokens()},
                                        ScalarType::Float);
    }

    Tensor output() const {
        return torch::stable::new_empty(features,
                                        {blocks.images, blocks.tokens(), blocks.channels()});
    }

    template <class T>
    NormForward<T> arguments(Tensor& normal, double eps) {
        return {in<T>(features),
                in<T>(weight),
                in<T>(bias),
                out<T>(normal),
                out<float>(mean),
                out<float>(rstd),
                blocks.images * blocks.tokens(),
                patch_blocks_of(blocks),
                float(eps)};
    }

    Blocks blocks;
    Tensor features, weight, bias, mean, rstd;
};

std::tuple<Tensor, Tensor, Tensor> downsample_layernorm(const Tensor& features,
                                                        const Tensor& weight, const Tensor& bias,
                                                        int64_t factor, bool has_cls, double eps) {
    Inputs inputs(features, weight, bias, factor, has_cls);
    Tensor normal = inputs.output();
    const OnDevice device(features);
    with_cuda_float(features.scalar_type(), [&](auto number) {
        using T = decltype(number);
        check_launch("downsample_layernorm",
                     launch_norm_forward(inputs.arguments<T>(normal, eps), device.stream()));
    });
    return {normal, inputs.mean, inputs.rstd};
}

std::tuple<Tensor, Tensor, Tensor> downsample_layernorm_backward(
    const Tensor& given_grad, const Tensor& given_features, const Tensor& given_weight,
    const Tensor& given_mean, const Tensor& given_rstd, int64_t factor, bool has_cls) {
    const Blocks blocks = blocks_of_features(given_features, factor, has_cls);
    const ScalarType dtype = given_features.scalar_type();
    check_norm(blocks);
    check_like("grad", given_grad, given_features,
               {blocks.images, blocks.tokens(), blocks.channels()}, dtype);
    check_like("weight", given_weight, given_features, {blocks.channels()}, dtype);
    for (const auto& [name, tensor] : {std::pair("mean", given_mean), {"rstd", given_rstd}})
        check_like(name, tensor, given_features, {blocks.images, blocks.tokens()},
                   ScalarType::Float);
    const Tensor grad = torch::stable::contiguous(given_grad),
                 features = torch::stable::contiguous(given_features),
                 weight = torch::stable::contiguous(given_weight),
                 mean = torch::stable::contiguous(given_mean),
                 rstd = torch::stable::contiguous(given_rstd);
    Tensor features_grad = torch::stable::empty_like(features),
           weight_grad = torch::stable::empty_like(weight),
           bias_grad = torch::stable::empty_like(weight);
    const OnDevice device(features);
    with_cuda_float(dtype, [&](auto number) {
        using T = decltype(number);
        NormBackward<T> arguments{in<T>(grad),
                                  in<T>(features),
                                  in<T>(weight),
                                  in<float>(mean),
                                  in<float>(rstd),
                                  out<T>(features_grad),
                                  nullptr,
                                  out<T>(weight_grad),
                                  out<T>(bias_grad),
                                  blocks.images * blocks.tokens(),
                                  patch_blocks_of(blocks)};
        const int64_t parts = norm_backward_parts(arguments);
        if (parts < 0) check_launch("downsample_layernorm_backward", int(-parts));
        Tensor partial =
            torch::stable::new_empty(features, {parts, 2, blocks.channels()}, ScalarType::Float);
        arguments.partial = out<float>(partial);
        check_launch("downsample_layernorm_backward",
                     launch_norm_backward(arguments, parts, device.stream()));
    });
    return {features_grad, weight_grad, bias_grad};
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CUDA, m) {
    m.impl("downsample_layernorm", TORCH_BOX(&vila_mc::downsample_layernorm));
    m.impl("downsample_layernorm_backward", TORCH_BOX(&vila_mc::downsample_layernorm_backward));
}
