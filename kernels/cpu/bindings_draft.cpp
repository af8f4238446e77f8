// Python bindings of the draft views. Every array's type and size is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "draft_int4.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using specdec::Int4View;
using specdec::Model;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scores = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument(message);
}

std::vector<specdec::MatrixShape> shapes_of(const Model& model) {
  std::vector<specdec::MatrixShape> shapes;
  for (int m = 0; m < model.shape().matrix_count(); ++m) shapes.push_back({model.matrix(m).out, model.matrix(m).in});
  return shapes;
}

void make_int4(Int4View* self, const Model& model, const std::vector<std::vector<int>>& joined) {
  new (self) Int4View(model.kernels(), shapes_of(model), joined);
}

void load_int4(Int4View& view, Model& model, size_t j, const std::vector<Bytes>& q, const std::vector<Halves>& scale,
               const std::vector<Scores>& scores) {
  check(j < view.joined_count(), "no joined matrices of that number");
  const std::vector<int>& matrices = view.joined(j);
  check(q.size() == matrices.size() && scale.size() == q.size() && scores.size() == q.size(),
        "joined matrices must be loaded together");
  std::vector<specdec::Int4Source> sources;
  for (size_t m = 0; m < q.size(); ++m) {
    const auto& shape = view.shapes()[static_cast<size_t>(matrices[m])];
    const auto in = static_cast<size_t>(shape.in), out = static_cast<size_t>(shape.out);
    const size_t groups = (in + specdec::kGroup - 1) / specdec::kGroup;
    check(q[m].shape(0) == in && q[m].shape(1) == (out + 1) / 2, "an array of levels has the wrong shape");
    check(scale[m].shape(0) == groups && scale[m].shape(1) == out, "an array of scales has the wrong shape");
    check(scores[m].shape(0) == in && scores[m].shape(1) == 1, "an array of scores has the wrong shape");
    sources.push_back({q[m].data(), scale[m].data(), scores[m].data()});
  }
  nb::gil_scoped_release release;
  view.load(model.pool(), j, sources);
}

void build_int4(Int4View& view, Model& model, size_t j) {
  check(j < view.joined_count(), "no joined matrices of that number");
  std::vector<const specdec::PackedMatrix*> exact;
  for (const int m : view.joined(j)) {
    check(!model.matrix(m).panels.empty(), "the exact weights are not loaded");
    exact.push_back(&model.matrix(m));
  }
  nb::gil_scoped_release release;
  view.build(model.pool(), j, exact);
}

}  // namespace

void bind_draft(nb::module_& module) {
  nb::class_<Int4View, specdec::DraftView>(module, "Int4View", "The int4 view of a whole model.")
      .def("__init__", &make_int4, "model"_a, "joined"_a, nb::keep_alive<1, 2>())
      .def("load", &load_int4, "model"_a, "joined"_a, "q"_a, "scale"_a, "scores"_a,
           "Packs one list of joined matrices from stored arrays.")
      .def("build", &build_int4, "model"_a, "joined"_a, "Rounds and packs one list of joined matrices.");
}
