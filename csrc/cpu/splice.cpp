// splice_visual and the gradients of its two inputs: one pass over the rows of the embeddings.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <vector>

#include "blocks.h"

namespace vila_mc {
namespace {

// Calls each(token, row) for the visual tokens that lie in this shard; row counts rows of `width`.
// Checked on the way: an image must lie in its row of the whole sequence.
template <class Each>
void for_visual_tokens(const Places& places, const Tensor& image_starts, Each each) {
    const Tensor starts = torch::stable::contiguous(image_starts);
    const auto* start = static_cast<const int64_t*>(starts.const_data_ptr());
    for (int64_t image = 0; image < places.images; ++image, start += 2) {
        if (start[0] < 0 || start[0] >= places.rows || start[1] < 0 ||
            start[1] > places.sequence_length - places.num_visual)
            refuse("image ", image, " starts at row ", start[0], ", position ", start[1], "; its ",
                   places.num_visual, " tokens must lie in ", places.rows, " rows of ",
                   places.sequence_length, " positions.");
        const int64_t offset = start[1] - places.first_position;  // in the shard
        const int64_t end = std::min(places.num_visual, places.positions - offset);
        for (int64_t step = std::max<int64_t>(0, -offset); step < end; ++step)
            each(image * places.num_visual + step,
                 (offset + step) * places.position_step + start[0] * places.row_step);
    }
}

// For every row of the embeddings the visual token that stands there, -1 without one.
std::vector<int64_t> visual_token_of_rows(const Places& places, const Tensor& image_starts) {
    std::vector<int64_t> token_of(places.width ? places.total() : 0, -1);
    if (token_of.empty()) return token_of;
    for_visual_tokens(places, image_starts,
                      [&](int64_t token, int64_t row) { token_of[row] = token; });
    return token_of;
}

Tensor splice_visual(const Tensor& given_text, const Tensor& given_visual,
                     const Tensor& image_starts, bool sequence_first, int64_t first_position,
                     int64_t sequence_length) {
    const Places places = places_in(given_text, given_visual, image_starts, sequence_first,
                                    first_position, sequence_length);
    const std::vector<int64_t> token_of = visual_token_of_rows(places, image_starts);
    const Tensor text = torch::stable::contiguous(given_text);
    const Tensor visual = torch::stable::contiguous(given_visual);
    Tensor out = torch::stable::empty_like(text);
    if (out.numel() == 0) return out;
    const auto* from_text = static_cast<const char*>(text.const_data_ptr());
    const auto* from_visual = static_cast<const char*>(visual.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    const int64_t size = places.width * text.element_size();
    for_rows(places.total(), places.width, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            std::memcpy(
                to + row * size,
                token_of[row] < 0 ? from_text + row * size : from_visual + token_of[row] * size,
                size);
    });
    return out;
}

Tensor splice_visual_text_grad(const Tensor& given, const Tensor& image_starts, int64_t num_visual,
                               bool sequence_first, int64_t first_position,
                               int64_t sequence_length) {
    const Places places =
        places_in(given, image_starts, num_visual, sequence_first, first_position, sequence_length);
    const std::vector<int64_t> token_of = visual_token_of_rows(places, image_starts);
    const Tensor grad = torch::stable::contiguous(given);
    Tensor out = torch::stable::empty_like(grad);
    if (out.numel() == 0) return out;
    const auto* from = static_cast<const char*>(grad.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    const int64_t size = places.width * grad.element_size();
    for_rows(places.total(), places.width, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            if (token_of[row] < 0)
                std::memcpy(to + row * size, from + row * size, size);
            else
                std::memset(to + row * size, 0, size);
        }
    });
    return out;
}

Tensor splice_visual_visual_grad(const Tensor& given, const Tensor& image_starts,
                                 int64_t num_visual, bool sequence_first, int64_t first_position,
                                 int64_t sequence_length) {
    const Places places =
        places_in(given, image_starts, num_visual, sequence_first, first_position, sequence_length);
    const Tensor grad = torch::stable::contiguous(given);
    Tensor out = torch::stable::new_empty(grad, {places.images, num_visual, places.width});
    if (out.numel() == 0) return out;
    std::vector<int64_t> row_of(places.images * num_visual, -1);
    for_visual_tokens(places, image_starts,
                      [&](int64_t token, int64_t row) { row_of[token] = row; });
    const auto* from = static_cast<const char*>(grad.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    const int64_t size = places.width * grad.element_size();
    for_rows(places.images * num_visual, places.width, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            if (row_of[token] < 0)
                std::memset(to + token * size, 0, size);
            else
                std::memcpy(to + token * size, from + row_of[token] * size, size);
        }
    });
    return out;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CPU, m) {
    m.impl("splice_visual", TORCH_BOX(&vila_mc::splice_visual));
    m.impl("splice_visual_text_grad", TORCH_BOX(&vila_mc::splice_visual_text_grad));
    m.impl("splice_visual_visual_grad", TORCH_BOX(&vila_mc::splice_visual_visual_grad));
}
