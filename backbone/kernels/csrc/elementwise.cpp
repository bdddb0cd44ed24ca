// GELU with its derivative, and the change of layout from channels-last to NCHW.

#include <algorithm>

#include "vector.h"

namespace {

constexpr int64_t CHUNK = 1 << 14;  // floats a task

// x Phi(x) and its derivative Phi(x) + x phi(x). Phi by formula 7.1.26 of Abramowitz and Stegun,
// which PyTorch takes too on AVX2: absolute error 8e-8. It needs exp(-x^2 / 2), as phi does.
inline void gelu(vec x, vec& value, vec& slope) {
  const vec size = (vec)((ivec)x & 0x7fffffff), bell = exp2(x * x * (-0.5f * LOG2E));
  const vec t = 1 / (1 + 0.231641888f * size);  // 0.3275911 / sqrt(2)
  vec p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const vec tail = 0.5f * p * t * bell;  // Phi(-size)
  const vec share = x < 0 ? tail : 1 - tail;
  value = x * share;
  slope = share + x * (0.3989422804f * bell);
}

}  // namespace

// y = GELU(x), and its derivative in the place of x; ``count`` floats
extern "C" void rmt_gelu(float* x, float* y, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t start = 0; start < count; start += CHUNK) {
    const int64_t end = std::min(start + CHUNK, count);
    for (int64_t i = start; i < end; i += LANES) {
      const int some = std::min<int64_t>(LANES, end - i);
      vec value, slope;
      gelu(load_some(x + i, some), value, slope);
      store_some(y + i, value, some);
      store_some(x + i, slope, some);
    }
  }
}

// x (B, H, W, C) -> out (B, C, H, W)
extern "C" void rmt_to_nchw(const float* x, float* out, int B, int H, int W, int C, int threads) {
  const int64_t places = (int64_t)H * W;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int b = 0; b < B; ++b)
    for (int64_t p = 0; p < places; p += LANES) {
      const int some = std::min<int64_t>(LANES, places - p);
      for (int c = 0; c < C; c += LANES) {
        const int deep = std::min(LANES, C - c);
        vec m[LANES];
        for (int i = 0; i < LANES; ++i)
          m[i] = i < some ? load_some(x + (b * places + p + i) * C + c, deep) : vec{};
        transpose(m);
        for (int i = 0; i < deep; ++i) store_some(out + (b * C + c + i) * places + p, m[i], some);
      }
    }
}
