// Python bindings of quantised matrices: loading, and the nested view. Every array's type and size is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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

using Scores = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// One of a matrix's arrays, `columns` long in each of its rows; counts those that were asked for.
template <class T>
const T* array_of(const nb::dict& arrays, const char* name, int64_t rows, int64_t columns, size_t* asked) {
  nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu> found;
  check(arrays.contains(name), std::string("a quantised matrix needs an array '") + name + "'");
  check(nb::try_cast(arrays[name], found, false), std::string("the array '") + name + "' has the wrong type");
  check(found.shape(0) == static_cast<size_t>(rows) && found.shape(1) == static_cast<size_t>(columns),
        std::string("the array '") + name + "' has the wrong shape");
  ++*asked;
  return found.data();
}

// Rows of a matrix of `in` inputs, whose arrays are named as in specdec.weights.quantised.
QuantSource source_of(const QuantType& type, int64_t in, int64_t rows, const nb::dict& arrays) {
  QuantSource source;
  size_t asked = 0;
  const bool affine = type.row_factors(in) != 0;
  if (affine) {
    source.scales = array_of<uint16_t>(arrays, "scales", rows, type.row_factors(in), &asked);
    source.biases = array_of<uint16_t>(arrays, "biases", rows, type.row_factors(in), &asked);
  }
  if (arrays.contains("upper")) {
    check(type.format().bits > 4, "codes of four bits do not lie in planes");
    source.upper = array_of<uint8_t>(arrays, "upper", rows, type.row_upper(in), &asked);
    if (type.format().rest_bits() != 0) source.rest = array_of<uint8_t>(arrays, "rest", rows, type.row_rest(in), &asked);
    if (!affine) source.heads = array_of<uint8_t>(arrays, "heads", rows, type.row_heads(in), &asked);
  } else if (affine) {
    const auto* words = array_of<uint32_t>(arrays, "weight", rows, type.row_bytes(in) / 4, &asked);
    source.codes = reinterpret_cast<const uint8_t*>(words);
  } else {
    source.codes = array_of<uint8_t>(arrays, "blocks", rows, type.row_bytes(in), &asked);
  }
  check(asked == arrays.size(), "a quantised matrix has an array too many");
  return source;
}

void set_quantised(Model& model, int index, const std::string& type, bool upper) {
  check_index(model, index);
  model.set_quantised(index, type, upper);
}

std::string load_quantised(Model& model, int index, const nb::dict& arrays, int64_t first, int64_t last) {
  check_index(model, index);
  const specdec::PackedMatrix& matrix = model.matrix(index);
  check(matrix.is_quantised(), "the matrix is not declared as quantised");
  check(first >= 0 && first < last && last <= matrix.out, "outputs out of range");
  const QuantSource source = source_of(matrix.quantised.type, matrix.in, last - first, arrays);
  nb::gil_scoped_release release;
  return model.load_quantised(index, source, first, last);
}

void load_scores(Model& model, int index, const Scores& scores) {
  check_index(model, index);
  const specdec::PackedMatrix& matrix = model.matrix(index);
  check(scores.size() == static_cast<size_t>(matrix.in), "the scores have the wrong size");
  model.load_scores(index, scores.data());
}

void load_embedding_blocks(Model& model, const std::string& type, const nb::dict& arrays, int64_t first, int64_t last) {
  const int64_t hidden = model.shape().hidden;
  const QuantType known(type);
  check(known.fits(hidden) && first >= 0 && first < last && last <= model.shape().vocab, "rows out of range");
  check(!arrays.contains("upper"), "an embedding stays in its blocks");
  model.load_embedding_blocks(type, source_of(known, hidden, last - first, arrays), first, last);
}

// The lists of joined matrices are other views' business; taken so that every view is made alike.
void make_nested(NestedView* self, const Model& model, const std::vector<std::vector<int>>&) { new (self) NestedView(model); }

}  // namespace

void bind_quantised(nb::module_& module, nb::class_<Model>& model) {
  model
      .def("set_quantised", &set_quantised, "index"_a, "type"_a, "upper"_a = false,
           "Declares that a matrix keeps its quantised blocks, or of their codes the four highest bits alone; before any "
           "matrix is loaded.")
      .def("load_quantised", &load_quantised, "index"_a, "arrays"_a, "first"_a, "last"_a,
           "Packs outputs first..last of a matrix from the rows of its arrays; returns '' or what is wrong with it.")
      .def("load_scores", &load_scores, "index"_a, "scores"_a.noconvert())
      .def("load_embedding_blocks", &load_embedding_blocks, "type"_a, "arrays"_a, "first"_a, "last"_a,
           "Rows first..last of a quantised embedding.");
  nb::class_<NestedView, specdec::DraftView>(module, "NestedView", "The nested view of a whole model.")
      .def("__init__", &make_nested, "model"_a, "joined"_a, nb::keep_alive<1, 2>());
}
