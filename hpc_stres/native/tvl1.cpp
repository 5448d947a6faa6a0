// TV-L1 optical flow of a batch of frame pairs, with the parameters and the order of steps of OpenCV's DualTVL1.
//
// What makes it fast: the primal and the dual update of one iteration run in one sweep over the picture, the dual one
// row behind the primal one, so that everything stays in the nearest cache; the 5x5 median is taken on 16 pixels at once.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr float kTau = 0.25f, kLambda = 0.15f, kTheta = 0.3f, kEpsilon = 0.01f, kScaleStep = 0.8f;
constexpr int kScales = 5, kWarps = 5, kOuter = 10, kInner = 30, kSmallestSide = 16;
constexpr int kLanes = 8;

struct Plane {
  int rows = 0, cols = 0;
  std::vector<float> data;
  void shape(int r, int c) { rows = r; cols = c; data.assign(static_cast<size_t>(r) * c, 0.0f); }
  float* row(int y) { return data.data() + static_cast<size_t>(y) * cols; }
  const float* row(int y) const { return data.data() + static_cast<size_t>(y) * cols; }
};

// Bilinear resize with pixel centres aligned; `step_*` is source pixels per target pixel.
void resize_linear(const Plane& from, Plane& to, double step_y, double step_x) {
  for (int y = 0; y < to.rows; ++y) {
    double sy = (y + 0.5) * step_y - 0.5;
    int y0 = static_cast<int>(std::floor(sy));
    float fy = static_cast<float>(sy - y0);
    const float* a = from.row(std::clamp(y0, 0, from.rows - 1));
    const float* b = from.row(std::clamp(y0 + 1, 0, from.rows - 1));
    for (int x = 0; x < to.cols; ++x) {
      double sx = (x + 0.5) * step_x - 0.5;
      int x0 = static_cast<int>(std::floor(sx));
      float fx = static_cast<float>(sx - x0);
      int l = std::clamp(x0, 0, from.cols - 1), r = std::clamp(x0 + 1, 0, from.cols - 1);
      float top = a[l] + (a[r] - a[l]) * fx, low = b[l] + (b[r] - b[l]) * fx;
      to.row(y)[x] = top + (low - top) * fy;
    }
  }
}

void centred_gradient(const Plane& image, Plane& gx, Plane& gy) {
  for (int y = 0; y < image.rows; ++y) {
    const float* here = image.row(y);
    const float* above = image.row(std::max(y - 1, 0));
    const float* below = image.row(std::min(y + 1, image.rows - 1));
    for (int x = 0; x < image.cols; ++x) {
      gx.row(y)[x] = 0.5f * (here[std::min(x + 1, image.cols - 1)] - here[std::max(x - 1, 0)]);
      gy.row(y)[x] = 0.5f * (below[x] - above[x]);
    }
  }
}

inline void cubic_weights(float t, float* w) {
  constexpr float a = -0.75f;
  w[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
  w[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
  float s = 1 - t;
  w[2] = ((a + 2) * s - (a + 3)) * s * s + 1;
  w[3] = 1 - w[0] - w[1] - w[2];
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

// I1 and its gradient at x + u, bicubic, zero outside; then |grad|^2 and the constant part of rho.
void warp(const Scale& s, Work& w) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < cols; ++x) {
      float px = x + s.u1.row(y)[x], py = y + s.u2.row(y)[x];
      float bx = std::floor(px), by = std::floor(py);
      // A displacement that has left all bounds reads zeros, like any place outside.
      if (!(std::fabs(px) < 1e6f && std::fabs(py) < 1e6f)) { bx = by = -16.0f; px = py = -16.0f; }
      int ix = static_cast<int>(bx) - 1, iy = static_cast<int>(by) - 1;
      float cx[4], cy[4];
      cubic_weights(px - bx, cx);
      cubic_weights(py - by, cy);
      float v = 0, vx = 0, vy = 0;
      for (int j = 0; j < 4; ++j) {
        int yy = iy + j;
        if (yy < 0 || yy >= rows) continue;
        const float *a = s.i1.row(yy), *b = s.i1x.row(yy), *c = s.i1y.row(yy);
        float sa = 0, sb = 0, sc = 0;
        for (int i = 0; i < 4; ++i) {
          int xx = ix + i;
          if (xx < 0 || xx >= cols) continue;
          sa += cx[i] * a[xx]; sb += cx[i] * b[xx]; sc += cx[i] * c[xx];
        }
        v += cy[j] * sa; vx += cy[j] * sb; vy += cy[j] * sc;
      }
      w.wx.row(y)[x] = vx;
      w.wy.row(y)[x] = vy;
      w.grad.row(y)[x] = vx * vx + vy * vy;
      w.rho.row(y)[x] = v - vx * s.u1.row(y)[x] - vy * s.u2.row(y)[x] - s.i0.row(y)[x];
    }
  }
}

typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));
#define INLINE inline __attribute__((always_inline))

INLINE void order(Lanes& low, Lanes& high) {
  Lanes least = low < high ? low : high;
  high = low < high ? high : low;
  low = least;
}

// Least of v[First..Last] to v[First], greatest to v[Last].
template <int First, int Last>
INLINE void extremes(Lanes* v) {
#pragma GCC unroll 16
  for (int i = 0; i < (Last - First + 1) / 2; ++i) order(v[First + i], v[Last - i]);
#pragma GCC unroll 16
  for (int i = First + 1; i <= (First + Last) / 2; ++i) order(v[First], v[i]);
#pragma GCC unroll 16
  for (int i = (First + Last + 1) / 2; i < Last; ++i) order(v[i], v[Last]);
}

// Median of 25 in each lane by forgetful selection: the least and the greatest of 14 or more cannot be it. The greatest
// is overwritten by the next value, the least is left behind, until three are left. Constants, so that all stays in
// registers.
template <int First>
INLINE void forget(Lanes* v, const Lanes* rest) {
  extremes<First, 13>(v);
  if constexpr (First < 11) {
    v[13] = *rest;
    forget<First + 1>(v, rest + 1);
  }
}

void median_row(const float* const* lines, int cols, float* out) {
  for (int x = 0; x < cols; x += kLanes) {
    Lanes v[25];
#pragma GCC unroll 25
    for (int n = 0; n < 25; ++n) std::memcpy(&v[n], lines[n / 5] + x + n % 5, sizeof(Lanes));
    forget<0>(v, v + 14);
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
  const float lt = kLambda * kTheta;
  float change = 0;
  // Inlined by force: a lambda does not inherit the clones' targets, and a call would stop the vectoriser.
  auto update = [&](int x, float left1, float left2) __attribute__((always_inline)) {
    float rho = rho_c[x] + wx[x] * u1[x] + wy[x] * u2[x];
    float bound = lt * grad[x];
    float inner = grad[x] > FLT_EPSILON ? -rho / grad[x] : 0.0f;
    float d = rho < -bound ? lt : (rho > bound ? -lt : inner);
    float v1 = u1[x] + d * wx[x], v2 = u2[x] + d * wy[x];
    float div1 = p11[x] - left1 + (top ? p12[x] : p12[x] - p12_above[x]);
    float div2 = p21[x] - left2 + (top ? p22[x] : p22[x] - p22_above[x]);
    float n1 = v1 + kTheta * div1, n2 = v2 + kTheta * div2;
    float c1 = n1 - u1[x], c2 = n2 - u2[x];
    u1[x] = n1;
    u2[x] = n2;
    return c1 * c1 + c2 * c2;
  };
  change += update(0, 0.0f, 0.0f);
#pragma GCC ivdep
  for (int x = 1; x < cols; ++x) change += update(x, p11[x - 1], p21[x - 1]);
  return change;
}

// One row of the dual update of one component.
void dual_row(int cols, const float* u, const float* below, float* p1, float* p2) {
  const float taut = kTau / kTheta;
#pragma GCC ivdep
  for (int x = 0; x < cols - 1; ++x) {
    float ux = u[x + 1] - u[x], uy = below[x] - u[x];
    float scale = 1.0f / (1.0f + taut * std::sqrt(ux * ux + uy * uy));
    p1[x] = (p1[x] + taut * ux) * scale;
    p2[x] = (p2[x] + taut * uy) * scale;
  }
  int x = cols - 1;
  float uy = below[x] - u[x];
  float scale = 1.0f / (1.0f + taut * std::fabs(uy));
  p1[x] *= scale;
  p2[x] = (p2[x] + taut * uy) * scale;
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
      r = static_cast<int>(std::lrint(scales[level - 1].i0.rows * static_cast<double>(kScaleStep)));
      c = static_cast<int>(std::lrint(scales[level - 1].i0.cols * static_cast<double>(kScaleStep)));
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
