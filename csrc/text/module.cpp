// Gives the encoder of bpe.h to Python. vila_mc/kernels/text.py is its face.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe.h"

namespace py = pybind11;

namespace {

using vila_mc::Encoder;

// Ids of all texts side by side, and where each text's end.
std::pair<py::array_t<int32_t>, py::array_t<int64_t>> encode_batch(Encoder& encoder,
                                                                   const py::sequence& texts) {
    std::vector<std::string_view> views;
    size_t room = vila_mc::kMostIds;
    for (py::handle text : texts) {
        Py_ssize_t size;
        const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (bytes == nullptr) throw py::error_already_set();
        views.emplace_back(bytes, size);
        room += encoder.most_ids(views.back());
    }
    py::array_t<int32_t> ids(room);
    py::array_t<int64_t> ends(views.size());
    int32_t* const first = ids.mutable_data();
    int64_t* end = ends.mutable_data();
    int32_t* out = first;
    for (std::string_view view : views) {
        out = encoder.encode(view, out);
        *end++ = out - first;
    }
    return {std::move(ids), std::move(ends)};
}

}  // namespace

PYBIND11_MODULE(_text, module) {
    py::class_<Encoder>(module, "Encoder")
        .def(py::init<const std::vector<std::string>&, const std::vector<float>&,
                      const std::vector<bool>&, const std::vector<int32_t>&>(),
             py::arg("pieces"), py::arg("scores"), py::arg("is_normal"), py::arg("byte_ids"))
        .def("encode_batch", &encode_batch, py::arg("texts"));
}
