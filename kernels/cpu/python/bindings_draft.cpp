// Python bindings of the draft views. Every array's type and size is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "draft_bucket8.h"
#include "draft_int4.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using specdec::Bucket8View;
using specdec::DraftHead;
using specdec::HeadRows;
using specdec::Int4View;
using specdec::Model;

template <class T, size_t N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

template <class Array>
void check_shape(const Array& array, std::initializer_list<size_t> shape, const char* what) {
  size_t axis = 0;
  for (const size_t length : shape)
    check(array.shape(axis++) == length, std::string("an array of ") + what + " has the wrong shape");
}

specdec::JoinedMatrices joined_of(const Model& model, const std::vector<std::vector<int>>& lists) {
  std::vector<specdec::MatrixShape> shapes;
  for (int m = 0; m < model.shape().matrix_count(); ++m) shapes.push_back({model.matrix(m).out, model.matrix(m).in});
  return {std::move(shapes), lists};
}

template <class View>
void make(View* self, const Model& model, const std::vector<std::vector<int>>& lists) {
  new (self) View(model.kernels(), joined_of(model, lists));
}

template <class View>
void build(View& view, Model& model, size_t j) {
  check(j < view.joined().count(), "no joined matrices of that number");
  std::vector<const specdec::PackedMatrix*> exact;
  for (const int m : view.joined().list(j)) {
    check(model.matrix(m).loaded(), "the exact weights are not loaded");
    check(std::is_same_v<View, Int4View> || !model.matrix(m).is_quantised(), "the view takes 16-bit weights");
    exact.push_back(&model.matrix(m));
  }
  nb::gil_scoped_release release;
  view.build(model.pool(), j, exact);
}

void load_int4(Int4View& view, Model& model, size_t j, const std::vector<Array<uint8_t, 2>>& q,
               const std::vector<Array<uint16_t, 2>>& scale, const std::vector<Array<float, 2>>& scores) {
  check(j < view.joined().count(), "no joined matrices of that number");
  const std::vector<int>& list = view.joined().list(j);
  check(q.size() == list.size() && scale.size() == list.size() && scores.size() == list.size(),
        "joined matrices must be loaded together");
  std::vector<specdec::Int4Source> sources;
  for (size_t m = 0; m < list.size(); ++m) {
    const auto& shape = view.joined().shape(list[m]);
    const auto in = static_cast<size_t>(shape.in), out = static_cast<size_t>(shape.out);
    check_shape(q[m], {in, (out + 1) / 2}, "levels");
    check_shape(scale[m], {(in + specdec::kGroup - 1) / specdec::kGroup, out}, "scales");
    check_shape(scores[m], {in, 1}, "scores");
    sources.push_back({q[m].data(), scale[m].data(), scores[m].data()});
  }
  nb::gil_scoped_release release;
  view.load(model.pool(), j, sources);
}

// values and masks: all tiers of the first matrix, then those of the next.
void load_bucket8(Bucket8View& view, Model& model, size_t j, const std::vector<Array<uint8_t, 3>>& values,
                  const std::vector<Array<uint8_t, 3>>& masks, const std::vector<Array<float, 1>>& step,
                  const std::vector<Array<float, 2>>& scores) {
  constexpr size_t kTiers = specdec::kTiers;
  check(j < view.joined().count(), "no joined matrices of that number");
  const std::vector<int>& list = view.joined().list(j);
  check(values.size() == kTiers * list.size() && masks.size() == (kTiers - 1) * list.size() &&
            step.size() == list.size() && scores.size() == list.size(),
        "joined matrices must be loaded together");
  std::vector<specdec::Bucket8Source> sources;
  for (size_t m = 0; m < list.size(); ++m) {
    const auto& shape = view.joined().shape(list[m]);
    const auto in = static_cast<size_t>(shape.in);
    const size_t buckets = (static_cast<size_t>(shape.out) + specdec::kBucket - 1) / specdec::kBucket;
    specdec::Bucket8Source source{};
    for (size_t k = 0; k < kTiers; ++k) {
      const auto& tier = values[m * kTiers + k];
      check_shape(tier, {in, buckets, specdec::kTierSize}, "levels");
      source.values[k] = reinterpret_cast<const int8_t*>(tier.data());
      if (k + 1 == kTiers) break;
      const auto& mask = masks[m * (kTiers - 1) + k];
      check_shape(mask, {in, buckets, specdec::kBucket / 8}, "masks");
      source.masks[k] = mask.data();
    }
    check_shape(step[m], {in}, "steps");
    check_shape(scores[m], {in, kTiers}, "scores");
    source.steps = step[m].data();
    source.scores = scores[m].data();
    sources.push_back(source);
  }
  nb::gil_scoped_release release;
  view.load(model.pool(), j, sources);
}

using Tokens = Array<int32_t, 1>;

void check_tokens(const Model& model, const Tokens& tokens) {
  for (size_t j = 0; j < tokens.size(); ++j)
    check(tokens.data()[j] >= 0 && tokens.data()[j] < model.shape().vocab, "a token is outside the vocabulary");
}

std::shared_ptr<HeadRows> head_rows(Model& model, const Tokens& tokens) {
  check(model.matrix(model.shape().matrix_count() - 1).loaded(), "the logits layer is not loaded");
  check_tokens(model, tokens);
  nb::gil_scoped_release release;
  auto rows = std::make_shared<HeadRows>(model.shape().vocab, model.shape().hidden, static_cast<int64_t>(tokens.size()));
  rows->add(model, tokens.data(), static_cast<int64_t>(tokens.size()), nullptr);
  return rows;
}

void add_tokens(DraftHead& head, const Tokens& tokens) {
  check_tokens(head.model(), tokens);
  head.add(tokens.data(), static_cast<int64_t>(tokens.size()));
}

std::vector<int32_t> tokens_of(const DraftHead& head) {
  std::vector<int32_t> tokens;
  for (const HeadRows* rows : {&head.common(), &head.own()})
    for (int64_t row = 0; row < rows->count(); ++row) tokens.push_back(rows->token(row));
  return tokens;
}

void bind_head(nb::module_& module) {
  nb::class_<HeadRows>(module, "HeadRows", "Rows of the logits layer that draft heads share.")
      .def_prop_ro("nbytes", &HeadRows::bytes)
      .def_prop_ro("count", &HeadRows::count);
  module.def("head_rows", &head_rows, "model"_a, "tokens"_a.noconvert(), "Rows for some tokens.");
  nb::class_<DraftHead>(module, "DraftHead", "The tokens that drafts of a sequence score.")
      .def(
          "__init__",
          [](DraftHead* self, Model& model, const std::shared_ptr<HeadRows>& common, int64_t most) {
            check(common != nullptr && most >= 1, "a head needs rows, and room for some of its own");
            new (self) DraftHead(model, common, most);
          },
          "model"_a, "common"_a, "most"_a, nb::keep_alive<1, 2>())
      .def("add", &add_tokens, "tokens"_a.noconvert())
      .def_prop_ro("tokens", &tokens_of, "In the order of their rows.");
}

}  // namespace

void bind_draft(nb::module_& module) {
  bind_head(module);
  nb::class_<Int4View, specdec::DraftView>(module, "Int4View", "The int4 view of a whole model.")
      .def("__init__", &make<Int4View>, "model"_a, "joined"_a, nb::keep_alive<1, 2>())
      .def("load", &load_int4, "model"_a, "joined"_a, "q"_a, "scale"_a, "scores"_a,
           "Packs one list of joined matrices from stored arrays.")
      .def("build", &build<Int4View>, "model"_a, "joined"_a, "Rounds and packs one list of joined matrices.");
  nb::class_<Bucket8View, specdec::DraftView>(module, "Bucket8View", "The bucket8 view of a whole model.")
      .def("__init__", &make<Bucket8View>, "model"_a, "joined"_a, nb::keep_alive<1, 2>())
      .def("load", &load_bucket8, "model"_a, "joined"_a, "values"_a, "masks"_a, "step"_a, "scores"_a,
           "Packs one list of joined matrices from stored arrays.")
      .def("build", &build<Bucket8View>, "model"_a, "joined"_a, "Ranks, rounds and packs one list of joined matrices.");
}
