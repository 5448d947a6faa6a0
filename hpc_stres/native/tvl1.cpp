// TV-L1 optical flow of a batch of frame pairs on the CPU; what happens at a pixel stands in tvl1_pixel.h.
//
// What makes it fast: the primal and the dual update of one iteration run in one sweep over the picture, the dual one
// row behind the primal one, so that everything stays in the nearest cache; the 5x5 median is taken on several pixels
// at once.

#include "tvl1_pixel.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using namespace tvl1;

constexpr int kLanes = 8;

struct Plane {
  int rows = 0, cols = 0;
  std::vector<float> data;
  void shape(int r, int c) { rows = r; cols = c; data.assign(static_cast<size_t>(r) * c, 0.0f); }
  float* row(int y) { return data.data() + static_cast<size_t>(y) * cols; }
  const float* row(int y) const { return data.data() + static_cast<size_t>(y) * cols; }
};

void resize_linear(const Plane& from, Plane& to, double step_y, double step_x) {
  for (int y = 0; y < to.rows; ++y)
    for (int x = 0; x < to.cols; ++x)
      to.row(y)[x] = resized(from.data.data(), from.rows, from.cols, y, x, step_y, step_x);
}

void centred_gradient(const Plane& image, Plane& gx, Plane& gy) {
  for (int y = 0; y < image.rows; ++y) {
    for (int x = 0; x < image.cols; ++x) {
      gx.row(y)[x] = gradient_x(image.data.data(), image.cols, y, x);
      gy.row(y)[x] = gradient_y(image.data.data(), image.rows, image.cols, y, x);
    }
  }
}

struct Scale {
  Plane i0, i1, i1x, i1y, u1, u2;
};

struct Work {
  Plane warped, wx, wy, grad, rho, p11, p12, p21, p22, median;
  void shape(int r, int c) {
    for (Plane* p : {&warped, &wx, &wy, &grad, &rho, &p11, &p12, &p21, &p22, &median}) p->shape(r, c);
  }
};

void warp(const Scale& s, Work& w) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < cols; ++x) {
      Warped found = warped(s.i1.data.data(), s.i1x.data.data(), s.i1y.data.data(), rows, cols, y, x, s.i0.row(y)[x],
                            s.u1.row(y)[x], s.u2.row(y)[x]);
      w.wx.row(y)[x] = found.x;
      w.wy.row(y)[x] = found.y;
      w.grad.row(y)[x] = found.grad;
      w.rho.row(y)[x] = found.rho;
    }
  }
}

typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));

void median_row(const float* const* lines, int cols, float* out) {
  for (int x = 0; x < cols; x += kLanes) {
    Lanes v[25];
#pragma GCC unroll 25
    for (int n = 0; n < 25; ++n) std::memcpy(&v[n], lines[n / 5] + x + n % 5, sizeof(Lanes));
    median25(v);
    std::memcpy(out + x, &v[12], sizeof(float) * std::min(kLanes, cols - x));
  }
}

void median5(Plane& image, Plane& result) {
  const int rows = image.rows, cols = image.cols;
  std::vector<float> padded(static_cast<size_t>(rows + 4) * (cols + 4 + kLanes), 0.0f);
  const int stride = cols + 4 + kLanes;
  for (int y = 0; y < rows + 4; ++y) {
    const float* from = image.row(std::clamp(y - 2, 0, rows - 1));
    float* to = padded.data() + static_cast<size_t>(y) * stride;
    to[0] = to[1] = from[0];
    std::memcpy(to + 2, from, sizeof(float) * cols);
    to[cols + 2] = to[cols + 3] = from[cols - 1];
  }
  for (int y = 0; y < rows; ++y) {
    const float* lines[5];
    for (int j = 0; j < 5; ++j) lines[j] = padded.data() + static_cast<size_t>(y + j) * stride;
    median_row(lines, cols, result.row(y));
  }
  std::swap(image.data, result.data);
}

// One row of the primal update; returns the sum of squared changes.
float primal_row(int cols, bool top, const float* wx, const float* wy, const float* grad, const float* rho_c,
                 const float* p11, const float* p12, const float* p12_above, const float* p21, const float* p22,
                 const float* p22_above, float* u1, float* u2) {
  float change = 0;
  auto update = [&](int x, float left1, float left2) __attribute__((always_inline)) {
    float div1 = p11[x] - left1 + (top ? p12[x] : p12[x] - p12_above[x]);
    float div2 = p21[x] - left2 + (top ? p22[x] : p22[x] - p22_above[x]);
    return primal(wx[x], wy[x], grad[x], rho_c[x], div1, div2, u1 + x, u2 + x);
  };
  change += update(0, 0.0f, 0.0f);
#pragma GCC ivdep
  for (int x = 1; x < cols; ++x) change += update(x, p11[x - 1], p21[x - 1]);
  return change;
}

// One row of the dual update of one component.
void dual_row(int cols, const float* u, const float* below, float* p1, float* p2) {
#pragma GCC ivdep
  for (int x = 0; x < cols - 1; ++x) dual(u[x + 1] - u[x], below[x] - u[x], p1 + x, p2 + x);
  dual(0.0f, below[cols - 1] - u[cols - 1], p1 + cols - 1, p2 + cols - 1);
}

double iterate(Scale& s, Work& w) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  double change = 0;
  auto dual = [&](int y) {
    int next = std::min(y + 1, rows - 1);
    dual_row(cols, s.u1.row(y), s.u1.row(next), w.p11.row(y), w.p12.row(y));
    dual_row(cols, s.u2.row(y), s.u2.row(next), w.p21.row(y), w.p22.row(y));
  };
  for (int y = 0; y < rows; ++y) {
    int above = std::max(y - 1, 0);
    change += primal_row(cols, y == 0, w.wx.row(y), w.wy.row(y), w.grad.row(y), w.rho.row(y), w.p11.row(y),
                         w.p12.row(y), w.p12.row(above), w.p21.row(y), w.p22.row(y), w.p22.row(above), s.u1.row(y),
                         s.u2.row(y));
    if (y > 0) dual(y - 1);
  }
  dual(rows - 1);
  return change;
}

void solve_scale(Scale& s, Work& w) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  const double tolerance = static_cast<double>(kEpsilon) * kEpsilon * rows * cols;
  s.i1x.shape(rows, cols);
  s.i1y.shape(rows, cols);
  centred_gradient(s.i1, s.i1x, s.i1y);
  w.shape(rows, cols);
  for (int warps = 0; warps < kWarps; ++warps) {
    warp(s, w);
    double change = DBL_MAX;
    for (int outer = 0; outer < kOuter && change > tolerance; ++outer) {
      median5(s.u1, w.median);
      median5(s.u2, w.median);
      for (int inner = 0; inner < kInner && change > tolerance; ++inner) change = iterate(s, w);
    }
  }
}

void solve_pair(const uint8_t* first, const uint8_t* second, int rows, int cols, float* out) {
  std::vector<Scale> scales(kScales);
  int used = 0;
  for (int level = 0; level < kScales; ++level) {
    int r = rows, c = cols;
    if (level > 0) {
      r = coarser(scales[level - 1].i0.rows);
      c = coarser(scales[level - 1].i0.cols);
      if (r < kSmallestSide || c < kSmallestSide) break;
    }
    Scale& s = scales[level];
    for (Plane* p : {&s.i0, &s.i1, &s.u1, &s.u2}) p->shape(r, c);
    if (level == 0) {
      std::copy(first, first + static_cast<size_t>(r) * c, s.i0.data.begin());
      std::copy(second, second + static_cast<size_t>(r) * c, s.i1.data.begin());
    } else {
      resize_linear(scales[level - 1].i0, s.i0, 1 / 0.8, 1 / 0.8);
      resize_linear(scales[level - 1].i1, s.i1, 1 / 0.8, 1 / 0.8);
    }
    ++used;
  }
  Work work;
  for (int level = used - 1; level >= 0; --level) {
    solve_scale(scales[level], work);
    if (level == 0) break;
    Scale &from = scales[level], &to = scales[level - 1];
    double sy = static_cast<double>(from.u1.rows) / to.u1.rows, sx = static_cast<double>(from.u1.cols) / to.u1.cols;
    resize_linear(from.u1, to.u1, sy, sx);
    resize_linear(from.u2, to.u2, sy, sx);
    for (Plane* p : {&to.u1, &to.u2})
      for (float& value : p->data) value *= 1.0f / kScaleStep;
  }
  std::copy(scales[0].u1.data.begin(), scales[0].u1.data.end(), out);
  std::copy(scales[0].u2.data.begin(), scales[0].u2.data.end(), out + static_cast<size_t>(rows) * cols);
}

}  // namespace

// Flow of `count` consecutive pairs of `count + 1` frames, over `threads` threads.
extern "C" void tvl1_batch(const uint8_t* frames, int count, int rows, int cols, int threads, float* out) {
  const size_t area = static_cast<size_t>(rows) * cols;
  std::atomic<int> next{0};
  auto work = [&] {
    for (int pair = next++; pair < count; pair = next++)
      solve_pair(frames + pair * area, frames + (pair + 1) * area, rows, cols, out + 2 * area * pair);
  };
  std::vector<std::thread> others;
  for (int extra = 1; extra < std::min(threads, count); ++extra) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
}
