// Every step of norm.cpp on random shapes, groups, types and threads, against plain loops in double;
// and calls that it must refuse.
#include "norm.cpp"

#include "fuzz.h"

namespace {

// Activations in the call's type, each an allocation of its exact size.
struct Values {
  int64_t kind;
  std::unique_ptr<float[]> floats;
  std::unique_ptr<uint16_t[]> halves;
  std::unique_ptr<double[]> doubles;

  Values(int64_t kind, size_t count) : kind(kind) {
    if (kind == float32) floats = exactly<float>(count);
    if (kind == bfloat16) halves = exactly<uint16_t>(count);
    if (kind == float64) doubles = exactly<double>(count);
  }
  void* data() { return kind == float32 ? static_cast<void*>(floats.get()) : kind == bfloat16 ? static_cast<void*>(halves.get()) : static_cast<void*>(doubles.get()); }
  double at(size_t i) const {
    if (kind == float32) return floats[i];
    if (kind == float64) return doubles[i];
    const uint32_t bits = static_cast<uint32_t>(halves[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  void set(size_t i, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (kind == float32) floats[i] = value;
    if (kind == float64) doubles[i] = value;
    if (kind == bfloat16) halves[i] = static_cast<uint16_t>(bits >> 16);
  }
};

Values some_values(Random& random, int64_t kind, size_t count) {
  Values values(kind, count);
  for (size_t i = 0; i < count; ++i) values.set(i, random.real(-2, 3));
  return values;
}

// A parameter by channel in the type of sums.
struct Parameter {
  std::unique_ptr<float[]> floats;
  std::unique_ptr<double[]> doubles;
  Parameter(Random& random, int64_t kind, size_t count) : floats(exactly<float>(count)), doubles(exactly<double>(count)) {
    for (size_t i = 0; i < count; ++i) doubles[i] = floats[i] = random.real(0.5f, 2);
    (kind == float64 ? static_cast<void>(floats.reset()) : static_cast<void>(doubles.reset()));
  }
  const void* data() const { return doubles ? static_cast<const void*>(doubles.get()) : floats.get(); }
  double at(size_t i) const { return doubles ? doubles[i] : floats[i]; }
};

bool near(double given, double right, int64_t kind) {
  const double tolerance = kind == bfloat16 ? 0.03 : kind == float32 ? 1e-3 : 1e-9;
  return std::abs(given - right) <= tolerance * std::max(1.0, std::abs(right));
}

void one_call(Random& random, int call_number) {
  NormCall call{};
  call.frames = random.between(1, 5);
  call.pixels = random.one_in(20) ? random.between(500, 3000) : random.between(1, 40);
  call.channels = random.one_in(4) ? random.between(1, 3) * 32 : random.between(1, 40);
  call.groups = random.between(1, 3);
  call.kind = random.between(0, 2);
  call.threads = random.between(1, 3);
  call.gate = random.between(0, 2);
  call.relu = call.gate != open;
  call.eps = 1e-5;
  const size_t count = static_cast<size_t>(call.frames * call.pixels * call.channels);
  const size_t table = static_cast<size_t>(call.groups * call.channels);
  auto owner = exactly<int32_t>(call.frames);
  for (int64_t f = 0; f < call.frames; ++f) owner[f] = random.between(0, static_cast<int>(call.groups) - 1);
  Values x = some_values(random, call.kind, count), residual = some_values(random, call.kind, count);
  Values grad = some_values(random, call.kind, count), y(call.kind, count), passed(call.kind, count), dx(call.kind, count);
  const Parameter weight(random, call.kind, call.channels), bias(random, call.kind, call.channels);
  auto counts = exactly<double>(call.groups), mean = exactly<double>(table), variance = exactly<double>(table);
  auto sums = exactly<double>(table), products = exactly<double>(table);
  call.owner = owner.get();
  call.x = x.data();
  call.residual = call.gate == read ? residual.data() : nullptr;
  call.grad = grad.data();
  call.out = y.data();
  call.passed = passed.data();
  call.weight = weight.data();
  call.bias = bias.data();
  call.count = counts.get();
  call.mean = mean.get();
  call.variance = variance.get();
  call.sums = sums.get();
  call.products = products.get();
  if (random.one_in(8)) {
    const int wrong = random.between(1, 7);
    if (wrong == 1) call.frames = random.between(-1, 0);
    if (wrong == 2) call.pixels = random.between(-1, 0);
    if (wrong == 3) call.channels = 0;
    if (wrong == 4) call.groups = 0;
    if (wrong == 5) call.kind = 3;
    if (wrong == 6) call.gate = -1;
    if (wrong == 7) owner[random.between(0, static_cast<int>(call.frames) - 1)] = static_cast<int32_t>(call.groups);
    if (norm_forward(&call, 1) != bad_call || norm_backward(&call, 0) != bad_call) fail("took what is wrong", call_number);
    return;
  }
  const int wide = random.between(0, 1);
  const bool apart = random.one_in(2);
  call.result = y.data();
  int answer = apart ? norm_moments(&call, wide) | norm_values(&call, wide) : norm_forward(&call, wide);
  call.result = dx.data();
  answer |= apart ? norm_backward_sums(&call, wide) | norm_backward_values(&call, wide) : norm_backward(&call, wide);
  if (answer != done) fail("refused what is right", call_number);
  for (int64_t g = 0; g < call.groups; ++g)
    for (int64_t c = 0; c < call.channels; ++c) {
      double n = 0, m = 0, v = 0, s = 0, p = 0;
      const auto each = [&](auto body) {
        for (int64_t f = 0; f < call.frames; ++f)
          if (owner[f] == g)
            for (int64_t i = 0; i < call.pixels; ++i) body(static_cast<size_t>((f * call.pixels + i) * call.channels + c));
      };
      each([&](size_t i) { ++n, m += x.at(i); });
      if (n == 0) continue;
      m /= n;
      each([&](size_t i) { v += (x.at(i) - m) * (x.at(i) - m) / n; });
      const double sigma = std::sqrt(v + call.eps), slope = weight.at(c) / sigma;
      const auto before = [&](size_t i) { return (x.at(i) - m) * slope + bias.at(c) + (call.gate == read ? residual.at(i) : 0); };
      // At the edge of the ReLU rounding decides: what the kernel wrote says what passed.
      const auto gradient = [&](size_t i) { return call.gate == open || y.at(i) > 0 ? grad.at(i) : 0.0; };
      each([&](size_t i) { s += gradient(i), p += gradient(i) * (x.at(i) - m); });
      each([&](size_t i) {
        const double value = before(i), right = call.relu && value < 0 ? 0 : value;
        if (!near(y.at(i), right, call.kind)) fail("a wrong value", call_number);
        const double slide = gradient(i) * slope - s / n * slope - (x.at(i) - m) * (p / n * slope / (sigma * sigma));
        if (!near(dx.at(i), slide, call.kind) && slope < 30) fail("a wrong gradient", call_number);
        if (call.gate == read && passed.at(i) != gradient(i)) fail("another gradient passed", call_number);
      });
    }
}

}  // namespace

int main(int argc, char** argv) { return fuzz(argc, argv, one_call); }
