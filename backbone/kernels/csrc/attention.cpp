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

#include <omp.h>

#include "scratch.h"
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
    const int64_t lda = this->lda, ldb = this->ldb, ldc = this->ldc;  // not read after a store
    vec acc[R][V];
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) acc[r][v] = start(r0 + r, c0 + v * LANES);
    const float *a = A + r0 * lda, *bt = Bt + c0;
    for (int k = depth; k > 0; --k, ++a, bt += ldb) {
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

// C[r, c] += sum_k A[r, k] * B[k, c] (A[k, r] where transposed), k < count, which is not 0; B and C
// have the same width
template <bool TRANSPOSED>
struct Accumulation {
  const float* A;
  int lda, count;
  const float* B;
  int width;
  float* C;

  template <int R, int V>
  __attribute__((noinline)) void tile(int r0, int c0) const {
    const int64_t lda = this->lda, width = this->width;
    const int64_t step_r = TRANSPOSED ? 1 : lda, step_k = TRANSPOSED ? lda : 1;
    vec acc[R][V];
    float* c = C + r0 * width + c0;
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) acc[r][v] = load(c + r * width + v * LANES);
    const float *a = A + r0 * step_r, *from = B + c0;
    int k = count;
    do {  // at least once: else the compiler keeps the sums in memory for the case that it is not
      vec b[V];
      UNROLL for (int v = 0; v < V; ++v) b[v] = keep(load(from + v * LANES));
      UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) acc[r][v] += a[r * step_r] * b[v];
      a += step_k, from += width;
    } while (--k > 0);
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int v = 0; v < V; ++v) store(c + r * width + v * LANES, acc[r][v]);
  }
};
void accumulate(const float* A, int lda, int rows, int count, const float* B, int width, float* C) {
  tiles(rows, width, Accumulation<false>{A, lda, count, B, width, C});
}
void accumulate_transposed(const float* A, int lda, int rows, int count, const float* B, int width,
                           float* C) {
  tiles(rows, width, Accumulation<true>{A, lda, count, B, width, C});
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
      transpose(m);
      for (int i = 0; i < LANES; ++i) store(out + (c + i) * cols + j, m[i]);
    }
}

// --- what attends to what -----------------------------------------------------------------------

// The tables of cosines and sines have rows of a multiple of this: of the widest vector there is, so
// that whoever makes them need not know for which processor this was compiled.
constexpr int TABLE_STEP = 16;

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

// One sequence: where its tokens are, and how they are brought into tiles. D is the channels of a
// head where the compiler shall know them, a multiple of LANES; 0 for any number.
template <int D>
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
  int depth() const { return D ? D : s.d; }
  int width() const { return D ? D : s.width; }
  int angle_width() const { return round_up(depth(), TABLE_STEP); }
  int64_t at(int head, int t) const { return ((start + (int64_t)t * step) * s.n + head) * depth(); }
  // where lse of the sequence's tokens is
  float* sums(float* lse, int head) const {
    return lse + ((size_t)index * s.n + head) * s.tokens();
  }
  // x of a token, zero beyond d
  void pack(const float* x, int head, int t, float* out) const {
    const float* y = x + at(head, t);
    for (int c = 0; c < width(); c += LANES) store(out + c, read(y, c));
  }
  // the same; returns its product with y of the token
  float pack_dot(const float* x, const float* y, int head, int t, float* out) const {
    const int64_t from = at(head, t);
    vec total = {};
    for (int c = 0; c < width(); c += LANES) {
      const vec part = read(x + from, c);
      total += part * read(y + from, c);
      store(out + c, part);
    }
    return sum(total);
  }
  // the same turned, adjacent channels (a, b) -> (a cos - b sin, b cos + a sin), times factor;
  // returns its squared length
  float pack_turned(const float* x, int head, int t, float factor, float* out) const {
    const float* y = x + at(head, t);
    const int64_t from = (angles + (int64_t)t * step) * angle_width();
    vec total = {};
    for (int c = 0; c < width(); c += LANES) {
      const vec part = read(y, c) * factor;
      total += part * part;
      store(out + c, part * load(cos + from + c) + swap_pairs(part) * load(sin + from + c));
    }
    return sum(total);
  }
  void unpack(const float* x, int head, int t, float* out) const {
    float* y = out + at(head, t);
    for (int c = 0; c < width(); c += LANES) store_some(y + c, load(x + c), depth() - c);
  }
  // the same turned back, times factor
  void unpack_turned(const float* x, int head, int t, float factor, float* out) const {
    float* y = out + at(head, t);
    const int64_t from = (angles + (int64_t)t * step) * angle_width();
    for (int c = 0; c < width(); c += LANES) {
      const vec part = load(x + c) * factor;
      store_some(y + c, part * load(cos + from + c) - swap_pairs(part) * load(sin + from + c),
                 depth() - c);
    }
  }
  float dot(const float* x, const float* y) const {
    vec total = {};
    for (int c = 0; c < width(); c += LANES) total += load(x + c) * load(y + c);
    return sum(total);
  }

 private:
  // a vector of channels of a token at y, zero beyond d
  vec read(const float* y, int c) const {
    // tokens far apart: the processor does not foresee them; may lie beyond the end
    const int64_t ahead = (int64_t)(step > 1 ? 2 : 8) * step * s.n * depth() + c;
    __builtin_prefetch((const void*)((uintptr_t)y + (uintptr_t)ahead * sizeof(float)));
    return D ? load(y + c) : load_some(y + c, depth() - c);
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

// --- forward ------------------------------------------------------------------------------------

// The queries [begin, end) of ``heads`` heads from ``head`` on.
struct Task {
  int head, heads, begin, end;
};

size_t forward_scratch(const Shape& s, int heads, int queries) {
  return Scratch::size(table_size(s) + (heads + QUERIES + 1) * s.length +
                       heads * ((size_t)s.blocks() * (2 * s.area() + 1) + s.area()) +
                       (size_t)heads * queries * (s.width + 2) +
                       GROUP * QUERIES * (s.width + LANES));
}

template <int D>
void forward(const Sequence<D>& at, const Task& task, const float* q, const float* k,
             const float* v, const float* rates, float* out, float* lse, Scratch& scratch) {
  const Shape& s = at.s;
  const int depth = at.depth(), width = at.width();
  const int area = s.area(), blocks = s.blocks(), heads = task.heads;
  const int count = task.end - task.begin;
  float* const table = scratch.take(table_size(s));
  float* const all_keys = scratch.take((size_t)heads * blocks * area);
  float* const all_values = scratch.take((size_t)heads * blocks * area);
  float* const all_longest = scratch.take(heads * blocks);
  float* const all_queries = scratch.take((size_t)heads * count * width);
  float* const all_references = scratch.take((size_t)heads * count);
  float* const all_lengths = scratch.take((size_t)heads * count);
  float* const packed = scratch.take(heads * area);
  float* const squares = scratch.take(heads);
  float* const P = scratch.take(QUERIES * s.length);
  float* const real = scratch.take(s.length);  // 1 for a key, 0 for padding
  float* const group_sums = scratch.take(GROUP * QUERIES * width);
  float* const group_totals = scratch.take(GROUP * QUERIES * LANES);

  for (int i = 0; i < blocks; ++i) {
    const Block b(s, i);
    std::memset(squares, 0, sizeof(float) * heads);
    for (int j = 0; j < b.count; ++j) {
      const int t = b.first + j;
      for (int h = 0; h < heads; ++h) {
        float* key = packed + h * area + j * width;
        const float square = at.pack_turned(k, task.head + h, t, s.scale, key);
        squares[h] = std::max(squares[h], square);
        at.pack(v, task.head + h, t, all_values + ((size_t)h * blocks + i) * area + j * width);
        if (t >= task.begin && t < task.end) {
          const size_t place = (size_t)h * count + t - task.begin;
          float* query = all_queries + place * width;
          all_lengths[place] = std::sqrt(at.pack_turned(q, task.head + h, t, 1, query));
          all_references[place] = at.dot(query, key);
        }
      }
    }
    for (int h = 0; h < heads; ++h) {
      all_longest[h * blocks + i] = std::sqrt(squares[h]);
      transpose(packed + h * area, b.count, width,
                all_keys + ((size_t)h * blocks + i) * area, b.cols);
    }
  }

  for (int h = 0; h < heads; ++h) {
    const float rate = rates[task.head + h] * LOG2E;
    const float* keys = all_keys + (size_t)h * blocks * area;
    const float* values = all_values + (size_t)h * blocks * area;
    const float* longest = all_longest + h * blocks;
    float* queries = all_queries + (size_t)h * count * width;
    float* references = all_references + (size_t)h * count;
    const float* lengths = all_lengths + (size_t)h * count;
    fill_table(s, rate, table);
    for (int group = 0; group < count; group += GROUP * QUERIES) {
      const int group_count = std::min(GROUP * QUERIES, count - group);
      std::memset(group_sums, 0, sizeof(float) * group_count * width);
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
          const float* query = queries + (size_t)first * width;
          float* reference = references + first;
          float* sums = group_sums + (first - group) * width;
          float* totals = group_totals + (first - group) * LANES;
          float shift[QUERIES];
          const auto decay = [&](int r, int c) { return load(tile.origin[r] + b.w + c) + shift[r]; };
          if (bound < least[g] + HEADROOM) {  // no score can overflow
            tile.shifts(b, rate, reference, shift);
            product(query, width, tile.count, key, b.cols, depth, b.cols, P, s.length, decay);
            exponentials(P, s.length, tile.count, b.cols, real, totals);
          } else {
            const float none[QUERIES] = {};
            tile.shifts(b, rate, none, shift);
            product(query, width, tile.count, key, b.cols, depth, b.cols, P, s.length, decay);
            for (int r = 0; r < tile.count; ++r) {
              float *p = P + r * s.length, *total = totals + r * LANES;
              for (int c = b.count; c < b.cols; ++c) p[c] = LOWEST;
              const float peak = *std::max_element(p, p + b.count);
              if (peak > reference[r] + HEADROOM) {
                const float shrink = std::exp2(reference[r] - peak);
                for (int c = 0; c < width; ++c) sums[r * width + c] *= shrink;
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
          accumulate(P, s.length, tile.count, b.count, values + (size_t)i * area, width, sums);
        }
      }
      for (int t = group; t < group + group_count; ++t) {
        const float* result = group_sums + (t - group) * width;
        const float total = sum(load(group_totals + (t - group) * LANES));
        const float share = 1 / total;
        for (int c = 0; c < width; ++c) queries[(size_t)t * width + c] = result[c] * share;
        at.sums(lse, task.head + h)[task.begin + t] = references[t] + std::log2(total);
      }
    }
  }
  for (int t = 0; t < count; ++t)
    for (int h = 0; h < heads; ++h)
      at.unpack(all_queries + ((size_t)h * count + t) * width, task.head + h, task.begin + t, out);
}

// --- backward -----------------------------------------------------------------------------------

size_t backward_scratch(const Shape& s, int heads) {
  return Scratch::size(table_size(s) + (size_t)heads * s.tokens() * (7 * s.width + 2) +
                       heads * s.blocks() + 2 * s.area() + 2 * MORE_QUERIES * s.length +
                       (s.tokens() / MORE_QUERIES + 1) * (sizeof(Tile) / sizeof(float) + 1));
}

template <int D>
void backward(const Sequence<D>& at, int head, int heads, const float* q, const float* k,
              const float* v, const float* rates, const float* out, float* lse, const float* grad,
              float* dq, float* dk, float* dv, Scratch& scratch) {
  const Shape& s = at.s;
  const int depth = at.depth(), width = at.width();
  const int tokens = s.tokens(), used = (tokens + MORE_QUERIES - 1) / MORE_QUERIES;
  const size_t all = (size_t)tokens * width, size = heads * all;
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
  float* const all_squares = scratch.take(heads * s.blocks());  // of a block's longest key
  float* const keys_t = scratch.take(s.area());
  float* const values_t = scratch.take(s.area());
  float* const P = scratch.take(MORE_QUERIES * s.length);
  float* const G = scratch.take(MORE_QUERIES * s.length);
  float* const least = scratch.take(used);  // log2 of a softmax denominator of a tile's queries
  Tile* const all_tiles = (Tile*)scratch.take(used * sizeof(Tile) / sizeof(float));

  std::memset(all_squares, 0, sizeof(float) * heads * s.blocks());
  for (int i = 0; i < s.blocks(); ++i) {
    const Block b(s, i);
    for (int t = b.first; t < b.first + b.count; ++t)
      for (int h = 0; h < heads; ++h) {
        const size_t place = (size_t)h * tokens + t;
        float *query = all_queries + place * width, *key = all_keys + place * width;
        float& square = all_squares[h * s.blocks() + i];
        all_deltas[place] = at.pack_dot(grad, out, head + h, t, all_grads + place * width);
        all_lengths[place] = std::sqrt(at.pack_turned(q, head + h, t, 1, query));
        square = std::max(square, at.pack_turned(k, head + h, t, s.scale, key));
        at.pack(v, head + h, t, all_values + place * width);
      }
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
      const size_t place = h * all + (size_t)b.first * width;
      const float *keys = all_keys + place, *values = all_values + place;
      const float longest = std::sqrt(all_squares[h * s.blocks() + i]);
      transpose(keys, b.count, width, keys_t, b.cols);
      transpose(values, b.count, width, values_t, b.cols);
      for (int tile_index = 0; tile_index < used; ++tile_index) {
        const Tile& tile = all_tiles[tile_index];
        if (tile.longest * longest + tile.nearest(b, rate) < least[tile_index] - CUTOFF) continue;
        const float *query = queries + (size_t)tile.first * width;
        const float *g = grads + (size_t)tile.first * width, *delta = deltas + tile.first;
        float shift[MORE_QUERIES];
        tile.shifts(b, rate, sums + tile.first, shift);
        product(query, width, tile.count, keys_t, b.cols, depth, b.cols, P, s.length,
                [&](int r, int c) { return load(tile.origin[r] + b.w + c) + shift[r]; });
        product(g, width, tile.count, values_t, b.cols, depth, b.cols, G, s.length,
                [&](int r, int) { return splat(-delta[r]); });
        for (int r = 0; r < tile.count; ++r)
          for (int at = r * s.length; at < r * s.length + b.cols; at += LANES) {
            const vec p = exp2(load(P + at));
            store(P + at, p);
            store(G + at, load(G + at) * p);
          }
        accumulate(G, s.length, tile.count, b.count, keys, width,
                   dqueries + (size_t)tile.first * width);
        accumulate_transposed(G, s.length, b.count, tile.count, query, width, all_dkeys + place);
        accumulate_transposed(P, s.length, b.count, tile.count, g, width, all_dvalues + place);
      }
    }
  }
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < heads; ++h) {
      const size_t place = ((size_t)h * tokens + t) * width;
      // the keys carry the scale
      at.unpack_turned(all_dqueries + place, head + h, t, 1 / LOG2E, dq);
      at.unpack_turned(all_dkeys + place, head + h, t, s.scale / LOG2E, dk);
      at.unpack(all_dvalues + place, head + h, t, dv);
    }
}

// Heads that a task takes together: all of a row or column, unless that leaves threads idle.
int heads_together(const Shape& s, int threads) {
  return s.mode != 0 && s.sequences >= 2 * threads ? s.n : 1;
}

// How the forward pass is cut into tasks.
struct Plan {
  int heads, units, parts, part;  // heads and queries a task, heads x sequences, parts of each
  size_t scratch;                 // floats a thread
  Plan(const Shape& s, bool in_place, int threads) {
    heads = heads_together(s, threads);
    units = s.sequences * (s.n / heads);
    // few of them: cut their queries into parts too, each packs the keys again; not where the
    // result takes the place of v, which the other parts still read
    const int wanted = in_place ? 1 : (4 * threads + units - 1) / std::max(1, units);
    const int most = std::max(1, s.tokens() / (8 * QUERIES));
    parts = std::max(1, std::min(wanted, most));
    part = round_up((s.tokens() + parts - 1) / parts, QUERIES);
    scratch = forward_scratch(s, heads, std::min(part, s.tokens()));
  }
};

template <int D>
void forward_all(const Shape& s, const float* q, const float* k, const float* v, const float* cos,
                 const float* sin, const float* rates, float* out, float* lse, float* all_scratch,
                 bool in_place, int threads) {
  const Plan plan(s, in_place, threads);
  const int groups = s.n / plan.heads;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(all_scratch, plan.scratch, omp_get_thread_num());
#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < plan.units * plan.parts; ++i) {
      const int unit = i / plan.parts, begin = i % plan.parts * plan.part;
      const int end = std::min(begin + plan.part, s.tokens());
      if (begin >= s.tokens()) continue;
      const Task task{unit % groups * plan.heads, plan.heads, begin, end};
      scratch.restart();
      forward<D>({s, cos, sin, unit / groups}, task, q, k, v, rates, out, lse, scratch);
    }
  }
}

template <int D>
void backward_all(const Shape& s, const float* q, const float* k, const float* v, const float* cos,
                  const float* sin, const float* rates, const float* out, float* lse,
                  const float* grad, float* dq, float* dk, float* dv, float* all_scratch,
                  int threads) {
  const int heads = heads_together(s, threads);
  const int units = s.sequences * (s.n / heads);
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(all_scratch, backward_scratch(s, heads), omp_get_thread_num());
#pragma omp for schedule(dynamic, 1)
    for (int unit = 0; unit < units; ++unit) {
      const int head = unit % (s.n / heads) * heads;
      scratch.restart();
      backward<D>({s, cos, sin, unit / (s.n / heads)}, head, heads, q, k, v, rates, out, lse, grad,
                  dq, dk, dv, scratch);
    }
  }
}

}  // namespace

// q k v out (B, H, W, n, d); cos sin (H, W, width), see Sequence; rates (n); lse (sequences, n,
// tokens). ``width`` is d rounded up to TABLE_STEP. A head of the four sizes has d 16 or 32. With
// ``in_place`` out is v. ``scratch`` has as many floats as the function of that name tells for the
// same numbers.
extern "C" void rmt_forward(const float* q, const float* k, const float* v, const float* cos,
                            const float* sin, const float* rates, float* out, float* lse,
                            float* scratch, int B, int H, int W, int n, int d, int mode,
                            int in_place, int threads) {
  const auto run = d == 16 ? forward_all<16> : d == 32 ? forward_all<32> : forward_all<0>;
  run({B, H, W, n, d, mode}, q, k, v, cos, sin, rates, out, lse, scratch, in_place, threads);
}
extern "C" int64_t rmt_forward_scratch(int B, int H, int W, int n, int d, int mode, int in_place,
                                       int threads) {
  return Plan({B, H, W, n, d, mode}, in_place, threads).scratch * threads;
}

extern "C" void rmt_backward(const float* q, const float* k, const float* v, const float* cos,
                             const float* sin, const float* rates, const float* out, float* lse,
                             const float* grad, float* dq, float* dk, float* dv, float* scratch,
                             int B, int H, int W, int n, int d, int mode, int threads) {
  const auto run = d == 16 ? backward_all<16> : d == 32 ? backward_all<32> : backward_all<0>;
  run({B, H, W, n, d, mode}, q, k, v, cos, sin, rates, out, lse, grad, dq, dk, dv, scratch,
      threads);
}
extern "C" int64_t rmt_backward_scratch(int B, int H, int W, int n, int d, int mode, int threads) {
  const Shape s(B, H, W, n, d, mode);
  return backward_scratch(s, heads_together(s, threads)) * threads;
}
