// Number of chunks into which a draft view cuts the inputs of matrices, so that many threads get equal work.
#pragma once

#include <algorithm>
#include <cstdint>

namespace specdec {

// Number of chunks, each of at least kChunkGroups groups of inputs, for `blocks` blocks of outputs that one row
// multiplies together. Minimises the largest share of 16 threads, then that of 64. The actual number of threads is not
// used, because it would change the sums.
inline int64_t chunk_count(int64_t blocks, int64_t groups) {
  constexpr int64_t kMaxChunks = 16, kChunkGroups = 4;
  auto most = [&](int64_t chunks, int64_t threads) {
    return (blocks * chunks + threads - 1) / threads * ((groups + chunks - 1) / chunks);
  };
  int64_t best = 1;
  double least = 0;
  for (int64_t chunks = 1; chunks <= std::min(kMaxChunks, std::max<int64_t>(groups / kChunkGroups, 1)); ++chunks) {
    const auto time = static_cast<double>(3 * most(chunks, 16) + most(chunks, 64));
    if (chunks == 1 || time < 0.95 * least) best = chunks, least = time;
  }
  return best;
}

}  // namespace specdec
