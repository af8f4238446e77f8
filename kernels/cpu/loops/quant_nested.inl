// The nested view of a quantised matrix times rows: the first plane of the chosen inputs, in 8-bit activations.
//
// Memory decides the speed, as in int4.inl: while one group is multiplied, the lines that the next needs are asked for in
// the order in which they lie in memory.

namespace specdec::SPECDEC_ISA {

// A group of a call; its call is null when there is none.
struct NestedGroup {
  const NestedCall* call;
  int64_t group;
  const uint8_t* unit() const {
    const QuantFormat& format = call->format;
    return call->tile.data + group / format.unit * format.unit_bytes() * call->tile.width;
  }
  const uint8_t* head() const {
    const QuantFormat& format = call->format;
    return unit() + (format.unit_head() + group % format.unit * format.group_bytes()) * call->tile.width;
  }
  const uint8_t* rows() const { return head() + call->format.group_head() * call->tile.width; }
};

// The first group from `group` on that has chosen inputs.
static inline NestedGroup nested_group(const NestedCall* call, int64_t group) {
  while (group < call->groups && call->masks[group] == 0) ++group;
  if (group >= call->groups) return {nullptr, 0};
  return {call, group};
}

// Asks for the lines of one group: heads, then the chosen rows.
class NestedAhead {
 public:
  [[gnu::always_inline]] inline explicit NestedAhead(const NestedGroup& next) {
    if (next.call == nullptr) return;
    const QuantFormat& format = next.call->format;
    const int64_t width = next.call->tile.width;
    mask_ = next.call->masks[next.group];
    rows_ = next.rows();
    stride_ = format.row_bytes(width);
    row_bytes_ = width / 2;
    const bool first = next.group % format.unit == 0;
    at_ = first ? next.unit() : next.head();
    end_ = rows_;
    left_ = (end_ - at_ + 255) / 256;
    if (mask_ == ~0U && stride_ == row_bytes_) {
      end_ += kQuantGroup * stride_;
      left_ = (end_ - at_ + 255) / 256;
      mask_ = 0;
    } else {
      if (left_ == 0) row();
      left_ += (__builtin_popcount(mask_) + (end_ > rows_ ? 1 : 0)) * ((row_bytes_ + 255) / 256);
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
    if (__builtin_expect(at_ >= end_, 0)) row();
  }
  void rest() {
    while (left_ != 0) step();
  }

 private:
  void row() {
    if (mask_ == 0) return;
    at_ = rows_ + __builtin_ctz(mask_) * stride_;
    end_ = at_ + row_bytes_;
    mask_ &= mask_ - 1;
  }
  const uint8_t *at_ = nullptr, *end_ = nullptr, *rows_ = nullptr;
  uint32_t mask_ = 0;
  int64_t stride_ = 0, row_bytes_ = 0, left_ = 0;
};

// The chosen inputs of a part of a group.
struct NestedPart {
  const uint8_t* rows[kGroup];
  int32_t values[kGroup / 4];
  int32_t quads;
  float step, sum;
};

template <int Bits, class Scales>
static void nested_one(const NestedGroup& here, const NestedPart* parts, NestedAhead& ahead) {
  constexpr int kZero = Scales::kOffset ? 0 : 1 << (Bits - 1), kRest = 1 << (Bits - 4);
  constexpr float kCentre = static_cast<float>(kRest - 1) / 2.0F - static_cast<float>(kZero);
  const NestedCall& call = *here.call;
  const int64_t blocks = call.tile.width / kQuantBlock;
  const uint8_t *unit = here.unit(), *head = here.head();
  const int64_t asks = (ahead.steps() + blocks - 1) / blocks;  // spread evenly
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* block_unit = unit + b * kQuantBlock * call.format.unit_head();
    const uint8_t* block_head = head + b * kQuantBlock * call.format.group_head();
    float* sums = call.sums + b * kQuantBlock;
    int64_t asked = 0;
    for (int p = 0; p < Scales::kParts; ++p) {
      const NestedPart& part = parts[p];
      if (part.quads == 0) continue;
      const F32 step = set1(part.step), add = set1(kCentre * part.sum), off = set1(-part.step * part.sum);
      SPECDEC_UNROLL for (int lane = 0; lane < 4; lane += WideNibbles::kWidth) {
        WideNibbles nibbles;
        nibbles.start(0);
        const uint8_t* const* row = part.rows;
        const int64_t byte = b * (kQuantBlock / 2) + 16 * lane;
        for (int32_t q = 0; q < part.quads; ++q, row += 4) {
          if (lane == 0 && asked < asks) {
            ahead.step();
            ++asked;
          }
          nibbles.add(row[0] + byte, row[1] + byte, row[2] + byte, row[3] + byte, part.values[q]);
        }
        SPECDEC_UNROLL for (int j = 0; j < 8; ++j) {
          const int o = 16 * j + 4 * lane;
          F32 value = nibbles.value(j);
          if constexpr (Bits != 4 || kZero != 0) value = fma(value, set1(static_cast<float>(kRest)), add);
          F32 scale = Scales::scale(block_unit, block_head, p, o);
          if constexpr (Scales::kTwoLevels) scale = mul(scale, Scales::outer(block_unit, o));
          F32 total = fma(mul(value, step), scale, load(sums + o));
          if constexpr (Scales::kOffset) {
            F32 offset = Scales::offset(block_unit, block_head, o);
            if constexpr (Scales::kTwoLevels) offset = mul(offset, Scales::outer_offset(block_unit, o));
            total = fma(off, offset, total);
          }
          store(sums + o, total);
        }
      }
    }
    for (; asked < asks; ++asked) ahead.step();
  }
  ahead.rest();
}

// A row on its way through the groups.
template <int Bits, class Scales>
struct NestedRow {
  const NestedCall* call;
  NestedGroup here;

  inline void start(const NestedCall* own) {
    call = own;
    for (int64_t o = 0; o < call->tile.width; o += kLanes) store(call->sums + o, zero());
    here = nested_group(call, 0);
    if (call->cold) NestedAhead(here).rest();
  }
  inline void step() {
    const NestedGroup next = nested_group(call, here.group + 1);
    NestedAhead ahead(next.call == nullptr && call->next != nullptr ? nested_group(call->next, 0) : next);
    NestedPart parts[Scales::kParts];
    constexpr uint32_t kMasks[] = {Scales::kParts == 2 ? 0xFFFFU : ~0U, 0xFFFF0000U};
    for (int p = 0; p < Scales::kParts; ++p) {
      ChosenGroup chosen;
      quantise_group(call->x + here.group * kGroup, call->masks[here.group] & kMasks[p], &chosen);
      NestedPart& part = parts[p];
      for (int k = 0; k < 4 * chosen.quads; ++k) part.rows[k] = here.rows() + chosen.index[k] * call->format.row_bytes(call->tile.width);
      __builtin_memcpy(part.values, chosen.value, sizeof part.values);
      part.quads = chosen.quads;
      part.step = chosen.step;
      part.sum = static_cast<float>(chosen.sum);
    }
    nested_one<Bits, Scales>(here, parts, ahead);
    here = next;
  }
};

struct NestedCalls {
  const NestedCall* calls;
  int rows;
};
template <int Bits, class Scales>
struct Nested {
  static void run(const NestedCalls& all) {
    NestedRow<Bits, Scales> row[kDraftRows];
    for (int r = 0; r < all.rows; ++r) row[r].start(all.calls + r);
    while (all.rows == 1 && row[0].here.call != nullptr) row[0].step();
    step_together(row, all.rows);
  }
};
static void quant_nested(const NestedCall* calls, int rows) {
  by_format<Nested>(calls->format, NestedCalls{calls, rows});
}

inline QuantKernels quant_kernels() {
  return QuantKernels{kQuantTileRows, quant_list, quant_activations, quant_multiply, quant_add_spans, quant_nested};
}

}  // namespace specdec::SPECDEC_ISA
