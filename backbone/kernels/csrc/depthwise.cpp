// Gradients of a depthwise K x K convolution on (B, H, W, C) float32, K 3 or 5, stride 1, zero
// padding K / 2. (Its forward pass is PyTorch's, which is as fast as memory.)
//
// An image is cut into tiles of few enough floats for the L2 cache; a tile is packed with its
// border, zeros included, so that the loops over it know no edges.

#include <algorithm>

#include <omp.h>

#include "scratch.h"
#include "vector.h"

namespace {

// Most of a tile: the more channels lie side by side, the fewer but longer pieces it is read in.
constexpr int CHANNELS = 192, FEW = 64;
constexpr int ROWS = 12, COLS = 32;           // of a tile of FEW channels
constexpr int LESS_ROWS = 8, LESS_COLS = 16;  // of a tile of more
constexpr int WIDE = 4;                       // results side by side in registers

struct Image {
  int H, W, C;
  const float* at(const float* x, int b, int h, int w, int c) const {
    return x + (((int64_t)b * H + h) * W + w) * C + c;
  }
  float* at(float* x, int b, int h, int w, int c) const {
    return x + (((int64_t)b * H + h) * W + w) * C + c;
  }
};

// Cuts a batch of images into tiles, the same ones for any number of threads.
struct Tiling {
  int B, down, across, deep, rows, cols, channels;
  Tiling(int B, const Image& image) : B(B) {
    const auto even = [](int size, int most) {
      const int parts = (size + most - 1) / most;
      return (size + parts - 1) / parts;
    };
    channels = round_up(even(image.C, CHANNELS), LANES);
    rows = even(image.H, channels > FEW ? LESS_ROWS : ROWS);
    cols = even(image.W, channels > FEW ? LESS_COLS : COLS);
    down = (image.H + rows - 1) / rows, across = (image.W + cols - 1) / cols;
    deep = (image.C + channels - 1) / channels;
  }
  int count() const { return B * down * across * deep; }
};
struct Tile {
  int b, h, w, c, rows, cols, channels;
  int padded;  // channels that packed places are apart, the same in all tiles
  Tile(const Tiling& t, const Image& image, int i) : padded(t.channels) {
    c = i % t.deep * t.channels, i /= t.deep;
    w = i % t.across * t.cols, i /= t.across;
    h = i % t.down * t.rows, b = i / t.down;
    rows = std::min(t.rows, image.H - h);
    cols = std::min(t.cols, image.W - w);
    channels = std::min(t.channels, image.C - c);
  }
};

// A tile of x with its border, (rows + K - 1, cols + K - 1, padded).
template <int K>
struct Packed {
  static constexpr int SIZE = std::max((ROWS + K - 1) * (COLS + K - 1) * FEW,
                                       (LESS_ROWS + K - 1) * (LESS_COLS + K - 1) * CHANNELS);
  float* data;       // SIZE
  int padded, line;  // floats of a place and of a row

  const float* at(int h, int w, int c) const { return data + h * line + w * padded + c; }

  void fill(const float* x, const Image& image, const Tile& tile) {
    padded = tile.padded;
    line = (tile.cols + K - 1) * padded;
    for (int r = 0; r < tile.rows + K - 1; ++r) {
      const int h = tile.h + r - K / 2;
      for (int s = 0; s < tile.cols + K - 1; ++s) {
        const int w = tile.w + s - K / 2;
        float* to = data + r * line + s * padded;
        const bool inside = h >= 0 && h < image.H && w >= 0 && w < image.W;
        const float* from = inside ? image.at(x, tile.b, h, w, tile.c) : nullptr;
        for (int c = 0; c < tile.channels; c += LANES)
          store(to + c, inside ? load_some(from + c, tile.channels - c) : vec{});
      }
    }
  }
};

// Weights (C, 1, K, K) of a tile's channels as (K, K, CHANNELS), mirrored.
template <int K>
struct Weights {
  alignas(64) float data[K * K * CHANNELS];
  Weights(const float* weight, const Tile& tile) {
    for (int k = 0; k < K * K; ++k)
      for (int c = 0; c < tile.padded; ++c)
        data[k * CHANNELS + c] =
            c < tile.channels ? weight[(int64_t)(tile.c + c) * K * K + K * K - 1 - k] : 0;
  }
};

// finish(w + t, sum_ij weights[i, j] * x[h + i, w + t + j]) for the N places from (h, w) on
template <int K, int N, class Finish>
inline void convolve(const Packed<K>& x, const Weights<K>& weights, int h, int w, int c,
                     const Finish& finish) {
  vec acc[N] = {};
  UNROLL for (int i = 0; i < K; ++i) {
    vec in[N + K - 1];
    UNROLL for (int t = 0; t < N + K - 1; ++t) in[t] = keep(load(x.at(h + i, w + t, c)));
    UNROLL for (int j = 0; j < K; ++j) {
      const vec weight = keep(load(weights.data + (i * K + j) * CHANNELS + c));
      UNROLL for (int t = 0; t < N; ++t) acc[t] += weight * in[t + j];
    }
  }
  UNROLL for (int t = 0; t < N; ++t) finish(w + t, acc[t]);
}
template <int K, class Finish>
inline void convolve_row(const Packed<K>& x, const Weights<K>& weights, const Tile& tile, int h,
                         const Finish& finish) {
  int w = 0;
  for (; w + WIDE <= tile.cols; w += WIDE)
    for (int c = 0; c < tile.channels; c += LANES)
      convolve<K, WIDE>(x, weights, h, w, c, [&](int at, vec sum) { finish(at, c, sum); });
  for (; w < tile.cols; ++w)
    for (int c = 0; c < tile.channels; c += LANES)
      convolve<K, 1>(x, weights, h, w, c, [&](int at, vec sum) { finish(at, c, sum); });
}

// sums[k] += sum_w a[h + i, w + j] * g[w], sums[K * K] += sum_w g[w], over a row of a tile
template <int K>
inline void gather(const Packed<K>& a, const Packed<K>& g, const Tile& tile, int h, int c,
                   float* sums) {
  UNROLL for (int i = 0; i < K; ++i) {
    vec acc[K] = {}, total = {};
    for (int w = 0; w < tile.cols; ++w) {
      const vec y = keep(load(g.at(h + K / 2, w + K / 2, c)));
      UNROLL for (int j = 0; j < K; ++j) acc[j] += y * load(a.at(h + i, w + j, c));
      if (i == 0) total += y;
    }
    UNROLL for (int j = 0; j < K; ++j) {
      float* at = sums + (i * K + j) * tile.padded + c;
      store(at, load(at) + acc[j]);
    }
    float* at = sums + K * K * tile.padded + c;
    if (i == 0) store(at, load(at) + total);
  }
}

// ``sums`` (K * K + 1, padded) are a tile's part of the gradients of weight and bias; ``slope`` is
// multiplied to dx, if there is one.
template <int K>
void backward(const float* x, const float* weight, const float* grad, const float* slope, float* dx,
              float* sums, const Image& image, const Tile& tile, Packed<K>& a, Packed<K>& g) {
  a.fill(x, image, tile);
  g.fill(grad, image, tile);
  const Weights<K> weights(weight, tile);
  std::memset(sums, 0, sizeof(float) * (K * K + 1) * tile.padded);
  for (int h = 0; h < tile.rows; ++h) {
    convolve_row<K>(g, weights, tile, h, [&](int w, int c, vec sum) {
      float* to = image.at(dx, tile.b, tile.h + h, tile.w + w, tile.c + c);
      if (slope) sum *= load_some(slope + (to - dx), tile.channels - c);
      store_some(to, sum, tile.channels - c);
    });
    for (int c = 0; c < tile.channels; c += LANES) gather<K>(a, g, tile, h, c, sums);
  }
}

// Floats of the tiles' sums, and of the two packed tiles of a thread.
template <int K>
constexpr size_t PACKED = Scratch::size(2 * Packed<K>::SIZE);
inline int64_t all_sums(const Tiling& tiling, int K) {
  return (int64_t)tiling.count() * (K * K + 1) * tiling.channels;
}

template <int K>
void backward_all(const float* x, const float* weight, const float* grad, const float* slope,
                  float* dx, float* dweight, float* dbias, float* scratch, int B,
                  const Image& image, int threads) {
  const Tiling tiling(B, image);
  const int size = (K * K + 1) * tiling.channels;
  float* const sums = scratch + PACKED<K> * threads;
#pragma omp parallel num_threads(threads)
  {
    Scratch own(scratch, PACKED<K>, omp_get_thread_num());
    Packed<K> a{own.take(Packed<K>::SIZE), 0, 0}, g{own.take(Packed<K>::SIZE), 0, 0};
#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < tiling.count(); ++i)
      backward<K>(x, weight, grad, slope, dx, sums + (int64_t)i * size, image, {tiling, image, i},
                  a, g);
  }
  // in the order of the tiles: the same result in every run
  for (int c = 0; c < image.C; ++c)
    for (int k = 0; k <= K * K; ++k) {
      double total = 0;
      for (int i = c / tiling.channels; i < tiling.count(); i += tiling.deep)
        total += sums[(int64_t)i * size + k * tiling.channels + c % tiling.channels];
      (k < K * K ? dweight[(int64_t)c * K * K + k] : dbias[c]) = total;
    }
}

}  // namespace

// x grad slope dx (B, H, W, C), weight dweight (C, 1, K, K), dbias (C). ``slope``, the derivative
// of what made x, is multiplied to dx; may be null. ``scratch`` has as many floats as the function
// of that name tells for the same numbers.
extern "C" void rmt_depthwise_backward(const float* x, const float* weight, const float* grad,
                                       const float* slope, float* dx, float* dweight, float* dbias,
                                       float* scratch, int B, int H, int W, int C, int K,
                                       int threads) {
  const auto run = K == 3 ? backward_all<3> : backward_all<5>;
  run(x, weight, grad, slope, dx, dweight, dbias, scratch, B, {H, W, C}, threads);
}
extern "C" int64_t rmt_depthwise_backward_scratch(int B, int H, int W, int C, int K, int threads) {
  const Tiling tiling(B, {H, W, C});
  return all_sums(tiling, K) + (K == 3 ? PACKED<3> : PACKED<5>) * threads;
}
