// Both steps of pool.cpp on random shapes, cuts, types and threads, against plain loops; and calls
// that it must refuse.
#include "pool.cpp"

#include <vector>

#include "fuzz.h"

namespace {

// Small whole numbers, of which every type has the exact value and sum.
template <class Number>
Number made(int value) {
  if constexpr (sizeof(Number) != 2) return static_cast<Number>(value);
  const float wide = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  return static_cast<Number>(bits >> 16);
}

template <class Number>
void check(Random& random, PoolCall call, int call_number) {
  const int64_t places = call.frames * call.height * call.width, wins = call.frames * call.rows * call.columns;
  const size_t many = static_cast<size_t>(places * call.channels), few = static_cast<size_t>(wins * call.channels);
  auto x = exactly<Number>(many), y = exactly<Number>(few), grad = exactly<Number>(few), back = exactly<Number>(many);
  auto kept = exactly<uint8_t>(few);
  std::vector<int> value(many), slope(few), sum(many);
  for (size_t i = 0; i < many; ++i) x[i] = made<Number>(value[i] = random.between(-9, 9));
  for (size_t i = 0; i < few; ++i) grad[i] = made<Number>(slope[i] = random.between(-3, 3));
  call.x = x.get(), call.y = y.get(), call.grad = grad.get(), call.result = back.get();
  const int wide = random.between(0, 1);
  call.places = random.one_in(3) ? nullptr : kept.get();
  if (pool_forward(&call, wide) != done) fail("refused what is right", call_number);
  for (int64_t n = 0; n < wins; ++n)
    for (int64_t c = 0; c < call.channels; ++c) {
      const int64_t frame = n / (call.rows * call.columns), row = n / call.columns % call.rows, column = n % call.columns;
      int64_t best = -1, best_tap = 0;
      for (int64_t tap = 0; tap < call.kernel * call.kernel; ++tap) {
        const int64_t i = row * call.stride - call.padding + tap / call.kernel;
        const int64_t j = column * call.stride - call.padding + tap % call.kernel;
        if (i < 0 || j < 0 || i >= call.height || j >= call.width) continue;
        const int64_t at = ((frame * call.height + i) * call.width + j) * call.channels + c;
        if (best < 0 || value[at] > value[best]) best = at, best_tap = tap;
      }
      const size_t at = static_cast<size_t>(n * call.channels + c);
      if (y[at] != x[best]) fail("another maximum", call_number);
      if (call.places && kept[at] != best_tap) fail("another place", call_number);
      sum[best] += slope[at];
    }
  if (!call.places) return;
  if (pool_backward(&call, wide) != done) fail("refused what is right", call_number);
  for (size_t i = 0; i < many; ++i)
    if (back[i] != made<Number>(sum[i])) fail("another gradient", call_number);
}

void one_call(Random& random, int call_number) {
  PoolCall call{};
  call.kernel = random.one_in(10) ? 16 : random.between(1, 5);
  call.stride = random.between(1, 4);
  call.padding = random.between(0, static_cast<int>(call.kernel) - 1);
  call.frames = random.between(1, 3), call.height = random.between(1, 20), call.width = random.between(1, 20);
  call.channels = random.one_in(3) ? random.between(1, 3) * 32 : random.between(1, 40);
  call.rows = random.between(1, static_cast<int>((call.height - 1 + call.padding) / call.stride) + 1);
  call.columns = random.between(1, static_cast<int>((call.width - 1 + call.padding) / call.stride) + 1);
  call.kind = random.between(0, 2), call.threads = random.between(1, 3);
  if (random.one_in(8)) {
    const int wrong = random.between(1, 9);
    if (wrong == 1) call.frames = random.between(-1, 0);
    if (wrong == 2) call.height = 0;
    if (wrong == 3) call.channels = 0;
    if (wrong == 4) call.kernel = random.one_in(2) ? 17 : 0;
    if (wrong == 5) call.kind = random.one_in(2) ? 3 : -1;
    if (wrong == 6) call.stride = 0;
    if (wrong == 7) call.padding = random.one_in(2) ? -1 : call.kernel;
    if (wrong == 8) call.rows = (call.height - 1 + call.padding) / call.stride + 2;
    if (wrong == 9) call.columns = random.one_in(2) ? 0 : (call.width - 1 + call.padding) / call.stride + 2;
    if (pool_forward(&call, 1) != bad_call || pool_backward(&call, 0) != bad_call) fail("took what is wrong", call_number);
    return;
  }
  if (call.kind == float32) check<float>(random, call, call_number);
  if (call.kind == bfloat16) check<uint16_t>(random, call, call_number);
  if (call.kind == float64) check<double>(random, call, call_number);
}

}  // namespace

int main(int argc, char** argv) { return fuzz(argc, argv, one_call); }
