// Points `cache` at the one of the CACHES caches that `piece` names.
#define CACHE(n) if (piece == n) cache = (device half_t*)(cache##n)
#if CACHES > 1
CACHE(1); CACHE(2); CACHE(3);
#endif
#if CACHES > 4
CACHE(4); CACHE(5); CACHE(6); CACHE(7); CACHE(8); CACHE(9); CACHE(10); CACHE(11); CACHE(12); CACHE(13); CACHE(14); CACHE(15);
#endif
#undef CACHE
