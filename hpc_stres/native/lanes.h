// Vectors of LANE_BYTES, and activations as they lie in memory. Included once for each kind of
// processor, inside its namespace LANES_OF; needs <cstdint>, <cstring>, <type_traits>, and
// <immintrin.h> where HPC_STRES_FMA is set.

template <class Number, int lanes>
struct Vectors {
  typedef Number Vector __attribute__((vector_size(sizeof(Number) * lanes)));
};

template <class Number, int lanes>
using Vector = typename Vectors<Number, lanes>::Vector;

template <class V>
inline V loaded(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// a * b + c, rounded once.
template <class Number, int lanes>
inline Vector<Number, lanes> fused(Vector<Number, lanes> a, Vector<Number, lanes> b, Vector<Number, lanes> c) {
#if HPC_STRES_FMA
#if LANE_BYTES == 64
  if constexpr (sizeof a == 64 && sizeof(Number) == 4) return _mm512_fmadd_ps(a, b, c);
  if constexpr (sizeof a == 64 && sizeof(Number) == 8) return _mm512_fmadd_pd(a, b, c);
#endif
  if constexpr (sizeof a == 32 && sizeof(Number) == 4) return _mm256_fmadd_ps(a, b, c);
  if constexpr (sizeof a == 32 && sizeof(Number) == 8) return _mm256_fmadd_pd(a, b, c);
  if constexpr (lanes == 1 && sizeof(Number) == 4)
    return Vector<Number, lanes>{__builtin_fmaf(a[0], b[0], c[0])};
  if constexpr (lanes == 1 && sizeof(Number) == 8) return Vector<Number, lanes>{__builtin_fma(a[0], b[0], c[0])};
#endif
  return a * b + c;
}

// A store past the caches, for results that are too large to be found there later: the line that is
// written is not read first. Only whole vectors at places that suit them; else an ordinary store.
template <class V>
inline void store_past(void* to, const V& v) {
#if HPC_STRES_FMA
#if LANE_BYTES == 64
  if constexpr (sizeof v == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#endif
  if constexpr (sizeof v == 32) return _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
  if constexpr (sizeof v == 16) return _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
#endif
  std::memcpy(to, &v, sizeof v);
}

template <class V>
inline void store_to(void* to, const V& v, bool past) {
  if (past)
    store_past(to, v);
  else
    std::memcpy(to, &v, sizeof v);
}

// How activations lie in memory, and the type that is computed in.
template <class Number>
struct Same {
  using Stored = Number;
  using Sum = Number;
  template <int lanes>
  static Vector<Sum, lanes> load(const Stored* from) {
    return loaded<Vector<Sum, lanes>>(from);
  }
  template <int lanes>
  static void store(Stored* to, Vector<Sum, lanes> v, bool past = false) {
    store_to(to, v, past);
  }
};

struct Brain {
  using Stored = uint16_t;
  using Sum = float;
  template <int lanes>
  static Vector<Sum, lanes> load(const Stored* from) {
    return reinterpret_cast<Vector<Sum, lanes>>(widened(loaded<Vector<uint16_t, lanes>>(from)) << 16);
  }
  template <class Halves, int lanes = sizeof(Halves) / 2>
  static Vector<uint32_t, lanes> widened(Halves v) {
    using Bits = Vector<uint32_t, lanes>;
#if HPC_STRES_FMA
#if LANE_BYTES == 64
    if constexpr (lanes == 16)
      return reinterpret_cast<Bits>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(v)));
#endif
    if constexpr (lanes == 8) return reinterpret_cast<Bits>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
#endif
    return __builtin_convertvector(v, Bits);
  }
  // Rounded to the nearest, to even in the middle; what is not a number stays that.
  template <int lanes>
  static void store(Stored* to, Vector<Sum, lanes> v, bool past = false) {
    using Bits = Vector<uint32_t, lanes>;
    const Bits bits = reinterpret_cast<Bits>(v);
    Bits upper = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    upper = v != v ? (bits >> 16) | 0x40 : upper;
    const Vector<uint16_t, lanes> halves = narrow<lanes>(upper);
    store_to(to, halves, past);
  }
  template <int lanes>
  static Vector<uint16_t, lanes> narrow(Vector<uint32_t, lanes> v) {
#if HPC_STRES_FMA
#if LANE_BYTES == 64
    if constexpr (lanes == 16)
      return reinterpret_cast<Vector<uint16_t, lanes>>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(v)));
#endif
    if constexpr (lanes == 8) {
      const __m256i twice = _mm256_packus_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(v));
      const __m256i low = _mm256_permute4x64_epi64(twice, 0x08);
      return reinterpret_cast<Vector<uint16_t, lanes>>(_mm256_castsi256_si128(low));
    }
#endif
    return __builtin_convertvector(v, Vector<uint16_t, lanes>);
  }
};

// Calls body(channel, lanes as a type) for all channels of a row.
template <class Sum, class Body>
inline void each_vector(int64_t channels, const Body& body) {
  constexpr int lanes = LANE_BYTES / sizeof(Sum);
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) body(c, std::integral_constant<int, lanes>());
  for (; c < channels; ++c) body(c, std::integral_constant<int, 1>());
}

// Calls body(type) with the type of a call's activations. Doubles, which are for proofs, take the
// plain vectors everywhere.
template <class Call, class Body>
inline void with_type(const Call& call, const Body& body) {
  if (call.kind == float32) return body(Same<float>());
  if (call.kind == bfloat16) return body(Brain());
#if LANE_BYTES != 64
  body(Same<double>());
#endif
}
