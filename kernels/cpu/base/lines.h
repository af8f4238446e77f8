// Lines of memory that other threads have just written, asked for together: they arrive in the time of one, where reading
// them in order waits for one after the other.
#pragma once

#include <cstddef>

namespace specdec {

inline void ask_for(const void* data, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(data) + at);
}

// The same for lines that are written next: no other core keeps them.
inline void ask_to_write(void* data, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(static_cast<char*>(data)[at]));
#else
    __builtin_prefetch(static_cast<char*>(data) + at, 1);
#endif
  }
}

}  // namespace specdec
