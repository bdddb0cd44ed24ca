// Manhattan self-attention on a CPU, forward and backward, without scores or decays in memory.
//
// Tensors are contiguous (B, H, W, n, d) float32; q and k come unturned and unscaled. A task is one
// head of one sequence: a row, a column, or a whole image. A sequence is a grid of gh x gw tokens
// (a row or column has gh = 1) with the decay rate * (|dh| + |dw|) between them. Keys are taken in
// segments of one grid row, so that their decay is a slice of one small table, which the matrix
// product starts from. Everything inside is in units of log2: 2^x needs no multiplication.
//
// Keys that cannot matter are left out. The score of a query with its own key is a lower bound of
// log2(sum(2^score)), so what lies CUTOFF below it changes the result by less than keys * 2^-CUTOFF;
// Cauchy-Schwarz and the decay often tell that of a whole segment before any product.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
// the accumulators of a tile stay in registers only where its loops are unrolled
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

constexpr int QUERIES = 36;       // queries a tile: scores and one segment stay in the L1 cache
constexpr int GROUP = 8;          // tiles that a segment serves before it leaves the L1 cache
constexpr int SEGMENT = 48;       // most keys a segment
constexpr float CUTOFF = 40;      // 2^-40 of the sum is far below float32's 2^-24
constexpr float HEADROOM = 60;    // a score this far above the reference moves the reference
constexpr int PIECES = 16;         // most pieces that a task cuts its scratch memory into
constexpr float LOWEST = -1e30f;  // score of a key that is only padding
constexpr float LOG2E = 1.44269504088896341f;

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec splat(float x) { return vec{} + x; }
inline float sum(vec v) {
  float s = 0;
  for (int i = 0; i < LANES; ++i) s += v[i];
  return s;
}
inline vec swap_pairs(vec v) {
  ivec other;
  for (int i = 0; i < LANES; ++i) other[i] = i ^ 1;
  return __builtin_shuffle(v, other);
}
inline int round_up(int x, int step) { return (x + step - 1) / step * step; }

// 2^x for x in [-126, 127], relative error 2e-7: x = n + f, Taylor in f * ln 2, n into the exponent.
inline vec exp2(vec x) {
  x = x < splat(-126.0f) ? splat(-126.0f) : x;
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vec shifted = x + magic;
  vec f = x - (shifted - magic);
  vec p = splat(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return (vec)((ivec)p + ((ivec)shifted << 23));
}

// --- matrix products of tiles -------------------------------------------------------------------

// finish(r, c, start(r, c) + sum_k A[r, k] * Bt[k, c]) for LANES columns from c on
template <int R, int V, class Start, class Finish>
inline void product_tile(const float* A, int lda, const float* Bt, int ldb, int depth, int r0,
                         int c0, const Start& start, const Finish& finish) {
  vec acc[R][V];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int v = 0; v < V; ++v) acc[r][v] = start(r0 + r, c0 + v * LANES);
  for (int k = 0; k < depth; ++k) {
    vec b[V];
    UNROLL for (int v = 0; v < V; ++v) b[v] = load(Bt + k * ldb + c0 + v * LANES);
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) acc[r][v] += A[(r0 + r) * lda + k] * b[v];
  }
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int v = 0; v < V; ++v) finish(r0 + r, c0 + v * LANES, acc[r][v]);
}

template <int R, class Start, class Finish>
inline void product_rows(const float* A, int lda, const float* Bt, int ldb, int depth, int r,
                         int cols, const Start& start, const Finish& finish) {
  int c = 0;
  for (; c + 2 * LANES <= cols; c += 2 * LANES)
    product_tile<R, 2>(A, lda, Bt, ldb, depth, r, c, start, finish);
  if (c < cols) product_tile<R, 1>(A, lda, Bt, ldb, depth, r, c, start, finish);
}

template <class Start, class Finish>
inline void product(const float* A, int lda, int rows, const float* Bt, int ldb, int depth,
                    int cols, const Start& start, const Finish& finish) {
  int r = 0;
  for (; r + 6 <= rows; r += 6)
    product_rows<6>(A, lda, Bt, ldb, depth, r, cols, start, finish);
  if (r + 4 <= rows) {
    product_rows<4>(A, lda, Bt, ldb, depth, r, cols, start, finish);
    r += 4;
  }
  for (; r + 2 <= rows; r += 2)
    product_rows<2>(A, lda, Bt, ldb, depth, r, cols, start, finish);
  if (r < rows) product_rows<1>(A, lda, Bt, ldb, depth, r, cols, start, finish);
}

// C[r, :] += sum_k A[r * step_r + k * step_k] * B[k, :] for V vectors of columns
template <int R, int V>
inline void mac_tile(const float* A, int step_r, int step_k, int count, const float* B, int ldb,
                     float* C, int ldc) {
  vec acc[R][V];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int v = 0; v < V; ++v) acc[r][v] = load(C + r * ldc + v * LANES);
  for (int k = 0; k < count; ++k) {
    vec b[V];
    UNROLL for (int v = 0; v < V; ++v) b[v] = load(B + k * ldb + v * LANES);
    UNROLL for (int r = 0; r < R; ++r) {
      const float a = A[r * step_r + k * step_k];
      UNROLL for (int v = 0; v < V; ++v) acc[r][v] += a * b[v];
    }
  }
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int v = 0; v < V; ++v) store(C + r * ldc + v * LANES, acc[r][v]);
}

template <int R, int V>
void mac_rows(const float* A, int step_r, int step_k, int rows, int count, const float* B, int ldb,
              float* C, int ldc) {
  int r = 0;
  for (; r + R <= rows; r += R)
    mac_tile<R, V>(A + r * step_r, step_r, step_k, count, B, ldb, C + r * ldc, ldc);
  if (r + 2 <= rows) {
    mac_tile<2, V>(A + r * step_r, step_r, step_k, count, B, ldb, C + r * ldc, ldc);
    r += 2;
  }
  for (; r < rows; ++r)
    mac_tile<1, V>(A + r * step_r, step_r, step_k, count, B, ldb, C + r * ldc, ldc);
}

// C[rows, width] += A B, width a multiple of LANES
void mac(const float* A, int step_r, int step_k, int rows, int count, const float* B, int width,
         float* C) {
  int c = 0;
  for (; c + 4 * LANES <= width; c += 4 * LANES)
    mac_rows<3, 4>(A, step_r, step_k, rows, count, B + c, width, C + c, width);
  switch ((width - c) / LANES) {
    case 3: mac_rows<4, 3>(A, step_r, step_k, rows, count, B + c, width, C + c, width); break;
    case 2: mac_rows<6, 2>(A, step_r, step_k, rows, count, B + c, width, C + c, width); break;
    case 1: mac_rows<6, 1>(A, step_r, step_k, rows, count, B + c, width, C + c, width); break;
  }
}

// --- one head of one sequence ---------------------------------------------------------------------

struct Shape {
  int B, H, W, n, d, mode;  // mode: 0 whole, 1 rows, 2 columns
  int gh, gw, sequences;
  int segments, length, padded;  // segments a grid row, keys a segment, the same padded
  int width;                     // d padded
  float scale;

  Shape(int B, int H, int W, int n, int d, int mode) : B(B), H(H), W(W), n(n), d(d), mode(mode) {
    gh = mode == 0 ? H : 1;
    gw = mode == 2 ? H : W;
    sequences = mode == 0 ? B : mode == 1 ? B * H : B * W;
    segments = (gw + SEGMENT - 1) / SEGMENT;
    length = (gw + segments - 1) / segments;
    padded = round_up(length, LANES);
    width = round_up(d, LANES);
    scale = LOG2E / std::sqrt((float)d);
  }
  int tokens() const { return gh * gw; }
  int blocks() const { return gh * segments; }
};

// Places a block of keys in its sequence.
struct Block {
  int h, w, count, first;  // grid row, first column, keys, first token
  Block(const Shape& s, int i) {
    h = i / s.segments;
    w = i % s.segments * s.length;
    count = std::min(s.length, s.gw - w);
    first = h * s.gw + w;
  }
};

// One head of one sequence: where its tokens are, and how they are brought into tiles.
struct Head {
  const Shape& s;
  const float *cos, *sin;  // each angle twice, the first sine negative
  int sequence, head;
  float rate;              // of the decay, in log2
  int64_t start, angles;   // token 0: its place in the batch, and in its image
  int step;                // from one token to the next

  Head(const Shape& s, const float* cos, const float* sin, const float* rates, int task)
      : s(s), cos(cos), sin(sin), sequence(task / s.n), head(task % s.n) {
    rate = rates[head] * LOG2E;
    start = s.mode == 0   ? (int64_t)sequence * s.H * s.W
            : s.mode == 1 ? (int64_t)sequence * s.W
                          : (int64_t)(sequence / s.W) * s.H * s.W + sequence % s.W;
    step = s.mode == 2 ? s.W : 1;
    angles = start % ((int64_t)s.H * s.W);
  }
  const float* row(const float* x, int t) const {
    return x + ((start + (int64_t)t * step) * s.n + head) * s.d;
  }
  float* row(float* x, int t) const {
    return x + ((start + (int64_t)t * step) * s.n + head) * s.d;
  }
  // x of a token, zero beyond d
  void pack(const float* x, int t, float* out) const {
    const float *y = row(x, t), *ahead = y + (int64_t)8 * step * s.n * s.d;
    int c = 0;
    for (; c + LANES <= s.d; c += LANES) {
      if (step > 1) __builtin_prefetch(ahead + c);  // far apart: the processor does not foresee it
      store(out + c, load(y + c));
    }
    for (; c < s.width; ++c) out[c] = c < s.d ? y[c] : 0;
  }
  // adjacent channels (a, b) -> (a cos - b sin, b cos + a sin) * factor, in place
  void turn(float* x, int t, float factor) const {
    const int64_t at = (angles + (int64_t)t * step) * s.width;
    for (int c = 0; c < s.width; c += LANES) {
      const vec y = load(x + c) * factor;
      store(x + c, y * load(cos + at + c) + swap_pairs(y) * load(sin + at + c));
    }
  }
  void turn_back(float* x, int t, float factor) const {
    const int64_t at = (angles + (int64_t)t * step) * s.width;
    for (int c = 0; c < s.width; c += LANES) {
      const vec y = load(x + c) * factor;
      store(x + c, y * load(cos + at + c) - swap_pairs(y) * load(sin + at + c));
    }
  }
  float dot(const float* x, const float* y) const {
    vec total = {};
    for (int c = 0; c < s.width; c += LANES) total += load(x + c) * load(y + c);
    return sum(total);
  }
  void unpack(const float* x, int t, float* out) const {
    float* y = row(out, t);
    int c = 0;
    for (; c + LANES <= s.d; c += LANES) store(y + c, load(x + c));
    for (; c < s.d; ++c) y[c] = x[c];
  }
  // (count, width) -> (width, padded), zero beyond count
  void transpose(const float* x, int count, float* out) const {
    int j = 0;
    for (; j + LANES <= count; j += LANES)
      for (int c = 0; c < s.width; ++c)
        for (int l = 0; l < LANES; ++l) out[c * s.padded + j + l] = x[(j + l) * s.width + c];
    for (; j < s.padded; ++j)
      for (int c = 0; c < s.width; ++c)
        out[c * s.padded + j] = j < count ? x[j * s.width + c] : 0;
  }
  // table[i] = rate * |i - (gw - 1)|, long enough for a padded segment behind its end
  void decay_table(float* table) const {
    for (int i = 0; i < 2 * s.gw + s.padded; ++i) table[i] = rate * std::abs(i - (s.gw - 1));
  }
};

// A tile of queries against one block of keys: where their decay starts, and the least of it.
struct Tile {
  int first, count;
  const float* bias[QUERIES];
  float shift[QUERIES];

  void aim(const Head& head, const Block& b, const float* table) {
    const int gw = head.s.gw;
    for (int r = 0; r < count; ++r) {
      const int h = (first + r) / gw, w = (first + r) % gw;
      bias[r] = table + (b.w - w + gw - 1);
      shift[r] = head.rate * std::abs(b.h - h);
    }
  }
  // the decay of the nearest pair
  float nearest(const Head& head, const Block& b) const {
    const int gw = head.s.gw, last = first + count - 1;
    const int h0 = first / gw, h1 = last / gw;
    int distance = std::max({b.h - h1, h0 - b.h, 0});
    if (h0 == h1) distance += std::max({b.w - last % gw, first % gw - (b.w + b.count - 1), 0});
    return head.rate * distance;
  }
};

// Scratch memory of a thread; a task cuts it into pieces from the start.
struct Scratch {
  float* base;
  explicit Scratch(size_t floats) {
    base = (float*)std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!base) std::abort();
  }
  ~Scratch() { std::free(base); }
  Scratch(const Scratch&) = delete;
};
struct Pieces {
  float* next;
  float* take(size_t floats) {
    float* piece = next;
    next += (floats + 15) / 16 * 16;
    return piece;
  }
};

// --- forward --------------------------------------------------------------------------------------

void forward_head(const Head& head, const float* q, const float* k, const float* v, int begin,
                  int end, float* out, float* lse, Pieces scratch) {
  const Shape& s = head.s;
  const int size = s.width * s.padded;
  float* table = scratch.take(2 * s.gw + s.padded);
  float* keys = scratch.take((size_t)size * s.blocks());
  float* values = scratch.take((size_t)size * s.blocks());
  float* longest = scratch.take(s.blocks());
  float* packed = scratch.take(size);
  float* queries = scratch.take((size_t)(end - begin) * s.width);
  float* lengths = scratch.take(end - begin);
  float* references = scratch.take(end - begin);
  float* P = scratch.take(QUERIES * s.padded);
  float* real = scratch.take(s.padded);  // 1 for a key, 0 for padding
  float* group_sums = scratch.take(GROUP * QUERIES * s.width);
  float* group_totals = scratch.take(GROUP * QUERIES * LANES);
  head.decay_table(table);
  for (int i = 0; i < s.blocks(); ++i) {
    const Block b(s, i);
    float square = 0;
    for (int j = 0; j < b.count; ++j) {
      const int t = b.first + j;
      float* key = packed + j * s.width;
      head.pack(k, t, key);
      head.pack(v, t, values + (size_t)i * size + j * s.width);
      if (t >= begin && t < end) {
        float* query = queries + (size_t)(t - begin) * s.width;
        head.pack(q, t, query);
        references[t - begin] = head.dot(query, key) * s.scale;  // turning both alike drops out
        lengths[t - begin] = std::sqrt(head.dot(query, query));
        head.turn(query, t, 1);
      }
      head.turn(key, t, s.scale);
      square = std::max(square, head.dot(key, key));
    }
    longest[i] = std::sqrt(square);
    head.transpose(packed, b.count, keys + (size_t)i * size);
  }
  Tile tile;
  for (int group = begin; group < end; group += GROUP * QUERIES) {
    const int group_end = std::min(group + GROUP * QUERIES, end);
    std::memset(group_sums, 0, sizeof(float) * (group_end - group) * s.width);
    std::memset(group_totals, 0, sizeof(float) * (group_end - group) * LANES);
    for (int i = 0; i < s.blocks(); ++i) {
      const Block b(s, i);
      const float* key = keys + (size_t)i * size;
      for (int c = 0; c < s.padded; ++c) real[c] = c < b.count;
      for (int first = group; first < group_end; first += QUERIES) {
        tile.first = first;
        tile.count = std::min(QUERIES, group_end - first);
        const float* query = queries + (size_t)(first - begin) * s.width;
        float* reference = references + first - begin;
        float* sums = group_sums + (first - group) * s.width;
        float* totals = group_totals + (first - group) * LANES;
        const float* length = lengths + first - begin;
        const float least = *std::min_element(reference, reference + tile.count);
        const float bound = *std::max_element(length, length + tile.count) * longest[i] +
                            tile.nearest(head, b);
        if (bound < least - CUTOFF) continue;
        tile.aim(head, b, table);
        if (bound < least + HEADROOM) {  // no score can overflow
          for (int r = 0; r < tile.count; ++r) tile.shift[r] -= reference[r];
          product(
              query, s.width, tile.count, key, s.padded, s.d, s.padded,
              [&](int r, int c) { return load(tile.bias[r] + c) + tile.shift[r]; },
              [&](int r, int c, vec x) {
                const vec p = exp2(x) * load(real + c);
                store(P + r * s.padded + c, p);
                store(totals + r * LANES, load(totals + r * LANES) + p);
              });
        } else {
          product(
              query, s.width, tile.count, key, s.padded, s.d, s.padded,
              [&](int r, int c) { return load(tile.bias[r] + c) + tile.shift[r]; },
              [&](int r, int c, vec x) { store(P + r * s.padded + c, x); });
          for (int r = 0; r < tile.count; ++r) {
            float *p = P + r * s.padded, *total = totals + r * LANES;
            for (int c = b.count; c < s.padded; ++c) p[c] = LOWEST;
            const float peak = *std::max_element(p, p + b.count);
            if (peak > reference[r] + HEADROOM) {
              const float shrink = std::exp2(reference[r] - peak);
              for (int c = 0; c < s.width; ++c) sums[r * s.width + c] *= shrink;
              for (int l = 0; l < LANES; ++l) total[l] *= shrink;
              reference[r] = peak;
            }
            for (int c = 0; c < s.padded; c += LANES) {
              const vec x = exp2(load(p + c) - reference[r]);
              store(p + c, x);
              store(total, load(total) + x);
            }
          }
        }
        mac(P, s.padded, 1, tile.count, b.count, values + (size_t)i * size, s.width, sums);
      }
    }
    for (int t = group; t < group_end; ++t) {
      float* result = group_sums + (t - group) * s.width;
      const float total = sum(load(group_totals + (t - group) * LANES));
      for (int c = 0; c < s.width; ++c) result[c] /= total;
      head.unpack(result, t, out);
      lse[((size_t)head.sequence * s.n + head.head) * s.tokens() + t] =
          references[t - begin] + std::log2(total);
    }
  }
}

// --- backward -------------------------------------------------------------------------------------

void backward_head(const Head& head, const float* q, const float* k, const float* v,
                   const float* out, const float* lse, const float* grad, float* dq, float* dk,
                   float* dv, Pieces scratch) {
  const Shape& s = head.s;
  const int tokens = s.tokens(), size = s.width * s.padded;
  const size_t all = (size_t)tokens * s.width;
  float* table = scratch.take(2 * s.gw + s.padded);
  float* queries = scratch.take(all);
  float* grads = scratch.take(all);
  float* dqueries = scratch.take(all);
  float* deltas = scratch.take(tokens);  // sum_j P dP of a query
  float* lengths = scratch.take(tokens);
  float* keys = scratch.take(size);
  float* keys_t = scratch.take(size);
  float* values = scratch.take(size);
  float* values_t = scratch.take(size);
  float* dkeys = scratch.take(size);
  float* dvalues = scratch.take(size);
  float* P = scratch.take(QUERIES * s.padded);
  float* G = scratch.take(QUERIES * s.padded);
  const float* sums = lse + ((size_t)head.sequence * s.n + head.head) * tokens;
  head.decay_table(table);
  std::memset(dqueries, 0, sizeof(float) * all);
  for (int t = 0; t < tokens; ++t) {
    float *query = queries + (size_t)t * s.width, *g = grads + (size_t)t * s.width;
    head.pack(out, t, query);
    head.pack(grad, t, g);
    deltas[t] = head.dot(query, g);
    head.pack(q, t, query);
    head.turn(query, t, 1);
    lengths[t] = std::sqrt(head.dot(query, query));
  }
  Tile tile;
  for (int i = 0; i < s.blocks(); ++i) {
    const Block b(s, i);
    float square = 0;
    for (int j = 0; j < b.count; ++j) {
      float* key = keys + j * s.width;
      head.pack(k, b.first + j, key);
      head.turn(key, b.first + j, s.scale);
      square = std::max(square, head.dot(key, key));
      head.pack(v, b.first + j, values + j * s.width);
    }
    const float longest = std::sqrt(square);
    head.transpose(keys, b.count, keys_t);
    head.transpose(values, b.count, values_t);
    std::memset(dkeys, 0, sizeof(float) * size);
    std::memset(dvalues, 0, sizeof(float) * size);
    for (int first = 0; first < tokens; first += QUERIES) {
      const float *query = queries + (size_t)first * s.width, *g = grads + (size_t)first * s.width;
      tile.first = first;
      tile.count = std::min(QUERIES, tokens - first);
      float bound = LOWEST;
      for (int r = 0; r < tile.count; ++r)
        bound = std::max(bound, lengths[first + r] * longest - sums[first + r]);
      if (bound + tile.nearest(head, b) < -CUTOFF) continue;
      tile.aim(head, b, table);
      for (int r = 0; r < tile.count; ++r) tile.shift[r] -= sums[first + r];
      product(
          query, s.width, tile.count, keys_t, s.padded, s.d, s.padded,
          [&](int r, int c) { return load(tile.bias[r] + c) + tile.shift[r]; },
          [&](int r, int c, vec x) { store(P + r * s.padded + c, exp2(x)); });
      product(
          g, s.width, tile.count, values_t, s.padded, s.d, s.padded,
          [&](int r, int) { return splat(-deltas[first + r]); },
          [&](int r, int c, vec x) {
            store(G + r * s.padded + c, load(P + r * s.padded + c) * x);
          });
      mac(G, s.padded, 1, tile.count, b.count, keys, s.width, dqueries + (size_t)first * s.width);
      mac(G, 1, s.padded, b.count, tile.count, query, s.width, dkeys);
      mac(P, 1, s.padded, b.count, tile.count, g, s.width, dvalues);
    }
    for (int j = 0; j < b.count; ++j) {
      head.turn_back(dkeys + j * s.width, b.first + j, s.scale / LOG2E);
      head.unpack(dkeys + j * s.width, b.first + j, dk);
      head.unpack(dvalues + j * s.width, b.first + j, dv);
    }
  }
  for (int t = 0; t < tokens; ++t) {
    head.turn_back(dqueries + (size_t)t * s.width, t, 1 / LOG2E);  // the keys carry the scale
    head.unpack(dqueries + (size_t)t * s.width, t, dq);
  }
}

}  // namespace

// q k v out (B, H, W, n, d); cos sin (H, W, width), see Head; rates (n); lse (sequences, n, tokens).
// ``width`` is d rounded up to rmt_lanes().
extern "C" int rmt_lanes() { return LANES; }

extern "C" void rmt_forward(const float* q, const float* k, const float* v, const float* cos,
                            const float* sin, const float* rates, float* out, float* lse, int B,
                            int H, int W, int n, int d, int mode, int threads) {
  const Shape s(B, H, W, n, d, mode);
  const int heads = s.sequences * n;
  // few heads: cut their queries into parts too, each packs the keys again
  const int wanted = (4 * threads + heads - 1) / heads;
  const int most = std::max(1, s.tokens() / (8 * QUERIES));
  const int parts = std::max(1, std::min(wanted, most));
  const int part = round_up((s.tokens() + parts - 1) / parts, QUERIES);
  const size_t floats = 2 * s.gw + 2 * s.padded + s.blocks() +
                        (size_t)s.width * s.padded * (2 * s.blocks() + 1) +
                        (size_t)part * (s.width + 2) + QUERIES * (GROUP * (s.width + LANES) + s.padded) +
                        16 * PIECES;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(floats);
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < heads * parts; ++task) {
      const Head head(s, cos, sin, rates, task / parts);
      const int first = task % parts * part;
      forward_head(head, q, k, v, first, std::min(first + part, s.tokens()), out, lse,
                   {scratch.base});
    }
  }
}

extern "C" void rmt_backward(const float* q, const float* k, const float* v, const float* cos,
                             const float* sin, const float* rates, const float* out,
                             const float* lse, const float* grad, float* dq, float* dk, float* dv,
                             int B, int H, int W, int n, int d, int mode, int threads) {
  const Shape s(B, H, W, n, d, mode);
  const size_t floats = 2 * s.gw + s.padded + (size_t)s.tokens() * (3 * s.width + 2) +
                        6 * (size_t)s.width * s.padded + 2 * QUERIES * s.padded + 16 * PIECES;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(floats);
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < s.sequences * n; ++task)
      backward_head(Head(s, cos, sin, rates, task), q, k, v, out, lse, grad, dq, dk, dv,
                    {scratch.base});
  }
}
