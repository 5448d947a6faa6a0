// Resize, mirror and normalise one stack of pictures that share a crop, into channels-last floats or bfloat16.
//
// The planes are interleaved first, so that both passes of the separable filter run over neighbouring values: down over a
// whole row of all planes, across over the planes of one pixel. A flow stack's 20 planes are two vectors and a half,
// so that the sums of a pixel stay in registers.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int kMostPlanes = 64, kMostTaps = 8;
// JPEG's largest side, and what a stack may hold; with these no product below leaves 64 bits.
constexpr int kMostSide = 65535;
constexpr uint64_t kMostBytes = uint64_t{1} << 30;

// The taps of one axis: output i reads `taps` inputs from first[i] on.
struct Axis {
  const int32_t* first;
  const float* weights;
  int taps;

  // Whether each output reads inside a line of `source` inputs.
  bool fits(int source, int target) const {
    if (!first || !weights || taps < 1 || taps > source) return false;
    if (target < 1 || target > kMostSide) return false;
    return std::all_of(first, first + target,
                       [&](int32_t at) { return at >= 0 && at <= source - taps; });
  }
};

constexpr int kStack = 20;
// A colour pixel takes four places, one vector.
constexpr int kColours = 3, kColourPlaces = 4;

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Pairs __attribute__((vector_size(16)));
typedef uint32_t Quads __attribute__((vector_size(16)));
typedef uint64_t Eights __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(32)));
typedef float Half __attribute__((vector_size(16)));

template <typename V>
inline V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Two vectors' lanes in turn: the lower and the upper halves.
inline void zip(Bytes a, Bytes b, Bytes& low, Bytes& high) {
  low = __builtin_shuffle(a, b, Bytes{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
  high = __builtin_shuffle(a, b, Bytes{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
inline void zip2(Bytes a, Bytes b, Bytes& low, Bytes& high) {
  low = (Bytes)__builtin_shuffle((Pairs)a, (Pairs)b, Pairs{0, 8, 1, 9, 2, 10, 3, 11});
  high = (Bytes)__builtin_shuffle((Pairs)a, (Pairs)b, Pairs{4, 12, 5, 13, 6, 14, 7, 15});
}
inline void zip4(Bytes a, Bytes b, Bytes& low, Bytes& high) {
  low = (Bytes)__builtin_shuffle((Quads)a, (Quads)b, Quads{0, 4, 1, 5});
  high = (Bytes)__builtin_shuffle((Quads)a, (Quads)b, Quads{2, 6, 3, 7});
}
inline void zip8(Bytes a, Bytes b, Bytes& low, Bytes& high) {
  low = (Bytes)__builtin_shuffle((Eights)a, (Eights)b, Eights{0, 2});
  high = (Bytes)__builtin_shuffle((Eights)a, (Eights)b, Eights{1, 3});
}

// Four planes of 16 pixels: quads[i] holds the four bytes of pixels 4i to 4i + 3.
inline void four_planes(const uint8_t* const* planes, size_t start, Bytes* quads) {
  Bytes ab[2], cd[2];
  zip(load<Bytes>(planes[0] + start), load<Bytes>(planes[1] + start), ab[0], ab[1]);
  zip(load<Bytes>(planes[2] + start), load<Bytes>(planes[3] + start), cd[0], cd[1]);
  zip2(ab[0], cd[0], quads[0], quads[1]);
  zip2(ab[1], cd[1], quads[2], quads[3]);
}

// The 20 planes of a flow stack.
void interleave_stack(const uint8_t* const* planes, size_t area, uint8_t* packed) {
  size_t start = 0;
  for (; start + 16 <= area; start += 16) {
    Bytes quads[5][4];
    for (int group = 0; group < 5; ++group) four_planes(planes + 4 * group, start, quads[group]);
    for (int i = 0; i < 4; ++i) {
      Bytes left[2], right[2], pixel[4];
      zip4(quads[0][i], quads[1][i], left[0], left[1]);
      zip4(quads[2][i], quads[3][i], right[0], right[1]);
      zip8(left[0], right[0], pixel[0], pixel[1]);
      zip8(left[1], right[1], pixel[2], pixel[3]);
      const Quads last = (Quads)quads[4][i];
      for (int j = 0; j < 4; ++j) {
        uint8_t* to = packed + (start + 4 * i + j) * kStack;
        std::memcpy(to, &pixel[j], 16);
        const uint32_t four = last[j];
        std::memcpy(to + 16, &four, 4);
      }
    }
  }
  for (; start < area; ++start)
    for (int c = 0; c < kStack; ++c) packed[start * kStack + c] = planes[c][start];
}

// Three colours to four places a pixel.
void spread_colours(const uint8_t* picture, size_t area, uint8_t* packed) {
  size_t i = 0;
  for (; i + 6 <= area; i += 4) {  // 16 bytes are read for 12
    const Bytes here = load<Bytes>(picture + 3 * i);
    const Bytes apart = __builtin_shuffle(here, Bytes{0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11});
    std::memcpy(packed + 4 * i, &apart, sizeof apart);
  }
  for (; i < area; ++i) {
    packed[4 * i] = picture[3 * i];
    packed[4 * i + 1] = picture[3 * i + 1];
    packed[4 * i + 2] = picture[3 * i + 2];
    packed[4 * i + 3] = 0;
  }
}

// The same for any number of planes, without gaps.
void interleave(const uint8_t* const* planes, int count, size_t area, uint8_t* packed) {
  for (size_t start = 0; start < area; ++start)
    for (int c = 0; c < count; ++c) packed[start * count + c] = planes[c][start];
}

// Source rows as floats in a ring that holds what one output row reads: rows [from_, done_). Each
// is turned once as long as the windows of the outputs move down only; a window that begins above
// the ring is turned again.
class Rows {
 public:
  Rows(const uint8_t* packed, size_t row, int taps) : packed_(packed), row_(row), ring_(taps) {
    thread_local std::vector<float> memory;
    if (memory.size() < row * taps) memory.resize(row * taps);
    floats_ = memory.data();
  }

  const float* operator[](int y) {
    for (; done_ <= y; ++done_) {
      const uint8_t* from = packed_ + done_ * row_;
      float* to = floats_ + done_ % ring_ * row_;
      for (size_t i = 0; i < row_; ++i) to[i] = static_cast<float>(from[i]);
    }
    from_ = std::max(from_, done_ - ring_);
    return floats_ + y % ring_ * row_;
  }

  // The next window begins at row y: rows between the ring and it are never turned.
  void start(int y) {
    if (y < from_ || y > done_) from_ = done_ = y;
  }

 private:
  const uint8_t* packed_;
  size_t row_;
  int ring_;
  float* floats_;
  int from_ = 0, done_ = 0;
};

// All taps of a row in one sweep: the sum stays in a register.
template <int Taps>
void blend_rows(const float* const* from, size_t row, const float* weights, float* line) {
#pragma GCC ivdep
  for (size_t i = 0; i < row; ++i) {
    float sum = 0.0f;
#pragma GCC unroll 8
    for (int tap = 0; tap < Taps; ++tap) sum += weights[tap] * from[tap][i];
    line[i] = sum;
  }
}

void blend_rows(Rows& rows, size_t row, const Axis& axis, int y, float* line) {
  const float* weights = axis.weights + static_cast<size_t>(y) * axis.taps;
  rows.start(axis.first[y]);
  const float* from[kMostTaps];
  const int known = std::min(axis.taps, kMostTaps);
  for (int tap = 0; tap < known; ++tap) from[tap] = rows[axis.first[y] + tap];
  switch (axis.taps) {
    case 1: return blend_rows<1>(from, row, weights, line);
    case 4: return blend_rows<4>(from, row, weights, line);
    case 5: return blend_rows<5>(from, row, weights, line);
    case 6: return blend_rows<6>(from, row, weights, line);
  }
  std::fill(line, line + row, 0.0f);
  for (int tap = 0; tap < axis.taps; ++tap) {
    const float* one = rows[axis.first[y] + tap];
    for (size_t i = 0; i < row; ++i) line[i] += weights[tap] * one[i];
  }
}

void blend_columns(const float* line, const Axis& axis, int side, int planes, const float* scale, const float* shift,
                   bool mirror, float* out) {
  for (int x = 0; x < side; ++x) {
    float sums[kMostPlanes];
    for (int c = 0; c < planes; ++c) sums[c] = 0.0f;
    for (int tap = 0; tap < axis.taps; ++tap) {
      const float weight = axis.weights[static_cast<size_t>(x) * axis.taps + tap];
      const float* from = line + static_cast<size_t>(axis.first[x] + tap) * planes;
#pragma GCC ivdep
      for (int c = 0; c < planes; ++c) sums[c] += weight * from[c];
    }
    float* to = out + static_cast<size_t>(mirror ? side - 1 - x : x) * planes;
#pragma GCC ivdep
    for (int c = 0; c < planes; ++c) to[c] = std::min(std::max(sums[c], 0.0f), 255.0f) * scale[c] + shift[c];
  }
}

// The 20 planes of a pixel at once; with Taps known the three sums never leave their registers.
template <int Taps>
void blend_stack_columns(const float* line, const Axis& axis, int side, const float* scale, const float* shift,
                         bool mirror, float* out) {
  const int taps = Taps ? Taps : axis.taps;
  const Floats zero{}, most = zero + 255.0f;
  const Floats scales[2] = {load<Floats>(scale), load<Floats>(scale + 8)};
  const Floats shifts[2] = {load<Floats>(shift), load<Floats>(shift + 8)};
  const Half last_scale = load<Half>(scale + 16), last_shift = load<Half>(shift + 16);
  for (int x = 0; x < side; ++x) {
    const float* weights = axis.weights + static_cast<size_t>(x) * taps;
    const float* from = line + static_cast<size_t>(axis.first[x]) * kStack;
    Floats a = zero, b = zero;
    Half c{};
#pragma GCC unroll 8
    for (int tap = 0; tap < taps; ++tap, from += kStack) {
      a += weights[tap] * load<Floats>(from);
      b += weights[tap] * load<Floats>(from + 8);
      c += weights[tap] * load<Half>(from + 16);
    }
    a = a < zero ? zero : (a > most ? most : a);
    b = b < zero ? zero : (b > most ? most : b);
    const Half none{}, full = none + 255.0f;
    c = c < none ? none : (c > full ? full : c);
    a = a * scales[0] + shifts[0];
    b = b * scales[1] + shifts[1];
    c = c * last_scale + last_shift;
    float* to = out + static_cast<size_t>(mirror ? side - 1 - x : x) * kStack;
    std::memcpy(to, &a, sizeof a);
    std::memcpy(to + 8, &b, sizeof b);
    std::memcpy(to + 16, &c, sizeof c);
  }
}

template <int Taps>
void blend_colour_columns(const float* line, const Axis& axis, int side, const float* scale, const float* shift,
                          bool mirror, float* out) {
  const int taps = Taps ? Taps : axis.taps;
  const Half none{}, full = none + 255.0f;
  const Half scales{scale[0], scale[1], scale[2], 0}, shifts{shift[0], shift[1], shift[2], 0};
  for (int x = 0; x < side; ++x) {
    const float* weights = axis.weights + static_cast<size_t>(x) * taps;
    const float* from = line + static_cast<size_t>(axis.first[x]) * kColourPlaces;
    Half sum{};
#pragma GCC unroll 8
    for (int tap = 0; tap < taps; ++tap, from += kColourPlaces) sum += weights[tap] * load<Half>(from);
    sum = sum < none ? none : (sum > full ? full : sum);
    sum = sum * scales + shifts;
    std::memcpy(out + static_cast<size_t>(mirror ? side - 1 - x : x) * kColours, &sum, kColours * sizeof(float));
  }
}

void blend_colours(const float* line, const Axis& axis, int side, const float* scale, const float* shift, bool mirror,
                   float* out) {
  if (axis.taps == 4) return blend_colour_columns<4>(line, axis, side, scale, shift, mirror, out);
  blend_colour_columns<0>(line, axis, side, scale, shift, mirror, out);
}

void blend_stack_columns(const float* line, const Axis& axis, int side, const float* scale, const float* shift,
                         bool mirror, float* out) {
  switch (axis.taps) {
    case 4: return blend_stack_columns<4>(line, axis, side, scale, shift, mirror, out);
    case 5: return blend_stack_columns<5>(line, axis, side, scale, shift, mirror, out);
    case 6: return blend_stack_columns<6>(line, axis, side, scale, shift, mirror, out);
  }
  blend_stack_columns<0>(line, axis, side, scale, shift, mirror, out);
}

// A finished row to where nobody reads it soon: past the caches, where the processor can do that.
template <typename T>
void put_past_caches(const T* row, size_t count, T* out) {
  const size_t size = count * sizeof(T);
#ifdef __SSE2__
  typedef long long Line __attribute__((vector_size(16)));
  if (reinterpret_cast<uintptr_t>(out) % 16 == 0 && size % 16 == 0) {
    const auto* from = reinterpret_cast<const uint8_t*>(row);
    auto* to = reinterpret_cast<uint8_t*>(out);
    for (size_t i = 0; i < size; i += 16)
      __builtin_ia32_movntdq(reinterpret_cast<Line*>(to + i), load<Line>(from + i));
    return;
  }
#endif
  std::memcpy(out, row, size);
}

void put(const float* row, size_t count, float* out) { put_past_caches(row, count, out); }

// As bfloat16: the upper half of a float's bits, rounded to the nearest, ties to even, as torch does it.
inline uint16_t half_of(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;  // not a number
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void put(const float* row, size_t count, uint16_t* out) {
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef int32_t Signed __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(16)));
  thread_local std::vector<uint16_t> halves;
  if (halves.size() < count) halves.resize(count);
  uint16_t* to = halves.data();
  const Words zero{}, none = zero + 0x7fc0u;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const Words bits = load<Words>(row + i);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words kept = (Signed)(bits & 0x7fffffffu) > 0x7f800000 ? none : rounded;
    const Halves eight = __builtin_convertvector(kept, Halves);
    std::memcpy(to + i, &eight, sizeof eight);
  }
  for (; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof bits);
    to[i] = half_of(bits);
  }
  put_past_caches(to, count, out);
}

template <typename T>
void resize(const uint8_t* const* planes, bool packed, int count, int height, int width, int side_y, int side_x,
            const Axis& down, const Axis& across, const float* scale, const float* shift, bool mirror, T* out) {
  const bool stack = !packed && count == kStack, colour = packed && count == kColours;
  const int places = stack ? kStack : (colour ? kColourPlaces : count);
  const size_t area = static_cast<size_t>(height) * width, row = static_cast<size_t>(width) * places;
  const size_t made = static_cast<size_t>(side_x) * count;
  // Kept by each thread: a fresh megabyte costs more in page faults than in arithmetic.
  thread_local std::vector<uint8_t> own;
  thread_local std::vector<float> line, finished;
  if (line.size() < row) line.resize(row);
  if (finished.size() < made) finished.resize(made);
  if (own.size() < row * height) own.resize(row * height);
  if (stack) interleave_stack(planes, area, own.data());
  else if (colour) spread_colours(planes[0], area, own.data());
  else if (packed) std::memcpy(own.data(), planes[0], area * count);
  else interleave(planes, count, area, own.data());
  Rows rows(own.data(), row, down.taps);
  for (int y = 0; y < side_y; ++y) {
    blend_rows(rows, row, down, y, line.data());
    if (stack) blend_stack_columns(line.data(), across, side_x, scale, shift, mirror, finished.data());
    else if (colour) blend_colours(line.data(), across, side_x, scale, shift, mirror, finished.data());
    else blend_columns(line.data(), across, side_x, count, scale, shift, mirror, finished.data());
    put(finished.data(), made, out + y * made);
  }
#ifdef __SSE2__
  __builtin_ia32_sfence();
#endif
}

template <typename T>
int checked_resize(const uint8_t* const* planes, int packed, int count, int height, int width, int side_y, int side_x,
                   const Axis& down, const Axis& across, const float* scale, const float* shift, int mirror, T* out) {
  if (!planes || !scale || !shift || !out || count < 1 || count > kMostPlanes) return 1;
  if (height < 1 || width < 1 || height > kMostSide || width > kMostSide) return 1;
  if (static_cast<uint64_t>(height) * width * count > kMostBytes) return 1;
  const uint8_t* const* const end = planes + (packed ? 1 : count);
  if (std::find(planes, end, nullptr) != end) return 1;
  if (!down.fits(height, side_y) || !across.fits(width, side_x)) return 1;
  try {
    resize(planes, packed, count, height, width, side_y, side_x, down, across, scale, shift, mirror, out);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  return 0;
}

}  // namespace

// `planes` holds `count` gray pictures, or with `packed` one picture whose `count` channels are
// interleaved already. Returns 0 when `out` is written, 1 when the arguments cannot be right (no
// pixel was read), 2 when there is no memory.
extern "C" int resize_stack(const uint8_t* const* planes, int packed, int count, int height, int width, int side_y,
                            int side_x, const int32_t* first_y, const float* weights_y, int taps_y,
                            const int32_t* first_x, const float* weights_x, int taps_x, const float* scale,
                            const float* shift, int mirror, float* out) {
  const Axis down{first_y, weights_y, taps_y}, across{first_x, weights_x, taps_x};
  return checked_resize(planes, packed, count, height, width, side_y, side_x, down, across, scale, shift, mirror, out);
}

// The same into the 16 bits of bfloat16.
extern "C" int resize_stack_bfloat16(const uint8_t* const* planes, int packed, int count, int height, int width,
                                     int side_y, int side_x, const int32_t* first_y, const float* weights_y, int taps_y,
                                     const int32_t* first_x, const float* weights_x, int taps_x, const float* scale,
                                     const float* shift, int mirror, uint16_t* out) {
  const Axis down{first_y, weights_y, taps_y}, across{first_x, weights_x, taps_x};
  return checked_resize(planes, packed, count, height, width, side_y, side_x, down, across, scale, shift, mirror, out);
}
