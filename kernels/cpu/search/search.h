// Vector search over codes: a scan that reads the selected (plane, dimension) runs, then exact scores of the best.
// What a search means is docs/search.md; the codes are codes.h.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "codes.h"
#include "kernel_table.h"
#include "search_kernels.h"

namespace specdec {

enum class Metric : int { product = 0, cosine = 1, distance = 2 };

// Up to kSearchChunk vectors; borrowed.
struct SearchChunk {
  int64_t count = 0, width = 0;
  const uint8_t* codes = nullptr;  // [planes][dims][width / 2]
  const float *steps = nullptr, *biases = nullptr, *norms = nullptr, *errors = nullptr;  // [count]
  const float* floats = nullptr;     // [count][dims], or
  const uint16_t* halves = nullptr;  // the same as float16, or neither: the codes are the truth
  const double* factors = nullptr;   // [count] for cosine: 1 / |x|
};

struct SearchSpace {
  int64_t dims = 0;
  int planes = 2;
  Metric metric = Metric::product;
  const float *centre = nullptr, *spread = nullptr;
  std::vector<SearchChunk> chunks;
};

// The runs that one query reads.
struct ScanPlan {
  std::vector<int32_t> runs;  // plane * dims + dimension, filled up to whole quads
  std::vector<int8_t> weights;
  std::vector<float> steps;
  float base = 0;                  // what the middle of the codes adds up to
  float fixed = 0, spread = 0, weight = 0;  // of BoundsCall; only where every run is read
  bool whole = false;
};

struct Candidate {
  float score;
  int32_t id;
};

// The `keep` best candidates of those that were added, by falling score and rising id.
class Best {
 public:
  void start(int64_t keep);
  void add(const float* scores, const int32_t* ids, int64_t count, int64_t first);
  void shrink();                      // drops what is not among the best
  void raise(float floor);            // drops what is below
  float floor() const { return floor_; }
  std::vector<Candidate>& items() { return items_; }
  void unite(const Best& other);

 private:
  int64_t keep_ = 0;  // 0: all
  float floor_ = 0;
  std::vector<Candidate> items_;
};

struct SearchCall {
  const float* queries;  // [count][dims], finite
  int64_t count, k, rerank;
  double effort;         // share of the runs, in (0, 1]; 1: the result is exact
  float* scores;         // out: [count][k]
  int64_t* ids;          // out: [count][k], -1 where there are fewer vectors
  int64_t* candidates;   // out: [count], how many vectors were scored exactly
};

// Deterministic: a query's result depends on the query alone, not on threads or on other queries.
void search(Pool& pool, const SearchKernels& kernels, const SearchSpace& space, const SearchCall& call);

// Which runs a query reads at an effort: those of largest |query * spread| / 16^plane, then the lower number.
ScanPlan plan_scan(const SearchSpace& space, const double* query, double effort);

// What a search returns for one vector: product, cosine or squared distance, in double precision.
double exact_score(const SearchKernels& kernels, const SearchSpace& space, const double* query, double query_factor,
                   int64_t id);

}  // namespace specdec
