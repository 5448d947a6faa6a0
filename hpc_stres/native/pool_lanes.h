// The arithmetic of pool.cpp on vectors of LANE_BYTES; included once for each kind of processor, in
// the namespace LANES_OF. A lane is a channel.

namespace LANES_OF {

#include "lanes.h"

// Whole numbers as wide as the type that is computed in: what a comparison gives, and places.
template <class Sum, int lanes>
using Whole = Vector<std::conditional_t<sizeof(Sum) == 8, int64_t, int32_t>, lanes>;

// Places go to memory as bytes; compilers do not see the instructions for that themselves.
template <int lanes, class W>
inline void store_places(uint8_t* to, W places) {
#if HPC_STRES_FMA
  if constexpr (lanes == 8) {
    const __m128i halves = reinterpret_cast<__m128i>(Brain::narrow<lanes>(reinterpret_cast<Vector<uint32_t, lanes>>(places)));
    return _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(halves, halves));
  }
#endif
  const Vector<uint8_t, lanes> bytes = __builtin_convertvector(places, Vector<uint8_t, lanes>);
  std::memcpy(to, &bytes, sizeof bytes);
}

template <class W, int lanes>
inline W load_places(const uint8_t* from) {
#if HPC_STRES_FMA
#if LANE_BYTES == 64
  if constexpr (lanes == 16)
    return reinterpret_cast<W>(_mm512_maskz_cvtepu8_epi32(0xffff, loaded<__m128i>(from)));
#endif
  if constexpr (lanes == 8)
    return reinterpret_cast<W>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#endif
  return __builtin_convertvector(loaded<Vector<uint8_t, lanes>>(from), W);
}

// One row of maxima.
template <class Type>
void maxima_of(const PoolCall& call, int64_t frame, int64_t row) {
  using Sum = typename Type::Sum;
  using Stored = typename Type::Stored;
  const int64_t channels = call.channels, width = call.width, kernel = call.kernel;
  const Stored* x = static_cast<const Stored*>(call.x) + frame * call.height * width * channels;
  const int64_t first = (frame * call.rows + row) * call.columns;
  const Range down = inside(call, row, call.height);
  const int64_t top = row * call.stride - call.padding;
  for (int64_t column = 0; column < call.columns; ++column) {
    const Range across = inside(call, column, width);
    const int64_t left = column * call.stride - call.padding;
    Stored* y = static_cast<Stored*>(call.y) + (first + column) * channels;
    uint8_t* places = call.places ? call.places + (first + column) * channels : nullptr;
    each_vector<Sum>(channels, [=](int64_t c, auto lanes_of) {
      constexpr int lanes = decltype(lanes_of)::value;
      using V = Vector<Sum, lanes>;
      using W = Whole<Sum, lanes>;
      V best = Type::template load<lanes>(x + (down.from * width + across.from) * channels + c);
      W place = W{} + static_cast<int32_t>((down.from - top) * kernel + across.from - left);
      for (int64_t i = down.from; i < down.to; ++i)
        for (int64_t j = across.from; j < across.to; ++j) {
          const V value = Type::template load<lanes>(x + (i * width + j) * channels + c);
          const W better = (value > best) | (value != value);
          best = better ? value : best;
          place = better ? W{} + static_cast<int32_t>((i - top) * kernel + j - left) : place;
        }
      Type::template store<lanes>(y + c, best);
      if (places) store_places<lanes>(places + c, place);
    });
  }
}

// One row of the gradient of x.
template <class Type>
void gradients_of(const PoolCall& call, int64_t frame, int64_t row) {
  using Sum = typename Type::Sum;
  using Stored = typename Type::Stored;
  const int64_t channels = call.channels, columns = call.columns, kernel = call.kernel;
  const int64_t stride = call.stride, first = frame * call.rows * columns;
  const Stored* grad = static_cast<const Stored*>(call.grad) + first * channels;
  const uint8_t* places = call.places + first * channels;
  const Range down = over(call, row, call.rows);
  for (int64_t column = 0; column < call.width; ++column) {
    const Range across = over(call, column, columns);
    const int64_t y = row + call.padding, x = column + call.padding;
    Stored* result = static_cast<Stored*>(call.result) + ((frame * call.height + row) * call.width + column) * channels;
    each_vector<Sum>(channels, [=](int64_t c, auto lanes_of) {
      constexpr int lanes = decltype(lanes_of)::value;
      using V = Vector<Sum, lanes>;
      using W = Whole<Sum, lanes>;
      V sum = V{};
      for (int64_t i = down.from; i < down.to; ++i)
        for (int64_t j = across.from; j < across.to; ++j) {
          const int64_t at = (i * columns + j) * channels + c;
          const W here = W{} + static_cast<int32_t>((y - i * stride) * kernel + x - j * stride);
          const W mine = load_places<W, lanes>(places + at) == here;
          sum += mine ? Type::template load<lanes>(grad + at) : V{};
        }
      Type::template store<lanes>(result + c, sum);
    });
  }
}

void forward(const PoolCall& call) {
  with_type(call, [&](auto type) {
    by_row(call, call.rows, [&](int64_t frame, int64_t row) { maxima_of<decltype(type)>(call, frame, row); });
  });
}

void backward(const PoolCall& call) {
  with_type(call, [&](auto type) {
    by_row(call, call.height, [&](int64_t frame, int64_t row) { gradients_of<decltype(type)>(call, frame, row); });
  });
}

}  // namespace LANES_OF
