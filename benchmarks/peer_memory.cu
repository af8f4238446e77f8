// What two GPUs of a host take to exchange small rows through each other's memory, a process each, as
// kernels/cuda/peer does it: records with a number beside every word, and barriers over the grids of both.
//
//   nvcc -arch=native -std=c++17 -O2 -o peer_memory benchmarks/peer_memory.cu && ./peer_memory
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>

constexpr int TURNS = 2000, THREADS = 512;
constexpr size_t SLOT = 1 << 20, COUNTERS = 10 << 20, ROWS = 12 << 20, BYTES = 64 << 20;

struct Both {
  std::atomic<int> arrived[4096];
  cudaIpcMemHandle_t handle[2];
};
static Both* both;
static int rank, meetings;

static void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("rank %d: %s: %s\n", rank, what, cudaGetErrorString(error));
  std::fflush(stdout);
  _exit(1);
}
static void meet() {
  const int number = meetings++;
  ++both->arrived[number];
  while (both->arrived[number] < 2) usleep(50);
}

__device__ unsigned acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Every thread writes records of two words into the other GPU's memory, and waits for the other's.
__global__ void gather(char* own, char* other, int records, unsigned first) {
  for (unsigned turn = first + 1; turn <= first + TURNS; ++turn) {
    const size_t slot = (turn & 1) * SLOT;
    const int step = gridDim.x * blockDim.x, begin = blockIdx.x * blockDim.x + threadIdx.x;
    for (int at = begin; at < records; at += step) {
      asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %1, %2};" ::"l"(other + slot + (size_t)at * 16), "r"(at),
                   "r"(turn)
                   : "memory");
    }
    for (int at = begin; at < records; at += step) {
      unsigned a, b, one, two;
      do {
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a), "=r"(one), "=r"(b), "=r"(two)
                     : "l"(own + slot + (size_t)at * 16)
                     : "memory");
      } while (one != turn || two != turn);
    }
    __syncthreads();
  }
}

// Blocks write `each` pieces of 16 bytes to the other GPU; then all blocks of this grid, or of both, wait for each other.
__global__ void barriers(char* own, char* other, int each, bool of_both, unsigned target, int* wrong) {
  unsigned *here = reinterpret_cast<unsigned*>(own + COUNTERS), *there = reinterpret_cast<unsigned*>(other + COUNTERS);
  for (int turn = 0; turn < TURNS; ++turn) {
    const size_t slot = ROWS + (turn & 1) * SLOT;
    const int at = threadIdx.x;
    if (at < each) reinterpret_cast<int4*>(other + slot)[blockIdx.x * each + at] = int4{turn, turn, turn, turn};
    target += gridDim.x * (of_both ? 2 : 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence_system();
      if (of_both) asm volatile("red.relaxed.sys.global.add.u32 [%0], 1;" ::"l"(there) : "memory");
      asm volatile("red.relaxed.sys.global.add.u32 [%0], 1;" ::"l"(here) : "memory");
      while (int(acquire(here) - target) < 0) {
      }
    }
    __syncthreads();
    if (of_both && at < each) {
      const int block = (blockIdx.x + 7) % gridDim.x;
      if (__ldcg(reinterpret_cast<int4*>(own + slot) + block * each + at).x != turn) *wrong = 1;
    }
  }
}

// Microseconds of a turn, the best of three launches that both begin together.
template <class F>
static void time(const char* name, int size, F launch) {
  double best = 1e9;
  for (int repeat = 0; repeat < 3; ++repeat) {
    check(cudaDeviceSynchronize(), "before");
    meet();
    const auto begin = std::chrono::steady_clock::now();
    launch(unsigned(repeat));
    check(cudaDeviceSynchronize(), name);
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
    best = taken.count() / TURNS < best ? taken.count() / TURNS : best;
  }
  meet();
  if (rank == 0) std::printf("%s, %d bytes: %.2f us\n", name, size, best), std::fflush(stdout);
}

static int run() {
  check(cudaSetDevice(rank), "cudaSetDevice");
  char *own, *other;
  int *wrong, found, blocks;
  check(cudaMalloc(&own, BYTES), "cudaMalloc");
  check(cudaMalloc(&wrong, 4), "cudaMalloc");
  check(cudaMemset(own, 0, BYTES), "cudaMemset");
  check(cudaMemset(wrong, 0, 4), "cudaMemset");
  check(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, rank), "cudaDeviceGetAttribute");
  check(cudaIpcGetMemHandle(&both->handle[rank], own), "cudaIpcGetMemHandle");
  check(cudaDeviceSynchronize(), "cudaMemset");
  meet();
  check(cudaIpcOpenMemHandle((void**)&other, both->handle[1 - rank], cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
  unsigned turn = 0;
  for (int bytes : {4 << 10, 32 << 10}) {
    time("all-gather, of each GPU", bytes, [&](unsigned) { gather<<<16, THREADS>>>(own, other, bytes / 8, turn), turn += TURNS; });
  }
  for (bool of_both : {false, true}) {
    for (int each : {0, 8, 128}) {
      check(cudaMemset(own + COUNTERS, 0, 256), "cudaMemset");
      time(of_both ? "barrier of both grids, of each block" : "barrier of one grid, of each block", 16 * each, [&](unsigned repeat) {
        barriers<<<blocks, THREADS>>>(own, other, each, of_both, repeat * TURNS * blocks * (of_both ? 2 : 1), wrong);
      });
    }
  }
  check(cudaMemcpy(&found, wrong, 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
  if (found) std::printf("rank %d read what was not there yet\n", rank);
  meet();
  return found;
}

int main() {
  both = static_cast<Both*>(mmap(nullptr, sizeof(Both), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  for (int number = 0; number < 2; ++number) {
    if (fork() == 0) rank = number, _exit(run());
  }
  int status, failed = 0;
  for (int number = 0; number < 2; ++number) wait(&status), failed |= status;
  return failed != 0;
}
