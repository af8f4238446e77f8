// Rows of all GPUs of a host from the columns that each has, through memory of the others: no collective is called.
//
// Numbers travel in records of 16 bytes: two words, each followed by the number of the gather, which counts up. A GPU writes
// its records into the memory of all others and reads the others' from its own, once the number beside a word says that it
// has come; so nothing else is waited for. Two places in turn are enough: who writes gather n + 2 has read gather n + 1, which
// the others wrote after they had read gather n.
// own (LINES, HELD words), table (RANKS addresses of the memory of each) -> found (LINES, WIDE words); zeros behind the last
// Memory: words [0] number of the next gather, [32] blocks that are done; from AT_RECORDS on 2 * RANKS * SLOT_BYTES.
constexpr int ENDS[RANKS + 1] = {BOUNDS};
const int tid = blockIdx.x * THREADS + threadIdx.x;
const unsigned* mine = reinterpret_cast<const unsigned*>(own);
unsigned* to = reinterpret_cast<unsigned*>(found);
unsigned* head = reinterpret_cast<unsigned*>(table[RANK]);
const unsigned number = *reinterpret_cast<volatile unsigned*>(head) + 1;
const size_t turn = AT_RECORDS + (number & 1) * size_t(RANKS) * SLOT_BYTES;

constexpr int OWN = ENDS[RANK + 1] - ENDS[RANK], RECORDS = (OWN + 1) / 2;
for (int at = tid; at < LINES * RECORDS; at += BLOCKS * THREADS) {
  const int line = at / RECORDS, word = at % RECORDS * 2;
  const unsigned* from = mine + (size_t)line * HELD + word;
  const unsigned a = from[0], b = word + 1 < OWN ? from[1] : 0u;
#pragma unroll
  for (int rank = 0; rank < RANKS; ++rank) {
    if (rank != RANK) put_record(reinterpret_cast<char*>(table[rank]) + turn + RANK * size_t(SLOT_BYTES) + (size_t)at * 16, a, b, number);
  }
  unsigned* place = to + (size_t)line * WIDE + ENDS[RANK] + word;
  place[0] = a;
  if (word + 1 < OWN) place[1] = b;
}
#pragma unroll
for (int rank = 0; rank < RANKS; ++rank) {
  if (rank == RANK) continue;
  const int width = ENDS[rank + 1] - ENDS[rank], records = (width + 1) / 2;
  const char* from = reinterpret_cast<const char*>(head) + turn + rank * size_t(SLOT_BYTES);
  for (int at = tid; at < LINES * records; at += BLOCKS * THREADS) {
    const int line = at / records, word = at % records * 2;
    const uint2 both = wait_record(from + (size_t)at * 16, number);
    unsigned* place = to + (size_t)line * WIDE + ENDS[rank] + word;
    place[0] = both.x;
    if (word + 1 < width) place[1] = both.y;
  }
}
constexpr int LEFT = WIDE - ENDS[RANKS];
for (int at = tid; at < LINES * LEFT; at += BLOCKS * THREADS) {
  to[(size_t)(at / (LEFT > 0 ? LEFT : 1)) * WIDE + ENDS[RANKS] + at % (LEFT > 0 ? LEFT : 1)] = 0;
}
BARRIER();
if (threadIdx.x == 0) {
  __threadfence();
  if (atomicAdd(head + 32, 1u) == BLOCKS - 1) {  // all have read the number
    head[32] = 0;
    head[0] = number;
  }
}
