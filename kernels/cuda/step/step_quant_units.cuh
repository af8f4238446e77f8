// How a quantised matrix and its inputs lie in memory, for a step in one kernel, and the loads of its units. Codes stay in
// their source's blocks' precision, in planes of bits (packing: specdec/runtimes/mlx/quant.py). Groups of 32 inputs of an
// activation are whole numbers of 15 bits with a scale each, as two bytes. An input that a row does not take is 0.
// step_quant.cuh multiplies them.
namespace specdec {

// A type of blocks: bits of a code below the upper four, the code of 0, groups of 32 inputs that share a head, whether a
// head has offsets, whether its numbers are bfloat16, what every group has of its own, and lower bits of a code that are not
// there.
struct Form {
  int rest, zero, span, offset, bfloat, own, absent;
};
constexpr int SIX_BIT = 1, INT8 = 2;
constexpr Form FORMS[] = {FORM_LIST};
constexpr int FORM_COUNT = sizeof(FORMS) / sizeof(Form);

// Where things of a type lie. A unit is 128 outputs by 32 inputs.
template <int F>
struct Place {
  static constexpr Form form = FORMS[F];
  static constexpr int HEAD = form.offset ? 512 : 256, OWN_BYTES = form.own ? 256 : 0;
  static constexpr int STRIDE = HEAD + 8 * OWN_BYTES;        // of heads
  static constexpr int SEEN = NESTED ? 0 : form.rest;        // bits below the upper four that are read
  static constexpr int OWN_AT = 2048 + 512 * SEEN;           // in a stage
  static constexpr bool SLOT = form.span > 1;                // heads of several units lie beside the stages
  static constexpr int HEAD_AT = OWN_AT + OWN_BYTES;
  // What is not read counts as half its range: a sum over codes is twice over, then.
  static constexpr int HIDDEN_BITS = form.absent + form.rest - SEEN, SHIFT = HIDDEN_BITS ? HIDDEN_BITS + 1 : 0;
  static constexpr int CENTRE = HIDDEN_BITS ? (1 << HIDDEN_BITS) - 1 - 2 * form.zero : -form.zero;
  static_assert(!SLOT || HEAD_SLOTS > (STAGES - 2 + form.span) / form.span, "heads of all units under way");
};

// A matrix in memory.
struct Packed {
  const char *heads, *upper, *rest;
  int spans;
};
template <int F>
DEVICE Packed packed_of(const Matrix& m, const char* data) {
  using P = Place<F>;
  const int spans = (m.steps + P::form.span - 1) / P::form.span;
  const char* upper = data + (size_t)m.tiles * spans * P::STRIDE;
  return Packed{data, upper, upper + (size_t)m.units() * 2048, spans};
}

// A group of 32 inputs of a row: its scale, the sums of its whole numbers by halves, and a bit for each input that counts.
struct alignas(16) Group {
  float scale;
  int sum[2];
  unsigned taken;
};
// Rows share products by fours: upper and lower bytes of each are a column. One that is left over has a product alone.
constexpr int FULL = ROWS / 4, SINGLE = ROWS % 4, ROW_BANDS = FULL + SINGLE;
static_assert(SINGLE < 2, "one row is left over at most");
constexpr int GROUP_WORDS = 16;                 // of a group of a row: 8 bytes of each kind for every quarter of the lanes

// Puts four inputs of every thread at `at`, the number of a group and row; eight threads that follow each other have a group.
DEVICE void put_group(unsigned* words, Group* groups, int at, int quad, const float (&v)[4], bool inside) {
  const Whole whole(v, quad);
  int sum = whole.sum;
  sum += __shfl_xor_sync(EVERY_LANE, sum, 1);
  sum += __shfl_xor_sync(EVERY_LANE, sum, 2);
  const int other = __shfl_xor_sync(EVERY_LANE, sum, 4);
  const unsigned taken = whole.all_taken();
  if (!inside) return;
  unsigned* to = words + (size_t)at * GROUP_WORDS + quad % 4 * 2 + quad / 4;
  to[0] = whole.high, to[8] = whole.low;
  if (quad == 0) groups[at] = Group{whole.scale, {sum, other}, taken};
}

// A bit for each input of a group that one of the rows takes: others are not read.
DEVICE unsigned any_takes(const Group* of_rows, int rows) {
  if (ROWS == 1) return of_rows->taken;
  const int row = threadIdx.x % 32;
  return __reduce_or_sync(EVERY_LANE, row < rows ? of_rows[row].taken : 0u);
}

// Asks for a unit: stage `stage` of the warp's share.
template <int F>
DEVICE void issue(const Shares& share, const Packed& from, int tile, int step, unsigned taken, char* own, int stage) {
  using P = Place<F>;
  const int lane = threadIdx.x % 32;
  if (share.begin + stage < share.end) {
    const size_t unit = share.begin + stage;
    char* to = own + stage % STAGES * STAGE_BYTES;
    // Bits 5 and 6 of a place are turned by the fours of inputs, so that lanes read from different banks.
    const int place = lane * 16 ^ lane / 16 * 64;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(taken >> (i * 8 + lane / 4) & 1)) continue;
      copy16(to + i * 512 + (place ^ (i & 1) * 32), from.upper + unit * 2048 + lane * 16 + i * 512);
      if (P::SEEN == 4) copy16(to + 2048 + i * 512 + (place ^ (i & 1) * 32), from.rest + unit * 2048 + lane * 16 + i * 512);
    }
    if (P::SEEN == 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int input = i * 16 + lane / 2;
        if (taken >> input & 1) {
          copy16(to + 2048 + (input ^ input / 4 % 4) * 32 + lane % 2 * 16, from.rest + unit * 1024 + i * 512 + lane * 16);
        }
      }
    }
    if (P::SEEN == 1 && (taken >> lane & 1)) copy16(to + 2048 + lane * 16, from.rest + unit * 512 + lane * 16);
    const int span = tile * from.spans + step / P::form.span;
    const char* head = from.heads + (size_t)span * P::STRIDE;
    // What lanes g have of four t each, or of two, lies together in a stage.
    const int by_two = (lane % 2 * 8 + lane / 2) * 16, by_four = (lane % 4 * 8 + lane / 4) * 16;
    if (P::form.own && lane < 16) copy16(to + P::OWN_AT + by_two, head + P::HEAD + step % P::form.span * 256 + lane * 16);
    if (P::SLOT ? step % P::form.span == 0 || stage == 0 : true) {
      char* there = P::SLOT ? own + STAGES * STAGE_BYTES + span % HEAD_SLOTS * 512 : to + P::HEAD_AT;
      if (lane * 16 < P::HEAD) copy16(there + (P::form.offset ? by_four : by_two), head + lane * 16);
    }
  }
  end_stage();
}

// Asks for the stages `first` to `last` of this warp's share.
template <int F>
DEVICE void fill_form(const Portion& share, const char* data, char* ring, int first, int last) {
  const Matrix& m = share.m;
  const Packed from = packed_of<F>(m, data);
  int tile = share.tile, step = share.step + first;
  while (step >= m.steps) ++tile, step -= m.steps;
#pragma unroll 1
  for (int stage = first; stage < last; ++stage) {
    issue<F>(share, from, tile, step, EVERY_LANE, ring + share.warp * RING_BYTES, stage);
    if (++step == m.steps) ++tile, step = 0;
  }
}

}  // namespace specdec
