// Words that GPUs of a host write into each other's memory.
namespace specdec {

// Two words, each with the number by which a reader knows that it has come. Eight bytes are written at once.
DEVICE void put_record(char* to, unsigned a, unsigned b, unsigned number) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(number), "r"(b), "r"(number)
               : "memory");
}

// A word with its number: eight bytes, half of such a record.
DEVICE void put_word(char* to, unsigned word, unsigned number) {
  asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word), "r"(number) : "memory");
}

DEVICE unsigned long long now_ns() {
  unsigned long long time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

// Waits for what `arrived` looks for. After PATIENCE_NS the kernel ends with an error: a rank that has died ends the process
// sooner, so this happens only where ranks do not run the same steps.
template <class F>
DEVICE void wait_until(F arrived) {
  if (arrived()) return;
  const unsigned long long begin = now_ns();
  for (unsigned turn = 1; !arrived(); ++turn) {
    if (turn % 4096 == 0 && now_ns() - begin > PATIENCE_NS) __trap();
  }
}

DEVICE uint2 wait_record(const char* from, unsigned number) {
  uint2 found;
  wait_until([&] {
    unsigned first, second;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found.x), "=r"(first), "=r"(found.y), "=r"(second)
                 : "l"(from)
                 : "memory");
    return first == number && second == number;
  });
  return found;
}

// Waits for the records, of a thread's COUNT, whose bits are set in `missing`; number i lies `offset(i)` bytes after `from`.
// All loads go out together.
template <int COUNT, class F>
DEVICE void wait_records(uint2 (&found)[COUNT], const char* from, F offset, unsigned missing, unsigned number) {
  wait_until([&] {
    unsigned first[COUNT], second[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (missing >> i & 1) {
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(found[i].x), "=r"(first[i]), "=r"(found[i].y), "=r"(second[i])
                     : "l"(from + offset(i))
                     : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if ((missing >> i & 1) && first[i] == number && second[i] == number) missing &= ~(1u << i);
    }
    return missing == 0;
  });
}
// The same for single words.
template <int COUNT, class F>
DEVICE void wait_words(unsigned (&found)[COUNT], const char* from, F offset, unsigned missing, unsigned number) {
  wait_until([&] {
    unsigned beside[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (missing >> i & 1) {
        asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];" : "=r"(found[i]), "=r"(beside[i]) : "l"(from + offset(i)) : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if ((missing >> i & 1) && beside[i] == number) missing &= ~(1u << i);
    }
    return missing == 0;
  });
}

}  // namespace specdec
