// What loops tell the compiler and the processor.
#pragma once

// Into the second-level cache, and the first. Macros: GCC takes a function that only prefetches for one without effect, and
// drops it.
#define SPECDEC_PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2)
#define SPECDEC_PREFETCH_NEAR(p) __builtin_prefetch(p, 0, 3)

#if defined(__clang__)
#define SPECDEC_UNROLL _Pragma("unroll")
#else
#define SPECDEC_UNROLL _Pragma("GCC unroll 32")
#endif
