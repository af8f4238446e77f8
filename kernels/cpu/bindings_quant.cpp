// Python bindings of quantised matrices: loading, and the nested view. Every array's type and size is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include <nanobind/stl/optional.h>

#include "bindings.h"
#include "draft_nested.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using specdec::Model;
using specdec::NestedView;
using specdec::QuantSource;
using specdec::QuantType;

using Codes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Factors = std::optional<nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>>;
using Scores = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument(message);
}

void check_index(const Model& model, int index) {
  check(index >= 0 && index < model.shape().matrix_count(), "no matrix of that number");
}

// Rows of a matrix of `in` inputs.
QuantSource source_of(const QuantType& type, int64_t in, int64_t rows, const Codes& codes, const Factors& scales,
                      const Factors& biases) {
  const auto count = static_cast<size_t>(rows), factors = static_cast<size_t>(type.row_factors(in));
  check(codes.shape(0) == count && codes.shape(1) == static_cast<size_t>(type.row_bytes(in)),
        "an array of codes has the wrong shape");
  check(scales.has_value() == (factors != 0) && biases.has_value() == (factors != 0),
        "scales and biases come with affine types alone");
  if (factors == 0) return {codes.data(), nullptr, nullptr};
  for (const auto* array : {&*scales, &*biases})
    check(array->shape(0) == count && array->shape(1) == factors, "an array of scales or biases has the wrong shape");
  return {codes.data(), scales->data(), biases->data()};
}

void set_quantised(Model& model, int index, const std::string& type, bool upper) {
  check_index(model, index);
  model.set_quantised(index, type, upper);
}

std::string load_quantised(Model& model, int index, const Codes& codes, const Factors& scales, const Factors& biases,
                           int64_t first, int64_t last) {
  check_index(model, index);
  const specdec::PackedMatrix& matrix = model.matrix(index);
  check(matrix.is_quantised(), "the matrix is not declared as quantised");
  check(first >= 0 && first < last && last <= matrix.out, "outputs out of range");
  const QuantSource source = source_of(matrix.quantised.type, matrix.in, last - first, codes, scales, biases);
  nb::gil_scoped_release release;
  return model.load_quantised(index, source, first, last);
}

void load_scores(Model& model, int index, const Scores& scores) {
  check_index(model, index);
  const specdec::PackedMatrix& matrix = model.matrix(index);
  check(matrix.is_quantised() && scores.size() == static_cast<size_t>(matrix.in), "the scores have the wrong size");
  model.load_scores(index, scores.data());
}

void load_embedding_blocks(Model& model, const std::string& type, const Codes& codes, const Factors& scales,
                           const Factors& biases, int64_t first, int64_t last) {
  const int64_t hidden = model.shape().hidden;
  const QuantType known(type);
  check(known.fits(hidden) && first >= 0 && first < last && last <= model.shape().vocab, "rows out of range");
  model.load_embedding_blocks(type, source_of(known, hidden, last - first, codes, scales, biases), first, last);
}

// The lists of joined matrices are other views' business; taken so that every view is made alike.
void make_nested(NestedView* self, const Model& model, const std::vector<std::vector<int>>&) { new (self) NestedView(model); }

}  // namespace

void bind_quantised(nb::module_& module, nb::class_<Model>& model) {
  model
      .def("set_quantised", &set_quantised, "index"_a, "type"_a, "upper"_a = false,
           "Declares that a matrix keeps its quantised blocks, or of their codes the four highest bits alone; before any "
           "matrix is loaded.")
      .def("load_quantised", &load_quantised, "index"_a, "codes"_a.noconvert(), "scales"_a.noconvert().none(),
           "biases"_a.noconvert().none(), "first"_a, "last"_a,
           "Packs outputs first..last of a matrix; returns '' or what is wrong with it.")
      .def("load_scores", &load_scores, "index"_a, "scores"_a.noconvert())
      .def("load_embedding_blocks", &load_embedding_blocks, "type"_a, "codes"_a.noconvert(), "scales"_a.noconvert().none(),
           "biases"_a.noconvert().none(), "first"_a, "last"_a, "Rows first..last of a quantised embedding.");
  nb::class_<NestedView, specdec::DraftView>(module, "NestedView", "The nested view of a whole model.")
      .def("__init__", &make_nested, "model"_a, "joined"_a, nb::keep_alive<1, 2>());
}
