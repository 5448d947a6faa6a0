// Resize, mirror and normalise one stack of pictures that share a crop, into channels-last floats.
//
// The planes are interleaved first, so that both passes of the separable filter run over neighbouring bytes: down over a
// whole row of all planes, across over the planes of one pixel.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kMostPlanes = 64;

// The taps of one axis: output i reads `taps` inputs from first[i] on.
struct Axis {
  const int32_t* first;
  const float* weights;
  int taps;
};

// planes[c][y * width + x] to packed[(y * width + x) * Planes + c], eight pixels at a time: bytes are loaded and stored
// in words, and change places in registers.
template <int Planes>
void interleave(const uint8_t* const* planes, int count, int height, int width, uint8_t* packed) {
  const int stride = Planes ? Planes : count;
  const size_t area = static_cast<size_t>(height) * width;
  for (size_t start = 0; start < area; start += 8) {
    const int some = static_cast<int>(std::min<size_t>(8, area - start));
    uint8_t* to = packed + start * stride;
    for (int c = 0; c < stride; ++c) {
      uint64_t word = 0;
      std::memcpy(&word, planes[c] + start, some);
      for (int i = 0; i < some; ++i, word >>= 8) to[i * stride + c] = static_cast<uint8_t>(word);
    }
  }
}

// All taps of a row in one sweep: the sum stays in a register.
template <int Taps>
void blend_rows(const uint8_t* from, size_t row, const float* weights, float* line) {
#pragma GCC ivdep
  for (size_t i = 0; i < row; ++i) {
    float sum = 0.0f;
#pragma GCC unroll 8
    for (int tap = 0; tap < Taps; ++tap) sum += weights[tap] * static_cast<float>(from[tap * row + i]);
    line[i] = sum;
  }
}

void blend_rows(const uint8_t* packed, size_t row, const Axis& axis, int y, float* line) {
  const uint8_t* from = packed + axis.first[y] * row;
  const float* weights = axis.weights + static_cast<size_t>(y) * axis.taps;
  switch (axis.taps) {
    case 1: return blend_rows<1>(from, row, weights, line);
    case 4: return blend_rows<4>(from, row, weights, line);
    case 5: return blend_rows<5>(from, row, weights, line);
    case 6: return blend_rows<6>(from, row, weights, line);
  }
  std::fill(line, line + row, 0.0f);
  for (int tap = 0; tap < axis.taps; ++tap)
    for (size_t i = 0; i < row; ++i) line[i] += weights[tap] * static_cast<float>(from[tap * row + i]);
}

template <int Planes>
void blend_columns(const float* line, const Axis& axis, int side, int count, const float* scale, const float* shift,
                   bool mirror, float* out) {
  const int planes = Planes ? Planes : count;
  for (int x = 0; x < side; ++x) {
    float sums[kMostPlanes];
    for (int c = 0; c < planes; ++c) sums[c] = 0.0f;
    for (int tap = 0; tap < axis.taps; ++tap) {
      const float weight = axis.weights[x * axis.taps + tap];
      const float* from = line + static_cast<size_t>(axis.first[x] + tap) * planes;
#pragma GCC ivdep
      for (int c = 0; c < planes; ++c) sums[c] += weight * from[c];
    }
    float* to = out + static_cast<size_t>(mirror ? side - 1 - x : x) * planes;
#pragma GCC ivdep
    for (int c = 0; c < planes; ++c) to[c] = std::min(std::max(sums[c], 0.0f), 255.0f) * scale[c] + shift[c];
  }
}

}  // namespace

// `planes` holds `count` gray pictures, or with `packed` one picture whose `count` channels are interleaved already.
extern "C" void resize_stack(const uint8_t* const* planes, int packed, int count, int height, int width, int side_y,
                             int side_x, const int32_t* first_y, const float* weights_y, int taps_y,
                             const int32_t* first_x, const float* weights_x, int taps_x, const float* scale,
                             const float* shift, int mirror, float* out) {
  const size_t row = static_cast<size_t>(width) * count;
  std::vector<uint8_t> own;
  const uint8_t* source = planes[0];
  if (!packed) {
    own.resize(row * height);
    if (count == 20) interleave<20>(planes, count, height, width, own.data());
    else interleave<0>(planes, count, height, width, own.data());
    source = own.data();
  }
  const Axis down{first_y, weights_y, taps_y}, across{first_x, weights_x, taps_x};
  std::vector<float> line(row);
  for (int y = 0; y < side_y; ++y) {
    blend_rows(source, row, down, y, line.data());
    float* to = out + static_cast<size_t>(y) * side_x * count;
    if (count == 20) blend_columns<20>(line.data(), across, side_x, count, scale, shift, mirror, to);
    else if (count == 3) blend_columns<3>(line.data(), across, side_x, count, scale, shift, mirror, to);
    else blend_columns<0>(line.data(), across, side_x, count, scale, shift, mirror, to);
  }
}
