// bucketMul of one row with a share of a matrix, for a step in one kernel; arithmetic and records of bucket.cu. The
// activation and the number of runs that each input takes lie in shared memory.
namespace specdec {

template <int OUTPUTS, int PADDED>
using Draft = Matrix<(OUTPUTS + 255) / 256, PADDED / 32, 256>;

template <class M>
DEVICE void multiply_draft(const void* records, const void*, const __half* activation, const unsigned char* counts,
                           float* parts, float* meeting, float* own, char*) {
  constexpr int STEPS = M::STEPS, PADDED = STEPS * 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, side = lane / 16, bucket = lane % 16;
  const Shares<M> share(warp);
  int tile = share.begin / STEPS, step = share.begin % STEPS;
  float* sums = own + warp * 512 + lane;  // [16 places][32 lanes]: a lane's own, so nothing collides
  unsigned short* list = reinterpret_cast<unsigned short*>(own + WARPS * 512) + warp * 128;
#pragma unroll
  for (int p = 0; p < 16; ++p) sums[p * 32] = 0;

  auto flush = [&]() {
    float* to = share.place(tile, parts, meeting);
#pragma unroll
    for (int p = 0; p < 16; ++p) {
      const float value = sums[p * 32];
      const float both = value + shuffle_xor(value, 16);
      if (side == 0) to[bucket * 16 + p] = both;
      sums[p * 32] = 0;
    }
  };

  for (int unit = share.begin; unit < share.end; ++unit) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(records) + (size_t)tile * 4 * PADDED * 160;
    const float mine = to_float(activation[step * 32 + lane]);
    const int count = counts[step * 32 + lane];
    int length = 0;
    WARP_BARRIER();
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const unsigned taken = __ballot_sync(EVERY_LANE, count > run);
      if (count > run) list[length + __popc(taken & ((1u << lane) - 1))] = (unsigned short)(run * 32 + lane);
      length += __popc(taken);
    }
    WARP_BARRIER();
    for (int at = 0; at < length; at += 2 * RUNS_AHEAD) {
      uint2 values[RUNS_AHEAD];
      unsigned places[RUNS_AHEAD];
      float x[RUNS_AHEAD];
#pragma unroll
      for (int a = 0; a < RUNS_AHEAD; ++a) {
        const int entry = at + 2 * a + side;
        const bool real = entry < length;
        const int run = real ? list[entry] / 32 : 0, input = real ? list[entry] % 32 : 0;
        const unsigned char* record = from + ((size_t)run * PADDED + step * 32 + input) * 160;
        x[a] = __shfl_sync(EVERY_LANE, mine, input);
        x[a] = real ? x[a] : 0.0f;
        values[a] = real ? stream8(record + bucket * 8) : uint2{0, 0};
        places[a] = real ? *reinterpret_cast<const unsigned short*>(record + 128 + bucket * 2) : 0x3210u;
      }
#pragma unroll
      for (int a = 0; a < RUNS_AHEAD; ++a) {
        // The four positions of a run differ: read all, then write all.
        float held[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) held[r] = sums[((places[a] >> (4 * r)) & 15) * 32];
        const weight_t* pair = reinterpret_cast<const weight_t*>(&values[a]);
#pragma unroll
        for (int r = 0; r < 4; ++r) held[r] = fmaf(to_float(pair[r]), x[a], held[r]);
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[((places[a] >> (4 * r)) & 15) * 32] = held[r];
      }
    }
    if (++step == STEPS) {
      flush();
      ++tile, step = 0;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(meeting, parts, 1);
}

// Which records come next is not known before the activation is.
template <class M>
DEVICE void fill(const void*, const void*, char*) {}

}  // namespace specdec
