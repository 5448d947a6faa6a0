// What the kernels of tvl1.cu run on: a GPU's memory, launches, graphs and threads, or the same words
// in plain C++, where a kernel's blocks and threads come one after the other. That is how their logic
// is tested where there is no GPU: it shows what is computed, not how fast.
//
// Two kinds of kernels are launched. RUN starts one thread for each pixel of each picture. RUN_TILES
// starts a block of threads for each tile of each picture; its threads share a Tile in fast memory,
// work in turns (THREADS ... SYNC), and keep their own cells in registers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#define INDEX                                                                                  \
  const long at = static_cast<long>(y) * cols + x, start = static_cast<long>(n) * rows * cols; \
  (void)at; (void)start;
// A thread's pixel; AREA lets the threads beyond a row's end go.
#define AREA PLACE if (x >= cols) return;

// A block's threads lie over a tile of 64 x 32 pixels, each over four of them, eight rows apart.
constexpr int kTileCols = 64, kTileRows = 32, kTile = kTileCols * kTileRows;
constexpr int kThreadRows = 8, kThreads = kTileCols * kThreadRows, kCells = kTileRows / kThreadRows;

inline int tiles(int length, int side, int halo) {
  const int inner = side - 2 * halo;
  return (length + inner - 1) / inner;
}

#ifdef __CUDACC__

#include <cuda_runtime.h>
#define DEVICE __device__ __forceinline__
#define KERNEL __global__ void
#define TILE_KERNEL __global__ void __launch_bounds__(kThreads, 2)
#define PLACE                                                                          \
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, n = blockIdx.z; \
  INDEX
#define RUN(kernel, count, rows, cols, ...) \
  kernel<<<dim3((cols + 127) / 128, rows, count), dim3(128), 0, device.stream>>>(rows, cols, __VA_ARGS__)
#define RUN_TILES(kernel, shared_bytes, count, rows, cols, halo, ...)                                  \
  kernel<<<dim3(tiles(cols, kTileCols, halo), tiles(rows, kTileRows, halo), count), dim3(kThreads), \
           shared_bytes, device.stream>>>(rows, cols, halo, __VA_ARGS__)
#define TILE_PLACE const int tile_x = blockIdx.x, tile_y = blockIdx.y, slot = blockIdx.z;
#define SHARED(Type, name)                                   \
  extern __shared__ __align__(16) unsigned char in_common[]; \
  Type& name = *reinterpret_cast<Type*>(in_common);
#define CELLS(Type, name) Type name[kCells];
#define CELLS_OF(name, t) name
#define THREADS(t) if (const int t = threadIdx.x; true)
#define SYNC __syncthreads();

#else

#define DEVICE inline
#define KERNEL static void
#define TILE_KERNEL static void
static thread_local int emulated_x, emulated_y, emulated_n;
#define PLACE const int x = emulated_x, y = emulated_y, n = emulated_n; INDEX
#define EMULATED(count, rows, cols)                        \
  for (emulated_n = 0; emulated_n < (count); ++emulated_n)   \
    for (emulated_y = 0; emulated_y < (rows); ++emulated_y)  \
      for (emulated_x = 0; emulated_x < (cols); ++emulated_x)
#define RUN(kernel, count, rows, cols, ...) \
  EMULATED(count, rows, cols) kernel(rows, cols, __VA_ARGS__)
#define RUN_TILES(kernel, shared_bytes, count, rows, cols, halo, ...)                   \
  EMULATED(count, tiles(rows, kTileRows, halo), tiles(cols, kTileCols, halo)) \
  kernel(rows, cols, halo, __VA_ARGS__)
#define TILE_PLACE const int tile_x = emulated_x, tile_y = emulated_y, slot = emulated_n;
// What a block finds in its fast memory is not what anybody wrote: here it is no number at all.
#define SHARED(Type, name)        \
  static thread_local Type name; \
  std::memset(static_cast<void*>(&name), 0xff, sizeof name);
#define CELLS(Type, name) static thread_local Type name[kThreads][kCells];
#define CELLS_OF(name, t) name[t]
// Threads may come in any order: the tests take both ends first.
extern "C" int emulated_last_thread_first;
int emulated_last_thread_first = 0;
#define THREADS(t)                         \
  for (int turn = 0; turn < kThreads; ++turn) \
    if (const int t = emulated_last_thread_first ? kThreads - 1 - turn : turn; true)
#define SYNC

#endif

// -- sums ------------------------------------------------------------------------------------------

DEVICE void add_to(unsigned long long* sum, unsigned long long value) {
#ifdef __CUDACC__
  atomicAdd(sum, value);
#else
  *sum += value;
#endif
}

// Adds what the threads of a warp hold; all of them take part.
DEVICE void add_up(unsigned long long* sum, unsigned long long value) {
#ifdef __CUDACC__
  for (int half = 16; half > 0; half /= 2) value += __shfl_down_sync(0xffffffffu, value, half);
  if (threadIdx.x % 32 == 0 && value) atomicAdd(sum, value);
#else
  *sum += value;
#endif
}

// -- the device ------------------------------------------------------------------------------------

#ifdef __CUDACC__

// One stream of work. After a failure nothing more is started, and `good` is false.
class Device {
 public:
  cudaStream_t stream = nullptr;
  bool good = true;

  Device() {
    cudaGetLastError();  // what an earlier call left behind is not this one's
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cudaMallocHost(reinterpret_cast<void**>(&answers_), 2 * sizeof(int)));
    for (cudaEvent_t& event : events_)
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  ~Device() {
    if (stream) cudaStreamSynchronize(stream);
    for (auto& one : graphs_)
      if (one.second) cudaGraphExecDestroy(one.second);
    for (cudaEvent_t event : events_)
      if (event) cudaEventDestroy(event);
    cudaFreeHost(answers_);
    if (stream) cudaStreamDestroy(stream);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void check(cudaError_t error) { good = good && error == cudaSuccess; }

  size_t cache_bytes() {
    int number = 0, bytes = 0;
    check(cudaGetDevice(&number));
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, number));
    return static_cast<size_t>(bytes);
  }
  template <class Kernel>
  void allow_shared(Kernel kernel, size_t bytes) {
    const auto size = static_cast<int>(bytes);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size));
  }
  void* room(size_t bytes) {
    void* data = nullptr;
    if (good) check(cudaMalloc(&data, bytes));
    return data;
  }
  static void give_back(void* data) { cudaFree(data); }
  void to_device(void* to, const void* from, size_t bytes) {
    if (good) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
  }
  void zero(void* data, size_t bytes) {
    if (good) check(cudaMemsetAsync(data, 0, bytes, stream));
  }
  // The copy, and with it all that was started, is finished.
  void to_host(void* to, const void* from, size_t bytes) {
    if (good) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    check(cudaGetLastError());
  }

  // What `start` starts, recorded the first time and started as one graph from then on. Its
  // arguments must be the same for the same key.
  template <class Start>
  void replay(long key, const Start& start) {
    cudaGraphExec_t& ready = graphs_[key];
    if (!ready && good) {
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      start();
      check(cudaStreamEndCapture(stream, &graph));
      if (good) check(cudaGraphInstantiateWithFlags(&ready, graph, 0));
      if (graph) cudaGraphDestroy(graph);
    }
    if (good) check(cudaGraphLaunch(ready, stream));
  }

  // A question about a number of the device, which is answered when the work before it is done.
  void ask(int turn, const int* number) {
    if (!good) return;
    check(cudaMemcpyAsync(answers_ + turn % 2, number, sizeof(int), cudaMemcpyDeviceToHost, stream));
    check(cudaEventRecord(events_[turn % 2], stream));
  }
  int answer(int turn) {
    if (good) check(cudaEventSynchronize(events_[turn % 2]));
    return good ? answers_[turn % 2] : 0;
  }

 private:
  int* answers_ = nullptr;
  cudaEvent_t events_[2] = {};
  std::map<long, cudaGraphExec_t> graphs_;
};

#else

class Device {
 public:
  bool good = true;
  size_t cache_bytes() const { return 40u << 20; }
  template <class Kernel>
  void allow_shared(Kernel, size_t) {}
  void* room(size_t bytes) {
    void* data = std::malloc(bytes);
    good = good && data != nullptr;
    if (data) std::memset(data, 0xff, bytes);  // no numbers: nothing may be read before it is written
    return data;
  }
  static void give_back(void* data) { std::free(data); }
  void to_device(void* to, const void* from, size_t bytes) { to_host(to, from, bytes); }
  void to_host(void* to, const void* from, size_t bytes) {
    if (good) std::memcpy(to, from, bytes);
  }
  void zero(void* data, size_t bytes) {
    if (good) std::memset(data, 0, bytes);
  }
  template <class Start>
  void replay(long, const Start& start) {
    start();
  }
  void ask(int turn, const int* number) { answers_[turn % 2] = *number; }
  int answer(int turn) const { return answers_[turn % 2]; }

 private:
  int answers_[2] = {};
};

#endif

// Device memory, or the heap where the kernels are emulated.
class Buffer {
 public:
  Buffer(Device& device, size_t bytes) : data_(device.room(bytes)) {}
  ~Buffer() { Device::give_back(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <class Item>
  Item* of() const {
    return static_cast<Item*>(data_);
  }

 private:
  void* data_;
};
