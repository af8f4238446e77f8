// For steps one of whose warps does something else: barriers of a block are for the THREADS threads of the others.
#undef BARRIER
#define BARRIER() asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory")
