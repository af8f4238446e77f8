// Python bindings of vector search. Every array's type and size is checked here; the arrays stay alive with the object.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.h"
#include "codes.h"
#include "dispatch.h"
#include "search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, size_t N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Halves = std::optional<Array<const uint16_t, 2>>;
using Floats = std::optional<Array<const float, 2>>;
using Factors = std::optional<Array<const double, 1>>;
constexpr int64_t kMostDims = 65536;

bool is_width(int64_t width) {
  return width >= specdec::kLineVectors && width <= specdec::kSearchChunk && width % specdec::kLineVectors == 0;
}

// The vectors of an index and what searches them.
class Searcher {
 public:
  Searcher(const std::string& isa, int planes, int metric, const Array<const float, 1>& centre,
           const Array<const float, 1>& spread)
      : kernels_(specdec::kernels_for(isa).search), centre_(centre), spread_(spread) {
    const auto dims = static_cast<int64_t>(centre.shape(0));
    check(planes == 1 || planes == 2, "there are one or two planes");
    check(metric >= 0 && metric <= 2, "no metric of that number");
    check(dims >= 1 && dims <= kMostDims && has_shape(spread, {dims}), "centre and spread have the wrong size");
    space_.dims = dims;
    space_.planes = planes;
    space_.metric = static_cast<specdec::Metric>(metric);
    space_.centre = centre_.data();
    space_.spread = spread_.data();
  }

  void append(const Array<const uint8_t, 3>& codes, const Array<const float, 2>& numbers, const Floats& floats,
              const Halves& halves, const Factors& factors) {
    const auto width = static_cast<int64_t>(codes.shape(2)) * 2, count = static_cast<int64_t>(numbers.shape(1));
    check(space_.chunks.empty() || space_.chunks.back().count == specdec::kSearchChunk,
          "all chunks but the last are full");
    check(is_width(width) && count >= 1 && count <= width && space_.chunks.size() < (size_t{1} << 17),
          "the chunk has the wrong size");
    check(has_shape(codes, {space_.planes, space_.dims, width / 2}), "the codes have the wrong shape");
    check(has_shape(numbers, {4, count}), "the numbers have the wrong shape");
    check(!floats || has_shape(*floats, {count, space_.dims}), "the vectors have the wrong shape");
    check(!halves || has_shape(*halves, {count, space_.dims}), "the vectors have the wrong shape");
    check(!factors || has_shape(*factors, {count}), "the factors have the wrong shape");
    specdec::SearchChunk chunk;
    chunk.count = count;
    chunk.width = width;
    chunk.codes = codes.data();
    chunk.steps = numbers.data();
    chunk.biases = numbers.data() + count;
    chunk.norms = numbers.data() + 2 * count;
    chunk.errors = numbers.data() + 3 * count;
    if (floats) chunk.floats = floats->data();
    if (halves) chunk.halves = halves->data();
    if (factors) chunk.factors = factors->data();
    space_.chunks.push_back(chunk);
    held_.push_back({codes, numbers, floats, halves, factors});
  }

  void search(const Array<const float, 2>& queries, int64_t rerank, double effort, int threads,
              const Array<float, 2>& scores, const Array<int64_t, 2>& ids, const Array<int64_t, 1>& candidates) const {
    const auto count = static_cast<int64_t>(queries.shape(0)), k = static_cast<int64_t>(scores.shape(1));
    check(has_shape(queries, {count, space_.dims}) && has_shape(scores, {count, k}) && has_shape(ids, {count, k}) &&
              has_shape(candidates, {count}),
          "the arrays do not fit each other");
    check(k >= 1 && rerank >= 0 && effort > 0 && effort <= 1 && threads >= 1, "a number is out of range");
    nb::gil_scoped_release release;
    const auto pool = specdec::Pool::shared(threads);
    specdec::search(*pool, kernels_, space_,
                    {queries.data(), count, k, rerank, effort, scores.data(), ids.data(), candidates.data()});
  }

 private:
  struct Held {
    Array<const uint8_t, 3> codes;
    Array<const float, 2> numbers;
    Floats floats;
    Halves halves;
    Factors factors;
  };
  const specdec::SearchKernels& kernels_;
  Array<const float, 1> centre_, spread_;
  specdec::SearchSpace space_;
  std::vector<Held> held_;
};

void encode(const Array<const float, 2>& rows, const Factors& factors, const Array<const float, 1>& centre,
            const Array<const float, 1>& spread, bool errors, bool biases, int64_t first, int threads,
            const Array<uint8_t, 3>& codes, const Array<float, 2>& numbers) {
  const auto count = static_cast<int64_t>(rows.shape(0)), dims = static_cast<int64_t>(rows.shape(1));
  const auto planes = static_cast<int64_t>(codes.shape(0)), width = static_cast<int64_t>(codes.shape(2)) * 2;
  check(dims >= 1 && dims <= kMostDims && has_shape(centre, {dims}) && has_shape(spread, {dims}),
        "centre and spread have the wrong size");
  check((planes == 1 || planes == 2) && is_width(width) && has_shape(codes, {planes, dims, width / 2}),
        "the codes have the wrong shape");
  check(first >= 0 && first <= width && count <= width - first && threads >= 1, "the vectors do not fit the chunk");
  check(has_shape(numbers, {4, count}) && (!factors || has_shape(*factors, {count})), "the numbers have the wrong shape");
  if (count == 0) return;
  nb::gil_scoped_release release;
  const auto pool = specdec::Pool::shared(threads);
  float* out = numbers.data();
  specdec::encode(*pool, {rows.data(), factors ? factors->data() : nullptr, count, dims, centre.data(), spread.data(),
                          static_cast<int>(planes), errors, biases, width, first, codes.data(), out, out + count,
                          out + 2 * count, out + 3 * count});
}

}  // namespace

void bind_search(nb::module_& module) {
  module.attr("SEARCH_CHUNK") = specdec::kSearchChunk;
  module.attr("SEARCH_LINE") = specdec::kLineVectors;
  module.def("search_encode", &encode, "rows"_a.noconvert(), "factors"_a.noconvert().none(), "centre"_a.noconvert(),
             "spread"_a.noconvert(), "errors"_a, "biases"_a, "first"_a, "threads"_a, "codes"_a.noconvert(),
             "numbers"_a.noconvert(), "Rounds vectors to codes; numbers are steps, biases, norms and errors.");
  nb::class_<Searcher>(module, "Searcher", "Chunks of vectors, and searches over them.")
      .def(nb::init<const std::string&, int, int, const Array<const float, 1>&, const Array<const float, 1>&>(), "isa"_a,
           "planes"_a, "metric"_a, "centre"_a.noconvert(), "spread"_a.noconvert())
      .def("append", &Searcher::append, "codes"_a.noconvert(), "numbers"_a.noconvert(), "floats"_a.noconvert().none(),
           "halves"_a.noconvert().none(), "factors"_a.noconvert().none(), "Adds a chunk; all but the last are full.")
      .def("search", &Searcher::search, "queries"_a.noconvert(), "rerank"_a, "effort"_a, "threads"_a,
           "scores"_a.noconvert(), "ids"_a.noconvert(), "candidates"_a.noconvert(),
           "Fills in the best k of each query and how many vectors were scored exactly.");
}
