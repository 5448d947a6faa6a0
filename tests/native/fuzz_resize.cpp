// resize_stack on random pictures, sizes and windows, against plain loops in double; and arguments
// that it must refuse.
#include "resize.cpp"

#include "fuzz.h"

#include <cmath>

namespace {

struct Taps {
  int target = 0, taps = 0;
  std::unique_ptr<int32_t[]> first;
  std::unique_ptr<float[]> weights;
};

// Windows anywhere in the line, in any order, or one after the other as a resize has them.
Taps some_taps(Random& random, int source) {
  Taps axis;
  axis.target = random.between(1, 24);
  axis.taps = random.one_in(3) ? random.between(1, source) : random.between(1, std::min(source, 6));
  axis.first = exactly<int32_t>(axis.target);
  axis.weights = exactly<float>(static_cast<size_t>(axis.target) * axis.taps);
  const bool rising = random.one_in(2);
  for (int i = 0; i < axis.target; ++i) {
    const int room = source - axis.taps;
    axis.first[i] = rising ? i * room / axis.target : random.between(0, room);
  }
  for (int i = 0; i < axis.target * axis.taps; ++i) axis.weights[i] = random.real(-0.3f, 1.0f) / axis.taps;
  return axis;
}

struct Stack {
  int count, height, width;
  bool packed;
  std::vector<std::unique_ptr<uint8_t[]>> pictures;
  std::unique_ptr<const uint8_t*[]> planes;

  uint8_t at(int c, int y, int x) const {
    const size_t pixel = static_cast<size_t>(y) * width + x;
    return packed ? pictures[0][pixel * count + c] : pictures[c][pixel];
  }
};

Stack some_stack(Random& random) {
  const int counts[] = {20, 20, 3, 3, 1, random.between(1, 64)};
  Stack stack{counts[random.between(0, 5)], random.between(1, 20), random.between(1, 20), random.one_in(2), {}, {}};
  const int pictures = stack.packed ? 1 : stack.count;
  const size_t bytes = static_cast<size_t>(stack.height) * stack.width * (stack.packed ? stack.count : 1);
  stack.planes = exactly<const uint8_t*>(pictures);
  for (int n = 0; n < pictures; ++n) {
    stack.pictures.push_back(exactly<uint8_t>(bytes));
    for (size_t i = 0; i < bytes; ++i) stack.pictures[n][i] = static_cast<uint8_t>(random.between(0, 255));
    stack.planes[n] = stack.pictures[n].get();
  }
  return stack;
}

void check(const Stack& stack, const Taps& down, const Taps& across, const float* scale, const float* shift,
           bool mirror, const float* out, int call) {
  for (int y = 0; y < down.target; ++y)
    for (int x = 0; x < across.target; ++x)
      for (int c = 0; c < stack.count; ++c) {
        double sum = 0;
        for (int i = 0; i < down.taps; ++i)
          for (int j = 0; j < across.taps; ++j)
            sum += static_cast<double>(down.weights[y * down.taps + i]) * across.weights[x * across.taps + j] *
                   stack.at(c, down.first[y] + i, across.first[x] + j);
        const double right = std::min(std::max(sum, 0.0), 255.0) * scale[c] + shift[c];
        const int place = mirror ? across.target - 1 - x : x;
        const float found = out[(static_cast<size_t>(y) * across.target + place) * stack.count + c];
        if (!(std::abs(found - right) <= 1e-3)) fail("a wrong value", call);
      }
}

void one_call(Random& random, int call) {
  Stack stack = some_stack(random);
  Taps down = some_taps(random, stack.height), across = some_taps(random, stack.width);
  auto scale = exactly<float>(stack.count), shift = exactly<float>(stack.count);
  for (int c = 0; c < stack.count; ++c) {
    scale[c] = random.real(-1, 1);
    shift[c] = random.real(-200, 200);
  }
  auto out = exactly<float>(static_cast<size_t>(down.target) * across.target * stack.count);
  const bool mirror = random.one_in(2);
  int count = stack.count, height = stack.height, width = stack.width, wrong = 0;
  const float* scales = scale.get();
  if (random.one_in(8)) {
    wrong = random.between(1, 9);
    const int bad[] = {0, -1, -2147483647 - 1, 2147483647, 65536};
    const int value = bad[random.between(0, 4)];
    if (wrong == 1) count = value;
    if (wrong == 2) height = value;
    if (wrong == 3) width = value;
    if (wrong == 4) down.first[random.between(0, down.target - 1)] = height - down.taps + 1;
    if (wrong == 5) across.first[random.between(0, across.target - 1)] = -1;
    if (wrong == 6) across.taps = value;
    if (wrong == 7) down.target = value;
    if (wrong == 8) scales = nullptr;
    if (wrong == 9) stack.planes[0] = nullptr;
  }
  const int answer = resize_stack(stack.planes.get(), stack.packed, count, height, width, down.target, across.target,
                                  down.first.get(), down.weights.get(), down.taps, across.first.get(),
                                  across.weights.get(), across.taps, scales, shift.get(), mirror, out.get());
  if (answer != (wrong ? 1 : 0)) fail("refused what is right, or took what is wrong", call);
  if (!wrong) check(stack, down, across, scale.get(), shift.get(), mirror, out.get(), call);
}

}  // namespace

int main(int argc, char** argv) { return fuzz(argc, argv, one_call); }
