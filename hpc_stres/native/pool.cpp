// Max pools of channels-last activations on the CPU, forwards and backwards.
//
// Frames lie one after another, each as height * width places of `channels` values, in float32,
// bfloat16 or float64. Forwards each maximum is written with the place inside its window that it
// came from, in one byte. Backwards every place of the input asks the few windows that lie over it:
// what it gets is added up in float32 (float64 for float64), in the windows' order, and written
// once, so that no memory has to be cleared and none is read again.
//
// Values, places and gradients are torch's: of equal values the first one counts, and what is not a
// number is larger than all. A lane of a vector is one channel; bytes depend neither on threads nor
// on how wide vectors are.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-associative-math", "no-reciprocal-math", "fp-contract=off", "signed-zeros")
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernel.h"

namespace {

// A place in a window has to fit into a byte.
constexpr int64_t largest_kernel = 16;
// Below so many values a second thread costs more than it does.
constexpr int64_t worth_a_thread = 32768;

// A run of numbers from `from` up to, but without, `to`.
struct Range {
  int64_t from, to;
};

}  // namespace

// Everything that a call is about; made by Python, field for field. `rows` and `columns` are the
// result's.
struct PoolCall {
  int64_t frames, height, width, channels, rows, columns;
  int64_t kernel, stride, padding, kind, threads;
  const void* x;
  void* y;
  uint8_t* places;   // of each maximum, row by row of its window; may be missing forwards
  const void* grad;  // of y
  void* result;      // the gradient of x
};

namespace {

// The places of an axis of `length` that a window covers.
Range inside(const PoolCall& call, int64_t window, int64_t length) {
  const int64_t first = window * call.stride - call.padding;
  return {std::max<int64_t>(first, 0), std::min(first + call.kernel, length)};
}

// The windows of an axis, of `count` in all, that cover a place.
Range over(const PoolCall& call, int64_t place, int64_t count) {
  const int64_t padded = place + call.padding, before = padded - call.kernel + call.stride;
  return {before < 0 ? 0 : before / call.stride, std::min(padded / call.stride + 1, count)};
}

// Calls work(frame, row) for so many rows of each frame.
template <class Work>
void by_row(const PoolCall& call, int64_t rows, const Work& work) {
  const int64_t values = call.frames * call.height * call.width * call.channels;
  spread(call.frames * rows, values < worth_a_thread ? 1 : call.threads,
         [&](int64_t item) { work(item / rows, item % rows); });
}

}  // namespace

#define ARITHMETIC "pool_lanes.h"
#include "levels.h"

namespace {

// Each window covers some of the input, and none of an axis is missing.
bool fits(const PoolCall& call, int64_t length, int64_t count) {
  return length >= 1 && count >= 1 && (count - 1) * call.stride - call.padding < length;
}

bool is_sound(const PoolCall& call) {
  if (call.frames < 1 || call.channels < 1 || call.kind < float32 || call.kind > float64) return false;
  if (call.kernel < 1 || call.kernel > largest_kernel || call.stride < 1) return false;
  if (call.padding < 0 || call.padding >= call.kernel) return false;
  return fits(call, call.height, call.rows) && fits(call, call.width, call.columns);
}

using Step = void (*)(const PoolCall&);

int run(const PoolCall& call, Step plain_step, Step wide_step, bool wide) {
  if (!is_sound(call)) return bad_call;
  (wide && call.kind != float64 && has_wide_vectors() ? wide_step : plain_step)(call);
  return done;
}

}  // namespace

#if HPC_STRES_WIDE
#define STEP(name) \
  extern "C" int pool_##name(const PoolCall* call, int wide) { return run(*call, plain::name, wide::name, wide); }
#else
#define STEP(name) \
  extern "C" int pool_##name(const PoolCall* call, int wide) { return run(*call, plain::name, plain::name, wide); }
#endif

// y = the maxima of x, and their places where they are wanted.
STEP(forward)
// result = the gradient of x, from that of y and the places.
STEP(backward)

// The size of a call, for the other side to compare its own with.
extern "C" int64_t pool_call_bytes() { return sizeof(PoolCall); }
