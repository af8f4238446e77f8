// bucketMul of one row with a share of a matrix, for a step in one kernel; arithmetic and records of bucket.cu. The
// activation and the number of runs that each input takes lie in shared memory.
namespace specdec {

// Records of a block's share that are listed at a time: those of LIST_STEPS steps, of two tiles at most.
constexpr int LIST_STEPS = 128, LISTED = LIST_STEPS * 32 * 4;
static_assert(WARPS == 16, "a warp adds up one of 16 places");

// Records that a lane holds while it waits for others.
struct Records {
  uint2 values[RUNS_AHEAD];
  unsigned places[RUNS_AHEAD];
  float x[RUNS_AHEAD];
};

// The warps share out the records that are taken, in order of run and input, evenly. Every lane adds to places of its own.
DEVICE void multiply_draft(const Matrix& m, const void* records, const void*, const unsigned char* halves,
                           const unsigned char* counts, float* parts, char* room, char*) {
  const int padded_inputs = m.steps * 32;
  const __half* activation = reinterpret_cast<const __half*>(halves);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, side = lane / 16, bucket = lane % 16;
  float* all = reinterpret_cast<float*>(room);  // [warp][2 tiles][16 places][32 lanes]
  float* sums = all + warp * 1024 + lane;
  int* lengths = reinterpret_cast<int*>(all + WARPS * 1024);
  unsigned short* list = reinterpret_cast<unsigned short*>(lengths + WARPS);
  const int end = m.first(blockIdx.x + 1);
#pragma unroll
  for (int p = 0; p < 32; ++p) sums[p * 32] = 0;

  for (int unit = m.first(blockIdx.x); unit < end;) {
    // The steps of a tile from `step` on, and of the next tile.
    const int tile = unit / m.steps, step = unit - tile * m.steps;
    const int steps = min(min(2 * m.steps - step, end - unit), LIST_STEPS), turn = m.steps - step;
    auto step_at = [&](int s) { return s < turn ? step + s : s - turn; };
    // Lengths of the warps' pieces of the list, then the list.
    const int low = steps * warp / WARPS, high = steps * (warp + 1) / WARPS;
    int length = 0;
    for (int s = low; s < high; ++s) length += counts[step_at(s) * 32 + lane];
    length = lane_sum(length);
    if (lane == 0) lengths[warp] = length;
    BARRIER();
    int total = 0, at = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      at += w < warp ? lengths[w] : 0;
      total += lengths[w];
    }
    for (int s = low; s < high; ++s) {
      const int count = counts[step_at(s) * 32 + lane];
#pragma unroll
      for (int run = 0; run < 4; ++run) {
        const unsigned taken = __ballot_sync(EVERY_LANE, count > run);
        if (count > run) list[at + __popc(taken & ((1u << lane) - 1))] = (unsigned short)(run << 12 | s * 32 | lane);
        at += __popc(taken);
      }
    }
    BARRIER();

    const unsigned char* from = reinterpret_cast<const unsigned char*>(records) + (size_t)tile * 4 * padded_inputs * 160 +
                                bucket * 8;
    const int last = total * (warp + 1) / WARPS;
    auto load = [&](int begin, Records& to) {
#pragma unroll
      for (int a = 0; a < RUNS_AHEAD; ++a) {
        const int entry = begin + 2 * a + side;
        const bool real = entry < last;
        const int code = real ? list[entry] : 0, place = code & 4095;
        const bool second = place >= turn * 32;
        const int input = second ? place - turn * 32 : step * 32 + place;
        const unsigned char* record = from + (unsigned)(((code >> 12) + second * 4) * padded_inputs + input) * 160u;
        to.x[a] = real ? to_float(activation[input]) : 0.0f;
        to.values[a] = real ? stream8(record) : uint2{0, 0};
        to.places[a] = real ? *reinterpret_cast<const unsigned short*>(record + 128 - bucket * 6) : 0x3210u;
        to.places[a] |= second << 16;
      }
    };
    auto add_up = [&](const Records& held) {
#pragma unroll
      for (int a = 0; a < RUNS_AHEAD; ++a) {
        // The four positions of a run differ: read all, then write all.
        const unsigned p = held.places[a];
        float* to[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) to[r] = sums + (p >> 16) * 512 + ((p >> (4 * r)) & 15) * 32;
        float sum[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[r] = *to[r];
        const weight_t* four = reinterpret_cast<const weight_t*>(&held.values[a]);
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[r] = fmaf(to_float(four[r]), held.x[a], sum[r]);
#pragma unroll
        for (int r = 0; r < 4; ++r) *to[r] = sum[r];
      }
    };
    int begin = total * warp / WARPS;
    Records one, other;
    load(begin, one);
    while (begin < last) {
      load(begin += 2 * RUNS_AHEAD, other);
      add_up(one);
      if (begin >= last) break;
      load(begin += 2 * RUNS_AHEAD, one);
      add_up(other);
    }
    BARRIER();
    // A tile that is done, or this block's part of it: sums over the warps and both sides.
    const bool more = unit + steps < end;
    for (int t = 0; t < (steps > turn ? 2 : 1); ++t) {
      if (more && steps < turn + t * m.steps) {
        if (t) {  // the second tile goes on: it is the first from now on
#pragma unroll
          for (int p = 0; p < 16; ++p) sums[p * 32] = sums[(p + 16) * 32], sums[(p + 16) * 32] = 0;
        }
        break;
      }
      float sum = 0;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        sum += all[w * 1024 + t * 512 + tid];
        all[w * 1024 + t * 512 + tid] = 0;
      }
      sum += shuffle_xor(sum, 16);
      if (side == 0) parts[(size_t)(blockIdx.x + tile + t) * TILE + bucket * 16 + warp] = sum;
      BARRIER();
    }
    BARRIER();
    unit += steps;
  }
}

// Which records come next is not known before the activation is.
DEVICE void fill(const Matrix&, const void*, const void*, char*) {}

}  // namespace specdec
