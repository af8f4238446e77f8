// Python bindings of fast feedforward layers. Every array's type and size is checked here; weights are copied.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "bindings.h"
#include "dispatch.h"
#include "fff.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, size_t N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
// Weights: float32, or the bits of float16 as uint16.
template <size_t N>
using Weights = nb::ndarray<nb::ro, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
constexpr size_t kMostValues = size_t{1} << 31, kMostDepth = 20;

template <class Any>
bool has_type(const Any& array, bool half) {
  return half ? array.dtype() == nb::dtype<uint16_t>() : array.dtype() == nb::dtype<float>();
}

// A layer whose forward pass releases the interpreter.
class Layer {
 public:
  Layer(const std::string& isa, int activation, const Weights<3>& node_weight, const Array<const float, 2>& node_bias,
        const Weights<4>& hidden_weight, const Array<const float, 3>& hidden_bias, const Weights<4>& output_weight,
        const std::optional<Array<const float, 3>>& output_bias, const std::optional<Weights<3>>& node_output)
      : trees_(specdec::kernels_for(isa).fff,
               shape_of(activation, node_weight, node_bias, hidden_weight, hidden_bias, output_weight, output_bias,
                        node_output),
               {node_weight.data(), hidden_weight.data(), output_weight.data(),
                node_output ? node_output->data() : nullptr, node_bias.data(), hidden_bias.data(),
                output_bias ? output_bias->data() : nullptr}) {}

  void forward(const Array<const float, 2>& x, int threads, const Array<float, 2>& y,
               const std::optional<Array<int32_t, 2>>& leaves) const {
    const auto rows = static_cast<int64_t>(x.shape(0));
    const specdec::TreeShape& shape = trees_.shape();
    check(has_shape(x, {rows, shape.inputs}) && has_shape(y, {rows, shape.outputs}) &&
              (!leaves || has_shape(*leaves, {rows, shape.trees})) && threads >= 1,
          "the arrays do not fit the layer");
    if (rows == 0) return;
    nb::gil_scoped_release release;
    const auto pool = specdec::Pool::shared(threads);
    trees_.forward(*pool, x.data(), rows, y.data(), leaves ? leaves->data() : nullptr);
  }

 private:
  static specdec::TreeShape shape_of(int activation, const Weights<3>& node_weight,
                                     const Array<const float, 2>& node_bias, const Weights<4>& hidden_weight,
                                     const Array<const float, 3>& hidden_bias, const Weights<4>& output_weight,
                                     const std::optional<Array<const float, 3>>& output_bias,
                                     const std::optional<Weights<3>>& node_output) {
    specdec::TreeShape shape;
    shape.half = has_type(hidden_weight, true);
    check(has_type(hidden_weight, shape.half) && has_type(node_weight, shape.half) &&
              has_type(output_weight, shape.half) && (!node_output || has_type(*node_output, shape.half)),
          "weights are float32, or bits of float16");
    check(activation >= 0 && activation <= 3, "no activation of that number");
    shape.activation = static_cast<specdec::TreeActivation>(activation);
    const size_t leaves = hidden_weight.shape(1);
    check(leaves >= 1 && (leaves & (leaves - 1)) == 0 && leaves <= size_t{1} << kMostDepth,
          "the number of leaves is no power of two, or too large");
    while (size_t{1} << shape.depth < leaves) ++shape.depth;
    shape.trees = static_cast<int64_t>(hidden_weight.shape(0));
    shape.width = static_cast<int64_t>(hidden_weight.shape(2));
    shape.inputs = static_cast<int64_t>(hidden_weight.shape(3));
    shape.outputs = static_cast<int64_t>(output_weight.shape(3));
    check(shape.trees >= 1 && shape.width >= 1 && shape.inputs >= 1 && shape.outputs >= 1, "the layer is empty");
    check(hidden_weight.size() < kMostValues && output_weight.size() < kMostValues, "the layer is too large");
    const int64_t nodes = shape.nodes(), trees = shape.trees, count = shape.leaves(), width = shape.width;
    check(has_shape(node_weight, {trees, nodes, shape.inputs}) && has_shape(node_bias, {trees, nodes}) &&
              has_shape(hidden_bias, {trees, count, width}) &&
              has_shape(output_weight, {trees, count, width, shape.outputs}) &&
              (!output_bias || has_shape(*output_bias, {trees, count, shape.outputs})) &&
              (!node_output || has_shape(*node_output, {trees, nodes, shape.outputs})),
          "the weights do not fit each other");
    return shape;
  }

  specdec::Trees trees_;
};

}  // namespace

void bind_fff(nb::module_& module) {
  using Biases = std::optional<Array<const float, 3>>;
  nb::class_<Layer>(module, "FeedforwardTrees", "A fast feedforward layer with hard choices.")
      .def(nb::init<const std::string&, int, const Weights<3>&, const Array<const float, 2>&, const Weights<4>&,
                    const Array<const float, 3>&, const Weights<4>&, const Biases&, const std::optional<Weights<3>>&>(),
           "isa"_a, "activation"_a, "node_weight"_a.noconvert(), "node_bias"_a.noconvert(),
           "hidden_weight"_a.noconvert(), "hidden_bias"_a.noconvert(), "output_weight"_a.noconvert(),
           "output_bias"_a.noconvert().none(), "node_output"_a.noconvert().none())
      .def("forward", &Layer::forward, "x"_a.noconvert(), "threads"_a, "y"_a.noconvert(), "leaves"_a.noconvert().none(),
           "Fills in the outputs of rows, and the leaves that they reach.");
}
