// Which lines of a quantised matrix are asked for while others are multiplied.

namespace specdec::SPECDEC_ISA {

// Lines that are asked for while blocks are multiplied: those from `at` to `end`, then the rows of a mask.
class QuantAhead {
 public:
  // `lines` of one run.
  QuantAhead(const uint8_t* at, int64_t lines) : at_(at), end_(at + 64 * lines), left_(lines) {}
  // A head, and the rows in a mask.
  QuantAhead(const uint8_t* head, const uint8_t* rows, int64_t row_bytes, uint32_t mask)
      : at_(line_of(head)), end_(rows), rows_(rows), row_bytes_(row_bytes), mask_(mask) {
    left_ = (rows - head) / 64 + 1 + __builtin_popcount(mask) * (row_bytes / 64 + 1);
    if (at_ >= end_) next_row();
  }
  QuantAhead() = default;
  // How many lines are left, at most.
  int64_t left() const { return left_; }
  [[gnu::always_inline]] inline void line() {
    if (left_ <= 0) return;
    --left_;
    SPECDEC_PREFETCH_FAR(at_);
    at_ += 64;
    if (__builtin_expect(at_ >= end_, 0)) next_row();
  }
  void rest() {
    while (left_ > 0) line();
  }

 private:
  static const uint8_t* line_of(const uint8_t* p) { return p - (reinterpret_cast<uintptr_t>(p) & 63); }
  // Rows follow each other, or share a line.
  [[gnu::always_inline]] inline void next_row() {
    do {
      if (mask_ == 0) {
        left_ = 0;
        return;
      }
      const uint8_t* row = rows_ + __builtin_ctz(mask_) * row_bytes_;
      mask_ &= mask_ - 1;
      end_ = row + row_bytes_;
      if (at_ < line_of(row)) at_ = line_of(row);
    } while (at_ >= end_);
  }
  const uint8_t *at_ = nullptr, *end_ = nullptr, *rows_ = nullptr;
  int64_t row_bytes_ = 0, left_ = 0;
  uint32_t mask_ = 0;
};

}  // namespace specdec::SPECDEC_ISA
