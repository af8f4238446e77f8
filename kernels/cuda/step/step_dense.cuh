// ROWS rows times a share of a matrix on the tensor cores, for a step in one kernel; effort 1.0. Arithmetic and packing are
// those of dense.cu: a column of a product does not see its neighbours, so a row's bits do not depend on the others.
namespace specdec {

using act_t = weight_t;

// A ring in shared memory, as in step_verify.cuh, was measured here too, and was slower.
DEVICE void fill(const Matrix&, int, const void*, const void*, char*) {}

DEVICE void multiply_exact(const Matrix& m, int, int, const void* weights, const void*, const act_t* activation, const unsigned char*, int rows,
                           float* parts, float* exchange, char*) {
  constexpr int UNROLL = STEP_UNROLL;  // at most the steps of a tile: a batch passes one end of a tile
  const int steps = m.steps, width = steps * 32;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  const uint4* w = reinterpret_cast<const uint4*>(weights) + (size_t)share.begin * 64 + lane;
  int tile = share.begin / steps, step = share.begin % steps;
  float sum[BANDS][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = band * 8 + 2 * q + e % 2;
        if (column < rows) to[column * 16 + g + e / 2 * 8] = sum[band][e];
        sum[band][e] = 0;
      }
    }
  };

  for (int unit = share.begin; unit < share.end; unit += UNROLL, w += UNROLL * 64) {
    uint4 held[UNROLL][2], x[UNROLL][BANDS][SPLIT];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const bool within = unit + u < share.end, wraps = step + u >= steps;
      const int place = (wraps ? step + u - steps : step + u) * 32 + q * 8;
      held[u][0] = within ? stream16(w + u * 64) : uint4{0, 0, 0, 0};
      held[u][1] = within ? stream16(w + u * 64 + 32) : uint4{0, 0, 0, 0};
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          x[u][band][part] =
              within && row < rows
                  ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + part) * width + place)
                  : uint4{0, 0, 0, 0};
        }
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (unit + u >= share.end) break;
      const unsigned all[8] = {held[u][0].x, held[u][0].y, held[u][0].z, held[u][0].w,
                               held[u][1].x, held[u][1].y, held[u][1].z, held[u][1].w};
      const unsigned a0[4] = {all[0], all[1], all[2], all[3]}, a1[4] = {all[4], all[5], all[6], all[7]};
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const uint4 v = x[u][band][part];
          multiply_tile(sum[band], a0, v.x, v.y, weight_t());
          multiply_tile(sum[band], a1, v.z, v.w, weight_t());
        }
      }
      if (++step == steps) {
        flush();
        ++tile, step = 0;
      }
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, rows);
}

#if RING_PIECES
// The weights of a warp, which come through a ring of its own: as soon as a piece has been used the next one is asked for,
// whatever multiplication it belongs to. Units, their order and sums are those above.
struct DenseRing {
  static constexpr int PIECE_UNITS = 2, PIECE_BYTES = 1024 * PIECE_UNITS;
  const unsigned long long* address;
  const char *pieces, *from;
  unsigned to, arrived, phase;  // shared addresses: of the pieces, and of what counts their bytes
  int at, number, last_number, unit, end;

  // For multiplications up to `last_number`.
  DEVICE DenseRing(const unsigned long long* address_, char* rings, unsigned long long* counters, int last_number_)
      : address(address_), phase(0), at(0), last_number(last_number_) {
    const int warp = threadIdx.x / 32;
    pieces = rings + (size_t)warp * RING_PIECES * PIECE_BYTES;
    to = unsigned(__cvta_generic_to_shared(pieces)), arrived = unsigned(__cvta_generic_to_shared(counters + warp * RING_PIECES));
    if (threadIdx.x % 32 < RING_PIECES) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrived + 8 * (threadIdx.x % 32)) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    WARP_BARRIER();
  }
  // Goes to the next multiplication of which this warp has a part.
  DEVICE void open() {
    for (; number <= last_number; ++number) {
      const bool head = number == 4 * LAYERS;
      const Shares share(matrix_at(number % 4, head), threadIdx.x / 32);
      unit = share.begin, end = share.end;
      from = reinterpret_cast<const char*>(address[head ? LAYERS * ENTRIES : number / 4 * ENTRIES + 4 + number % 4]) + (size_t)unit * 1024;
      if (unit < end) return;
    }
  }
  DEVICE void ask(int place) {
    if (number > last_number) return;
    const int count = end - unit < PIECE_UNITS ? end - unit : PIECE_UNITS;
    const unsigned counter = arrived + 8 * place;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter), "r"(count * 1024) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to + place * PIECE_BYTES),
                 "l"(from), "r"(count * 1024), "r"(counter)
                 : "memory");
    unit += count, from += count * 1024;
    if (unit == end) ++number, open();
  }
  // Asks for the first pieces of a token; every piece before has been used.
  DEVICE void begin() {
    if (threadIdx.x % 32) return;
    number = 0, open();
    for (int n = 0; n < RING_PIECES; ++n) ask(at + n < RING_PIECES ? at + n : at + n - RING_PIECES);
  }
  DEVICE const uint4* wait() const {
    asm volatile(
        "{\n.reg .pred there;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n@!there bra AGAIN_%=;\n}"
        ::"r"(arrived + 8 * at), "r"(phase)
        : "memory");
    return reinterpret_cast<const uint4*>(pieces + (size_t)at * PIECE_BYTES);
  }
  // The piece was used by all lanes.
  DEVICE void release() {
    WARP_BARRIER();
    if (threadIdx.x % 32 == 0) ask(at);
    if (++at == RING_PIECES) at = 0, phase ^= 1;
  }
};

DEVICE void multiply_ring(const Matrix& m, const act_t* activation, float* parts, float* exchange, DenseRing& ring) {
  constexpr int EACH = DenseRing::PIECE_UNITS;
  const int steps = m.steps, width = steps * 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  int tile = share.begin / steps, step = share.begin % steps;
  float sum[4] = {};
  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
    if (q == 0) to[g] = sum[0], to[g + 8] = sum[2];
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] = 0;
  };
#pragma unroll 1
  for (int unit = share.begin; unit < share.end; unit += EACH) {
    uint4 x[EACH][SPLIT];
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
      const int place = (step + u >= steps ? step + u - steps : step + u) * 32 + q * 8;
#pragma unroll
      for (int part = 0; part < SPLIT; ++part) {
        x[u][part] = g == 0 ? *reinterpret_cast<const uint4*>(activation + (size_t)part * width + place) : uint4{0, 0, 0, 0};
      }
    }
    const uint4* held = ring.wait() + lane;
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
      if (unit + u >= share.end) break;
      const uint4 w0 = held[u * 64], w1 = held[u * 64 + 32];
      const unsigned a0[4] = {w0.x, w0.y, w0.z, w0.w}, a1[4] = {w1.x, w1.y, w1.z, w1.w};
#pragma unroll
      for (int part = 0; part < SPLIT; ++part) {
        multiply_tile(sum, a0, x[u][part].x, x[u][part].y, weight_t());
        multiply_tile(sum, a1, x[u][part].z, x[u][part].w, weight_t());
      }
      if (++step == steps) {
        flush();
        ++tile, step = 0;
      }
    }
    ring.release();
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, 1);
}
#endif

}  // namespace specdec
