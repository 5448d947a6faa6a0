// TV-L1 optical flow of a batch of frame pairs on a GPU; what happens at a pixel stands in
// tvl1_pixel.h.
//
// All pairs of a batch go through together, one thread per pixel. A pair that has come to rest is
// left alone by its threads: each pair stops at an iteration of its own, whatever else is in the
// batch. The changes of a picture's pixels are added up as whole numbers, so that the order in
// which threads come does not decide when that is. Compiled as plain C++ the kernels run pixel
// after pixel on the CPU: that is how their logic is tested where there is no GPU.

#include "tvl1_pixel.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define INDEX                                                                                  \
  const long at = static_cast<long>(y) * cols + x, start = static_cast<long>(n) * rows * cols; \
  (void)at; (void)start;
// A thread's pixel; AREA lets the threads beyond a row's end go.
#define AREA PLACE if (x >= cols) return;

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define KERNEL __global__ void
#define PLACE                                                                          \
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, n = blockIdx.z; \
  INDEX
#define RUN(kernel, count, rows, cols, ...) \
  kernel<<<dim3((cols + 127) / 128, rows, count), dim3(128)>>>(rows, cols, __VA_ARGS__)
#else
#define KERNEL static void
static thread_local int emulated_x, emulated_y, emulated_n;
#define PLACE const int x = emulated_x, y = emulated_y, n = emulated_n; INDEX
#define RUN(kernel, count, rows, cols, ...)                             \
  for (emulated_n = 0; emulated_n < (count); ++emulated_n)              \
    for (emulated_y = 0; emulated_y < (rows); ++emulated_y)             \
      for (emulated_x = 0; emulated_x < (cols); ++emulated_x) kernel(rows, cols, __VA_ARGS__)
#endif

using namespace tvl1;

namespace {

// Device memory, or the heap where the kernels are emulated.
struct Buffer {
  void* data = nullptr;
  bool good = true;
  explicit Buffer(size_t bytes) {
#ifdef __CUDACC__
    good = cudaMalloc(&data, bytes) == cudaSuccess && cudaMemset(data, 0, bytes) == cudaSuccess;
#else
    data = std::calloc(bytes, 1);
    good = data != nullptr;
#endif
  }
  ~Buffer() {
#ifdef __CUDACC__
    cudaFree(data);
#else
    std::free(data);
#endif
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* floats() const { return static_cast<float*>(data); }
};

void to_device(void* to, const void* from, size_t bytes) {
#ifdef __CUDACC__
  cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
#else
  std::memcpy(to, from, bytes);
#endif
}

void to_host(void* to, const void* from, size_t bytes) {
#ifdef __CUDACC__
  cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost);
#else
  std::memcpy(to, from, bytes);
#endif
}

void zero(void* data, size_t bytes) {
#ifdef __CUDACC__
  cudaMemset(data, 0, bytes);
#else
  std::memset(data, 0, bytes);
#endif
}

// The batch's state at one scale: `count` planes of each.
struct Planes {
  float *i1x, *i1y, *u1, *u2, *m1, *m2, *wx, *wy, *inverse, *rho, *p11, *p12, *p21, *p22;
};
constexpr int kPlanes = 14;
// Iterations between two questions whether any pair is still at work.
constexpr int kAsk = 30;
// Blocks that a launch may have in its second and third direction.
constexpr int kMostBlocks = 65535;

// A pair's state: the sum of changes is in units of 2^-28, so that threads may add them up in any
// order.
struct Pair {
  unsigned long long change = 0;
  Watch watch;
};
constexpr float kUnits = 268435456.0f, kMostChange = 1024.0f;

PIXEL unsigned long long whole(float change) {
  return static_cast<unsigned long long>(clamp(change, 0.0f, kMostChange) * kUnits);
}

// Adds what the threads of a block hold to `sum`.
#ifdef __CUDACC__
__device__ __forceinline__ void add_up(unsigned long long value, unsigned long long* sum) {
  for (int half = 16; half > 0; half /= 2) value += __shfl_down_sync(0xffffffffu, value, half);
  if (threadIdx.x % 32 == 0 && value) atomicAdd(sum, value);
}
#else
void add_up(unsigned long long value, unsigned long long* sum) { *sum += value; }
#endif

KERNEL from_bytes(int rows, int cols, const uint8_t* frames, float* image) {
  AREA
  image[start + at] = frames[start + at];
}

template <class Pyramid>
KERNEL reduce(int rows, int cols, const float* from, int from_rows, int from_cols, float* to) {
  AREA
  const float* plane = from + static_cast<long>(n) * from_rows * from_cols;
  to[start + at] = Pyramid::reduced(plane, from_rows, from_cols, y, x);
}

template <class Pyramid>
KERNEL enlarge(int rows, int cols, const float* from, int from_rows, int from_cols, double step_y,
               double step_x, float* to) {
  AREA
  const float* plane = from + static_cast<long>(n) * from_rows * from_cols;
  to[start + at] =
      Pyramid::kUpscale * Pyramid::enlarged(plane, from_rows, from_cols, y, x, step_y, step_x);
}

// `next` are the frames from the second one on: pair n goes from frame n to frame n + 1.
KERNEL gradients(int rows, int cols, const float* next, Planes p) {
  AREA
  p.i1x[start + at] = gradient_x(next + start, cols, y, x);
  p.i1y[start + at] = gradient_y(next + start, rows, cols, y, x);
}

// Brightness and gradient at a place of the second frame.
struct Seen {
  float i1, x, y;
  PIXEL Seen& operator+=(const Seen& other) {
    i1 += other.i1;
    x += other.x;
    y += other.y;
    return *this;
  }
  PIXEL Seen operator*(float factor) const { return {i1 * factor, x * factor, y * factor}; }
};

struct Reader {
  const float *i1, *i1x, *i1y;
  int rows, cols;
  bool repeat_edge;
  PIXEL Seen operator()(int y, int x) const {
    const int yy = clamp(y, 0, rows - 1), xx = clamp(x, 0, cols - 1);
    if (!repeat_edge && (yy != y || xx != x)) return {0.0f, 0.0f, 0.0f};
    const long at = static_cast<long>(yy) * cols + xx;
    return {i1[at], i1x[at], i1y[at]};
  }
};

template <class Pyramid>
KERNEL warp(int rows, int cols, const float* frames, const float* next, Planes p) {
  AREA
  const long i = start + at;
  const Reader read{next + start, p.i1x + start, p.i1y + start, rows, cols, Pyramid::kRepeatEdge};
  const Seen seen = bicubic<Pyramid, Seen>(x + p.u1[i], y + p.u2[i], rows, cols, read);
  const Warped w = warped(seen.i1, seen.x, seen.y, frames[i], p.u1[i], p.u2[i]);
  p.wx[i] = w.x;
  p.wy[i] = w.y;
  p.inverse[i] = w.inverse;
  p.rho[i] = w.rho;
}

KERNEL median(int rows, int cols, const float* from, float* to, const Pair* pairs) {
  AREA
  if (!pairs[n].watch.active) return;
  float v[25];
  for (int j = 0; j < 5; ++j)
    for (int i = 0; i < 5; ++i)
      v[5 * j + i] = from[start + static_cast<long>(clamp(y + j - 2, 0, rows - 1)) * cols + clamp(x + i - 2, 0, cols - 1)];
  to[start + at] = median25(v);
}

KERNEL copy(int rows, int cols, const float* from, float* to, const Pair* pairs) {
  AREA
  if (pairs[n].watch.active) to[start + at] = from[start + at];
}

KERNEL primal_step(int rows, int cols, Planes p, Pair* pairs) {
  // No thread leaves before `add_up`, where all of a warp take part.
  PLACE
  if (!pairs[n].watch.active) return;
  unsigned long long change = 0;
  if (x < cols) {
    const long i = start + at;
    const float left1 = x ? p.p11[i - 1] : 0.0f, left2 = x ? p.p21[i - 1] : 0.0f;
    const float above1 = y ? p.p12[i - cols] : 0.0f, above2 = y ? p.p22[i - cols] : 0.0f;
    const float div1 = p.p11[i] - left1 + (p.p12[i] - above1);
    const float div2 = p.p21[i] - left2 + (p.p22[i] - above2);
    change = whole(
        primal(p.wx[i], p.wy[i], p.inverse[i], p.rho[i], div1, div2, p.u1 + i, p.u2 + i));
  }
  if (pairs[n].watch.looks) add_up(change, &pairs[n].change);
}

KERNEL dual_step(int rows, int cols, Planes p, const Pair* pairs) {
  AREA
  if (!pairs[n].watch.active) return;
  const long i = start + at;
  const long right = x + 1 < cols ? 1 : 0, below = y + 1 < rows ? cols : 0;
  dual(p.u1[i + right] - p.u1[i], p.u1[i + below] - p.u1[i], p.u2[i + right] - p.u2[i],
       p.u2[i + below] - p.u2[i], p.p11 + i, p.p12 + i, p.p21 + i, p.p22 + i);
}

// After an iteration, one thread per pair: rows is 1 and cols the number of pairs.
template <class Pyramid>
KERNEL settle(int rows, int cols, int iteration, double tolerance, Pair* pairs) {
  AREA
  Pair& pair = pairs[x];
  if (pair.watch.active) judge(pair.watch, static_cast<double>(pair.change) / kUnits, tolerance);
  pair.watch.looks = Pyramid::looks(pair.watch, iteration + 1, tolerance);
  pair.change = 0;
}

template <class Pyramid>
KERNEL wake(int rows, int cols, double tolerance, Pair* pairs) {
  AREA
  pairs[x] = Pair{};
  pairs[x].watch.looks = Pyramid::looks(pairs[x].watch, 0, tolerance);
}

bool any_active(const Pair* pairs, std::vector<Pair>& host) {
  to_host(host.data(), pairs, host.size() * sizeof(Pair));
  for (const Pair& one : host)
    if (one.watch.active) return true;
  return false;
}

template <class Pyramid>
void solve_scale(int count, int rows, int cols, const float* frames, Planes p, Pair* pairs) {
  const size_t bytes = static_cast<size_t>(count) * rows * cols * sizeof(float);
  const float* next = frames + static_cast<long>(rows) * cols;
  const double tolerance = static_cast<double>(kEpsilon) * kEpsilon * rows * cols;
  std::vector<Pair> host(count);
  for (float* plane : {p.p11, p.p12, p.p21, p.p22}) zero(plane, bytes);
  RUN(gradients, count, rows, cols, next, p);
  for (int warps = 0; warps < kWarps; ++warps) {
    RUN(warp<Pyramid>, count, rows, cols, frames, next, p);
    RUN(wake<Pyramid>, 1, 1, count, tolerance, pairs);
    for (int n = 0; n < Pyramid::kOuter * Pyramid::kInner; ++n) {
      // Asking the device costs a wait: not after each iteration.
      if (n % kAsk == 0 && n && !any_active(pairs, host)) break;
      if (Pyramid::kMedian && n % Pyramid::kInner == 0) {
        RUN(median, count, rows, cols, p.u1, p.m1, pairs);
        RUN(median, count, rows, cols, p.u2, p.m2, pairs);
        RUN(copy, count, rows, cols, p.m1, p.u1, pairs);
        RUN(copy, count, rows, cols, p.m2, p.u2, pairs);
      }
      RUN(primal_step, count, rows, cols, p, pairs);
      RUN(dual_step, count, rows, cols, p, pairs);
      RUN(settle<Pyramid>, 1, 1, count, n, tolerance, pairs);
    }
  }
}

template <class Pyramid>
int solve_batch(const uint8_t* frames, int count, int rows, int cols, float* out) {
  const size_t area = static_cast<size_t>(rows) * cols;
  int sides[kScales][2] = {{rows, cols}}, used = 1;
  size_t pyramid = area;
  for (; used < kScales; ++used) {
    const int r = Pyramid::coarser(sides[used - 1][0]), c = Pyramid::coarser(sides[used - 1][1]);
    if (r < kSmallestSide || c < kSmallestSide) break;
    sides[used][0] = r;
    sides[used][1] = c;
    pyramid += static_cast<size_t>(r) * c;
  }
  Buffer bytes((count + 1) * area), images((count + 1) * pyramid * sizeof(float));
  Buffer planes(kPlanes * count * area * sizeof(float)), coarse(2 * count * area * sizeof(float));
  Buffer states(count * sizeof(Pair));
  if (!(bytes.good && images.good && planes.good && coarse.good && states.good)) return 1;
  Pair* pairs = static_cast<Pair*>(states.data);
  to_device(bytes.data, frames, (count + 1) * area);
  float* scale[kScales];
  scale[0] = images.floats();
  RUN(from_bytes, count + 1, rows, cols, static_cast<const uint8_t*>(bytes.data), scale[0]);
  for (int s = 1; s < used; ++s) {
    scale[s] = scale[s - 1] + (count + 1) * static_cast<size_t>(sides[s - 1][0]) * sides[s - 1][1];
    RUN(reduce<Pyramid>, count + 1, sides[s][0], sides[s][1], scale[s - 1], sides[s - 1][0],
        sides[s - 1][1], scale[s]);
  }
  float* place[kPlanes];
  for (int i = 0; i < kPlanes; ++i) place[i] = planes.floats() + i * count * area;
  Planes p{place[0], place[1], place[2], place[3], place[4], place[5], place[6],
           place[7], place[8], place[9], place[10], place[11], place[12], place[13]};
  for (int s = used - 1; s >= 0; --s) {
    const int r = sides[s][0], c = sides[s][1];
    solve_scale<Pyramid>(count, r, c, scale[s], p, pairs);
    if (s == 0) break;
    const int fine_r = sides[s - 1][0], fine_c = sides[s - 1][1];
    const double step_y = static_cast<double>(r) / fine_r, step_x = static_cast<double>(c) / fine_c;
    float* fine[2] = {coarse.floats(), coarse.floats() + count * area};
    RUN(enlarge<Pyramid>, count, fine_r, fine_c, p.u1, r, c, step_y, step_x, fine[0]);
    RUN(enlarge<Pyramid>, count, fine_r, fine_c, p.u2, r, c, step_y, step_x, fine[1]);
    RUN(wake<Pyramid>, 1, 1, count, 0.0, pairs);
    RUN(copy, count, fine_r, fine_c, fine[0], p.u1, pairs);
    RUN(copy, count, fine_r, fine_c, fine[1], p.u2, pairs);
  }
  for (int n = 0; n < count; ++n) {
    to_host(out + 2 * n * area, p.u1 + n * area, area * sizeof(float));
    to_host(out + (2 * n + 1) * area, p.u2 + n * area, area * sizeof(float));
  }
  return 0;
}

}  // namespace

// Flow of `count` consecutive pairs of `count + 1` frames on the current device; `paper` chooses
// the pyramid. 0, or 1 where memory or the device failed. `out` holds u and then v of each pair.
extern "C" int tvl1_batch_gpu(const uint8_t* frames, int count, int rows, int cols, int paper,
                              float* out) {
  if (rows > kMostBlocks || count >= kMostBlocks) return 1;
#ifdef __CUDACC__
  cudaGetLastError();  // what an earlier call left behind is not this one's
#endif
  const auto solve = paper ? solve_batch<Paper> : solve_batch<OpenCv4>;
  const int failed = solve(frames, count, rows, cols, out);
#ifdef __CUDACC__
  return failed || cudaGetLastError() != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess;
#else
  return failed;
#endif
}
