// TV-L1 optical flow of a batch of frame pairs on a GPU; what happens at a pixel stands in tvl1_pixel.h.
//
// All pairs of a batch go through together, one thread a pixel. A pair whose change has fallen under the tolerance is
// left alone by its threads, so that every pair stops at the iteration at which the CPU stops it. Compiled as plain C++
// the kernels run pixel after pixel on the CPU: that is how their logic is tested where there is no GPU.

#include "tvl1_pixel.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define KERNEL __global__ void
#define AREA                                                                       \
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, n = blockIdx.z; \
  if (x >= cols) return;                                                           \
  const long at = static_cast<long>(y) * cols + x, start = static_cast<long>(n) * rows * cols; \
  (void)at; (void)start;
#define RUN(kernel, count, rows, cols, ...) \
  kernel<<<dim3((cols + 127) / 128, rows, count), dim3(128)>>>(rows, cols, __VA_ARGS__)
#else
#define KERNEL static void
static thread_local int emulated_x, emulated_y, emulated_n;
#define AREA                                                          \
  const int x = emulated_x, y = emulated_y, n = emulated_n;           \
  const long at = static_cast<long>(y) * cols + x, start = static_cast<long>(n) * rows * cols; \
  (void)at; (void)start;
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
  float *i1x, *i1y, *u1, *u2, *m1, *m2, *wx, *wy, *grad, *rho, *p11, *p12, *p21, *p22;
};
constexpr int kPlanes = 14;

KERNEL from_bytes(int rows, int cols, const uint8_t* frames, float* image) {
  AREA
  image[start + at] = frames[start + at];
}

KERNEL resize(int rows, int cols, const float* from, int from_rows, int from_cols, double step_y, double step_x,
              float factor, float* to) {
  AREA
  const float* plane = from + static_cast<long>(n) * from_rows * from_cols;
  to[start + at] = factor * resized(plane, from_rows, from_cols, y, x, step_y, step_x);
}

// `next` are the frames from the second one on: pair n goes from frame n to frame n + 1.
KERNEL gradients(int rows, int cols, const float* next, Planes p) {
  AREA
  p.i1x[start + at] = gradient_x(next + start, cols, y, x);
  p.i1y[start + at] = gradient_y(next + start, rows, cols, y, x);
}

KERNEL warp(int rows, int cols, const float* frames, const float* next, Planes p) {
  AREA
  const long i = start + at;
  const Warped w = warped(next + start, p.i1x + start, p.i1y + start, rows, cols, y, x, frames[i], p.u1[i], p.u2[i]);
  p.wx[i] = w.x;
  p.wy[i] = w.y;
  p.grad[i] = w.grad;
  p.rho[i] = w.rho;
}

KERNEL median(int rows, int cols, const float* from, float* to, const int* active) {
  AREA
  if (!active[n]) return;
  float v[25];
  for (int j = 0; j < 5; ++j)
    for (int i = 0; i < 5; ++i)
      v[5 * j + i] = from[start + static_cast<long>(clamp(y + j - 2, 0, rows - 1)) * cols + clamp(x + i - 2, 0, cols - 1)];
  to[start + at] = median25(v);
}

KERNEL copy(int rows, int cols, const float* from, float* to, const int* active) {
  AREA
  if (active[n]) to[start + at] = from[start + at];
}

KERNEL primal_step(int rows, int cols, Planes p, double* change, const int* active) {
  AREA
  if (!active[n]) return;
  const long i = start + at;
  const float left1 = x ? p.p11[i - 1] : 0.0f, left2 = x ? p.p21[i - 1] : 0.0f;
  const float above1 = y ? p.p12[i - cols] : 0.0f, above2 = y ? p.p22[i - cols] : 0.0f;
  const float div1 = p.p11[i] - left1 + (p.p12[i] - above1), div2 = p.p21[i] - left2 + (p.p22[i] - above2);
  const float c = primal(p.wx[i], p.wy[i], p.grad[i], p.rho[i], div1, div2, p.u1 + i, p.u2 + i);
#ifdef __CUDACC__
  atomicAdd(change + n, static_cast<double>(c));
#else
  change[n] += c;
#endif
}

KERNEL dual_step(int rows, int cols, Planes p, const int* active) {
  AREA
  if (!active[n]) return;
  const long i = start + at;
  const long right = x + 1 < cols ? 1 : 0, below = y + 1 < rows ? cols : 0;
  dual(p.u1[i + right] - p.u1[i], p.u1[i + below] - p.u1[i], p.p11 + i, p.p12 + i);
  dual(p.u2[i + right] - p.u2[i], p.u2[i + below] - p.u2[i], p.p21 + i, p.p22 + i);
}

// One thread a pair: rows is 1 and cols the number of pairs.
KERNEL judge(int rows, int cols, double tolerance, double* change, int* active) {
  AREA
  if (active[x] && change[x] <= tolerance) active[x] = 0;
  change[x] = 0;
}

KERNEL wake(int rows, int cols, double* change, int* active) {
  AREA
  active[x] = 1;
  change[x] = 0;
}

bool any_active(const int* active, std::vector<int>& host) {
  to_host(host.data(), active, host.size() * sizeof(int));
  for (int one : host)
    if (one) return true;
  return false;
}

void solve_scale(int count, int rows, int cols, const float* frames, Planes p, double* change, int* active) {
  const size_t bytes = static_cast<size_t>(count) * rows * cols * sizeof(float);
  const float* next = frames + static_cast<long>(rows) * cols;
  const double tolerance = static_cast<double>(kEpsilon) * kEpsilon * rows * cols;
  std::vector<int> host(count);
  for (float* plane : {p.p11, p.p12, p.p21, p.p22}) zero(plane, bytes);
  RUN(gradients, count, rows, cols, next, p);
  for (int warps = 0; warps < kWarps; ++warps) {
    RUN(warp, count, rows, cols, frames, next, p);
    RUN(wake, 1, 1, count, change, active);
    for (int outer = 0; outer < kOuter && any_active(active, host); ++outer) {
      RUN(median, count, rows, cols, p.u1, p.m1, active);
      RUN(median, count, rows, cols, p.u2, p.m2, active);
      RUN(copy, count, rows, cols, p.m1, p.u1, active);
      RUN(copy, count, rows, cols, p.m2, p.u2, active);
      for (int inner = 0; inner < kInner; ++inner) {
        RUN(primal_step, count, rows, cols, p, change, active);
        RUN(dual_step, count, rows, cols, p, active);
        RUN(judge, 1, 1, count, tolerance, change, active);
      }
    }
  }
}

}  // namespace

// Flow of `count` consecutive pairs of `count + 1` frames on the current device; 0, or 1 where memory or the device
// failed. `out` holds u and then v of each pair.
extern "C" int tvl1_batch_gpu(const uint8_t* frames, int count, int rows, int cols, float* out) {
  const size_t area = static_cast<size_t>(rows) * cols;
  int sides[kScales][2] = {{rows, cols}}, used = 1;
  size_t pyramid = area;
  for (; used < kScales; ++used) {
    const int r = coarser(sides[used - 1][0]), c = coarser(sides[used - 1][1]);
    if (r < kSmallestSide || c < kSmallestSide) break;
    sides[used][0] = r;
    sides[used][1] = c;
    pyramid += static_cast<size_t>(r) * c;
  }
  Buffer bytes((count + 1) * area), images((count + 1) * pyramid * sizeof(float));
  Buffer planes(kPlanes * count * area * sizeof(float)), coarse(2 * count * area * sizeof(float));
  Buffer change(count * sizeof(double)), active(count * sizeof(int));
  if (!(bytes.good && images.good && planes.good && coarse.good && change.good && active.good)) return 1;
  to_device(bytes.data, frames, (count + 1) * area);
  float* scale[kScales];
  scale[0] = images.floats();
  RUN(from_bytes, count + 1, rows, cols, static_cast<const uint8_t*>(bytes.data), scale[0]);
  for (int s = 1; s < used; ++s) {
    scale[s] = scale[s - 1] + (count + 1) * static_cast<size_t>(sides[s - 1][0]) * sides[s - 1][1];
    RUN(resize, count + 1, sides[s][0], sides[s][1], scale[s - 1], sides[s - 1][0], sides[s - 1][1], 1 / 0.8, 1 / 0.8,
        1.0f, scale[s]);
  }
  float* place[kPlanes];
  for (int i = 0; i < kPlanes; ++i) place[i] = planes.floats() + i * count * area;
  Planes p{place[0], place[1], place[2], place[3], place[4], place[5], place[6],
           place[7], place[8], place[9], place[10], place[11], place[12], place[13]};
  for (int s = used - 1; s >= 0; --s) {
    const int r = sides[s][0], c = sides[s][1];
    solve_scale(count, r, c, scale[s], p, static_cast<double*>(change.data), static_cast<int*>(active.data));
    if (s == 0) break;
    const int fine_r = sides[s - 1][0], fine_c = sides[s - 1][1];
    const double step_y = static_cast<double>(r) / fine_r, step_x = static_cast<double>(c) / fine_c;
    float* fine[2] = {coarse.floats(), coarse.floats() + count * area};
    RUN(resize, count, fine_r, fine_c, p.u1, r, c, step_y, step_x, 1.0f / kScaleStep, fine[0]);
    RUN(resize, count, fine_r, fine_c, p.u2, r, c, step_y, step_x, 1.0f / kScaleStep, fine[1]);
    RUN(wake, 1, 1, count, static_cast<double*>(change.data), static_cast<int*>(active.data));
    RUN(copy, count, fine_r, fine_c, fine[0], p.u1, static_cast<int*>(active.data));
    RUN(copy, count, fine_r, fine_c, fine[1], p.u2, static_cast<int*>(active.data));
  }
  for (int n = 0; n < count; ++n) {
    to_host(out + 2 * n * area, p.u1 + n * area, area * sizeof(float));
    to_host(out + (2 * n + 1) * area, p.u2 + n * area, area * sizeof(float));
  }
#ifdef __CUDACC__
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
#else
  return 0;
#endif
}
