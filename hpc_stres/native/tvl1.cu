// TV-L1 optical flow of a batch of frame pairs on a GPU; what happens at a pixel is in tvl1_pixel.h,
// what the kernels run on in tvl1_device.h.
//
// One iteration reads and writes ten numbers a pixel for some sixty operations: done one by one,
// iterations wait for memory. So
// - as many pairs go together as the second-level cache holds of what iterations touch, at each scale
//   anew: coarse scales take many pairs, which fills the device, the finest one a few;
// - a block loads a tile with a border, does several iterations on it in its fast memory, and writes
//   what the border cannot have spoilt: each iteration spoils one more pixel from the outside, so the
//   border is as wide as there are iterations. It writes to a second copy of the state, because other
//   blocks still read the first. A picture that fits into one tile needs no border;
// - launches of 30 iterations are one graph, and pairs that have come to rest leave the list that
//   blocks are started for.
//
// A pair stops at an iteration of its own, whatever else is in the batch and however many iterations
// go into a launch: the sum of changes is taken for each iteration, afterwards they are judged in
// order, and if the pair came to rest inside the launch that one is done again, only so far: the
// first copy is still there. The changes of a picture's pixels are added up as whole numbers, so that
// the order in which threads come does not decide when that is.

#include "tvl1_tile.h"

#include <algorithm>

namespace {

// Blocks that a launch may have in its second and third direction.
constexpr int kMostBlocks = 65535;
// Of the cache for the planes that iterations touch; the rest is for what else passes.
constexpr double kCacheShare = 0.75;

// -- pictures --------------------------------------------------------------------------------------

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

// The coarser scale's flow, u and v of each pair in turn.
template <class Pyramid>
KERNEL enlarge(int rows, int cols, const float* from, int from_rows, int from_cols, double step_y,
               double step_x, Batch b) {
  AREA
  const long from_area = static_cast<long>(from_rows) * from_cols;
  for (int axis = 0; axis < 2; ++axis) {
    const float* plane = from + (2l * n + axis) * from_area;
    b.state(0, kU1 + axis)[start + at] =
        Pyramid::kUpscale * Pyramid::enlarged(plane, from_rows, from_cols, y, x, step_y, step_x);
  }
}

// The flow of a scale, out of the newest copy of each pair.
KERNEL collect(int rows, int cols, Batch b, float* to) {
  AREA
  const long area = static_cast<long>(rows) * cols;
  for (int axis = 0; axis < 2; ++axis)
    to[(2l * n + axis) * area + at] = b.state(b.pairs[n].side, kU1 + axis)[start + at];
}

// `next` are the frames from the second one on: pair n goes from frame n to frame n + 1.
KERNEL gradients(int rows, int cols, const float* next, Batch b) {
  AREA
  b.plane(kI1x)[start + at] = gradient_x(next + start, cols, y, x);
  b.plane(kI1y)[start + at] = gradient_y(next + start, rows, cols, y, x);
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
KERNEL warp(int rows, int cols, const float* frames, const float* next, Batch b) {
  AREA
  const long i = start + at;
  const int side = b.pairs[n].side;
  const float u1 = b.state(side, kU1)[i], u2 = b.state(side, kU2)[i];
  const float *i1x = b.plane(kI1x) + start, *i1y = b.plane(kI1y) + start;
  const Reader read{next + start, i1x, i1y, rows, cols, Pyramid::kRepeatEdge};
  const Seen seen = bicubic<Pyramid, Seen>(x + u1, y + u2, rows, cols, read);
  const Warped w = warped(seen.i1, seen.x, seen.y, frames[i], u1, u2);
  b.plane(kWx)[i] = w.x;
  b.plane(kWy)[i] = w.y;
  b.plane(kInverse)[i] = w.inverse;
  b.plane(kRho)[i] = w.rho;
}

// Whether a pair, the so-many-th at work, is at the beginning of a chunk and not at a repetition.
PIXEL bool begins(const Batch& b, int slot) {
  if (slot >= *b.active) return false;
  const Pair& pair = b.pairs[b.places[slot]];
  return pair.watch.active && !pair.redo;
}

// The median goes to the other copy, and from there back.
KERNEL median(int rows, int cols, Batch b) {
  AREA
  if (!begins(b, n)) return;
  const int pair = b.places[n], side = b.pairs[pair].side;
  const long first = static_cast<long>(pair) * rows * cols;
  for (int axis = 0; axis < 2; ++axis) {
    const float* from = b.state(side, kU1 + axis) + first;
    float v[25];
    for (int j = 0; j < 5; ++j)
      for (int i = 0; i < 5; ++i)
        v[5 * j + i] = row_of(from, clamp(y + j - 2, 0, rows - 1), cols)[clamp(x + i - 2, 0, cols - 1)];
    b.state(1 - side, kU1 + axis)[first + at] = median25(v);
  }
}

KERNEL copy_back(int rows, int cols, Batch b) {
  AREA
  if (!begins(b, n)) return;
  const int pair = b.places[n], side = b.pairs[pair].side;
  const long i = static_cast<long>(pair) * rows * cols + at;
  for (int axis = 0; axis < 2; ++axis)
    b.state(side, kU1 + axis)[i] = b.state(1 - side, kU1 + axis)[i];
}

// -- pairs -----------------------------------------------------------------------------------------

// What the next launch does with a pair: up to the end of its chunk at most.
template <class Pyramid>
PIXEL void set_out(Pair& pair, const Batch& b) {
  const int rest = kChunk - pair.iteration % kChunk;
  pair.depth = b.depth < rest ? b.depth : rest;
  Watch ahead = pair.watch;
  for (pair.looks_from = 0; pair.looks_from < pair.depth; ++pair.looks_from) {
    if (Pyramid::looks(ahead, pair.iteration + pair.looks_from, b.tolerance)) return;
    ahead.looks = 0;
    judge(ahead, 0, b.tolerance);
  }
}

// After a launch, one thread per pair at work: rows is 1 and cols the number of them at most.
template <class Pyramid>
KERNEL settle(int rows, int cols, long area, Batch b) {
  AREA
  if (x >= *b.active) return;
  Pair& pair = b.pairs[b.places[x]];
  if (!pair.watch.active) return;
  int done = 0;
  if (pair.redo) {
    done = pair.depth;
    pair.watch.active = 0;
  }
  while (done < pair.depth && pair.watch.active) {
    pair.watch.looks = Pyramid::looks(pair.watch, pair.iteration + done, b.tolerance);
    judge(pair.watch, static_cast<double>(pair.change[done++]) / kUnits, b.tolerance);
  }
  for (unsigned long long& change : pair.change) change = 0;
  if (done < pair.depth) {
    pair.redo = pair.watch.active = 1;
    pair.depth = pair.looks_from = done;
    return;
  }
  pair.side = 1 - pair.side;
  pair.iteration += done;
  add_to(b.pixels, static_cast<unsigned long long>(done) * area);
  if (pair.iteration >= Pyramid::kOuter * Pyramid::kInner) pair.watch.active = 0;
  if (pair.watch.active) set_out<Pyramid>(pair, b);
}

// One thread: pairs that have come to rest leave the list.
KERNEL gather(int rows, int cols, Batch b) {
  AREA
  int kept = 0;
  for (int slot = 0; slot < *b.active; ++slot) {
    const int place = b.places[slot];
    if (b.pairs[place].watch.active) b.places[kept++] = place;
  }
  *b.active = kept;
}

// Before the iterations of a warp, one thread per pair. At a new scale the first copy is the newest.
template <class Pyramid>
KERNEL wake(int rows, int cols, bool is_new, Batch b) {
  AREA
  const int side = is_new ? 0 : b.pairs[x].side;
  b.pairs[x] = Pair{};
  b.pairs[x].side = side;
  set_out<Pyramid>(b.pairs[x], b);
  b.places[x] = x;
  if (x == 0) *b.active = cols;
}

// -- one scale after the other ---------------------------------------------------------------------

template <class Pyramid>
class Solver {
 public:
  // `depth` and `cache_bytes` are 0 where the device's own are wanted.
  Solver(Device& device, int count, int rows, int cols, int depth, size_t cache_bytes)
      : device(device), count_(count), depth_(depth > 0 ? std::min(depth, kMostDepth) : 0) {
    const double cache = (cache_bytes ? cache_bytes : device.cache_bytes()) * kCacheShare;
    for (int r = rows, c = cols; used_ < kScales; r = Pyramid::coarser(r), c = Pyramid::coarser(c)) {
      if (used_ && (r < kSmallestSide || c < kSmallestSide)) break;
      const long area = static_cast<long>(r) * c;
      const double fit = cache / (static_cast<double>(kTouched) * sizeof(float) * area);
      const int together = static_cast<int>(std::clamp(fit, 1.0, static_cast<double>(count)));
      scales_[used_++] = {r, c, together, area, pyramid_ * (count + 1)};
      pyramid_ += area;
      room_ = std::max(room_, together * area);
    }
    device.allow_shared(iterate, sizeof(Tile));
  }

  bool solve(const uint8_t* frames, float* out, double* work) {
    const Scale& fine = scales_[0];
    Buffer bytes(device, (count_ + 1) * fine.area);
    Buffer images(device, (count_ + 1) * pyramid_ * sizeof(float));
    Buffer flows(device, 4 * count_ * fine.area * sizeof(float));
    Buffer planes(device, kPlanes * room_ * sizeof(float));
    Buffer pairs(device, count_ * sizeof(Pair)), places(device, (count_ + 1) * sizeof(int));
    Buffer done(device, sizeof(unsigned long long));
    if (!device.good) return false;
    device.zero(done.of<void>(), sizeof(unsigned long long));
    device.to_device(bytes.of<void>(), frames, (count_ + 1) * fine.area);
    build_pyramid(bytes.of<uint8_t>(), images.of<float>());
    float* flow[2] = {flows.of<float>(), flows.of<float>() + 2 * count_ * fine.area};
    batch_ = {planes.of<float>(), room_, pairs.of<Pair>(), places.of<int>() + 1, places.of<int>(),
              done.of<unsigned long long>(), 0, 0};
    for (int s = used_ - 1; s >= 0 && device.good; --s)
      for (int first = 0; first < count_ && device.good; first += scales_[s].together)
        solve_scale(s, first, images.of<float>(), flow[(s + 1) % 2], flow[s % 2]);
    unsigned long long sum = 0;
    device.to_host(out, flow[0], 2 * count_ * fine.area * sizeof(float));
    device.to_host(&sum, done.of<void>(), sizeof sum);
    work[0] = static_cast<double>(sum);
    work[1] = started_;
    return device.good;
  }

 private:
  struct Scale {
    int rows, cols, together;
    long area, first;  // `first` is where its pictures begin among those of all scales
  };

  Device& device;
  int count_, depth_, used_ = 0;
  Scale scales_[kScales];
  long pyramid_ = 0, room_ = 0;
  double started_ = 0;
  Batch batch_;

  void build_pyramid(const uint8_t* bytes, float* images) {
    RUN(from_bytes, count_ + 1, scales_[0].rows, scales_[0].cols, bytes, images);
    for (int s = 1; s < used_; ++s) {
      const Scale &to = scales_[s], &from = scales_[s - 1];
      RUN(reduce<Pyramid>, count_ + 1, to.rows, to.cols, images + from.first, from.rows, from.cols,
          images + to.first);
    }
  }

  // The pairs from `first` on that fit into the cache together.
  void solve_scale(int s, int first, const float* images, const float* coarse, float* fine) {
    const Scale& scale = scales_[s];
    const int count = std::min(scale.together, count_ - first), rows = scale.rows, cols = scale.cols;
    const float* frames = images + scale.first + first * scale.area;
    const float* next = frames + scale.area;
    batch_.tolerance = static_cast<double>(kEpsilon) * kEpsilon * rows * cols;
    batch_.depth = depth_ ? depth_ : (fits_tile(scale) ? kWholeDepth : kDepth);
    Batch b = batch_;
    device.zero(b.plane(0), kStates * b.room * sizeof(float));
    if (s + 1 < used_) {
      const Scale& from = scales_[s + 1];
      const double step_y = static_cast<double>(from.rows) / rows;
      const double step_x = static_cast<double>(from.cols) / cols;
      RUN(enlarge<Pyramid>, count, rows, cols, coarse + 2 * first * from.area, from.rows, from.cols,
          step_y, step_x, b);
    }
    RUN(gradients, count, rows, cols, next, b);
    RUN(wake<Pyramid>, 1, 1, count, true, b);
    for (int warps = 0; warps < kWarps && device.good; ++warps) {
      RUN(warp<Pyramid>, count, rows, cols, frames, next, b);
      if (warps) RUN(wake<Pyramid>, 1, 1, count, false, b);
      iterations(s, count);
    }
    RUN(collect, count, rows, cols, b, fine + 2 * first * scale.area);
  }

  static bool fits_tile(const Scale& scale) {
    return scale.rows <= kTileRows && scale.cols <= kTileCols;
  }

  // Chunk after chunk until no pair is at work. The answer for a chunk is read when the next one is
  // on its way, so that the device never waits for the host; that one then finds nothing to do.
  void iterations(int s, int count) {
    constexpr int most = Pyramid::kOuter * Pyramid::kInner / kChunk + 2;  // one for a repetition
    int slots = count;
    for (int turn = 0; turn < most && device.good; ++turn) {
      device.replay(s * (kMostBlocks + 1l) + slots, [&] { chunk(s, slots); });
      started_ += slots;
      device.ask(turn, batch_.active);
      const int left = turn ? device.answer(turn - 1) : count;
      if (left == 0) return;
      while (slots / 2 >= left) slots /= 2;
    }
  }

  void chunk(int s, int slots) {
    const Scale& scale = scales_[s];
    const int rows = scale.rows, cols = scale.cols, depth = batch_.depth;
    const int halo = fits_tile(scale) ? 0 : depth;
    Batch b = batch_;
    if (Pyramid::kMedian) {
      RUN(median, slots, rows, cols, b);
      RUN(copy_back, slots, rows, cols, b);
    }
    for (int done = 0; done < kChunk; done += depth) {
      RUN_TILES(iterate, sizeof(Tile), slots, rows, cols, halo, b);
      RUN(settle<Pyramid>, 1, 1, slots, scale.area, b);
    }
    RUN(gather, 1, 1, 1, b);
  }
};

template <class Pyramid>
bool solve(const uint8_t* frames, int count, int rows, int cols, int depth, size_t cache_bytes,
           float* out, double* work) {
  Device device;
  return Solver<Pyramid>(device, count, rows, cols, depth, cache_bytes).solve(frames, out, work);
}

}  // namespace

// Flow of `count` consecutive pairs of `count + 1` frames on the current device; `paper` chooses the
// pyramid. 0, or 1 where memory or the device failed. `out` holds u and then v of each pair.
//
// `depth`, iterations of a launch, and `cache_bytes`, what the pairs that go together have to fit
// into, are 0 where the best for this device are wanted; they change nothing in the flow. `work`
// becomes the number of updates of a pixel that were done, and the number of places for a pair that
// chunks of iterations were started with.
extern "C" int tvl1_batch_gpu_in(const uint8_t* frames, int count, int rows, int cols, int paper,
                                 int depth, size_t cache_bytes, float* out, double* work) {
  if (rows > kMostBlocks || count >= kMostBlocks) return 1;
  const auto run = paper ? solve<Paper> : solve<OpenCv4>;
  return run(frames, count, rows, cols, depth, cache_bytes, out, work) ? 0 : 1;
}

extern "C" int tvl1_batch_gpu(const uint8_t* frames, int count, int rows, int cols, int paper,
                              float* out) {
  double work[2];
  return tvl1_batch_gpu_in(frames, count, rows, cols, paper, 0, 0, out, work);
}
