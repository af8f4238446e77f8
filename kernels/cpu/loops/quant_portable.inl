// Bytes, products and activations of quant.inl in plain C++.

namespace specdec::SPECDEC_ISA {

struct Bytes {
  static constexpr int kWidth = 1;
  uint8_t x[16];
#define SPECDEC_BYTES(expression)                                                  \
  Bytes r;                                                                         \
  for (int j = 0; j < 16; ++j) r.x[j] = static_cast<uint8_t>(expression);          \
  return r
  static inline Bytes load(const uint8_t* p) { SPECDEC_BYTES(p[j]); }
  // 4 bytes of each of four rows, byte k of all of them side by side.
  static inline Bytes quad(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    const uint8_t* rows[] = {a, b, c, d};
    SPECDEC_BYTES(rows[j % 4][j / 4]);
  }
  static inline Bytes zip_low8(Bytes a, Bytes b) { SPECDEC_BYTES(j % 2 == 0 ? a.x[j / 2] : b.x[j / 2]); }
  static inline Bytes zip_high8(Bytes a, Bytes b) { SPECDEC_BYTES(j % 2 == 0 ? a.x[8 + j / 2] : b.x[8 + j / 2]); }
  static inline Bytes zip_low16(Bytes a, Bytes b) {
    SPECDEC_BYTES(j / 2 % 2 == 0 ? a.x[j / 4 * 2 + j % 2] : b.x[j / 4 * 2 + j % 2]);
  }
  static inline Bytes zip_high16(Bytes a, Bytes b) {
    SPECDEC_BYTES(j / 2 % 2 == 0 ? a.x[8 + j / 4 * 2 + j % 2] : b.x[8 + j / 4 * 2 + j % 2]);
  }
  template <int N>
  static inline Bytes left(Bytes a) {
    SPECDEC_BYTES(a.x[j] << N);
  }
  template <int N>
  static inline Bytes right(Bytes a) {
    SPECDEC_BYTES(a.x[j] >> N);
  }
  template <int M>
  static inline Bytes mask(Bytes a) {
    SPECDEC_BYTES(a.x[j] & M);
  }
  template <int M>
  static inline Bytes select(Bytes a, Bytes b) {
    SPECDEC_BYTES((a.x[j] & M) | (b.x[j] & ~M));
  }
#undef SPECDEC_BYTES
};

struct Sums {
  int32_t v[kLanes];
};
static inline Sums sums_of(int32_t start) {
  Sums r;
  for (int j = 0; j < kLanes; ++j) r.v[j] = start;
  return r;
}
static inline Sums add_sums(Sums a, Sums b) {
  for (int j = 0; j < kLanes; ++j) a.v[j] += b.v[j];
  return a;
}
static inline Sums shifted(Sums a, int by) {
  for (int j = 0; j < kLanes; ++j) a.v[j] *= 1 << by;
  return a;
}
static inline F32 to_float(Sums x) {
  float r[kLanes];
  for (int j = 0; j < kLanes; ++j) r[j] = static_cast<float>(x.v[j]);
  return load(r);
}
static inline F32 load_u8(const uint8_t* p) {
  float r[kLanes];
  for (int j = 0; j < kLanes; ++j) r[j] = static_cast<float>(p[j]);
  return load(r);
}
static inline F32 load_s8(const uint8_t* p) {
  float r[kLanes];
  for (int j = 0; j < kLanes; ++j) r[j] = static_cast<float>(static_cast<int8_t>(p[j]));
  return load(r);
}

constexpr int kQuantSums = 2;
// Without vectors, compilers take minutes over unrolled loops and what is written out in them.
#define SPECDEC_EACH_ROW
#define SPECDEC_UNPACK [[gnu::noinline]]
struct Products {
  Sums sum;
  inline void start(Sums from) { sum = from; }
  inline void add(Bytes codes, int32_t word, int place) {
    const auto both = static_cast<uint32_t>(word);
    const int first = static_cast<int16_t>(both & 0xFFFF), second = static_cast<int16_t>(both >> 16);
    for (int j = 0; j < kLanes; ++j) sum.v[j] += codes.x[4 * j + place] * first + codes.x[4 * j + place + 2] * second;
  }
  inline void add_high(Bytes codes, int32_t word) { add(codes, word, 0); }
  inline void add_low(Bytes codes, int32_t word) { add(codes, word, 1); }
  inline Sums total() const { return sum; }
};

static inline void whole_numbers(const float* x, float inverse, int32_t* words, int32_t* sums) {
  int32_t whole[kQuantGroup];
  for (int j = 0; j < kQuantGroup; ++j) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const float value = inverse != 0.0F ? (x[j] * inverse + 12582912.0F) - 12582912.0F : 0.0F;
    whole[j] = static_cast<int32_t>(value);
  }
  sums[0] = sums[1] = 0;
  for (int j = 0; j < kQuantGroup; ++j) sums[j / (kQuantGroup / 2)] += whole[j];
  for (int q = 0; q < kQuads; ++q) {
    const int32_t* a = whole + 4 * q;
    words[q] = static_cast<int32_t>((static_cast<uint32_t>(a[0]) & 0xFFFF) | static_cast<uint32_t>(a[2]) << 16);
    words[kQuads + q] = static_cast<int32_t>((static_cast<uint32_t>(a[1]) & 0xFFFF) | static_cast<uint32_t>(a[3]) << 16);
  }
}

}  // namespace specdec::SPECDEC_ISA
