// Exact sums of random terms in random groups, by one thread or two, against integers of 128 bits;
// and calls that must be refused.
#include "exact.cpp"

#include "fuzz.h"

namespace {

using Wide = __int128;

// The terms of a call, each row an allocation of its exact size.
struct Terms {
  int64_t kind;
  std::vector<std::unique_ptr<unsigned char[]>> rows;
  std::vector<const void*> pointers;

  Terms(Random& random, const ExactCall& call) : kind(call.kind) {
    const size_t bytes = kind == float32 ? 4 : kind == bfloat16 ? 2 : 8;
    for (int64_t row = 0; row < call.rows; ++row) {
      rows.push_back(exactly<unsigned char>(static_cast<size_t>(call.columns) * bytes));
      pointers.push_back(rows.back().get());
      for (int64_t i = 0; i < call.columns; ++i) set(row, i, random.one_in(9) ? 1e30f : random.real(-3, 3));
    }
  }
  void set(int64_t row, int64_t i, float value) {
    const double wide = value;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    unsigned char* to = rows[row].get();
    if (kind == float32) std::memcpy(to + 4 * i, &value, 4);
    if (kind == bfloat16) std::memcpy(to + 2 * i, &half, 2);
    if (kind == float64) std::memcpy(to + 8 * i, &wide, 8);
  }
  double at(int64_t row, int64_t i) const {
    const unsigned char* from = rows[row].get();
    float value;
    double wide;
    uint16_t half;
    if (kind == float32) return std::memcpy(&value, from + 4 * i, 4), value;
    if (kind == bfloat16) return std::memcpy(&half, from + 2 * i, 2), widened(half);
    return std::memcpy(&wide, from + 8 * i, 8), wide;
  }
};

void one_call(Random& random, int number) {
  ExactCall call{};
  call.rows = random.between(1, 5);
  call.columns = random.one_in(20) ? random.between(2000, 2200) : random.between(1, 40);
  call.groups = random.between(1, 3);
  call.kind = random.between(0, 2);
  call.first = -20;
  call.digits = random.between(1, 2) * 2;
  const int64_t gap = random.between(0, 3), table = call.groups * call.columns;
  call.plane = table + gap;
  Terms terms(random, call);
  auto owner = exactly<int64_t>(call.rows);
  for (int64_t row = 0; row < call.rows; ++row) owner[row] = random.between(0, static_cast<int>(call.groups) - 1);
  auto sums = exactly<int64_t>(call.plane * (call.digits - 1) + table);
  auto result = exactly<double>(table);
  int64_t misfits = 0, wanted_misfits = 0;
  call.values = terms.pointers.data();
  call.owner = call.groups == 1 && random.one_in(2) ? nullptr : owner.get();
  call.fresh = call.owner == nullptr && random.one_in(2);
  call.sums = sums.get();
  call.misfits = &misfits;
  call.result = result.get();
  call.end = call.columns;
  if (random.one_in(8)) {
    const int wrong = random.between(1, 7);
    if (wrong == 1) call.columns = -1;
    if (wrong == 2) call.groups = 0;
    if (wrong == 3) call.kind = 3;
    if (wrong == 4) call.digits = random.between(0, 2) * 2 + 1;
    if (wrong == 5) call.end = call.columns + 1;
    if (wrong == 6) owner[random.between(0, static_cast<int>(call.rows) - 1)] = call.groups, call.owner = owner.get();
    if (wrong == 7) call.first = 1000;
    if (exact_add(&call) != bad_call) fail("took what is wrong", number);
    return;
  }
  // One thread each for the columns before a cut and for those behind it.
  ExactCall left = call, right = call;
  left.end = right.begin = random.between(0, static_cast<int>(call.columns));
  int answers[2];
  std::thread other([&] { answers[0] = exact_add(&left); });
  answers[1] = exact_add(&right);
  other.join();
  if (answers[0] != done || answers[1] != done) fail("refused what is right", number);
  std::vector<Wide> wanted(table);
  const double unit = std::ldexp(1.0, static_cast<int>(-call.first));
  for (int64_t row = 0; row < call.rows; ++row)
    for (int64_t i = 0; i < call.columns; ++i) {
      const double value = terms.at(row, i) * unit;
      const bool fits = std::abs(value) < limit;
      wanted_misfits += !fits;
      // These terms have 24 bits or fewer: two digits hold every one of them whole.
      const Wide whole_term = fits ? static_cast<Wide>(std::ldexp(value, 40)) : 0;
      wanted[owner[row] * (call.owner != nullptr) * call.columns + i] += whole_term;
    }
  if (misfits != wanted_misfits) fail("another number of misfits", number);
  for (int64_t i = 0; i < table; ++i) {
    const Wide got = static_cast<Wide>(sums[i]) * (Wide{1} << 40) + sums[call.plane + i];
    if (got != wanted[i]) fail("a wrong sum", number);
  }
  call.kind = float64;
  if (exact_total(&call) != done) fail("refused a total", number);
  for (int64_t i = 0; i < table; ++i) {
    const double right_one = std::ldexp(static_cast<double>(wanted[i]), -60);
    if (misfits ? !std::isnan(result[i]) : result[i] != right_one) fail("a wrong total", number);
  }
}

}  // namespace

int main(int argc, char** argv) { return fuzz(argc, argv, one_call); }
