// Sub-batch normalisation of channels-last activations on the CPU: moments of groups of frames,
// normalised values (with a residual and a ReLU), and the same backwards.
//
// Frames lie one after another, each as `pixels` rows of `channels` values, in float32, bfloat16
// or float64. `owner` names each frame's group. Every activation is read once for sums over a
// group and once for values; sums are taken in float32 (float64 for float64) within a piece of a
// frame, and in float64 over pieces. Where there are enough groups a thread takes a whole group, so
// that no thread waits for another, and the second reading finds much of it in the cache.
//
// Bytes do not depend on the number of threads, on the other groups, or on how wide the
// processor's vectors are: the cut into pieces comes from the shape alone, pieces are added in
// their order, and a lane of a vector is always one channel, so that no sum runs across lanes.
// Hence the next line: no sum may be taken in another order than it is written in.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-associative-math", "no-reciprocal-math", "fp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "kernel.h"

namespace {

// How a gradient passes a ReLU: there is none; its input is computed again from x; its output is
// read, because a residual is in it too.
enum Gate { open = 0, computed = 1, read = 2 };

// What a piece of a frame holds, about: small enough that many threads find work, large enough
// that adding up the pieces costs nothing.
constexpr int64_t piece_values = 65536;
constexpr int64_t fewest_rows = 64;
// Rows that go through a vector together. The sums of so many are exact enough to be centred on.
constexpr int rows_at_once = 8;
// Below so many values a second thread costs more than it does.
constexpr int64_t worth_a_thread = 32768;
// Channels that one thread adds up over the pieces of a group.
constexpr int64_t merged_at_once = 64;
// A result of so many bytes is gone from the caches before the next layer reads it.
constexpr int64_t large_bytes = 16 << 20;
constexpr int64_t line_bytes = 64;
// How much longer the last threads may work than they would if groups could be cut, in percent.
constexpr int64_t worst_wait = 25;

}  // namespace

// Everything that a call is about; made by Python, field for field.
struct NormCall {
  int64_t frames, pixels, channels, groups;
  int64_t kind, threads, gate, relu;
  double eps;
  const int32_t* owner;
  const void *x, *residual, *grad, *out;  // out: what the forward pass made, where gate is `read`
  void* result;                           // values, or the gradient of x
  void* passed;                           // the gradient behind the ReLU, where gate is `read`
  const void *weight, *bias;              // by channel, in the type of sums
  double *count;                          // by group: values of a channel
  double *mean, *variance;                // by group and channel
  double *sums, *products;                // the same: of the gradient, and of it times centred x
};

namespace {

// The cut of a call: frames in the order of their groups, and each frame in pieces of some rows.
struct Cut {
  int64_t rows, per_frame;
  std::vector<int64_t> order, edges;  // frames by group; where a group's frames begin and end

  explicit Cut(const NormCall& call) : order(call.frames), edges(call.groups + 1) {
    rows = std::max(fewest_rows, piece_values / call.channels / rows_at_once * rows_at_once);
    per_frame = (call.pixels + rows - 1) / rows;
    for (int64_t f = 0; f < call.frames; ++f) ++edges[call.owner[f] + 1];
    for (int64_t g = 0; g < call.groups; ++g) edges[g + 1] += edges[g];
    std::vector<int64_t> next(edges.begin(), edges.end() - 1);
    for (int64_t f = 0; f < call.frames; ++f) order[next[call.owner[f]]++] = f;
  }

  // Pieces are counted through all groups; a group's are these.
  int64_t first_piece(int64_t group) const { return edges[group] * per_frame; }
};

// Some groups one after another, and their pieces.
struct Batch {
  int64_t from, to, first_piece, pieces;

  Batch(const Cut& cut, int64_t from, int64_t to)
      : from(from), to(to), first_piece(cut.first_piece(from)), pieces(cut.first_piece(to) - first_piece) {}
};

// A run of rows of one frame, and where they begin.
struct Piece {
  int64_t start, rows, group;

  Piece(const NormCall& call, const Cut& cut, int64_t number) {
    const int64_t frame = cut.order[number / cut.per_frame], row = number % cut.per_frame * cut.rows;
    start = (frame * call.pixels + row) * call.channels;
    rows = std::min(cut.rows, call.pixels - row);
    group = call.owner[frame];
  }
};

int64_t useful_threads(const NormCall& call, int64_t values) { return values < worth_a_thread ? 1 : call.threads; }

// Calls work(piece) for the pieces of some groups.
template <class Work>
void by_piece(const NormCall& call, const Batch& batch, const Work& work) {
  spread(batch.pieces, useful_threads(call, call.frames * call.pixels * call.channels), work);
}

// Calls work(group, first channel, last channel) for tiles of channels of some groups.
template <class Work>
void by_group(const NormCall& call, const Batch& batch, const Work& work) {
  const int64_t tiles = (call.channels + merged_at_once - 1) / merged_at_once;
  spread((batch.to - batch.from) * tiles, useful_threads(call, batch.pieces * call.channels), [&](int64_t item) {
    const int64_t from = item % tiles * merged_at_once;
    work(batch.from + item / tiles, from, std::min(from + merged_at_once, call.channels));
  });
}

// Calls body(call, batch) for all groups: a thread for each of them, or all threads for all.
template <class Body>
void by_batch(const NormCall& call, const Cut& cut, const Body& body) {
  const int64_t threads = useful_threads(call, call.frames * call.pixels * call.channels);
  const int64_t turns = (call.groups + threads - 1) / threads;
  if (turns * threads * 100 > call.groups * (100 + worst_wait)) return body(call, Batch(cut, 0, call.groups));
  NormCall alone = call;
  alone.threads = 1;
  spread(call.groups, threads, [&](int64_t group) { body(alone, Batch(cut, group, group + 1)); });
}

// Whether a result that begins here is stored past the caches, line by line.
bool goes_past(const NormCall& call, const void* result, int64_t item_bytes) {
  const int64_t row_bytes = call.channels * item_bytes;
  const bool in_lines = row_bytes % line_bytes == 0 && reinterpret_cast<uintptr_t>(result) % line_bytes == 0;
  return in_lines && call.frames * call.pixels * row_bytes >= large_bytes;
}

// Stores past the caches are seen by other threads from here on.
void finish_stores() {
#if HPC_STRES_FMA
  _mm_sfence();
#endif
}

// What the arithmetic reads beside activations, by group and channel.
template <class Sum>
struct Coefficients {
  int64_t first, channels;
  std::unique_ptr<Sum[]> mean, slope, shift, curve;

  Coefficients(const NormCall& call, const Batch& batch, bool backward) : first(batch.from), channels(call.channels) {
    const size_t count = static_cast<size_t>((batch.to - batch.from) * call.channels);
    for (auto* table : {&mean, &slope}) table->reset(new Sum[count]);
    if (!backward) return;
    for (auto* table : {&shift, &curve}) table->reset(new Sum[count]);
  }

  // Where a group's row of the tables begins.
  int64_t row(int64_t group) const { return (group - first) * channels; }

  // y = (x - mean) * slope + bias.
  void fill(const NormCall& call, int64_t group, int64_t from, int64_t to) {
    const Sum* weight = static_cast<const Sum*>(call.weight);
    for (int64_t c = from, to_fill = row(group) + from, at = group * channels + from; c < to; ++c, ++at, ++to_fill) {
      mean[to_fill] = static_cast<Sum>(call.mean[at]);
      slope[to_fill] = static_cast<Sum>(weight[c] / std::sqrt(call.variance[at] + call.eps));
    }
  }

  // gradient of x = gradient * slope - shift - (x - mean) * curve: moments feel every x.
  void fill_backward(const NormCall& call, int64_t group, int64_t from, int64_t to) {
    const double count = std::max(call.count[group], 1.0);
    const Sum* weight = static_cast<const Sum*>(call.weight);
    for (int64_t c = from, to_fill = row(group) + from, at = group * channels + from; c < to; ++c, ++at, ++to_fill) {
      const double square = call.variance[at] + call.eps, exact = weight[c] / std::sqrt(square);
      shift[to_fill] = static_cast<Sum>(call.sums[at] / count * exact);
      curve[to_fill] = static_cast<Sum>(call.products[at] / count * exact / square);
    }
  }
};

// Moments of a group from those of its pieces, which are (mean, squares about it) by channel.
template <class Sum>
void merge_moments(const NormCall& call, const Cut& cut, const Batch& batch, const Sum* parts, int64_t group,
                   int64_t from, int64_t to) {
  const int64_t channels = call.channels, frames = cut.edges[group + 1] - cut.edges[group];
  const double count = static_cast<double>(frames * call.pixels), divisor = std::max(count, 1.0);
  double *mean = call.mean + group * channels, *variance = call.variance + group * channels;
  if (from == 0) call.count[group] = count;
  std::fill(mean + from, mean + to, 0.0);
  std::fill(variance + from, variance + to, 0.0);
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t k = cut.first_piece(group); k < cut.first_piece(group + 1); ++k) {
      const Sum *part = parts + 2 * (k - batch.first_piece) * channels, *squares = part + channels;
      const double rows = static_cast<double>(Piece(call, cut, k).rows);
      for (int64_t c = from; c < to; ++c) {
        const double off = part[c] - mean[c];
        if (pass == 0)
          variance[c] += rows * part[c];
        else
          variance[c] += squares[c] + rows * off * off;
      }
    }
    for (int64_t c = from; c < to; ++c) {
      (pass == 0 ? mean : variance)[c] = variance[c] / divisor;
      if (pass == 0) variance[c] = 0.0;
    }
  }
}

// Two sums of a group from those of its pieces.
template <class Sum>
void merge_sums(const NormCall& call, const Cut& cut, const Batch& batch, const Sum* parts, int64_t group,
                int64_t from, int64_t to) {
  const int64_t channels = call.channels;
  double *sums = call.sums + group * channels, *products = call.products + group * channels;
  std::fill(sums + from, sums + to, 0.0);
  std::fill(products + from, products + to, 0.0);
  for (int64_t k = cut.first_piece(group); k < cut.first_piece(group + 1); ++k) {
    const Sum* part = parts + 2 * (k - batch.first_piece) * channels;
    for (int64_t c = from; c < to; ++c) {
      sums[c] += part[c];
      products[c] += part[channels + c];
    }
  }
}

}  // namespace

#define ARITHMETIC "norm_lanes.h"
#include "levels.h"

namespace {

bool is_sound(const NormCall& call) {
  if (call.frames < 1 || call.pixels < 1 || call.channels < 1 || call.groups < 1) return false;
  if (call.kind < float32 || call.kind > float64 || call.gate < open || call.gate > read) return false;
  for (int64_t f = 0; f < call.frames; ++f)
    if (call.owner[f] < 0 || call.owner[f] >= call.groups) return false;
  return true;
}

using Step = void (*)(const NormCall&);

int run(const NormCall& call, Step plain_step, Step wide_step, bool wide) {
  if (!is_sound(call)) return bad_call;
  try {
    (wide && call.kind != float64 && has_wide_vectors() ? wide_step : plain_step)(call);
  } catch (const std::bad_alloc&) {
    return no_memory;
  }
  return done;
}

}  // namespace

#if HPC_STRES_WIDE
#define STEP(name) \
  extern "C" int norm_##name(const NormCall* call, int wide) { return run(*call, plain::name, wide::name, wide); }
#else
#define STEP(name) \
  extern "C" int norm_##name(const NormCall* call, int wide) { return run(*call, plain::name, plain::name, wide); }
#endif

// Count, mean and variance of each group.
STEP(moments)
// result = (x - mean) / sigma * weight + bias, + residual where there is one, rectified where
// asked for; from given moments.
STEP(values)
// Both.
STEP(forward)
// Sums of the gradient behind the ReLU, and of its product with centred x; that gradient itself
// goes to `passed` where it takes more than x to know it.
STEP(backward_sums)
// result = the gradient of x, from given sums.
STEP(backward_values)
// Both.
STEP(backward)

// The size of a call, for the other side to compare its own with.
extern "C" int64_t norm_call_bytes() { return sizeof(NormCall); }
