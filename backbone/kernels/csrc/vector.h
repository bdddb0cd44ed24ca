// Vectors of floats, as wide as the processor's, by GCC's vector extensions.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

#ifdef RMT_LANES  // to test, on any processor, what the widest one computes
constexpr int LANES = RMT_LANES;
#elif defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
// of the vectors that the processor has itself; wider ones the compiler puts together
#if defined(__AVX512F__)
constexpr int REGISTER = 16;
#elif defined(__AVX__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif
constexpr float LOG2E = 1.44269504088896341f;
// the accumulators of a tile stay in registers only where its loops are unrolled
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));  // its sums and shifts may overflow

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
// The first ``count`` floats alone, zeros behind them.
inline vec load_some(const float* p, int count) {
  if (count >= LANES) return load(p);
  vec v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
inline void store_some(float* p, vec v, int count) {
  if (count >= LANES) return store(p, v);
  for (int i = 0; i < count; ++i) p[i] = v[i];
}
// In a register from here on: GCC would rather read it from memory once for every use.
inline vec keep(vec x) {
#ifdef __AVX__
  if constexpr (LANES == REGISTER) asm("" : "+x"(x));
#endif
  return x;
}
inline vec splat(float x) { return vec{} + x; }
// Shuffles by patterns that the compiler sees as constants: L counts the lanes.
using Lanes = std::make_integer_sequence<int, LANES>;
template <int FAR, int... L>
inline vec swap(vec v, std::integer_sequence<int, L...>) {
  return __builtin_shuffle(v, ivec{(L ^ FAR)...});
}
// a and b with the parts of FAR lanes exchanged: those of b that come first against a's second
template <int FAR, int... L>
inline void exchange(vec& a, vec& b, std::integer_sequence<int, L...>) {
  const vec first = __builtin_shuffle(a, b, ivec{(L & FAR ? LANES + L - FAR : L)...});
  b = __builtin_shuffle(a, b, ivec{(L & FAR ? LANES + L : L + FAR)...});
  a = first;
}
inline vec swap_pairs(vec v) { return swap<1>(v, Lanes{}); }
inline float sum(vec v) {
  if (LANES > 8) v += swap<8 % LANES>(v, Lanes{});
  v += swap<4>(v, Lanes{});
  v += swap<2>(v, Lanes{});
  return v[0] + v[1];
}
template <int FAR = 1>
inline void transpose(vec* m) {  // LANES of them
  if constexpr (FAR < LANES) {
    UNROLL for (int i = 0; i < LANES; ++i) if (!(i & FAR)) exchange<FAR>(m[i], m[i + FAR], Lanes{});
    transpose<2 * FAR>(m);
  }
}
inline int round_up(int x, int step) { return (x + step - 1) / step * step; }

// The larger of x and a constant; NaN where x is.
inline vec at_least(float low, vec x) {
#if defined(__AVX512F__) && !defined(RMT_LANES)
  return (vec)_mm512_max_ps((__m512)splat(low), (__m512)x);
#elif defined(__AVX__) && !defined(RMT_LANES)
  return (vec)_mm256_max_ps((__m256)splat(low), (__m256)x);
#else
  return x < splat(low) ? splat(low) : x;
#endif
}

// 2^x for x up to 127, 2^-126 below it, relative error 2e-7: x = n + f with |f| <= 1/2, a minimax
// polynomial in f, n into the exponent.
inline vec exp2(vec x) {
  x = at_least(-126, x);
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vec shifted = x + magic;
  vec f = x - (shifted - magic);
  vec p = splat(1.32764722e-3f);
  p = p * f + 9.67554189e-3f;
  p = p * f + 5.55071346e-2f;
  p = p * f + 2.40221202e-1f;
  p = p * f + 6.93146974e-1f;
  p = p * f + 1.00000007f;
  return (vec)((uvec)p + ((uvec)shifted << 23));
}

}  // namespace
