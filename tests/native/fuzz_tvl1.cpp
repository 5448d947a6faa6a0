// tvl1_batch on random frames of small sizes, flat, noisy or moving, over one or more threads.
#include "tvl1.cpp"

#include "fuzz.h"

#include <type_traits>

namespace {

// One solver, or one with a choice of two pyramids.
template <typename Solve>
void solve(Solve batch, const uint8_t* frames, int count, int rows, int cols, int paper, int threads, float* out) {
  if constexpr (std::is_invocable_v<Solve, const uint8_t*, int, int, int, int, int, float*>)
    batch(frames, count, rows, cols, paper, threads, out);
  else
    batch(frames, count, rows, cols, threads, out);
}

void one_call(Random& random, int call) {
  const int count = random.between(1, 3);
  const int most = random.one_in(20) ? 40 : 12;  // from 20 on there is a second scale
  const int rows = random.between(1, most), cols = random.between(1, most), contrast = random.between(0, 3) * 85;
  const size_t area = static_cast<size_t>(rows) * cols;
  auto frames = exactly<uint8_t>(area * (count + 1));
  for (size_t i = 0; i < area * (count + 1); ++i)
    frames[i] = static_cast<uint8_t>(contrast ? random.between(0, contrast) : 16);
  auto out = exactly<float>(2 * area * count);
  solve(tvl1_batch, frames.get(), count, rows, cols, random.between(0, 1), random.between(1, 3), out.get());
  for (size_t i = 0; i < 2 * area * count; ++i)
    if (!(out[i] - out[i] == 0.0f)) fail("a displacement that is not finite", call);
}

}  // namespace

int main(int argc, char** argv) { return fuzz(argc, argv, one_call); }
