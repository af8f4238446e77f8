// How Python describes a model: `LayerShape` and `ModelShape`, whose fields it sets by name.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "model.h"

namespace nb = nanobind;

namespace {

using specdec::Activation;
using specdec::LayerShape;
using specdec::ModelShape;
using specdec::QkNorm;

void bind_layer(nb::module_& module) {
  nb::enum_<QkNorm>(module, "QkNorm")
      .value("none", QkNorm::none)
      .value("head", QkNorm::head)
      .value("full", QkNorm::full);
  nb::enum_<Activation>(module, "Activation")
      .value("silu", Activation::silu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("clamped_swiglu", Activation::clamped_swiglu);
  nb::class_<LayerShape>(module, "LayerShape", "Sizes and features of a layer, see `shape.h`.")
      .def(nb::init<>())
      .def_rw("heads", &LayerShape::heads)
      .def_rw("kv_heads", &LayerShape::kv_heads)
      .def_rw("head_dim", &LayerShape::head_dim)
      .def_prop_rw(
          "frequencies", [](const LayerShape& layer) { return layer.rope.frequencies; },
          [](LayerShape& layer, std::vector<double> values) { layer.rope.frequencies = std::move(values); })
      .def_prop_rw(
          "rotary_factor", [](const LayerShape& layer) { return layer.rope.factor; },
          [](LayerShape& layer, double value) { layer.rope.factor = value; })
      .def_prop_rw(
          "interleaved", [](const LayerShape& layer) { return layer.rope.interleaved; },
          [](LayerShape& layer, bool value) { layer.rope.interleaved = value; })
      .def_rw("window", &LayerShape::window)
      .def_rw("scale", &LayerShape::scale)
      .def_rw("softcap", &LayerShape::softcap)
      .def_rw("growth", &LayerShape::growth)
      .def_rw("growth_span", &LayerShape::growth_span)
      .def_rw("qk_norm", &LayerShape::qk_norm)
      .def_rw("qkv_bias", &LayerShape::qkv_bias)
      .def_rw("o_bias", &LayerShape::o_bias)
      .def_rw("sinks", &LayerShape::sinks)
      .def_rw("gate", &LayerShape::gate)
      .def_rw("width", &LayerShape::width)
      .def_rw("activation", &LayerShape::activation)
      .def_rw("mlp_bias", &LayerShape::mlp_bias)
      .def_rw("experts", &LayerShape::experts)
      .def_rw("experts_used", &LayerShape::experts_used)
      .def_rw("fewer_experts", &LayerShape::fewer_experts)
      .def_rw("router_bias", &LayerShape::router_bias)
      .def_rw("softmax_over_all", &LayerShape::softmax_over_all)
      .def_rw("shared_width", &LayerShape::shared_width)
      .def_rw("pre_norms", &LayerShape::pre_norms)
      .def_rw("post_norms", &LayerShape::post_norms)
      .def_rw("residual_scale", &LayerShape::residual_scale)
      .def_rw("all_heads", &LayerShape::all_heads)
      .def_rw("all_kv_heads", &LayerShape::all_kv_heads)
      .def_rw("first_head", &LayerShape::first_head)
      .def_rw("first_kv_head", &LayerShape::first_kv_head)
      .def_rw("all_width", &LayerShape::all_width)
      .def_rw("all_shared_width", &LayerShape::all_shared_width);
}

}  // namespace

void bind_shape(nb::module_& module) {
  bind_layer(module);
  nb::class_<ModelShape>(module, "ModelShape", "Sizes and features of a model, see `shape.h`.")
      .def(nb::init<>())
      .def_rw("vocab", &ModelShape::vocab)
      .def_rw("hidden", &ModelShape::hidden)
      .def_rw("layers", &ModelShape::layers)
      .def_rw("norm_eps", &ModelShape::norm_eps)
      .def_rw("embed_scale", &ModelShape::embed_scale)
      .def_rw("logit_scale", &ModelShape::logit_scale)
      .def_rw("logit_cap", &ModelShape::logit_cap)
      .def_rw("tie_embeddings", &ModelShape::tie_embeddings)
      .def_rw("divided", &ModelShape::divided)
      .def_rw("own_hidden", &ModelShape::own_hidden)
      .def_rw("own_vocab", &ModelShape::own_vocab)
      .def_rw("first_token", &ModelShape::first_token)
      .def_rw("staged", &ModelShape::staged)
      .def_rw("embeds", &ModelShape::embeds)
      .def_rw("scores", &ModelShape::scores)
      .def_rw("single_cache", &ModelShape::single_cache)
      .def_prop_rw(
          "bfloat16", [](const ModelShape& shape) { return shape.dtype == specdec::Dtype::bfloat16; },
          [](ModelShape& shape, bool yes) { shape.dtype = yes ? specdec::Dtype::bfloat16 : specdec::Dtype::float16; })
      .def_prop_rw(
          "bucket_size", [](const ModelShape& shape) { return shape.layout.bucket_size; },
          [](ModelShape& shape, int size) { shape.layout.bucket_size = size; })
      .def_prop_rw(
          "tier_sizes", [](const ModelShape& shape) { return shape.layout.tier_sizes; },
          [](ModelShape& shape, std::vector<int> sizes) { shape.layout.tier_sizes = std::move(sizes); });
}
