// What Python sees of the native runtime: raw buffers in, raw buffers out. Types, sizes and ranges are checked here
// before a kernel touches anything; sentences for users are specdec/runtimes/native/runtime.py's business.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bandwidth.h"
#include "bindings.h"
#include "dispatch.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using specdec::BucketSource;
using specdec::KvCache;
using specdec::Model;
using specdec::PackedMatrix;

template <class T, size_t N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;
using Masks = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

// The first `loaded` tiers of a matrix.
BucketSource bucket_source(const Model& model, int index, int loaded, const std::vector<Bits>& values,
                           const std::vector<Masks>& masks) {
  const PackedMatrix& matrix = model.matrix(index);
  const specdec::Layout& layout = model.shape().layout;
  const auto count = static_cast<size_t>(loaded), masked = static_cast<size_t>(std::min(loaded, layout.tiers() - 1));
  const int64_t buckets = (matrix.out + layout.bucket_size - 1) / layout.bucket_size;
  check(!matrix.is_quantised(), "the matrix is declared as quantised");
  check(values.size() == count && masks.size() == masked,
        "a matrix has one array of values for every tier that is loaded, and masks for all but the last of all");
  BucketSource source;
  for (size_t k = 0; k < count; ++k) {
    check(values[k].size() == static_cast<size_t>(matrix.in * buckets * layout.tier_sizes[k]),
          "a tier's values have the wrong size");
    source.values.push_back(values[k].data());
    if (k == masked) break;
    check(masks[k].size() == static_cast<size_t>(matrix.in * buckets * layout.bucket_size / 8),
          "a tier's mask has the wrong size");
    source.masks.push_back(masks[k].data());
  }
  return source;
}

std::string load_values(Model& model, int index, const std::vector<Bits>& values, const std::vector<Masks>& masks,
                        int64_t first, int64_t last) {
  check_index(model, index);
  const BucketSource source = bucket_source(model, index, model.matrix(index).loaded_tiers, values, masks);
  check(first >= 0 && first < last && last <= model.matrix(index).in, "inputs out of range");
  nb::gil_scoped_release release;
  return model.load_values(index, source, first, last);
}

void load_masks(Model& model, int index, const std::vector<Bits>& values, const std::vector<Masks>& masks,
                const Array<float, 2>& scores) {
  check_index(model, index);
  const int tiers = model.shape().layout.tiers();
  BucketSource source = bucket_source(model, index, tiers, values, masks);
  check(scores.size() == static_cast<size_t>(model.matrix(index).in * tiers), "the scores have the wrong size");
  source.scores = scores.data();
  nb::gil_scoped_release release;
  model.load_masks(index, source);
}

void load_vector(Model& model, const std::string& name, const Array<float, 1>& values) {
  check(model.vector_size(name) == values.size(), "vector " + name + " has the wrong size");
  model.load_vector(name, values.data());
}

void load_embedding(Model& model, const Array<uint16_t, 2>& bits) {
  const auto& shape = model.shape();
  check(!shape.tie_embeddings && bits.size() == static_cast<size_t>(shape.embedded_tokens() * shape.hidden),
        "the embedding has the wrong size");
  model.load_embedding(bits.data());
}

void load_router(Model& model, int layer, const Array<uint16_t, 2>& bits) {
  const auto& shape = model.shape();
  check(layer >= 0 && layer < shape.layer_count() &&
            bits.size() == static_cast<size_t>(shape.layer(layer).experts * shape.hidden) && bits.size() > 0,
        "the router has the wrong size");
  model.load_router(layer, bits.data());
}

// What effort below 1 chooses.
specdec::Choice choice_of(bool inputs) { return inputs ? specdec::Choice::inputs : specdec::Choice::tiers; }

using States = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A sequence's rows, `Shown` and, from 3 on, a choice of every row in place of its logits.
constexpr int kChoices = 3;
constexpr int kMostLikely = 1024;

// (token, highest logit, entropy, top probability, margin) of every row.
nb::list list_of(const std::vector<specdec::RowChoice>& choices) {
  nb::list found;
  for (const specdec::RowChoice& one : choices)
    found.append(nb::make_tuple(one.token, one.highest, one.entropy, one.top_probability, one.margin));
  return found;
}

// The likeliest tokens of every row, without what stands for those that there are not.
nb::list list_of(const std::vector<int32_t>& tokens, int likely) {
  nb::list found;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(likely)) {
    nb::list row;
    for (size_t j = first; j < first + static_cast<size_t>(likely); ++j)
      if (tokens[j] >= 0) row.append(tokens[j]);
    found.append(row);
  }
  return found;
}

// Lists have an item for each sequence; `parents`, `states`, `heads`, `windows` (recent positions and sinks, 0 for all) and
// `likely` (tokens of largest logits that are asked for) may be empty, and so may a sequence's parents. Returns the bytes
// read, the choices of rows and their likeliest tokens for each. See Model::GoingOn for the last three.
nb::tuple forward(Model& model, const std::vector<KvCache*>& caches, const Array<int32_t, 1>& tokens,
                              const std::vector<int>& counts, const std::vector<Array<double, 1>>& efforts,
                              const std::vector<std::vector<int32_t>>& parents, const std::vector<int>& layers,
                              const std::vector<int>& shown, specdec::DraftView* draft, const Logits& logits,
                              const std::vector<States>& states, const std::vector<specdec::DraftHead*>& heads,
                              bool inputs, const std::vector<std::pair<int64_t, int64_t>>& windows, const std::vector<int>& likely, int ahead, const std::vector<int32_t>& ends, float least_margin) {
  const auto& shape = model.shape();
  const size_t count = caches.size();
  check(counts.size() == count && efforts.size() == count && layers.size() == count && shown.size() == count &&
            (parents.empty() || parents.size() == count) && (states.empty() || states.size() == count) &&
            (heads.empty() || heads.size() == count) && (windows.empty() || windows.size() == count) &&
            (likely.empty() || likely.size() == count),
        "every list needs an item for each sequence");
  std::vector<specdec::SequenceRows> batch;
  std::vector<std::vector<specdec::RowChoice>> choices(count);
  std::vector<std::vector<int32_t>> likeliest(count);
  size_t rows = 0, logit_rows = 0;
  for (size_t j = 0; j < count; ++j) {
    check(caches[j] != nullptr, "a cache is missing");
    check(counts[j] >= 1 && static_cast<size_t>(counts[j]) <= tokens.size() - rows, "there are not so many tokens");
    check(efforts[j].size() == static_cast<size_t>(shape.matrix_count()), "there must be one effort a matrix");
    check(shown[j] >= 0 && shown[j] <= kChoices, "logits are of no row, the last or all, or there are choices");
    specdec::SequenceRows one{caches[j], tokens.data() + rows, counts[j], efforts[j].data()};
    if (!parents.empty() && !parents[j].empty()) {
      check(parents[j].size() == static_cast<size_t>(counts[j]), "there must be one parent a row");
      one.parents = parents[j].data();
    }
    one.layers = layers[j];
    one.shown = shown[j] == kChoices ? specdec::Shown::all : static_cast<specdec::Shown>(shown[j]);
    if (shown[j] == kChoices) {
      choices[j].resize(static_cast<size_t>(counts[j]));
      one.choices = choices[j].data();
    }
    if (!likely.empty() && likely[j] != 0) {
      check(likely[j] > 0 && likely[j] <= kMostLikely, "up to 1024 likely tokens come with a row");
      likeliest[j].resize(static_cast<size_t>(one.shown_rows()) * static_cast<size_t>(likely[j]));
      one.likely = likely[j];
      one.likeliest = likeliest[j].data();
    }
    if (!heads.empty()) one.head = heads[j];
    if (!windows.empty()) std::tie(one.recent, one.sinks) = windows[j];
    if (!states.empty()) {
      const auto depth = static_cast<size_t>(layers[j] == 0 ? shape.layer_count() : layers[j]);
      check(states[j].shape(0) == depth && states[j].shape(1) == static_cast<size_t>(counts[j]) &&
                states[j].shape(2) == static_cast<size_t>(shape.hidden),
            "an array of states has the wrong shape");
      one.states = states[j].data();
    }
    rows += static_cast<size_t>(counts[j]);
    if (one.choices == nullptr) logit_rows += static_cast<size_t>(one.shown_rows());
    batch.push_back(one);
  }
  check(rows == tokens.size(), "there are tokens left over");
  check(logits.shape(0) == logit_rows && logits.shape(1) == static_cast<size_t>(shape.vocab),
        "the array of logits has the wrong shape");
  {
    nb::gil_scoped_release release;
    if (ahead == 0) {
      model.forward(batch, draft, logits.data(), choice_of(inputs));
    } else {
      check(ahead > 0 && count == 1 && shown[0] == kChoices, "a pass goes on alone, by its own choices");
      choices[0] = model.go_on(batch[0], draft, choice_of(inputs), {ahead, ends, least_margin});
    }
  }
  nb::list bytes, chosen, tokens_of_rows;
  for (size_t j = 0; j < count; ++j) {
    bytes.append(batch[j].bytes);
    chosen.append(list_of(choices[j]));
    tokens_of_rows.append(list_of(likeliest[j], batch[j].likely));
  }
  return nb::make_tuple(bytes, chosen, tokens_of_rows);
}

// How rows of a divided model are put together: a function (matrix, own, all, tokens) that fills in `all`, float32 (rows,
// outputs on all devices), from `own`, (rows, outputs here), and those of the other devices. Matrix -1 asks for the embeddings
// of `tokens`, int32 (rows,); -2 has the rows that leave the last layer of a stage.
void set_gather(Model& model, nb::callable gather) {
  model.set_gather([gather = std::move(gather)](const specdec::GatherCall& call) {
    nb::gil_scoped_acquire acquire;
    using Own = nb::ndarray<nb::numpy, const float, nb::ndim<2>>;
    using All = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
    using Tokens = nb::ndarray<nb::numpy, const int32_t, nb::ndim<1>>;
    const auto rows = static_cast<size_t>(call.rows);
    const nb::handle none;
    const Own own(call.own, {rows, static_cast<size_t>(call.own_width)}, none, {call.own_stride, 1});
    const All all(call.all, {rows, static_cast<size_t>(call.width)}, none, {call.stride, 1});
    const Tokens tokens(call.tokens, {call.tokens == nullptr ? size_t{0} : rows}, none);
    const auto borrowed = nb::rv_policy::reference;
    gather(call.matrix, nb::cast(own, borrowed), nb::cast(all, borrowed), nb::cast(tokens, borrowed));
  });
}

uint64_t multiply(Model& model, int index, const Array<float, 2>& x, specdec::DraftView* draft, double effort,
                  const Logits& y, bool inputs) {
  check_index(model, index);
  const PackedMatrix& matrix = model.matrix(index);
  const size_t rows = x.shape(0);
  check(rows >= 1 && rows <= specdec::kMaxRows && x.shape(1) == static_cast<size_t>(matrix.in) && y.shape(0) == rows &&
            y.shape(1) == static_cast<size_t>(matrix.out),
        "the arrays do not fit the matrix");
  check(effort > 0 && effort <= 1 && matrix.loaded() && (draft == nullptr || draft->complete()) &&
            (draft != nullptr || effort >= 1 || matrix.chooses(choice_of(inputs))),
        "the effort is out of range, or needs what is not loaded");
  nb::gil_scoped_release release;
  return model.multiply(index, x.data(), static_cast<int>(rows), draft, effort, y.data(), choice_of(inputs));
}

void bind_cache(nb::module_& module) {
  nb::class_<KvCache>(module, "KvCache", "Keys and values of one sequence.")
      .def_prop_ro("length", &KvCache::length, "Tokens held.")
      .def_ro("capacity", &KvCache::capacity, "Most tokens that fit.")
      .def_prop_ro("nbytes", &KvCache::bytes, "Bytes of the blocks held, shared ones too.")
      .def_prop_ro("block_bytes", &KvCache::block_bytes, "Bytes of a block.")
      .def_prop_ro("block_ids", &KvCache::block_ids, "A number for each block held, equal for shared ones.")
      .def("trim",
           [](KvCache& cache, int64_t length) {
             check(length >= 0 && length <= cache.length(), "cannot trim to that length");
             cache.trim(length);
           })
      .def(
          "keep",
          [](KvCache& cache, int64_t base, const std::vector<int64_t>& rows) {
            check(base >= 0 && base <= cache.length(), "the cache does not hold so much");
            for (size_t j = 0; j < rows.size(); ++j)
              check(rows[j] >= (j == 0 ? 0 : rows[j - 1] + 1) && rows[j] < cache.length() - base, "rows must ascend");
            cache.keep(base, rows);
          },
          "base"_a, "rows"_a, "Keeps the first positions, and of those after them some, which close up.")
      .def(
          "fork",
          [](const KvCache& cache, int64_t length, int64_t capacity) {
            check(length >= 0 && length <= cache.length() && length <= capacity, "cannot fork at that length");
            return cache.fork(length, capacity);
          },
          "length"_a, "capacity"_a, "Another cache that begins with the first positions.");
}

nb::class_<Model> bind_model(nb::module_& module) {
  auto model = nb::class_<Model>(module, "Model", "A model's weights packed for this machine, and its forward pass.");
  model
      .def(nb::init<const specdec::ModelShape&, const std::string&, int>(), "shape"_a, "isa"_a, "threads"_a)
      .def_prop_ro("isa", [](const Model& model) { return model.kernels().name; })
      .def_prop_ro("threads", [](Model& model) { return model.pool().threads(); })
      .def(
          "set_threads",
          [](Model& model, int threads) {
            check(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
            model.set_threads(threads);
          },
          "threads"_a)
      .def_prop_ro("nbytes", &Model::bytes, "Bytes of exact weights held.")
      .def_prop_ro("coded_bytes", &Model::coded_bytes, "Bytes of them that hold weights in 12 bits.")
      .def_prop_ro("mask_bytes", &Model::mask_bytes, "Bytes of tier masks and scores held.")
      .def_prop_ro("vector_names", &Model::vector_names)
      .def(
          "set_tiers",
          [](Model& model, int index, int loaded) {
            check_index(model, index);
            model.set_tiers(index, loaded);
          },
          "index"_a, "loaded"_a, "Only the first tiers of a matrix are loaded; before any matrix is.")
      .def("load_values", &load_values, "index"_a, "values"_a.noconvert(), "masks"_a.noconvert(), "first"_a, "last"_a,
           "Packs some inputs of a matrix from its loaded tiers; returns '' or what is wrong with it.")
      .def(
          "is_coded",
          [](const Model& model, int index) {
            check_index(model, index);
            return model.matrix(index).is_coded();
          },
          "index"_a, "Whether a matrix is held in 12 bits a weight; then it is packed by multiples of CODED_INPUTS.")
      .def("load_masks", &load_masks, "index"_a, "values"_a.noconvert(), "masks"_a.noconvert(), "scores"_a.noconvert())
      .def("load_vector", &load_vector, "name"_a, "values"_a.noconvert())
      .def("load_embedding", &load_embedding, "bits"_a.noconvert())
      .def("load_router", &load_router, "layer"_a, "bits"_a.noconvert())
      .def("new_cache", &Model::new_cache, "capacity"_a)
      .def("set_gather", &set_gather, "gather"_a, "How rows of a divided model are put together; see bindings.cpp.")
      .def("multiply", &multiply, "index"_a, "x"_a.noconvert(), "draft"_a.none(), "effort"_a, "y"_a.noconvert(),
           "inputs"_a = false,
           "One matrix alone, for benchmarks and tests; returns the bytes of weights read.")
      .def("forward", &forward, "caches"_a, "tokens"_a.noconvert(), "counts"_a, "efforts"_a.noconvert(), "parents"_a,
           "layers"_a, "shown"_a, "draft"_a.none(), "logits"_a.noconvert(), "states"_a.noconvert(), "heads"_a,
           "inputs"_a = false, "windows"_a = std::vector<std::pair<int64_t, int64_t>>{}, "likely"_a = std::vector<int>{}, "ahead"_a = 0,
           "ends"_a = std::vector<int32_t>{}, "least_margin"_a = 0.0F,
           "One pass over the rows of some sequences. An effort below 1 chooses whole inputs or tiers. Layers 0 runs all of "
           "them; logits are of no row (0), the last (1) or all (2), or rows have choices (3). Returns, for each, the bytes "
           "read, the choices, and the likeliest tokens of its rows. With `ahead` a pass over one row goes on for so many rows "
           "with the tokens that it chooses, but not after one of `ends` or a margin below `least_margin`.");
  return model;
}

}  // namespace

NB_MODULE(_native, module) {
  module.def("supported_isas", &specdec::supported_isas, "Instruction sets that this machine can run, best first.");
  module.def(
      "seconds_to_read",
      [](int threads, size_t bytes) {
        check(threads >= 1 && bytes >= (size_t{1} << 20), "needs a thread and a mebibyte");
        nb::gil_scoped_release release;
        return specdec::seconds_to_read(*specdec::Pool::shared(threads), bytes);
      },
      "threads"_a, "bytes"_a, "Time to read that much memory once, the yardstick of the benchmarks.");
  module.attr("MAX_ROWS") = specdec::kMaxRows;
  module.attr("WIDE_BELOW") = specdec::kWideBelow;
  module.attr("CODED_INPUTS") = specdec::kTableInputs;
  module.attr("CACHE_BLOCK") = specdec::kChunk;
  nb::class_<specdec::DraftView>(module, "DraftView", "A draft view of a whole model.")
      .def_prop_ro("nbytes", &specdec::DraftView::bytes)
      .def_prop_ro("complete", &specdec::DraftView::complete);
  bind_cache(module);
  bind_shape(module);
  auto model = bind_model(module);
  bind_draft(module);
  bind_fff(module);
  bind_search(module);
  bind_quantised(module, model);
}
