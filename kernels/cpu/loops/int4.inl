// The int4 view times rows: 4-bit weights of the chosen inputs, whole products in int32, scales once per group.
//
// Memory decides the speed here. A group's chosen rows are read side by side, block of outputs by block of outputs,
// which the hardware's own prefetching cannot follow; so while one group is multiplied, the lines of the next are asked
// for in the order in which they lie in memory, into the second-level cache (asking for the first level keeps too few
// requests in flight). Several rows go through a group one after another, so that it is read from memory once.

#include "int4_simd.inl"

namespace specdec::SPECDEC_ISA {

// A group of a call and what is chosen of it; its call is null when there is none.
struct Int4Group {
  const Int4Call* call;
  int64_t group;
  const uint8_t* data() const { return call->tile.data + group * int4_group_bytes(call->tile.width); }
  int64_t head() const { return int4_steps_bytes(call->tile.width) + call->tile.width; }
};

// The first group from `group` on that has chosen inputs, which go into `room`.
static inline Int4Group find_group(const Int4Call* call, int64_t group, ChosenGroup* room) {
  while (group < call->last && call->masks[group] == 0) ++group;
  if (group >= call->last) return {nullptr, 0};
  quantise_group(call->x + group * kGroup, call->masks[group], room);
  return {call, group};
}

// Asks for the lines of one group: steps and codes, then the chosen rows.
class Ahead {
 public:
  [[gnu::always_inline]] inline Ahead(const Int4Group& next, const ChosenGroup& chosen) {
    if (next.call == nullptr) return;
    const Int4Call& call = *next.call;
    at_ = next.data();
    end_ = at_ + next.head();
    rows_ = end_ + call.first_out / 2;
    row_bytes_ = static_cast<uint32_t>(call.last_out - call.first_out) / 2;
    stride_ = static_cast<uint32_t>(call.tile.width / 2);
    index_ = chosen.index;
    if (chosen.count == kGroup && row_bytes_ == stride_) {
      end_ += kGroup * stride_;
      left_ = (end_ - at_ + 255) / 256;
    } else {
      left_ = (next.head() + 255) / 256 + chosen.count * ((row_bytes_ + 255) / 256);
    }
  }
  // How often step() finds something to ask for.
  int64_t steps() const { return left_; }
  // Four lines.
  [[gnu::always_inline]] inline void step() {
    if (left_ == 0) return;
    --left_;
    SPECDEC_UNROLL for (int k = 0; k < 4; ++k) SPECDEC_PREFETCH_FAR(at_ + 64 * k);
    at_ += 256;
    if (__builtin_expect(at_ >= end_, 0)) {
      at_ = rows_ + *index_++ * stride_;
      end_ = at_ + row_bytes_;
    }
  }
  void rest() {
    while (left_ != 0) step();
  }

 private:
  const uint8_t *at_ = nullptr, *end_ = nullptr, *rows_ = nullptr, *index_ = nullptr;
  uint32_t row_bytes_ = 0, stride_ = 0;
  int64_t left_ = 0;
};

// What a group needs at every block.
struct Int4Rows {
  const uint8_t* rows[kGroup];  // the chosen ones
  int32_t values[kGroup / 4];   // four activations each
  int32_t quads;
  int32_t start;  // what sums begin with: levels are stored with 8 added
  float step;
};

// One block (Lanes lanes of 16 bytes per row), `at` bytes into the rows; asks `steps` times for lines ahead.
template <class Nibbles, int Lanes>
[[gnu::always_inline]] static inline void int4_block(const Int4Rows& in, int64_t at, const float* steps,
                                                     const int8_t* codes, float* sums, Ahead& ahead, int64_t asks) {
  SPECDEC_UNROLL for (int part = 0; part < Lanes; part += Nibbles::kWidth) {
    Nibbles nibbles;
    nibbles.start(in.start);
    const uint8_t* const* row = in.rows;
    const int64_t byte = at + 16 * part;
    for (int32_t q = 0; q < in.quads; ++q, row += 4) {
      if (part == 0 && q < asks) ahead.step();
      nibbles.add(row[0] + byte, row[1] + byte, row[2] + byte, row[3] + byte, in.values[q]);
    }
    const float scales[2] = {steps[0] * in.step, Lanes == 4 ? steps[1] * in.step : 0.0F};
    SPECDEC_UNROLL for (int j = 0; j < 8; ++j) {
      const int o = 4 * Lanes * j + 4 * part;
      nibbles.finish(j, codes + o, scales[o / 64], sums + o);
    }
  }
  for (int64_t q = in.quads; q < asks; ++q) ahead.step();
}

static void int4_group(const Int4Group& here, const ChosenGroup& chosen, Ahead& ahead) {
  const Int4Call& call = *here.call;
  const uint8_t* data = here.data();
  Int4Rows in;
  const uint8_t* rows = data + here.head();
  for (int k = 0; k < 4 * chosen.quads; ++k) in.rows[k] = rows + chosen.index[k] * (call.tile.width / 2);
  __builtin_memcpy(in.values, chosen.value, sizeof in.values);
  in.quads = chosen.quads;
  in.start = -8 * chosen.sum;
  in.step = chosen.step;
  const auto* steps = reinterpret_cast<const float*>(data);
  const auto* codes = reinterpret_cast<const int8_t*>(data + int4_steps_bytes(call.tile.width));
  int64_t out = call.first_out;
  const int64_t blocks = (call.last_out - out + kInt4Block - 1) / kInt4Block;
  const int64_t asks = (ahead.steps() + blocks - 1) / blocks;  // spread evenly
  for (; out + kInt4Block <= call.last_out; out += kInt4Block)
    int4_block<WideNibbles, 4>(in, out / 2, steps + out / 64, codes + out, call.sums + out, ahead, asks);
  if (out < call.last_out)
    int4_block<NarrowNibbles, 2>(in, out / 2, steps + out / 64, codes + out, call.sums + out, ahead, asks);
  ahead.rest();
}

// Moves rows through the groups together: those that stand at the lowest one take their step, until none is left.
template <class Row>
static inline void step_together(Row* row, int rows) {
  for (;;) {
    int64_t group = INT64_MAX;
    for (int r = 0; r < rows; ++r)
      if (row[r].here.call != nullptr && row[r].here.group < group) group = row[r].here.group;
    if (group == INT64_MAX) return;
    for (int r = 0; r < rows; ++r)
      if (row[r].here.call != nullptr && row[r].here.group == group) row[r].step();
  }
}

// A row on its way through the groups.
struct Int4Row {
  const Int4Call* call;
  Int4Group here;
  ChosenGroup rooms[2];  // of the group under way and of the next one
  int room;

  inline void start(const Int4Call* own) {
    call = own;
    room = 0;
    // Other threads have just written the activations; prefetched together, they arrive in the time of one line.
    for (int64_t i = call->first * kGroup; i < call->last * kGroup; i += 16) SPECDEC_PREFETCH_NEAR(call->x + i);
    for (int64_t o = call->first_out; o < call->last_out; o += kLanes) store(call->sums + o, zero());
    here = find_group(call, call->first, rooms);
    if (call->cold) Ahead(here, rooms[0]).rest();
  }
  inline void step() {
    ChosenGroup& other = rooms[1 - room];
    const Int4Group next = find_group(call, here.group + 1, &other);
    const bool last = next.call == nullptr && call->next != nullptr;
    Ahead ahead(last ? find_group(call->next, call->next->first, &other) : next, other);
    int4_group(here, rooms[room], ahead);
    room = 1 - room;
    here = next;
  }
};

static void int4(const Int4Call* calls, int rows) {
  Int4Row row[kDraftRows];
  for (int r = 0; r < rows; ++r) row[r].start(calls + r);
  while (rows == 1 && row[0].here.call != nullptr) row[0].step();
  step_together(row, rows);
}

}  // namespace specdec::SPECDEC_ISA
