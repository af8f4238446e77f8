// The int4 view times one row: 4-bit weights of the chosen inputs, whole products in int32, scales once per group.
//
// Memory decides the speed here. A group's chosen rows are read in passes of a few quads, block of outputs by block of
// outputs, which the hardware's own prefetching cannot follow; so while one pass is multiplied, the lines of the next are
// asked for, four rows side by side, into the second-level cache (asking for the first level keeps too few requests in
// flight).

#include "int4_simd.inl"

namespace specdec::SPECDEC_ISA {

// Quads that one pass takes at most: more rows side by side than this were slower.
constexpr int32_t kMaxPass = 6;

// Quads [first, last) of one chosen group.
struct Int4Pass {
  const Int4Call* call;
  int64_t group;
  int32_t first, last;
  const ChosenGroup* chosen;
};

// The first pass over group g or a later one; its call is null when there is none. `room` is for the group's activations.
static inline Int4Pass first_pass(const Int4Call* call, int64_t g, ChosenGroup* room) {
  while (g < call->last && call->masks[g] == 0) ++g;
  if (g >= call->last) return {nullptr, 0, 0, 0, nullptr};
  quantise_group(call->x + g * kGroup, call->masks[g], room);
  return {call, g, 0, room->quads <= kMaxPass ? room->quads : (room->quads + 1) / 2, room};
}

// The pass after `pass` of the same call.
static inline Int4Pass next_pass(const Int4Pass& pass, ChosenGroup* room) {
  if (pass.last < pass.chosen->quads) return {pass.call, pass.group, pass.last, pass.chosen->quads, pass.chosen};
  return first_pass(pass.call, pass.group + 1, room);
}

// Asks for the lines of one pass: the group's steps and codes, then the rows, a quad at a time.
class Ahead {
 public:
  [[gnu::always_inline]] inline explicit Ahead(const Int4Pass& pass) : quad_(pass.first), last_(pass.last), left_(0) {
    if (pass.call == nullptr) return;
    const Int4Call& call = *pass.call;
    const int64_t width = call.tile.width, head = int4_steps_bytes(width) + width;
    const uint8_t* data = call.tile.data + pass.group * int4_group_bytes(width);
    head_ = data;
    head_left_ = pass.first == 0 ? (head + 255) / 256 : 0;
    rows_ = data + head + call.first_out / 2;
    index_ = pass.chosen->index;
    stride_ = static_cast<uint32_t>(width / 2);
    lines_ = ((call.last_out - call.first_out) / 2 + 63) / 64;
    left_ = head_left_ + lines_ * (pass.last - pass.first);
    line_ = lines_;
    --quad_;
  }
  // How often step() finds something to ask for.
  int64_t steps() const { return left_; }
  // Four lines.
  [[gnu::always_inline]] inline void step() {
    if (left_ == 0) return;
    --left_;
    if (__builtin_expect(head_left_ != 0, 0)) {
      for (int k = 0; k < 4; ++k) SPECDEC_PREFETCH_FAR(head_ + 64 * k);
      head_ += 256;
      --head_left_;
      return;
    }
    if (__builtin_expect(line_ == lines_, 0)) {
      ++quad_;
      line_ = 0;
      SPECDEC_UNROLL for (int k = 0; k < 4; ++k) row_[k] = rows_ + index_[4 * quad_ + k] * stride_;
    }
    SPECDEC_UNROLL for (int k = 0; k < 4; ++k) SPECDEC_PREFETCH_FAR(row_[k] + 64 * line_);
    ++line_;
  }
  void rest() {
    while (left_ != 0) step();
  }

 private:
  const uint8_t *head_ = nullptr, *rows_ = nullptr, *index_ = nullptr;
  const uint8_t* row_[4] = {};
  uint32_t stride_ = 0;
  int32_t quad_, last_;
  int64_t head_left_ = 0, lines_ = 0, line_ = 0, left_;
};

// What a pass needs at every block.
struct Int4Rows {
  const uint8_t* rows;
  uint32_t offsets[kGroup];  // of the pass's rows
  const int8_t* values;
  int32_t quads;
  int32_t start;             // what sums begin with: levels are stored with 8 added
  float step;
  bool first, last;
  const float* steps;
  const int8_t* codes;
  int32_t* carry;
  float* sums;
};

// One block (Lanes lanes of 16 bytes per row) of one pass.
template <class Nibbles, int Lanes>
[[gnu::always_inline]] static inline void int4_block(const Int4Rows& in, int64_t out, Ahead& ahead) {
  SPECDEC_UNROLL for (int part = 0; part < Lanes; part += Nibbles::kWidth) {
    Nibbles nibbles;
    int32_t* carry = in.carry + out + 32 * part;
    if (in.first) nibbles.start(in.start);
    else nibbles.resume(carry);
    const uint8_t* base = in.rows + out / 2 + 16 * part;
    for (int32_t q = 0; q < in.quads; ++q) {
      const uint32_t* at = in.offsets + 4 * q;
      int32_t values;
      __builtin_memcpy(&values, in.values + 4 * q, 4);
      if (part == 0) ahead.step();
      nibbles.add(base + at[0], base + at[1], base + at[2], base + at[3], values);
    }
    if (!in.last) {
      nibbles.save(carry);
      continue;
    }
    SPECDEC_UNROLL for (int j = 0; j < 8; ++j) {
      const int64_t o = out + 4 * Lanes * j + 4 * part;
      nibbles.finish(j, in.codes + o, in.steps[o / 64] * in.step, in.sums + o);
    }
  }
}

static void int4_pass(const Int4Pass& pass, Ahead& ahead) {
  const Int4Call& call = *pass.call;
  const int64_t width = call.tile.width;
  const uint8_t* data = call.tile.data + pass.group * int4_group_bytes(width);
  const ChosenGroup& group = *pass.chosen;
  Int4Rows in;
  in.rows = data + int4_steps_bytes(width) + width;
  in.quads = pass.last - pass.first;
  for (int k = 0; k < 4 * in.quads; ++k)
    in.offsets[k] = group.index[4 * pass.first + k] * static_cast<uint32_t>(width / 2);
  in.values = group.value + 4 * pass.first;
  in.start = -8 * group.sum;
  in.step = group.step;
  in.first = pass.first == 0;
  in.last = pass.last == group.quads;
  in.steps = reinterpret_cast<const float*>(data);
  in.codes = reinterpret_cast<const int8_t*>(data + int4_steps_bytes(width));
  in.carry = call.carry;
  in.sums = call.sums;
  int64_t out = call.first_out;
  // Steps are spread evenly over the blocks.
  const int64_t blocks = (call.last_out - out + kInt4Block - 1) / kInt4Block;
  const int64_t extra = (ahead.steps() + blocks - 1) / blocks - in.quads;
  for (; out + kInt4Block <= call.last_out; out += kInt4Block) {
    int4_block<WideNibbles, 4>(in, out, ahead);
    for (int64_t k = 0; k < extra; ++k) ahead.step();
  }
  if (out < call.last_out) int4_block<NarrowNibbles, 2>(in, out, ahead);
  ahead.rest();
}

static void int4(const Int4Call& call) {
  for (int64_t o = call.first_out; o < call.last_out; o += kLanes) store(call.sums + o, zero());
  ChosenGroup rooms[2];  // of the pass under way and of the next one
  int room = 0;
  Int4Pass pass = first_pass(&call, call.first, rooms + room);
  if (call.cold) Ahead(pass).rest();
  while (pass.call != nullptr) {
    ChosenGroup* const other = rooms + (1 - room);
    const Int4Pass next = next_pass(pass, other);
    Ahead ahead(next.call != nullptr || call.next == nullptr ? next : first_pass(call.next, call.next->first, other));
    int4_pass(pass, ahead);
    if (next.chosen == other) room = 1 - room;
    pass = next;
  }
}

}  // namespace specdec::SPECDEC_ISA
