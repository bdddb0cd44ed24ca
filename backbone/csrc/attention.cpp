// Manhattan self-attention on a CPU, forward and backward, without scores or decays in memory.
//
// Tensors are contiguous (B, H, W, n, d) float32; q and k come unturned and unscaled. A sequence is
// a row, a column, or a whole image: a grid of gh x gw tokens (a row or column has gh = 1) with the
// decay rate * (|dh| + |dw|) between them. Keys are taken in blocks inside one grid row, so that
// their decay is a slice of one small table, which the matrix product starts from. Everything
// inside is in units of log2: 2^x needs no multiplication.
//
// A thread takes some heads of a sequence and first packs their tokens, turned, into tiles. Rows
// and columns are packed with all heads at once: the tokens of a column lie far apart, and what a
// memory access brings along are the other heads.
//
// Keys that cannot matter are left out. The score of a query with its own key is a lower bound of
// log2(sum(2^score)), so what lies CUTOFF below it changes the result by less than keys * 2^-CUTOFF;
// Cauchy-Schwarz and the decay often tell that of a whole block before any product.

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "vector.h"

namespace {

constexpr int QUERIES = 24;       // queries a tile: scores and one block stay in the L1 cache
constexpr int MORE_QUERIES = 48;  // the same in the backward pass, which also sums over queries
constexpr int GROUP = 8;          // tiles that a block serves before it leaves the L1 cache
constexpr int BLOCK = 96;         // most keys a block
constexpr float CUTOFF = 40;      // 2^-40 of the sum is far below float32's 2^-24
constexpr float HEADROOM = 60;    // a score this far above the reference moves the reference
constexpr float LOWEST = -1e30f;  // score of a key that is only padding

// --- matrix products of tiles -------------------------------------------------------------------

// Calls run.template operator()<R, V>(r, c) for tiles that cover rows x cols, cols a multiple of
// LANES: 12 accumulators leave a register file of 16 room for what they are made from.
template <int R, int V, class Run>
inline void tile_rows(int rows, int c, const Run& run) {
  int r = 0;
  for (; rows - r >= R && rows - r != R + 2; r += R) run.template tile<R, V>(r, c);
  for (; rows - r >= 4; r += 4) run.template tile<4, V>(r, c);  // 8 is better 4 + 4 than 6 + 2
  for (; rows - r >= 2; r += 2) run.template tile<2, V>(r, c);
  if (r < rows) run.template tile<1, V>(r, c);
}
template <class Run>
inline void tiles(int rows, int cols, const Run& run) {
  int c = 0;
  for (; cols - c == 2 * LANES || cols - c > 3 * LANES; c += 2 * LANES)
    tile_rows<6, 2>(rows, c, run);
  if (cols - c == 3 * LANES) tile_rows<4, 3>(rows, c, run);
  if (cols - c == LANES) tile_rows<6, 1>(rows, c, run);
}

// C[r, c] = start(r, c) + sum_k A[r, k] * Bt[k, c]
template <class Start>
struct Product {
  const float* A;
  int lda;
  const float* Bt;
  int ldb, depth;
  float* C;
  int ldc;
  const Start& start;

  template <int R, int V>
  __attribute__((noinline)) void tile(int r0, int c0) const {
    const int lda = this->lda, ldb = this->ldb, ldc = this->ldc;  // not read again after a store
    vec acc[R][V];
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) acc[r][v] = start(r0 + r, c0 + v * LANES);
    const float *a = A + r0 * lda, *bt = Bt + c0;
    for (int k = 0; k < depth; ++k, ++a, bt += ldb) {
      vec b[V];
      UNROLL for (int v = 0; v < V; ++v) b[v] = keep(load(bt + v * LANES));
      UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) acc[r][v] += a[r * lda] * b[v];
    }
    float* c = C + r0 * ldc + c0;
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) store(c + r * ldc + v * LANES, acc[r][v]);
  }
};
template <class Start>
inline void product(const float* A, int lda, int rows, const float* Bt, int ldb, int depth,
                    int cols, float* C, int ldc, const Start& start) {
  tiles(rows, cols, Product<Start>{A, lda, Bt, ldb, depth, C, ldc, start});
}

// C[r, c] += sum_k A[r * step_r + k * step_k] * B[k, c]; B and C have the same width
struct Accumulation {
  const float* A;
  int step_r, step_k, count;
  const float* B;
  int width;
  float* C;

  template <int R, int V>
  void tile(int r0, int c0) const {
    const int step_r = this->step_r, step_k = this->step_k, width = this->width;
    vec acc[R][V];
    float* c = C + r0 * width + c0;
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) acc[r][v] = load(c + r * width + v * LANES);
    const float *a = A + r0 * step_r, *from = B + c0;
    for (int k = 0; k < count; ++k, a += step_k, from += width) {
      vec b[V];
      UNROLL for (int v = 0; v < V; ++v) b[v] = keep(load(from + v * LANES));
      UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) acc[r][v] += a[r * step_r] * b[v];
    }
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) store(c + r * width + v * LANES, acc[r][v]);
  }
};
void accumulate(const float* A, int step_r, int step_k, int rows, int count, const float* B,
                int width, float* C) {
  tiles(rows, width, Accumulation{A, step_r, step_k, count, B, width, C});
}

// P = 2^P, and its sums over columns with weights ``real`` into totals, a vector a row
template <int R>
inline void exponential_rows(float* P, int ldp, int cols, const float* real, float* totals) {
  vec total[R];
  UNROLL for (int r = 0; r < R; ++r) total[r] = load(totals + r * LANES);
  for (int c = 0; c < cols; c += LANES) {
    const vec weight = keep(load(real + c));
    UNROLL for (int r = 0; r < R; ++r) {
      const vec x = exp2(load(P + r * ldp + c));
      store(P + r * ldp + c, x);
      total[r] += x * weight;
    }
  }
  UNROLL for (int r = 0; r < R; ++r) store(totals + r * LANES, total[r]);
}
void exponentials(float* P, int ldp, int rows, int cols, const float* real, float* totals) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    exponential_rows<4>(P + r * ldp, ldp, cols, real, totals + r * LANES);
  for (; r < rows; ++r) exponential_rows<1>(P + r * ldp, ldp, cols, real, totals + r * LANES);
}

// (count, width) -> (width, cols), zero beyond count; cols a multiple of LANES
void transpose(const float* x, int count, int width, float* out, int cols) {
  for (int j = 0; j < cols; j += LANES)
    for (int c = 0; c < width; c += LANES) {
      vec m[LANES];
      for (int i = 0; i < LANES; ++i) m[i] = j + i < count ? load(x + (j + i) * width + c) : vec{};
      UNROLL for (int far = 1; far < LANES; far *= 2)
        UNROLL for (int i = 0; i < LANES; ++i) if (!(i & far)) {
          ivec upper, lower;
          UNROLL for (int l = 0; l < LANES; ++l) {
            upper[l] = l & far ? LANES + l - far : l;
            lower[l] = l & far ? LANES + l : l + far;
          }
          const vec a = m[i], b = m[i + far];
          m[i] = __builtin_shuffle(a, b, upper);
          m[i + far] = __builtin_shuffle(a, b, lower);
        }
      for (int i = 0; i < LANES; ++i) store(out + (c + i) * cols + j, m[i]);
    }
}

// --- what attends to what -----------------------------------------------------------------------

struct Shape {
  int B, H, W, n, d, mode;  // mode: 0 whole, 1 rows, 2 columns
  int gh, gw, sequences;
  int per_row, length;  // blocks a grid row, keys of all but its last one
  int width;            // d padded
  float scale;

  Shape(int B, int H, int W, int n, int d, int mode) : B(B), H(H), W(W), n(n), d(d), mode(mode) {
    gh = mode == 0 ? H : 1;
    gw = mode == 2 ? H : W;
    sequences = mode == 0 ? B : mode == 1 ? B * H : B * W;
    per_row = (gw + BLOCK - 1) / BLOCK;
    length = round_up((gw + per_row - 1) / per_row, LANES);
    per_row = (gw + length - 1) / length;
    width = round_up(d, LANES);
    scale = LOG2E / std::sqrt((float)d);
  }
  int tokens() const { return gh * gw; }
  int blocks() const { return gh * per_row; }
  int area() const { return width * length; }  // floats of a block
};

// Places a block of keys in its sequence.
struct Block {
  int h, w, count, cols, first;  // grid row, first column, keys, the same padded, first token
  Block(const Shape& s, int i) {
    h = i / s.per_row;
    w = i % s.per_row * s.length;
    count = std::min(s.length, s.gw - w);
    cols = round_up(count, LANES);
    first = h * s.gw + w;
  }
};

// One sequence: where its tokens are, and how they are brought into tiles.
struct Sequence {
  const Shape& s;
  const float *cos, *sin;  // each angle twice, the first sine negative
  int index;
  int64_t start, angles;   // token 0: its place in the batch, and in its image
  int step;                // from one token to the next

  Sequence(const Shape& s, const float* cos, const float* sin, int index)
      : s(s), cos(cos), sin(sin), index(index) {
    start = s.mode == 0   ? (int64_t)index * s.H * s.W
            : s.mode == 1 ? (int64_t)index * s.W
                          : (int64_t)(index / s.W) * s.H * s.W + index % s.W;
    step = s.mode == 2 ? s.W : 1;
    angles = start % ((int64_t)s.H * s.W);
  }
  int64_t at(int head, int t) const { return ((start + (int64_t)t * step) * s.n + head) * s.d; }
  // where lse of the sequence's tokens is
  float* sums(float* lse, int head) const {
    return lse + ((size_t)index * s.n + head) * s.tokens();
  }
  // x of a token, zero beyond d
  void pack(const float* x, int head, int t, float* out) const {
    const float *y = x + at(head, t), *ahead = y + (int64_t)4 * step * s.n * s.d;
    int c = 0;
    for (; c + LANES <= s.d; c += LANES) {
      if (step > 1) __builtin_prefetch(ahead + c);  // far apart: the processor does not foresee it
      store(out + c, load(y + c));
    }
    for (; c < s.width; ++c) out[c] = c < s.d ? y[c] : 0;
  }
  void unpack(const float* x, int head, int t, float* out) const {
    float* y = out + at(head, t);
    int c = 0;
    for (; c + LANES <= s.d; c += LANES) store(y + c, load(x + c));
    for (; c < s.d; ++c) y[c] = x[c];
  }
  // adjacent channels (a, b) -> (a cos - b sin, b cos + a sin) * factor, in place
  void turn(float* x, int t, float factor) const {
    const int64_t from = (angles + (int64_t)t * step) * s.width;
    for (int c = 0; c < s.width; c += LANES) {
      const vec y = load(x + c) * factor;
      store(x + c, y * load(cos + from + c) + swap_pairs(y) * load(sin + from + c));
    }
  }
  void turn_back(float* x, int t, float factor) const {
    const int64_t from = (angles + (int64_t)t * step) * s.width;
    for (int c = 0; c < s.width; c += LANES) {
      const vec y = load(x + c) * factor;
      store(x + c, y * load(cos + from + c) - swap_pairs(y) * load(sin + from + c));
    }
  }
  float dot(const float* x, const float* y) const {
    vec total = {};
    for (int c = 0; c < s.width; c += LANES) total += load(x + c) * load(y + c);
    return sum(total);
  }
};

// A tile of queries: where their decay starts in the table, and the least of it.
struct Tile {
  int first, count;
  int h0, h1, w0, w1;            // grid places of the first and the last query
  float longest;                 // of the queries
  const float* origin[MORE_QUERIES];  // the decay of a query to grid column 0
  float h[MORE_QUERIES];

  void place(const Shape& s, int begin, int size, const float* table, const float* lengths) {
    first = begin;
    count = size;
    h0 = begin / s.gw, w0 = begin % s.gw;
    h1 = h0, w1 = w0;
    longest = 0;
    for (int r = 0, y = h0, x = w0; r < count; ++r) {
      h1 = y, w1 = x;
      origin[r] = table + (s.gw - 1 - x);
      h[r] = y;
      longest = std::max(longest, lengths[r]);
      if (++x == s.gw) x = 0, ++y;
    }
  }
  // the decay of the nearest pair
  float nearest(const Block& b, float rate) const {
    int distance = std::max({b.h - h1, h0 - b.h, 0});
    if (h0 == h1) distance += std::max({b.w - w1, w0 - (b.w + b.count - 1), 0});
    return rate * distance;
  }
  // of each query: the decay between grid rows, less ``reference``
  void shifts(const Block& b, float rate, const float* reference, float* shift) const {
    for (int r = 0; r < count; ++r) shift[r] = rate * std::abs((float)b.h - h[r]) - reference[r];
  }
};

// table[i] = rate * |i - (gw - 1)|, long enough for a padded block behind its end
size_t table_size(const Shape& s) { return 2 * s.gw + s.length; }
void fill_table(const Shape& s, float rate, float* table) {
  for (int i = 0; i < (int)table_size(s); ++i) table[i] = rate * std::abs(i - (s.gw - 1));
}

// Scratch memory of a thread, cut into pieces from the start.
class Scratch {
 public:
  explicit Scratch(size_t floats) {
    base = (float*)std::aligned_alloc(64, round(floats) * sizeof(float));
    if (!base) std::abort();
  }
  ~Scratch() { std::free(base); }
  Scratch(const Scratch&) = delete;
  void restart() { used = 0; }
  float* take(size_t floats) {
    float* piece = base + used;
    used += round(floats);
    return piece;
  }
  static constexpr size_t PIECES = 20;  // at most
  static constexpr size_t PADDING = 16 * PIECES;

 private:
  static size_t round(size_t floats) { return (floats + 15) / 16 * 16; }
  float* base;
  size_t used = 0;
};

// --- forward ------------------------------------------------------------------------------------

// The queries [begin, end) of ``heads`` heads from ``head`` on.
struct Task {
  int head, heads, begin, end;
};

size_t forward_scratch(const Shape& s, int heads, int queries) {
  return Scratch::PADDING + table_size(s) + (heads + QUERIES + 1) * s.length +
         heads * ((size_t)s.blocks() * (2 * s.area() + 1) + s.area()) +
         (size_t)heads * queries * (s.width + 2) + GROUP * QUERIES * (s.width + LANES);
}

void forward(const Sequence& at, const Task& task, const float* q, const float* k, const float* v,
             const float* rates, float* out, float* lse, Scratch& scratch) {
  const Shape& s = at.s;
  const int area = s.area(), blocks = s.blocks(), heads = task.heads;
  const int count = task.end - task.begin;
  float* const table = scratch.take(table_size(s));
  float* const all_keys = scratch.take((size_t)heads * blocks * area);
  float* const all_values = scratch.take((size_t)heads * blocks * area);
  float* const all_longest = scratch.take(heads * blocks);
  float* const all_queries = scratch.take((size_t)heads * count * s.width);
  float* const all_references = scratch.take((size_t)heads * count);
  float* const all_lengths = scratch.take((size_t)heads * count);
  float* const packed = scratch.take(heads * area);
  float* const squares = scratch.take(heads);
  float* const P = scratch.take(QUERIES * s.length);
  float* const real = scratch.take(s.length);  // 1 for a key, 0 for padding
  float* const group_sums = scratch.take(GROUP * QUERIES * s.width);
  float* const group_totals = scratch.take(GROUP * QUERIES * LANES);

  for (int i = 0; i < blocks; ++i) {
    const Block b(s, i);
    std::memset(squares, 0, sizeof(float) * heads);
    for (int j = 0; j < b.count; ++j) {
      const int t = b.first + j;
      for (int h = 0; h < heads; ++h) {
        float* key = packed + h * area + j * s.width;
        at.pack(k, task.head + h, t, key);
        at.pack(v, task.head + h, t, all_values + ((size_t)h * blocks + i) * area + j * s.width);
        if (t >= task.begin && t < task.end) {
          const size_t place = (size_t)h * count + t - task.begin;
          float* query = all_queries + place * s.width;
          at.pack(q, task.head + h, t, query);
          all_references[place] = at.dot(query, key) * s.scale;  // turning both alike drops out
          all_lengths[place] = std::sqrt(at.dot(query, query));
          at.turn(query, t, 1);
        }
        at.turn(key, t, s.scale);
        squares[h] = std::max(squares[h], at.dot(key, key));
      }
    }
    for (int h = 0; h < heads; ++h) {
      all_longest[h * blocks + i] = std::sqrt(squares[h]);
      transpose(packed + h * area, b.count, s.width,
                all_keys + ((size_t)h * blocks + i) * area, b.cols);
    }
  }

  for (int h = 0; h < heads; ++h) {
    const float rate = rates[task.head + h] * LOG2E;
    const float* keys = all_keys + (size_t)h * blocks * area;
    const float* values = all_values + (size_t)h * blocks * area;
    const float* longest = all_longest + h * blocks;
    float* queries = all_queries + (size_t)h * count * s.width;
    float* references = all_references + (size_t)h * count;
    const float* lengths = all_lengths + (size_t)h * count;
    fill_table(s, rate, table);
    for (int group = 0; group < count; group += GROUP * QUERIES) {
      const int group_count = std::min(GROUP * QUERIES, count - group);
      std::memset(group_sums, 0, sizeof(float) * group_count * s.width);
      std::memset(group_totals, 0, sizeof(float) * group_count * LANES);
      Tile group_tiles[GROUP];
      float least[GROUP];  // reference of a tile's queries
      int used = 0;
      for (int first = group; first < group + group_count; first += QUERIES, ++used) {
        const int size = std::min(QUERIES, group + group_count - first);
        group_tiles[used].place(s, task.begin + first, size, table, lengths + first);
        least[used] = *std::min_element(references + first, references + first + size);
      }
      for (int i = 0; i < blocks; ++i) {
        const Block b(s, i);
        const float* key = keys + (size_t)i * area;
        for (int c = 0; c < b.cols; ++c) real[c] = c < b.count;
        for (int g = 0; g < used; ++g) {
          const Tile& tile = group_tiles[g];
          const float bound = tile.longest * longest[i] + tile.nearest(b, rate);
          if (bound < least[g] - CUTOFF) continue;
          const int first = tile.first - task.begin;
          const float* query = queries + (size_t)first * s.width;
          float* reference = references + first;
          float* sums = group_sums + (first - group) * s.width;
          float* totals = group_totals + (first - group) * LANES;
          float shift[QUERIES];
          const auto decay = [&](int r, int c) { return load(tile.origin[r] + b.w + c) + shift[r]; };
          if (bound < least[g] + HEADROOM) {  // no score can overflow
            tile.shifts(b, rate, reference, shift);
            product(query, s.width, tile.count, key, b.cols, s.d, b.cols, P, s.length, decay);
            exponentials(P, s.length, tile.count, b.cols, real, totals);
          } else {
            const float none[QUERIES] = {};
            tile.shifts(b, rate, none, shift);
            product(query, s.width, tile.count, key, b.cols, s.d, b.cols, P, s.length, decay);
            for (int r = 0; r < tile.count; ++r) {
              float *p = P + r * s.length, *total = totals + r * LANES;
              for (int c = b.count; c < b.cols; ++c) p[c] = LOWEST;
              const float peak = *std::max_element(p, p + b.count);
              if (peak > reference[r] + HEADROOM) {
                const float shrink = std::exp2(reference[r] - peak);
                for (int c = 0; c < s.width; ++c) sums[r * s.width + c] *= shrink;
                for (int l = 0; l < LANES; ++l) total[l] *= shrink;
                reference[r] = peak;
              }
              for (int c = 0; c < b.cols; c += LANES) {
                const vec x = exp2(load(p + c) - reference[r]);
                store(p + c, x);
                store(total, load(total) + x);
              }
            }
            least[g] = *std::min_element(reference, reference + tile.count);
          }
          accumulate(P, s.length, 1, tile.count, b.count, values + (size_t)i * area, s.width, sums);
        }
      }
      for (int t = group; t < group + group_count; ++t) {
        const float* result = group_sums + (t - group) * s.width;
        const float total = sum(load(group_totals + (t - group) * LANES));
        const float share = 1 / total;
        for (int c = 0; c < s.width; ++c) queries[(size_t)t * s.width + c] = result[c] * share;
        at.sums(lse, task.head + h)[task.begin + t] = references[t] + std::log2(total);
      }
    }
  }
  for (int t = 0; t < count; ++t)
    for (int h = 0; h < heads; ++h)
      at.unpack(all_queries + ((size_t)h * count + t) * s.width, task.head + h, task.begin + t, out);
}

// --- backward -----------------------------------------------------------------------------------

size_t backward_scratch(const Shape& s, int heads) {
  return Scratch::PADDING + table_size(s) + (size_t)heads * s.tokens() * (7 * s.width + 2) +
         2 * s.area() + 2 * MORE_QUERIES * s.length +
         (s.tokens() / MORE_QUERIES + 1) * (sizeof(Tile) / sizeof(float) + 1);
}

void backward(const Sequence& at, int head, int heads, const float* q, const float* k,
              const float* v, const float* rates, const float* out, float* lse, const float* grad,
              float* dq, float* dk, float* dv, Scratch& scratch) {
  const Shape& s = at.s;
  const int tokens = s.tokens(), used = (tokens + MORE_QUERIES - 1) / MORE_QUERIES;
  const size_t all = (size_t)tokens * s.width, size = heads * all;
  float* const table = scratch.take(table_size(s));
  float* const all_queries = scratch.take(size);
  float* const all_keys = scratch.take(size);
  float* const all_values = scratch.take(size);
  float* const all_grads = scratch.take(size);
  float* const all_dqueries = scratch.take(size);
  float* const all_dkeys = scratch.take(size);
  float* const all_dvalues = scratch.take(size);
  float* const all_deltas = scratch.take((size_t)heads * tokens);  // sum_j P dP of a query
  float* const all_lengths = scratch.take((size_t)heads * tokens);
  float* const keys_t = scratch.take(s.area());
  float* const values_t = scratch.take(s.area());
  float* const P = scratch.take(MORE_QUERIES * s.length);
  float* const G = scratch.take(MORE_QUERIES * s.length);
  float* const least = scratch.take(used);  // log2 of a softmax denominator of a tile's queries
  Tile* const all_tiles = (Tile*)scratch.take(used * sizeof(Tile) / sizeof(float));

  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < heads; ++h) {
      const size_t place = (size_t)h * tokens + t;
      float *query = all_queries + place * s.width, *g = all_grads + place * s.width;
      float* key = all_keys + place * s.width;
      at.pack(out, head + h, t, query);
      at.pack(grad, head + h, t, g);
      all_deltas[place] = at.dot(query, g);
      at.pack(q, head + h, t, query);
      all_lengths[place] = std::sqrt(at.dot(query, query));
      at.turn(query, t, 1);
      at.pack(k, head + h, t, key);
      at.turn(key, t, s.scale);
      at.pack(v, head + h, t, all_values + place * s.width);
    }
  std::memset(all_dqueries, 0, sizeof(float) * size);
  std::memset(all_dkeys, 0, sizeof(float) * size);
  std::memset(all_dvalues, 0, sizeof(float) * size);

  for (int h = 0; h < heads; ++h) {
    const float rate = rates[head + h] * LOG2E;
    const float *queries = all_queries + h * all, *grads = all_grads + h * all;
    float* dqueries = all_dqueries + h * all;
    const float* deltas = all_deltas + (size_t)h * tokens;
    const float* lengths = all_lengths + (size_t)h * tokens;
    const float* sums = at.sums(lse, head + h);
    fill_table(s, rate, table);
    for (int g = 0; g < used; ++g) {
      const int first = g * MORE_QUERIES, count = std::min(MORE_QUERIES, tokens - first);
      all_tiles[g].place(s, first, count, table, lengths + first);
      least[g] = *std::min_element(sums + first, sums + first + count);
    }
    for (int i = 0; i < s.blocks(); ++i) {
      const Block b(s, i);
      const size_t place = h * all + (size_t)b.first * s.width;
      const float *keys = all_keys + place, *values = all_values + place;
      float square = 0;
      for (int j = 0; j < b.count; ++j)
        square = std::max(square, at.dot(keys + j * s.width, keys + j * s.width));
      const float longest = std::sqrt(square);
      transpose(keys, b.count, s.width, keys_t, b.cols);
      transpose(values, b.count, s.width, values_t, b.cols);
      for (int tile_index = 0; tile_index < used; ++tile_index) {
        const Tile& tile = all_tiles[tile_index];
        if (tile.longest * longest + tile.nearest(b, rate) < least[tile_index] - CUTOFF) continue;
        const float *query = queries + (size_t)tile.first * s.width;
        const float *g = grads + (size_t)tile.first * s.width, *delta = deltas + tile.first;
        float shift[MORE_QUERIES];
        tile.shifts(b, rate, sums + tile.first, shift);
        product(query, s.width, tile.count, keys_t, b.cols, s.d, b.cols, P, s.length,
                [&](int r, int c) { return load(tile.origin[r] + b.w + c) + shift[r]; });
        product(g, s.width, tile.count, values_t, b.cols, s.d, b.cols, G, s.length,
                [&](int r, int) { return splat(-delta[r]); });
        for (int r = 0; r < tile.count; ++r)
          for (int at = r * s.length; at < r * s.length + b.cols; at += LANES) {
            const vec p = exp2(load(P + at));
            store(P + at, p);
            store(G + at, load(G + at) * p);
          }
        accumulate(G, s.length, 1, tile.count, b.count, keys, s.width,
                   dqueries + (size_t)tile.first * s.width);
        accumulate(G, 1, s.length, b.count, tile.count, query, s.width, all_dkeys + place);
        accumulate(P, 1, s.length, b.count, tile.count, g, s.width, all_dvalues + place);
      }
    }
  }
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < heads; ++h) {
      const size_t place = ((size_t)h * tokens + t) * s.width;
      at.turn_back(all_dqueries + place, t, 1 / LOG2E);  // the keys carry the scale
      at.turn_back(all_dkeys + place, t, s.scale / LOG2E);
      at.unpack(all_dqueries + place, head + h, t, dq);
      at.unpack(all_dkeys + place, head + h, t, dk);
      at.unpack(all_dvalues + place, head + h, t, dv);
    }
}

// Heads that a task takes together: all of a row or column, unless that leaves threads idle.
int heads_together(const Shape& s, int threads) {
  return s.mode != 0 && s.sequences >= 2 * threads ? s.n : 1;
}

}  // namespace

// q k v out (B, H, W, n, d); cos sin (H, W, width), see Sequence; rates (n); lse (sequences, n,
// tokens). ``width`` is d rounded up to rmt_lanes().
extern "C" int rmt_lanes() { return LANES; }

extern "C" void rmt_forward(const float* q, const float* k, const float* v, const float* cos,
                            const float* sin, const float* rates, float* out, float* lse, int B,
                            int H, int W, int n, int d, int mode, int threads) {
  const Shape s(B, H, W, n, d, mode);
  const int heads = heads_together(s, threads);
  const int units = s.sequences * (n / heads);
  // few of them: cut their queries into parts too, each packs the keys again; not where the result
  // takes the place of v, which the other parts still read
  const int wanted = out == v ? 1 : (4 * threads + units - 1) / units;
  const int most = std::max(1, s.tokens() / (8 * QUERIES));
  const int parts = std::max(1, std::min(wanted, most));
  const int part = round_up((s.tokens() + parts - 1) / parts, QUERIES);
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(forward_scratch(s, heads, std::min(part, s.tokens())));
#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < units * parts; ++i) {
      const int unit = i / parts, begin = i % parts * part;
      if (begin >= s.tokens()) continue;
      const Task task{unit % (n / heads) * heads, heads, begin, std::min(begin + part, s.tokens())};
      scratch.restart();
      forward({s, cos, sin, unit / (n / heads)}, task, q, k, v, rates, out, lse, scratch);
    }
  }
}

extern "C" void rmt_backward(const float* q, const float* k, const float* v, const float* cos,
                             const float* sin, const float* rates, const float* out, float* lse,
                             const float* grad, float* dq, float* dk, float* dv, int B, int H,
                             int W, int n, int d, int mode, int threads) {
  const Shape s(B, H, W, n, d, mode);
  const int heads = heads_together(s, threads);
  const int units = s.sequences * (n / heads);
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(backward_scratch(s, heads));
#pragma omp for schedule(dynamic, 1)
    for (int unit = 0; unit < units; ++unit) {
      scratch.restart();
      backward({s, cos, sin, unit / (n / heads)}, unit % (n / heads) * heads, heads, q, k, v, rates,
               out, lse, grad, dq, dk, dv, scratch);
    }
  }
}
