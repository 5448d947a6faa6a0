// Resize, mirror and normalise one stack of pictures that share a crop, into channels-last floats.
//
// The planes are interleaved first, so that both passes of the separable filter run over neighbouring bytes: down over a
// whole row of all planes, across over the planes of one pixel.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// The taps of one axis: output i reads `taps` inputs from first[i] on.
struct Axis {
  const int32_t* first;
  const float* weights;
  int taps;
};

// planes[c][y * row_step + x] to packed[(y * width + x) * count + c].
void interleave(const uint8_t* const* planes, int count, int height, int width, uint8_t* packed) {
  for (int y = 0; y < height; ++y)
    for (int c = 0; c < count; ++c) {
      const uint8_t* from = planes[c] + static_cast<size_t>(y) * width;
      uint8_t* to = packed + static_cast<size_t>(y) * width * count + c;
      for (int x = 0; x < width; ++x) to[static_cast<size_t>(x) * count] = from[x];
    }
}

void blend_rows(const uint8_t* packed, size_t row, const Axis& axis, int y, float* line) {
  std::fill(line, line + row, 0.0f);
  for (int tap = 0; tap < axis.taps; ++tap) {
    const float weight = axis.weights[y * axis.taps + tap];
    if (weight == 0.0f) continue;
    const uint8_t* from = packed + (axis.first[y] + tap) * row;
#pragma GCC ivdep
    for (size_t i = 0; i < row; ++i) line[i] += weight * static_cast<float>(from[i]);
  }
}

template <int Planes>
void blend_columns(const float* line, const Axis& axis, int side, int count, const float* scale, const float* shift,
                   bool mirror, float* out) {
  const int planes = Planes ? Planes : count;
  for (int x = 0; x < side; ++x) {
    float sums[64];
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
    interleave(planes, count, height, width, own.data());
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
