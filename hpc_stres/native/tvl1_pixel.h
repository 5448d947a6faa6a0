// TV-L1's arithmetic at one pixel, with the parameters and the order of steps of OpenCV's DualTVL1. The CPU's sweeps
// (tvl1.cpp) and the GPU's kernels (tvl1.cu) are both made of these functions and of nothing else.
#pragma once

#include <cfloat>
#include <cmath>

#ifdef __CUDACC__
#define PIXEL __host__ __device__ __forceinline__
#else
// Inlined by force: a call would stop the vectoriser.
#define PIXEL inline __attribute__((always_inline))
#endif

namespace tvl1 {

constexpr float kTau = 0.25f, kLambda = 0.15f, kTheta = 0.3f, kEpsilon = 0.01f, kScaleStep = 0.8f;
constexpr int kScales = 5, kWarps = 5, kOuter = 10, kInner = 30, kSmallestSide = 16;

PIXEL int clamp(int value, int low, int high) { return value < low ? low : (value > high ? high : value); }

// Rows or columns of the next coarser scale.
inline int coarser(int side) { return static_cast<int>(std::lrint(side * static_cast<double>(kScaleStep))); }

// Bilinear, with pixel centres aligned; `step_*` is source pixels per target pixel.
PIXEL float resized(const float* from, int rows, int cols, int y, int x, double step_y, double step_x) {
  double sy = (y + 0.5) * step_y - 0.5, sx = (x + 0.5) * step_x - 0.5;
  int y0 = static_cast<int>(floor(sy)), x0 = static_cast<int>(floor(sx));
  float fy = static_cast<float>(sy - y0), fx = static_cast<float>(sx - x0);
  const float* a = from + static_cast<long>(clamp(y0, 0, rows - 1)) * cols;
  const float* b = from + static_cast<long>(clamp(y0 + 1, 0, rows - 1)) * cols;
  int l = clamp(x0, 0, cols - 1), r = clamp(x0 + 1, 0, cols - 1);
  float top = a[l] + (a[r] - a[l]) * fx, low = b[l] + (b[r] - b[l]) * fx;
  return top + (low - top) * fy;
}

PIXEL float gradient_x(const float* image, int cols, int y, int x) {
  const float* row = image + static_cast<long>(y) * cols;
  return 0.5f * (row[clamp(x + 1, 0, cols - 1)] - row[clamp(x - 1, 0, cols - 1)]);
}

PIXEL float gradient_y(const float* image, int rows, int cols, int y, int x) {
  return 0.5f * (image[static_cast<long>(clamp(y + 1, 0, rows - 1)) * cols + x] -
                 image[static_cast<long>(clamp(y - 1, 0, rows - 1)) * cols + x]);
}

PIXEL void cubic_weights(float t, float* w) {
  constexpr float a = -0.75f;
  w[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
  w[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
  float s = 1 - t;
  w[2] = ((a + 2) * s - (a + 3)) * s * s + 1;
  w[3] = 1 - w[0] - w[1] - w[2];
}

struct Warped {
  float x, y, grad, rho;
};

// I1 and its gradient at (x + u1, y + u2), bicubic, zero outside; |grad|^2 and the constant part of rho.
PIXEL Warped warped(const float* i1, const float* i1x, const float* i1y, int rows, int cols, int y, int x, float i0,
                    float u1, float u2) {
  float px = x + u1, py = y + u2;
  float bx = floorf(px), by = floorf(py);
  // A displacement that has left all bounds reads zeros, like any place outside.
  if (!(fabsf(px) < 1e6f && fabsf(py) < 1e6f)) { bx = by = -16.0f; px = py = -16.0f; }
  int ix = static_cast<int>(bx) - 1, iy = static_cast<int>(by) - 1;
  float cx[4], cy[4];
  cubic_weights(px - bx, cx);
  cubic_weights(py - by, cy);
  float v = 0, vx = 0, vy = 0;
  for (int j = 0; j < 4; ++j) {
    int yy = iy + j;
    if (yy < 0 || yy >= rows) continue;
    const long line = static_cast<long>(yy) * cols;
    float sa = 0, sb = 0, sc = 0;
    for (int i = 0; i < 4; ++i) {
      int xx = ix + i;
      if (xx < 0 || xx >= cols) continue;
      sa += cx[i] * i1[line + xx]; sb += cx[i] * i1x[line + xx]; sc += cx[i] * i1y[line + xx];
    }
    v += cy[j] * sa; vx += cy[j] * sb; vy += cy[j] * sc;
  }
  return {vx, vy, vx * vx + vy * vy, v - vx * u1 - vy * u2 - i0};
}

// The primal update of both components at one pixel; div* are the divergences of p. Returns the squared change.
PIXEL float primal(float wx, float wy, float grad, float rho_c, float div1, float div2, float* u1, float* u2) {
  const float lt = kLambda * kTheta;
  float rho = rho_c + wx * *u1 + wy * *u2;
  float bound = lt * grad;
  float inner = grad > FLT_EPSILON ? -rho / grad : 0.0f;
  float d = rho < -bound ? lt : (rho > bound ? -lt : inner);
  float n1 = *u1 + d * wx + kTheta * div1, n2 = *u2 + d * wy + kTheta * div2;
  float c1 = n1 - *u1, c2 = n2 - *u2;
  *u1 = n1;
  *u2 = n2;
  return c1 * c1 + c2 * c2;
}

// The dual update of one component at one pixel, from the forward differences of u.
PIXEL void dual(float ux, float uy, float* p1, float* p2) {
  const float taut = kTau / kTheta;
  float scale = 1.0f / (1.0f + taut * sqrtf(ux * ux + uy * uy));
  *p1 = (*p1 + taut * ux) * scale;
  *p2 = (*p2 + taut * uy) * scale;
}

template <typename T>
PIXEL void order(T& low, T& high) {
  T least = low < high ? low : high;
  high = low < high ? high : low;
  low = least;
}

#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Least of v[First..Last] to v[First], greatest to v[Last].
template <int First, int Last, typename T>
PIXEL void extremes(T* v) {
  UNROLL
  for (int i = 0; i < (Last - First + 1) / 2; ++i) order(v[First + i], v[Last - i]);
  UNROLL
  for (int i = First + 1; i <= (First + Last) / 2; ++i) order(v[First], v[i]);
  UNROLL
  for (int i = (First + Last + 1) / 2; i < Last; ++i) order(v[i], v[Last]);
}

// Median of 25 by forgetful selection, to v[12]: the least and the greatest of 14 or more cannot be it. The greatest is
// overwritten by the next value, the least is left behind, until three are left. Constants, so that all stays in
// registers; T is one value, or several side by side.
template <int First, typename T>
PIXEL void forget(T* v, const T* rest) {
  extremes<First, 13>(v);
  if constexpr (First < 11) {
    v[13] = *rest;
    forget<First + 1>(v, rest + 1);
  }
}

template <typename T>
PIXEL T median25(T* v) {
  forget<0>(v, v + 14);
  return v[12];
}

}  // namespace tvl1
