// splice_visual and its backwards on CUDA tensors.
//
// The starts of images stay on the device: reading them here would make the host wait. One that
// lies outside the sequence is skipped, so memory is safe; kernels/ops.py checks the counts.
#include <torch/csrc/stable/library.h>

#include "device.h"
#include "splice.cuh"

namespace vila_mc {
namespace {

// The same as the kernels want it, and the map from embeddings to visual tokens.
struct Splice {
    Splice(const Places& places, const Tensor& given_starts, bool is_sequence_first,
           int64_t element_size)
        : starts(torch::stable::contiguous(given_starts)),
          sequence{places.rows, places.positions, places.first_position, is_sequence_first},
          tokens{in<int64_t>(starts), places.images,
                 small("visual tokens of an image", places.num_visual)},
          row_bytes(small("bytes of an embedding", places.width * element_size)) {
        small("embeddings", sequence.embeddings());
        small("visual tokens", tokens.count());
    }

    Tensor map(cudaStream_t stream) const {
        Tensor made = torch::stable::new_empty(starts, {sequence.embeddings()}, ScalarType::Int);
        check_launch("splice_visual", launch_splice_map(tokens, sequence, out<int>(made), stream));
        return made;
    }

    Tensor starts;
    Sequence sequence;
    VisualTokens tokens;
    int64_t row_bytes;
};

Tensor splice_visual(const Tensor& given_text, const Tensor& given_visual,
                     const Tensor& image_starts, bool sequence_first, int64_t first_position,
                     int64_t sequence_length) {
    const Splice splice(places_in(given_text, given_visual, image_starts, sequence_first,
                                  first_position, sequence_length),
                        image_starts, sequence_first, given_text.element_size());
    const Tensor text = torch::stable::contiguous(given_text);
    const Tensor visual = torch::stable::contiguous(given_visual);
    Tensor spliced = torch::stable::empty_like(text);
    const OnDevice device(text);
    const Tensor map = splice.map(device.stream());
    check_launch(
        "splice_visual",
        launch_splice_forward(in<void>(text), in<void>(visual), in<int>(map), out<void>(spliced),
                              splice.sequence.embeddings(), splice.row_bytes, device.stream()));
    return spliced;
}

Tensor splice_visual_text_grad(const Tensor& given, const Tensor& image_starts, int64_t num_visual,
                               bool sequence_first, int64_t first_position,
                               int64_t sequence_length) {
    const Splice splice(
        places_in(given, image_starts, num_visual, sequence_first, first_position, sequence_length),
        image_starts, sequence_first, given.element_size());
    const Tensor grad = torch::stable::contiguous(given);
    Tensor text_grad = torch::stable::empty_like(grad);
    const OnDevice device(grad);
    const Tensor map = splice.map(device.stream());
    check_launch(
        "splice_visual_text_grad",
        launch_splice_text_grad(in<void>(grad), in<int>(map), out<void>(text_grad),
                                splice.sequence.embeddings(), splice.row_bytes, device.stream()));
    return text_grad;
}

Tensor splice_visual_visual_grad(const Tensor& given, const Tensor& image_starts,
                                 int64_t num_visual, bool sequence_first, int64_t first_position,
                                 int64_t sequence_length) {
    const Places places =
        places_in(given, image_starts, num_visual, sequence_first, first_position, sequence_length);
    const Splice splice(places, image_starts, sequence_first, given.element_size());
    const Tensor grad = torch::stable::contiguous(given);
    Tensor visual_grad = torch::stable::new_empty(grad, {places.images, num_visual, places.width});
    const OnDevice device(grad);
    check_launch(
        "splice_visual_visual_grad",
        launch_splice_visual_grad(in<void>(grad), splice.tokens, splice.sequence,
                                  out<void>(visual_grad), splice.row_bytes, device.stream()));
    return visual_grad;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CUDA, m) {
    m.impl("splice_visual", TORCH_BOX(&vila_mc::splice_visual));
    m.impl("splice_visual_text_grad", TORCH_BOX(&vila_mc::splice_visual_text_grad));
    m.impl("splice_visual_visual_grad", TORCH_BOX(&vila_mc::splice_visual_visual_grad));
}
