// TV-L1 optical flow of a batch of frame pairs on the CPU; what happens at a pixel is in
// tvl1_pixel.h.
//
// What makes it fast:
// - The primal and the dual update of one iteration run in one sweep over the picture, the dual one
//   row behind the primal one; and several iterations run in one sweep, each one row behind the one
//   before, so that a row is fetched once for all of them (`sweep`). Which rows meet which values
//   does not depend on that.
// - Brightness and gradient of the second frame lie side by side with a margin around, so that a
//   warp reads its 16 places without a question (`Texture`).
// - The 5x5 median is taken on several pixels at once.
// One thread does a whole pair: the bytes depend neither on the number of threads nor on what else
// is in the batch.

#include "tvl1_pixel.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

namespace {

using namespace tvl1;

constexpr int kLanes = 8;
// Iterations in one sweep: their rows, 14 planes of each, have to fit into the second-level cache.
constexpr int kDepth = 12;

typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));
typedef float Texel __attribute__((vector_size(16)));

struct Plane {
  int rows = 0, cols = 0;
  std::vector<float> data;
  void shape(int r, int c) { rows = r; cols = c; data.assign(static_cast<size_t>(r) * c, 0.0f); }
  float* row(int y) { return data.data() + static_cast<size_t>(y) * cols; }
  const float* row(int y) const { return data.data() + static_cast<size_t>(y) * cols; }
};

template <class Pyramid>
void reduce(const Plane& from, Plane& to) {
  for (int y = 0; y < to.rows; ++y)
    for (int x = 0; x < to.cols; ++x)
      to.row(y)[x] = Pyramid::reduced(from.data.data(), from.rows, from.cols, y, x);
}

template <class Pyramid>
void enlarge(const Plane& from, Plane& to) {
  const float* data = from.data.data();
  const double step_y = static_cast<double>(from.rows) / to.rows;
  const double step_x = static_cast<double>(from.cols) / to.cols;
  for (int y = 0; y < to.rows; ++y)
    for (int x = 0; x < to.cols; ++x)
      to.row(y)[x] =
          Pyramid::kUpscale * Pyramid::enlarged(data, from.rows, from.cols, y, x, step_y, step_x);
}

// Brightness, both gradients and a zero at each pixel of a frame and of a margin around it.
struct Texture {
  int stride = 0;
  std::vector<Texel> data;

  void fill(const Plane& image, bool repeat_edge) {
    const int rows = image.rows, cols = image.cols;
    stride = cols + 2 * kMargin;
    data.assign(static_cast<size_t>(rows + 2 * kMargin) * stride, Texel{});
    for (int y = -kMargin; y < rows + kMargin; ++y) {
      for (int x = -kMargin; x < cols + kMargin; ++x) {
        const int yy = clamp(y, 0, rows - 1), xx = clamp(x, 0, cols - 1);
        if (!repeat_edge && (yy != y || xx != x)) continue;
        *at(y, x) = Texel{image.row(yy)[xx], gradient_x(image.data.data(), cols, yy, xx),
                          gradient_y(image.data.data(), rows, cols, yy, xx), 0.0f};
      }
    }
  }
  Texel* at(int y, int x) {
    return data.data() + static_cast<size_t>(y + kMargin) * stride + (x + kMargin);
  }
};

struct Scale {
  Plane i0, i1, u1, u2;
};

// What one thread needs for a pair.
struct Work {
  Texture texture;
  Plane wx, wy, inverse, rho, p11, p12, p21, p22, median;
  std::vector<float> changes;
  void shape(int r, int c) {
    for (Plane* p : {&wx, &wy, &inverse, &rho, &p11, &p12, &p21, &p22, &median}) p->shape(r, c);
    changes.assign(c + kLanes, 0.0f);
  }
};

template <class Pyramid>
void warp(const Scale& s, Work& w) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  const Texel* origin = w.texture.at(0, 0);
  const long stride = w.texture.stride;
  auto read = [=](int y, int x) __attribute__((always_inline)) { return origin[y * stride + x]; };
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < cols; ++x) {
      const float u1 = s.u1.row(y)[x], u2 = s.u2.row(y)[x];
      const Texel seen = bicubic<Pyramid, Texel>(x + u1, y + u2, rows, cols, read);
      const Warped at = warped(seen[0], seen[1], seen[2], s.i0.row(y)[x], u1, u2);
      w.wx.row(y)[x] = at.x;
      w.wy.row(y)[x] = at.y;
      w.inverse.row(y)[x] = at.inverse;
      w.rho.row(y)[x] = at.rho;
    }
  }
}

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

// One row of the primal update; the squared changes go to `changes`.
void primal_row(int cols, bool top, const float* wx, const float* wy, const float* inverse,
                const float* rho_c, const float* p11, const float* p12, const float* p12_above,
                const float* p21, const float* p22, const float* p22_above, float* u1, float* u2,
                float* changes) {
  // Above the first row p is zero: there `above` is the row itself, and counts nothing.
  const float weight = top ? 0.0f : 1.0f;
  auto update = [&](int x, float left1, float left2) __attribute__((always_inline)) {
    const float div1 = p11[x] - left1 + (p12[x] - weight * p12_above[x]);
    const float div2 = p21[x] - left2 + (p22[x] - weight * p22_above[x]);
    changes[x] = primal(wx[x], wy[x], inverse[x], rho_c[x], div1, div2, u1 + x, u2 + x);
  };
  update(0, 0.0f, 0.0f);
#pragma GCC ivdep
  for (int x = 1; x < cols; ++x) update(x, p11[x - 1], p21[x - 1]);
}

// One row of the dual update.
void dual_row(int cols, const float* u1, const float* below1, const float* u2, const float* below2,
              float* p11, float* p12, float* p21, float* p22) {
  auto update = [&](int x, float right1, float right2) __attribute__((always_inline)) {
    dual(right1 - u1[x], below1[x] - u1[x], right2 - u2[x], below2[x] - u2[x], p11 + x, p12 + x,
         p21 + x, p22 + x);
  };
#pragma GCC ivdep
  for (int x = 0; x < cols - 1; ++x) update(x, u1[x + 1], u2[x + 1]);
  update(cols - 1, u1[cols - 1], u2[cols - 1]);
}

// A row's sum in an order of our own, whatever the compiler makes of loops.
double sum_row(const float* changes, int cols) {
  Lanes lanes{};
  for (int x = 0; x < cols; x += kLanes) {
    Lanes some{};
    std::memcpy(&some, changes + x, sizeof(float) * std::min(kLanes, cols - x));
    lanes += some;
  }
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// `depth` iterations in one sweep, each one row behind the one before. In a step, iteration k
// updates u in row y and then p in row y - 1, which needs u of row y; iteration k - 1 has just done
// the same for rows y + 1 and y. So iteration k meets row y finished by k - 1 and by nobody later,
// as if each had gone over the whole picture alone. The step at y = rows does the p of the last
// row. Returns the change of the last iteration.
double sweep(Scale& s, Work& w, int depth) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  double change = 0;
  auto dual = [&](int y) {
    const int next = std::min(y + 1, rows - 1);
    dual_row(cols, s.u1.row(y), s.u1.row(next), s.u2.row(y), s.u2.row(next), w.p11.row(y),
             w.p12.row(y), w.p21.row(y), w.p22.row(y));
  };
  for (int step = 0; step < rows + depth; ++step) {
    for (int k = 0; k < depth; ++k) {
      const int y = step - k;
      if (y < 0 || y > rows) continue;
      if (y < rows) {
        const int above = std::max(y - 1, 0);
        primal_row(cols, y == 0, w.wx.row(y), w.wy.row(y), w.inverse.row(y), w.rho.row(y),
                   w.p11.row(y), w.p12.row(y), w.p12.row(above), w.p21.row(y), w.p22.row(y),
                   w.p22.row(above), s.u1.row(y), s.u2.row(y), w.changes.data());
        if (k == depth - 1) change += sum_row(w.changes.data(), cols);
      }
      if (y > 0) dual(y - 1);
    }
  }
  return change;
}

// `count` iterations or fewer, where the pair comes to rest before.
template <class Pyramid>
void iterate(Scale& s, Work& w, Watch& watch, int count, double tolerance) {
  for (int done = 0; done < count && watch.active;) {
    // Iterations whose change nobody looks at go together with the next one that is looked at.
    int depth = 0;
    while (done < count && depth < kDepth) {
      watch.looks = Pyramid::looks(watch, done++, tolerance);
      ++depth;
      if (watch.looks) break;
      judge(watch, 0, tolerance);
    }
    const double change = sweep(s, w, depth);
    if (watch.looks) judge(watch, change, tolerance);
  }
}

template <class Pyramid>
void solve_scale(Scale& s, Work& w) {
  const int rows = s.i0.rows, cols = s.i0.cols;
  const double tolerance = static_cast<double>(kEpsilon) * kEpsilon * rows * cols;
  w.shape(rows, cols);
  w.texture.fill(s.i1, Pyramid::kRepeatEdge);
  for (int warps = 0; warps < kWarps; ++warps) {
    warp<Pyramid>(s, w);
    Watch watch;
    for (int outer = 0; outer < Pyramid::kOuter && watch.active; ++outer) {
      if (Pyramid::kMedian) {
        median5(s.u1, w.median);
        median5(s.u2, w.median);
      }
      iterate<Pyramid>(s, w, watch, Pyramid::kInner, tolerance);
    }
  }
}

template <class Pyramid>
void solve_pair(const uint8_t* first, const uint8_t* second, int rows, int cols, float* out) {
  std::vector<Scale> scales;
  int r = rows, c = cols;
  for (; scales.size() < kScales; r = Pyramid::coarser(r), c = Pyramid::coarser(c)) {
    if (!scales.empty() && (r < kSmallestSide || c < kSmallestSide)) break;
    scales.emplace_back();
    Scale& s = scales.back();
    for (Plane* p : {&s.i0, &s.i1, &s.u1, &s.u2}) p->shape(r, c);
    if (scales.size() == 1) {
      std::copy(first, first + s.i0.data.size(), s.i0.data.begin());
      std::copy(second, second + s.i1.data.size(), s.i1.data.begin());
    } else {
      const Scale& finer = scales[scales.size() - 2];
      reduce<Pyramid>(finer.i0, s.i0);
      reduce<Pyramid>(finer.i1, s.i1);
    }
  }
  Work work;
  for (size_t level = scales.size(); level-- > 0;) {
    solve_scale<Pyramid>(scales[level], work);
    if (level == 0) break;
    enlarge<Pyramid>(scales[level].u1, scales[level - 1].u1);
    enlarge<Pyramid>(scales[level].u2, scales[level - 1].u2);
  }
  std::copy(scales[0].u1.data.begin(), scales[0].u1.data.end(), out);
  std::copy(scales[0].u2.data.begin(), scales[0].u2.data.end(), out + scales[0].u1.data.size());
}

}  // namespace

// Flow of `count` consecutive pairs of `count + 1` frames, over `threads` threads; `paper` chooses
// the pyramid. 0, or 1 where memory did not suffice.
extern "C" int tvl1_batch(const uint8_t* frames, int count, int rows, int cols, int paper,
                          int threads, float* out) {
  const auto solve = paper ? solve_pair<Paper> : solve_pair<OpenCv4>;
  const size_t area = static_cast<size_t>(rows) * cols;
  std::atomic<int> next{0}, failed{0};
  auto work = [&] {
    try {
      for (int pair = next++; pair < count && !failed; pair = next++)
        solve(frames + pair * area, frames + (pair + 1) * area, rows, cols, out + 2 * area * pair);
    } catch (const std::exception&) {
      failed = 1;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int extra = 1; extra < std::min(threads, count); ++extra) others.emplace_back(work);
  } catch (const std::exception&) {
    // The machine gives no more threads: those that there are do the work.
  }
  work();
  for (std::thread& thread : others) thread.join();
  return failed;
}
