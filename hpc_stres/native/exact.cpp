// Exact sums of a bitwise training: numbers as digits of 40 bits, added as integers, and back.
//
// A number v is d0 * u + d1 * u * 2^-40 + ..., each digit rounded to the nearest integer (halves to
// even) of what the digits before it left; sums add digits to digits and never carry. The same in
// plain torch, and why, is models/exact/digits.py: every bit that is written here must be the one
// that is written there. Each function takes what it reads once and keeps nothing.
//
// No sum of floating-point numbers may be taken in another order than it is written in; hence:
#if defined(__clang__)
#pragma clang fp reassociate(off) reciprocal(off) contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("no-associative-math", "no-reciprocal-math", "fp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

enum Kind { float32 = 0, bfloat16 = 1, float64 = 2 };
enum Answer { done = 0, bad_call = 1 };

// Digits of gradients, and of moments: what this file is made for.
constexpr int few = 2, many = 4;
// Columns that all rows are added to before the next: their sums stay in the nearest caches.
constexpr int64_t tile = 2048;
constexpr double next_digit = 1099511627776.0;  // 2^40
constexpr double limit = 1125899906842624.0;    // 2^50: a first digit is smaller, before it is rounded
// The last bit of such a number is one: the bits of it plus a whole number below 2^51 are its own
// bits plus that number, in two's complement. AVX2 has no other way from doubles to int64.
constexpr double whole = 6755399441055744.0;  // 1.5 * 2^52
constexpr uint64_t whole_bits = 0x4338000000000000;

}  // namespace

// Everything that a call is about; made by Python, field for field. Several threads may work on one
// set of sums, each on columns of its own.
struct ExactCall {
  int64_t rows, columns, groups;
  int64_t kind;               // of `values` and of `result`
  int64_t first, digits;      // the exponent of the first unit, and how many digits there are
  int64_t plane;              // how far in `sums` one digit is from the next
  int64_t fresh;              // the sums hold nothing yet: they are written, not read
  int64_t begin, end;         // the columns that this call is about
  const void* const* values;  // by row, its columns
  const int64_t* owner;       // by row, which sum it is added to; where null all are of the first
  int64_t* sums;              // by digit, group and column
  int64_t* misfits;           // how many terms had no digits: too large, NaN, infinite
  void* result;               // by group and column
};

namespace {

double widened(float value) { return value; }
double widened(double value) { return value; }
double widened(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

uint64_t as_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Adds one row of terms; how many of them do not fit. Sums are unsigned, which may wrap around as
// torch's do.
template <int digits, bool fresh, class Value>
int64_t add_row(const Value* __restrict values, int64_t columns, double scale, uint64_t* __restrict sums,
                int64_t plane) {
  uint64_t misfits = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < columns; ++i) {
    double rest = widened(values[i]) * scale;
    const bool fits = std::fabs(rest) < limit;
    misfits += fits ? 0 : 1;
    rest = fits ? rest : 0.0;
    for (int digit = 0; digit < digits; ++digit) {
      const double place = std::nearbyint(rest);
      const uint64_t number = as_bits(place + whole) - whole_bits;
      uint64_t* sum = sums + digit * plane + i;
      *sum = fresh ? number : *sum + number;
      rest = (rest - place) * next_digit;
    }
  }
  return static_cast<int64_t>(misfits);
}

template <int digits, class Value>
void add_rows(const ExactCall& call) {
  uint64_t* sums = reinterpret_cast<uint64_t*>(call.sums);
  const double scale = std::ldexp(1.0, static_cast<int>(-call.first));
  int64_t misfits = 0;
  for (int64_t start = call.begin; start < call.end; start += tile) {
    const int64_t columns = std::min(tile, call.end - start);
    for (int64_t row = 0; row < call.rows; ++row) {
      const Value* values = static_cast<const Value*>(call.values[row]) + start;
      uint64_t* to = sums + (call.owner ? call.owner[row] : 0) * call.columns + start;
      const bool fresh = call.fresh && row == 0;
      misfits += fresh ? add_row<digits, true>(values, columns, scale, to, call.plane)
                       : add_row<digits, false>(values, columns, scale, to, call.plane);
    }
  }
  if (misfits) __atomic_fetch_add(call.misfits, misfits, __ATOMIC_RELAXED);
}

template <class Value>
void add(const ExactCall& call) {
  call.digits == few ? add_rows<few, Value>(call) : add_rows<many, Value>(call);
}

// An int64 as a double, rounded once: both halves are exact, and so is what is taken from the upper.
double rounded(uint64_t number) {
  // 2^84 + 2^63 + 2^52, and numbers whose last bits are worth 2^32 and 1.
  constexpr double offset = 0x1.00000801p84;
  constexpr uint64_t upper = 0x4530000000000000, lower = 0x4330000000000000;
  const uint64_t high_bits = ((number ^ (uint64_t{1} << 63)) >> 32) | upper;
  const uint64_t low_bits = (number & 0xffffffff) | lower;
  double high, low;
  std::memcpy(&high, &high_bits, sizeof high);
  std::memcpy(&low, &low_bits, sizeof low);
  return (high - offset) + low;
}

template <int digits, class Value>
void totals(const ExactCall& call) {
  const uint64_t* __restrict sums = reinterpret_cast<const uint64_t*>(call.sums);
  Value* __restrict result = static_cast<Value*>(call.result);
  const int64_t from = call.begin, to = (call.groups - 1) * call.columns + call.end;
  if (*call.misfits > 0) return std::fill(result + from, result + to, std::numeric_limits<Value>::quiet_NaN());
  double units[digits];
  for (int digit = 0; digit < digits; ++digit)
    units[digit] = std::ldexp(1.0, static_cast<int>(call.first) - 40 * digit);
  for (int64_t i = from; i < to; ++i) {
    // The smallest first.
    double value = 0.0;
    for (int digit = digits; digit-- > 0;) value = value + rounded(sums[digit * call.plane + i]) * units[digit];
    result[i] = static_cast<Value>(value);
  }
}

template <class Value>
void total(const ExactCall& call) {
  call.digits == few ? totals<few, Value>(call) : totals<many, Value>(call);
}

bool is_sound(const ExactCall& call) {
  if (call.rows < 0 || call.columns < 0 || call.groups < 1) return false;
  if (call.begin < 0 || call.begin > call.end || call.end > call.columns) return false;
  if (call.kind < float32 || call.kind > float64 || (call.digits != few && call.digits != many)) return false;
  if (call.plane < call.groups * call.columns) return false;
  // A unit must be a number, and so must what is multiplied with it.
  if (call.first < -900 || call.first > 900) return false;
  // What no row writes would stay as it was.
  if (call.fresh && (call.owner || call.groups > 1 || call.rows < 1)) return false;
  if (call.owner)
    for (int64_t row = 0; row < call.rows; ++row)
      if (call.owner[row] < 0 || call.owner[row] >= call.groups) return false;
  return true;
}

}  // namespace

// Adds rows of terms to the sums, and what does not fit to the misfits.
extern "C" int exact_add(const ExactCall* call) {
  if (!is_sound(*call)) return bad_call;
  switch (call->kind) {
    case float32: add<float>(*call); break;
    case bfloat16: add<uint16_t>(*call); break;
    default: add<double>(*call);
  }
  return done;
}

// All columns' sums as numbers (of several groups: from the first's begin to the last's end), in float32 or float64; NaN where a term did not fit.
extern "C" int exact_total(const ExactCall* call) {
  if (!is_sound(*call) || call->kind == bfloat16) return bad_call;
  if (call->kind == float32)
    total<float>(*call);
  else
    total<double>(*call);
  return done;
}

// The size of a call, for the other side to compare its own with.
extern "C" int64_t exact_call_bytes() { return sizeof(ExactCall); }
