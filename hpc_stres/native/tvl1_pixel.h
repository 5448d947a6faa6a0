// TV-L1's arithmetic at one pixel. The CPU's sweeps (tvl1.cpp) and the GPU's kernels (tvl1.cu) are
// both made of these functions and of nothing else.
//
// Two pyramids share the solver and differ in how pictures are reduced, warped and enlarged, in the
// median, and in when they look whether a pair has come to rest:
//   Paper    the GPU solver of OpenCV 2.4 that the authors used: halves, no median
//   OpenCv4  DualTVL1 of OpenCV 4 and 5: steps of 0.8, a 5x5 median before every 30 iterations
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

constexpr float kTau = 0.25f, kLambda = 0.15f, kTheta = 0.3f, kEpsilon = 0.01f;
constexpr int kScales = 5, kWarps = 5, kSmallestSide = 16;

PIXEL int clamp(int value, int low, int high) { return value < low ? low : (value > high ? high : value); }

// Between low and high; a NaN becomes high.
PIXEL float clamp(float value, float low, float high) {
  float most = value < high ? value : high;
  return most > low ? most : low;
}

PIXEL const float* row_of(const float* plane, int y, int cols) {
  return plane + static_cast<long>(y) * cols;
}

// Bilinear at (sy, sx), the edge's pixels repeated outside.
PIXEL float bilinear(const float* from, int rows, int cols, int y0, int x0, float fy, float fx) {
  const float* a = row_of(from, clamp(y0, 0, rows - 1), cols);
  const float* b = row_of(from, clamp(y0 + 1, 0, rows - 1), cols);
  const int l = clamp(x0, 0, cols - 1), r = clamp(x0 + 1, 0, cols - 1);
  const float top = a[l] + (a[r] - a[l]) * fx, low = b[l] + (b[r] - b[l]) * fx;
  return top + (low - top) * fy;
}

// A solver's memory of when to look at the change of an iteration, which is a sum over the picture.
struct Watch {
  double expected = 0;  // what the change may still be, in multiples of the tolerance
  int active = 1, looks = 0;
};

struct Paper {
  static constexpr int kOuter = 1, kInner = 300;
  static constexpr bool kMedian = false;
  static constexpr float kUpscale = 2.0f;

  // Rows or columns of the next coarser scale.
  static int coarser(int side) { return (side + 1) / 2; }

  static PIXEL int mirrored(int at, int size) {
    const int inside = at < 0 ? -at : (at < size ? at : 2 * size - 2 - at);
    return clamp(inside, 0, size - 1);
  }

  // Every second pixel of the picture under a 5x5 binomial filter; borders are mirrored about the
  // edge's pixels.
  static PIXEL float reduced(const float* from, int rows, int cols, int y, int x) {
    constexpr float kernel[5] = {0.0625f, 0.25f, 0.375f, 0.25f, 0.0625f};
    float sum = 0;
    for (int i = 0; i < 5; ++i) {
      const int xx = mirrored(2 * x + i - 2, cols);
      float column = 0;
      for (int j = 0; j < 5; ++j)
        column += kernel[j] * row_of(from, mirrored(2 * y + j - 2, rows), cols)[xx];
      sum += kernel[i] * column;
    }
    return sum;
  }

  // The coarser flow at a finer pixel. Pixel 0 lies on pixel 0, as it does in `reduced`.
  static PIXEL float enlarged(const float* from, int rows, int cols, int y, int x, double step_y,
                              double step_x) {
    const float sy = y * static_cast<float>(step_y), sx = x * static_cast<float>(step_x);
    const float y0 = floorf(sy), x0 = floorf(sx);
    return bilinear(from, rows, cols, static_cast<int>(y0), static_cast<int>(x0), sy - y0, sx - x0);
  }

  // Catmull-Rom's weights; outside the picture its edge is repeated.
  static constexpr bool kRepeatEdge = true;
  static PIXEL void cubic_weights(float t, float* w) {
    const float a = 1 + t, b = 1 - t, c = 2 - t;
    w[0] = a * (a * (-0.5f * a + 2.5f) - 4) + 2;
    w[1] = t * t * (1.5f * t - 2.5f) + 1;
    w[2] = b * b * (1.5f * b - 2.5f) + 1;
    w[3] = c * (c * (-0.5f * c + 2.5f) - 4) + 2;
  }

  // Sums were costly on GPUs: only odd iterations are looked at, and none as long as the change,
  // had it fallen by one tolerance in each iteration since the last look, would not have come below
  // the tolerance.
  static PIXEL bool looks(const Watch& watch, int iteration, double tolerance) {
    return (iteration & 1) && watch.expected < tolerance;
  }
};

struct OpenCv4 {
  static constexpr int kOuter = 10, kInner = 30;
  static constexpr bool kMedian = true;
  static constexpr double kStep = 0.8;
  static constexpr float kUpscale = 1.0f / 0.8f;

  static int coarser(int side) {
    return static_cast<int>(std::lrint(side * static_cast<double>(0.8f)));
  }

  // Bilinear, with pixel centres aligned; `step_*` is source pixels per target pixel.
  static PIXEL float enlarged(const float* from, int rows, int cols, int y, int x, double step_y,
                              double step_x) {
    const double sy = (y + 0.5) * step_y - 0.5, sx = (x + 0.5) * step_x - 0.5;
    const double y0 = floor(sy), x0 = floor(sx);
    return bilinear(from, rows, cols, static_cast<int>(y0), static_cast<int>(x0),
                    static_cast<float>(sy - y0), static_cast<float>(sx - x0));
  }

  static PIXEL float reduced(const float* from, int rows, int cols, int y, int x) {
    return enlarged(from, rows, cols, y, x, 1 / kStep, 1 / kStep);
  }

  // Keys' weights with a = -0.75; outside the picture all is zero.
  static constexpr bool kRepeatEdge = false;
  static PIXEL void cubic_weights(float t, float* w) {
    constexpr float a = -0.75f;
    w[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
    w[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
    const float s = 1 - t;
    w[2] = ((a + 2) * s - (a + 3)) * s * s + 1;
    w[3] = 1 - w[0] - w[1] - w[2];
  }

  static PIXEL bool looks(const Watch&, int, double) { return true; }
};

// After an iteration: what was seen of its change, if it was looked at, decides whether the pair
// goes on.
PIXEL void judge(Watch& watch, double change, double tolerance) {
  if (watch.looks) {
    watch.expected = change;
    if (change <= tolerance) watch.active = 0;
  } else {
    watch.expected -= tolerance;
  }
}

PIXEL float gradient_x(const float* image, int cols, int y, int x) {
  const float* row = row_of(image, y, cols);
  return 0.5f * (row[clamp(x + 1, 0, cols - 1)] - row[clamp(x - 1, 0, cols - 1)]);
}

PIXEL float gradient_y(const float* image, int rows, int cols, int y, int x) {
  return 0.5f * (row_of(image, clamp(y + 1, 0, rows - 1), cols)[x] -
                 row_of(image, clamp(y - 1, 0, rows - 1), cols)[x]);
}

// How far outside the picture a warp reads: all that lies further off is the same as this.
constexpr int kMargin = 6;

// The second frame at (px, py), bicubic: `read(y, x)` gives its brightness and gradient there, in
// any type that can be added up and scaled.
template <class Pyramid, class Texel, class Read>
PIXEL Texel bicubic(float px, float py, int rows, int cols, const Read& read) {
  px = clamp(px, -4.0f, cols + 3.0f);
  py = clamp(py, -4.0f, rows + 3.0f);
  const float bx = floorf(px), by = floorf(py);
  const int ix = static_cast<int>(bx) - 1, iy = static_cast<int>(by) - 1;
  float cx[4], cy[4];
  Pyramid::cubic_weights(px - bx, cx);
  Pyramid::cubic_weights(py - by, cy);
  Texel sum{};
  for (int j = 0; j < 4; ++j) {
    Texel line{};
    for (int i = 0; i < 4; ++i) line += read(iy + j, ix + i) * cx[i];
    sum += line * cy[j];
  }
  return sum;
}

// What the iterations need of a warped pixel: its gradient, the inverse of |gradient|^2 and the
// constant part of rho.
struct Warped {
  float x, y, inverse, rho;
};

PIXEL Warped warped(float i1, float gx, float gy, float i0, float u1, float u2) {
  const float grad = gx * gx + gy * gy;
  return {gx, gy, grad > FLT_EPSILON ? 1.0f / grad : FLT_MAX, i1 - gx * u1 - gy * u2 - i0};
}

// The primal update of both components at one pixel; div* are the divergences of p. Returns the
// squared change. The three cases of the thresholding are one clamp: rho < -lt grad is the same as
// -rho / grad > lt.
PIXEL float primal(float wx, float wy, float inverse, float rho_c, float div1, float div2,
                   float* u1, float* u2) {
  const float lt = kLambda * kTheta;
  const float rho = rho_c + wx * *u1 + wy * *u2;
  const float d = clamp(-rho * inverse, -lt, lt);
  const float n1 = *u1 + d * wx + kTheta * div1, n2 = *u2 + d * wy + kTheta * div2;
  const float c1 = n1 - *u1, c2 = n2 - *u2;
  *u1 = n1;
  *u2 = n2;
  return c1 * c1 + c2 * c2;
}

// The dual update of both components at one pixel, from the forward differences of u; one division
// serves both.
PIXEL void dual(float u1x, float u1y, float u2x, float u2y, float* p11, float* p12, float* p21,
                float* p22) {
  const float taut = kTau / kTheta;
  const float n1 = 1.0f + taut * sqrtf(u1x * u1x + u1y * u1y);
  const float n2 = 1.0f + taut * sqrtf(u2x * u2x + u2y * u2y);
  const float both = 1.0f / (n1 * n2);
  const float s1 = both * n2, s2 = both * n1;
  *p11 = (*p11 + taut * u1x) * s1;
  *p12 = (*p12 + taut * u1y) * s1;
  *p21 = (*p21 + taut * u2x) * s2;
  *p22 = (*p22 + taut * u2y) * s2;
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

// Median of 25 by forgetful selection, to v[12]: the least and the greatest of 14 or more cannot be
// it. The greatest is overwritten by the next value, the least is left behind, until three are
// left. Constants, so that all stays in registers; T is one value, or several side by side.
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
