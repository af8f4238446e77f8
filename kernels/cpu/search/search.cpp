#include "search.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace specdec {
namespace {

constexpr float kNone = -3.0e38F;  // below every score of a vector that is there
constexpr int64_t kFound = 512;    // collected at a time

bool before(const Candidate& a, const Candidate& b) { return a.score != b.score ? a.score > b.score : a.id < b.id; }

// Memory of one thread.
struct Scratch {
  std::vector<float> sums, lower, upper;
  int32_t found[kFound];
  Best best, least;  // least: lower bounds, of exact searches
};

void gather(const SearchKernels& kernels, const float* scores, int64_t count, int64_t first, int32_t* found, Best& best) {
  for (int64_t next = 0; next < count;) {
    const int64_t number = kernels.above(scores, next, count, best.floor(), found, kFound, &next);
    best.add(scores, found, number, first);
  }
}

void scan_chunk(const SearchKernels& kernels, const SearchSpace& space, const ScanPlan& plan, int64_t c, Scratch& scratch) {
  const SearchChunk& chunk = space.chunks[static_cast<size_t>(c)];
  float* sums = scratch.sums.data();
  kernels.scan({chunk.codes, chunk.width, plan.runs.data(), plan.weights.data(), plan.steps.data(),
                static_cast<int64_t>(plan.runs.size()) / kQuad, sums});
  kernels.finish({sums, chunk.steps, chunk.biases, plan.base, chunk.count});
  const int64_t first = c * kSearchChunk;
  if (!plan.whole) return gather(kernels, sums, chunk.count, first, scratch.found, scratch.best);
  float *lower = scratch.lower.data(), *upper = scratch.upper.data();
  kernels.bounds({sums, chunk.steps, chunk.biases, chunk.norms, chunk.errors, plan.fixed, plan.spread, plan.weight,
                  0x1p-20F, chunk.count, lower, upper});
  gather(kernels, lower, chunk.count, first, scratch.found, scratch.least);
  scratch.best.raise(scratch.least.floor());
  gather(kernels, upper, chunk.count, first, scratch.found, scratch.best);
}

void start(Scratch& scratch, const ScanPlan& plan, const SearchCall& call) {
  scratch.sums.resize(kSearchChunk);
  scratch.lower.resize(kSearchChunk);
  scratch.upper.resize(kSearchChunk);
  scratch.best.start(plan.whole ? 0 : std::max(call.k, call.rerank));
  scratch.least.start(call.k);
}

// A vector that came out, by its exact score.
struct Found {
  double score;
  int32_t id;
};

class OneQuery {
 public:
  OneQuery(const SearchKernels& kernels, const SearchSpace& space, const SearchCall& call, int64_t number)
      : kernels_(kernels), space_(space), call_(call), number_(number) {
    const float* query = call.queries + number * space.dims;
    query_.assign(query, query + space.dims);
    double square = 0;
    for (const double value : query_) square += value * value;
    if (space.metric == Metric::cosine) factor_ = square == 0 ? 0 : 1 / std::sqrt(square);
    plan_ = plan_scan(space, query_.data(), call.effort);
  }

  const ScanPlan& plan() const { return plan_; }

  void rank(Scratch& scratch) {
    if (plan_.whole) {
      scratch.least.shrink();
      scratch.best.raise(scratch.least.floor());
    }
    scratch.best.shrink();
    std::vector<Found> found;
    const bool distance = space_.metric == Metric::distance;
    for (const Candidate& one : scratch.best.items()) {
      const double score = exact_score(kernels_, space_, query_.data(), factor_, one.id);
      found.push_back({std::isnan(score) ? -INFINITY : distance ? -score : score, one.id});
    }
    const auto most = std::min(static_cast<int64_t>(found.size()), call_.k);
    std::partial_sort(found.begin(), found.begin() + most, found.end(), [](const Found& a, const Found& b) {
      return a.score != b.score ? a.score > b.score : a.id < b.id;
    });
    for (int64_t j = 0; j < call_.k; ++j) {
      const bool there = j < most;
      const double score = there ? found[static_cast<size_t>(j)].score : -INFINITY;
      call_.scores[number_ * call_.k + j] = static_cast<float>(distance ? -score : score);
      call_.ids[number_ * call_.k + j] = there ? found[static_cast<size_t>(j)].id : -1;
    }
    call_.candidates[number_] = static_cast<int64_t>(found.size());
  }

 private:
  const SearchKernels& kernels_;
  const SearchSpace& space_;
  const SearchCall& call_;
  int64_t number_;
  std::vector<double> query_;
  double factor_ = 1;
  ScanPlan plan_;
};

void whole_query(const SearchKernels& kernels, const SearchSpace& space, const SearchCall& call, int64_t number,
                 Scratch& scratch) {
  OneQuery query(kernels, space, call, number);
  start(scratch, query.plan(), call);
  for (size_t c = 0; c < space.chunks.size(); ++c)
    scan_chunk(kernels, space, query.plan(), static_cast<int64_t>(c), scratch);
  query.rank(scratch);
}

void split_query(Pool& pool, const SearchKernels& kernels, const SearchSpace& space, const SearchCall& call,
                 int64_t number, std::vector<Scratch>& scratch) {
  OneQuery query(kernels, space, call, number);
  for (Scratch& one : scratch) start(one, query.plan(), call);
  pool.run(static_cast<int>(space.chunks.size()), [&](int c, int thread) {
    scan_chunk(kernels, space, query.plan(), c, scratch[static_cast<size_t>(thread)]);
  });
  for (size_t t = 1; t < scratch.size(); ++t) {
    scratch[0].best.unite(scratch[t].best);
    scratch[0].least.unite(scratch[t].least);
  }
  query.rank(scratch[0]);
}

}  // namespace

void Best::start(int64_t keep) {
  keep_ = keep;
  floor_ = kNone;
  items_.clear();
}

void Best::add(const float* scores, const int32_t* ids, int64_t count, int64_t first) {
  for (int64_t j = 0; j < count; ++j) items_.push_back({scores[ids[j]], static_cast<int32_t>(first + ids[j])});
  if (keep_ > 0 && static_cast<int64_t>(items_.size()) >= 2 * keep_ + kFound) shrink();
}

void Best::shrink() {
  if (keep_ == 0 || static_cast<int64_t>(items_.size()) < keep_) return;
  std::nth_element(items_.begin(), items_.begin() + (keep_ - 1), items_.end(), before);
  floor_ = std::max(floor_, items_[static_cast<size_t>(keep_ - 1)].score);
  items_.resize(static_cast<size_t>(keep_));
}

void Best::raise(float floor) {
  if (floor <= floor_) return;
  floor_ = floor;
  items_.erase(std::remove_if(items_.begin(), items_.end(), [floor](const Candidate& one) { return one.score < floor; }),
               items_.end());
}

void Best::unite(const Best& other) { items_.insert(items_.end(), other.items_.begin(), other.items_.end()); }

ScanPlan plan_scan(const SearchSpace& space, const double* query, double effort) {
  const int64_t dims = space.dims, all = dims * space.planes;
  std::vector<double> weights(static_cast<size_t>(all));
  double square = 0;
  for (int64_t i = 0; i < dims; ++i) {
    const double weight = query[i] * space.spread[i];
    square += weight * weight;
    weights[static_cast<size_t>(i)] = weight;
    if (space.planes == 2) weights[static_cast<size_t>(dims + i)] = weight / 16;
  }
  ScanPlan plan;
  plan.whole = effort >= 1;
  const auto taken = plan.whole ? all : std::clamp<int64_t>(std::llround(effort * static_cast<double>(all)), 1, all);
  plan.runs.resize(static_cast<size_t>(all));
  std::iota(plan.runs.begin(), plan.runs.end(), 0);
  std::partial_sort(plan.runs.begin(), plan.runs.begin() + taken, plan.runs.end(), [&](int32_t a, int32_t b) {
    const double x = std::fabs(weights[static_cast<size_t>(a)]), y = std::fabs(weights[static_cast<size_t>(b)]);
    return x != y ? x > y : a < b;
  });
  plan.runs.resize(static_cast<size_t>(taken));
  double base = 0, sizes = 0, lost[2] = {};
  constexpr int64_t kShared = int64_t{kQuad} * kScanQuads;
  for (int64_t r = 0; r < taken; ++r) {
    const int32_t run = plan.runs[static_cast<size_t>(r)];
    const double weight = weights[static_cast<size_t>(run)];
    if (r % kShared == 0) plan.steps.push_back(static_cast<float>(std::fabs(weight) / 127));
    const double step = plan.steps.back();
    const double level = step == 0 ? 0 : std::clamp(std::nearbyint(weight / step), -127.0, 127.0);
    plan.weights.push_back(static_cast<int8_t>(level));
    base += 7.5 * level * step;
    sizes += std::fabs(level) * step;
    lost[run >= dims ? 1 : 0] += (level * step - weight) * (level * step - weight);
  }
  while (plan.runs.size() % kQuad != 0) {
    plan.runs.push_back(plan.runs.back());
    plan.weights.push_back(0);
  }
  // Bounds: see docs/search.md. 15 * sizes bounds every partial sum, of which each addition rounds one.
  const double rounding = 0x1p-24 * static_cast<double>(plan.steps.size() + 4) * 15 * sizes;
  constexpr double kSafe = 1 + 1e-5;
  plan.base = static_cast<float>(base);
  plan.fixed = static_cast<float>(kSafe * (rounding + 7.5 * std::sqrt(lost[1] * static_cast<double>(dims))));
  plan.spread = static_cast<float>(kSafe * std::sqrt(lost[0]));
  plan.weight = static_cast<float>(kSafe * std::sqrt(square));
  return plan;
}

double exact_score(const SearchKernels& kernels, const SearchSpace& space, const double* query, double query_factor,
                   int64_t id) {
  const SearchChunk& chunk = space.chunks[static_cast<size_t>(id / kSearchChunk)];
  const int64_t v = id % kSearchChunk, dims = space.dims;
  const bool distance = space.metric == Metric::distance;
  double score = 0;
  if (chunk.floats != nullptr) {
    score = kernels.exact_float(chunk.floats + v * dims, query, dims, distance);
  } else if (chunk.halves != nullptr) {
    score = kernels.exact_half(chunk.halves + v * dims, query, dims, distance);
  } else {
    const auto u = static_cast<int>(v % kLineVectors);
    const int64_t byte = v / kLineVectors * kLine + line_byte(u % kLine);
    const double step = chunk.steps[v];
    for (int64_t i = 0; i < dims; ++i) {
      const double told = level(chunk.codes, dims, chunk.width, space.planes, i, byte, u < kLine ? 0 : 4);
      const double x = space.centre[i] + space.spread[i] * step * told;
      score += distance ? (x - query[i]) * (x - query[i]) : x * query[i];
    }
    return score * query_factor;  // codes of cosine are those of x / |x|
  }
  return score * query_factor * (chunk.factors == nullptr ? 1.0 : chunk.factors[v]);
}

void search(Pool& pool, const SearchKernels& kernels, const SearchSpace& space, const SearchCall& call) {
  const int threads = pool.threads();
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  int64_t done = 0;
  if (threads == 1 || call.count >= threads) {  // whole queries, as long as they keep every thread busy
    done = threads == 1 ? call.count : call.count / threads * threads;
    for (int64_t first = 0; first < done;) {
      const int64_t part = std::min<int64_t>(done - first, Pool::kMaxParts / 2);
      pool.run(static_cast<int>(part), [&](int number, int thread) {
        whole_query(kernels, space, call, first + number, scratch[static_cast<size_t>(thread)]);
      });
      first += part;
    }
  }
  for (; done < call.count; ++done) split_query(pool, kernels, space, call, done, scratch);
}

}  // namespace specdec
