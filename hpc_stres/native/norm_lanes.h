// The arithmetic of norm.cpp on vectors of LANE_BYTES; included once for each kind of processor,
// in the namespace LANES_OF. A lane is a channel. What is left of the channels behind the last
// whole vector goes through vectors of one lane, with the same operations.

namespace LANES_OF {

#include "lanes.h"

// Calls body(first row, rows as a type) for all rows: as many at once as may be, then one by one.
template <class Body>
inline void each_block(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + rows_at_once <= rows; r += rows_at_once) body(r, std::integral_constant<int, rows_at_once>());
  for (; r < rows; ++r) body(r, std::integral_constant<int, 1>());
}

// The sum of a few vectors, in pairs.
template <int count, class V>
__attribute__((always_inline)) inline V sum_of(const V* v) {
  if constexpr (count == 1)
    return v[0];
  else
    return sum_of<count / 2>(v) + sum_of<count - count / 2>(v + count / 2);
}

// Fetches what the next block of rows reads here: the processor does not guess a way that goes
// through several rows at once.
template <int count, class Stored>
__attribute__((always_inline)) inline void ahead(const Stored* from, int row, int64_t channels, int64_t c) {
  if (count > 1) __builtin_prefetch(from + (row + count) * channels + c);
}

// Mean and sum of squares about it of a piece, block by block. A block's own squares are about
// its own mean, so that large means and values far off cost no digits.
template <class Type>
void piece_moments(const typename Type::Stored* x, int64_t rows, int64_t channels, typename Type::Sum* mean) {
  using Sum = typename Type::Sum;
  Sum* squares = mean + channels;
  std::fill(mean, mean + 2 * channels, Sum(0));
  each_block(rows, [&](int64_t row, auto block) {
    constexpr int count = decltype(block)::value;
    const Sum all = static_cast<Sum>(row + count), part = count / all, apart = row * part;
    const auto* from = x + row * channels;
    each_vector<Sum>(channels, [=](int64_t c, auto width) {
      constexpr int lanes = decltype(width)::value;
      using V = Vector<Sum, lanes>;
      V v[count], off[count];
      for (int i = 0; i < count; ++i) {
        v[i] = Type::template load<lanes>(from + i * channels + c);
        ahead<count>(from, i, channels, c);
      }
      const V middle = sum_of<count>(v) * (Sum(1) / count);
      V own = V{} + Sum(0);
      for (int i = 0; i < count; ++i) {
        off[i] = v[i] - middle;
        own = fused<Sum, lanes>(off[i], off[i], own);
      }
      const V before = loaded<V>(mean + c), step = middle - before;
      const V after = fused<Sum, lanes>(step, V{} + part, before);
      const V total = fused<Sum, lanes>(step * step, V{} + apart, loaded<V>(squares + c) + own);
      std::memcpy(mean + c, &after, sizeof after);
      std::memcpy(squares + c, &total, sizeof total);
    });
  });
}

template <class Type>
void moments_of(const NormCall& call, const Cut& cut, const Batch& batch) {
  using Sum = typename Type::Sum;
  const std::unique_ptr<Sum[]> parts(new Sum[2 * batch.pieces * call.channels]);
  by_piece(call, batch, [&](int64_t k) {
    const Piece piece(call, cut, batch.first_piece + k);
    const auto* x = static_cast<const typename Type::Stored*>(call.x) + piece.start;
    piece_moments<Type>(x, piece.rows, call.channels, &parts[2 * k * call.channels]);
  });
  by_group(call, batch, [&](int64_t group, int64_t from, int64_t to) {
    merge_moments(call, cut, batch, parts.get(), group, from, to);
  });
}

template <class Type>
void piece_values_of(const NormCall& call, const Piece& piece, const Coefficients<typename Type::Sum>& table) {
  using Sum = typename Type::Sum;
  using Stored = typename Type::Stored;
  const int64_t channels = call.channels;
  const Stored* x = static_cast<const Stored*>(call.x) + piece.start;
  const Stored* other = call.residual ? static_cast<const Stored*>(call.residual) + piece.start : nullptr;
  Stored* y = static_cast<Stored*>(call.result) + piece.start;
  const Sum *mean = &table.mean[table.row(piece.group)], *slope = &table.slope[table.row(piece.group)];
  const Sum* bias = static_cast<const Sum*>(call.bias);
  const bool past = goes_past(call, y, sizeof(Stored)), relu = call.relu;
  for (int64_t first = 0; first < piece.rows * channels; first += channels)
    each_vector<Sum>(channels, [=](int64_t c, auto width) {
      constexpr int lanes = decltype(width)::value;
      using V = Vector<Sum, lanes>;
      const V centred = Type::template load<lanes>(x + first + c) - loaded<V>(mean + c);
      V v = fused<Sum, lanes>(centred, loaded<V>(slope + c), loaded<V>(bias + c));
      if (other) v += Type::template load<lanes>(other + first + c);
      if (relu) v = v < 0 ? V{} : v;
      Type::template store<lanes>(y + first + c, v, past);
    });
  finish_stores();
}

template <class Type>
void values_of(const NormCall& call, const Cut& cut, const Batch& batch) {
  using Sum = typename Type::Sum;
  Coefficients<Sum> table(call, batch, false);
  by_group(call, batch, [&](int64_t group, int64_t from, int64_t to) { table.fill(call, group, from, to); });
  by_piece(call, batch, [&](int64_t k) {
    // Backwards: what the moments read last is the likeliest to lie in the cache still.
    piece_values_of<Type>(call, Piece(call, cut, batch.first_piece + batch.pieces - 1 - k), table);
  });
}

// What passes a ReLU with this input, as torch has it: not a number does.
template <class V>
inline V gated(V input, V grad) {
  return input <= 0 ? V{} : grad;
}

template <class Type>
void piece_sums_of(const NormCall& call, const Piece& piece, const Coefficients<typename Type::Sum>& table,
                   typename Type::Sum* sums) {
  using Sum = typename Type::Sum;
  using Stored = typename Type::Stored;
  const int64_t channels = call.channels, gate = call.gate;
  const Stored* x = static_cast<const Stored*>(call.x) + piece.start;
  const Stored* grad = static_cast<const Stored*>(call.grad) + piece.start;
  const Stored* out = gate == read ? static_cast<const Stored*>(call.out) + piece.start : nullptr;
  Stored* kept = gate == read ? static_cast<Stored*>(call.passed) + piece.start : nullptr;
  const Sum *mean = &table.mean[table.row(piece.group)], *slope = &table.slope[table.row(piece.group)];
  const Sum* bias = static_cast<const Sum*>(call.bias);
  Sum* products = sums + channels;
  std::fill(sums, sums + 2 * channels, Sum(0));
  each_block(piece.rows, [=](int64_t row, auto block) {
    constexpr int count = decltype(block)::value;
    const int64_t first = row * channels;
    each_vector<Sum>(channels, [=](int64_t c, auto width) {
      constexpr int lanes = decltype(width)::value;
      using V = Vector<Sum, lanes>;
      const V m = loaded<V>(mean + c);
      V g[count], product = V{};
      for (int i = 0; i < count; ++i) {
        const int64_t at = first + i * channels + c;
        const V centred = Type::template load<lanes>(x + at) - m;
        g[i] = Type::template load<lanes>(grad + at);
        ahead<count>(x + first, i, channels, c);
        ahead<count>(grad + first, i, channels, c);
        if (gate == computed) {
          g[i] = gated(fused<Sum, lanes>(centred, loaded<V>(slope + c), loaded<V>(bias + c)), g[i]);
        } else if (gate == read) {
          g[i] = gated(Type::template load<lanes>(out + at), g[i]);
          ahead<count>(out + first, i, channels, c);
          Type::template store<lanes>(kept + at, g[i]);
        }
        product = fused<Sum, lanes>(g[i], centred, product);
      }
      const V sum = loaded<V>(sums + c) + sum_of<count>(g), total = loaded<V>(products + c) + product;
      std::memcpy(sums + c, &sum, sizeof sum);
      std::memcpy(products + c, &total, sizeof total);
    });
  });
}

template <class Type>
void backward_sums_of(const NormCall& call, const Cut& cut, const Batch& batch) {
  using Sum = typename Type::Sum;
  const int64_t channels = call.channels;
  Coefficients<Sum> table(call, batch, false);
  const std::unique_ptr<Sum[]> parts(new Sum[2 * batch.pieces * channels]);
  by_group(call, batch, [&](int64_t group, int64_t from, int64_t to) { table.fill(call, group, from, to); });
  by_piece(call, batch, [&](int64_t k) {
    piece_sums_of<Type>(call, Piece(call, cut, batch.first_piece + k), table, &parts[2 * k * channels]);
  });
  by_group(call, batch, [&](int64_t group, int64_t from, int64_t to) {
    merge_sums(call, cut, batch, parts.get(), group, from, to);
  });
}

template <class Type>
void piece_gradient_of(const NormCall& call, const Piece& piece, const Coefficients<typename Type::Sum>& table) {
  using Sum = typename Type::Sum;
  using Stored = typename Type::Stored;
  const int64_t channels = call.channels, row_of_group = table.row(piece.group);
  const Stored* x = static_cast<const Stored*>(call.x) + piece.start;
  // Behind a ReLU that was read from memory the first pass has left what passed it.
  const void* given = call.gate == read ? call.passed : call.grad;
  const Stored* grad = static_cast<const Stored*>(given) + piece.start;
  Stored* result = static_cast<Stored*>(call.result) + piece.start;
  const Sum *mean = &table.mean[row_of_group], *slope = &table.slope[row_of_group];
  const Sum *shift = &table.shift[row_of_group], *curve = &table.curve[row_of_group];
  const Sum* bias = static_cast<const Sum*>(call.bias);
  const bool past = goes_past(call, result, sizeof(Stored)), gates = call.gate == computed;
  for (int64_t first = 0; first < piece.rows * channels; first += channels)
    each_vector<Sum>(channels, [=](int64_t c, auto width) {
      constexpr int lanes = decltype(width)::value;
      using V = Vector<Sum, lanes>;
      const V centred = Type::template load<lanes>(x + first + c) - loaded<V>(mean + c), s = loaded<V>(slope + c);
      V g = Type::template load<lanes>(grad + first + c);
      if (gates) g = gated(fused<Sum, lanes>(centred, s, loaded<V>(bias + c)), g);
      const V flat = fused<Sum, lanes>(g, s, -loaded<V>(shift + c));
      Type::template store<lanes>(result + first + c, fused<Sum, lanes>(-centred, loaded<V>(curve + c), flat), past);
    });
  finish_stores();
}

template <class Type>
void backward_values_of(const NormCall& call, const Cut& cut, const Batch& batch) {
  Coefficients<typename Type::Sum> table(call, batch, true);
  by_group(call, batch, [&](int64_t group, int64_t from, int64_t to) {
    table.fill(call, group, from, to);
    table.fill_backward(call, group, from, to);
  });
  by_piece(call, batch, [&](int64_t k) {
    piece_gradient_of<Type>(call, Piece(call, cut, batch.first_piece + batch.pieces - 1 - k), table);
  });
}

// -- from a call's fields to the code for them --------------------------------------------------

// Each step on its own takes all groups at once: sums of other ranks come in between.
#define ALONE(name)                                                                                         \
  void name(const NormCall& call) {                                                                         \
    const Cut cut(call);                                                                                    \
    with_type(call, [&](auto type) { name##_of<decltype(type)>(call, cut, Batch(cut, 0, call.groups)); });   \
  }
#define TOGETHER(name, one, two)                                       \
  void name(const NormCall& call) {                                    \
    const Cut cut(call);                                               \
    with_type(call, [&](auto type) {                                   \
      by_batch(call, cut, [&](const NormCall& part, const Batch& batch) { \
        one##_of<decltype(type)>(part, cut, batch);                    \
        two##_of<decltype(type)>(part, cut, batch);                    \
      });                                                              \
    });                                                                \
  }
ALONE(moments)
ALONE(values)
ALONE(backward_sums)
ALONE(backward_values)
TOGETHER(forward, moments, values)
TOGETHER(backward, backward_sums, backward_values)
#undef ALONE
#undef TOGETHER

}  // namespace LANES_OF
