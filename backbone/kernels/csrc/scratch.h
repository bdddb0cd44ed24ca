// Scratch memory of a thread, cut into pieces from the start. It belongs to a tensor of the caller:
// nothing here allocates, so that what a call takes is seen, and its lack is an exception of Python.
#pragma once

#include <cstddef>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace {

class Scratch {
 public:
  static constexpr size_t STEP = 16;    // floats of a cache line, to which pieces are rounded
  static constexpr size_t PIECES = 20;  // at most
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t GUARD = STEP;  // between pieces, never to be touched
#else
  static constexpr size_t GUARD = 0;
#endif
  static constexpr size_t PADDING = (STEP + GUARD) * PIECES;

  // floats of a thread whose pieces have ``floats`` together
  static constexpr size_t size(size_t floats) { return round(floats + PADDING); }

  Scratch(float* all, size_t size, int thread) : base(all + size * thread), length(size) {
    restart();
  }
  ~Scratch() { allow(base, length); }
  Scratch(const Scratch&) = delete;
  void restart() {
    used = 0;
    forbid(base, length);
  }
  float* take(size_t floats) {
    float* piece = base + used;
    used += round(floats) + GUARD;
    allow(piece, floats);
    return piece;
  }

 private:
  static constexpr size_t round(size_t floats) { return (floats + STEP - 1) / STEP * STEP; }
#ifdef __SANITIZE_ADDRESS__
  static void forbid(float* p, size_t n) { __asan_poison_memory_region(p, n * sizeof(float)); }
  static void allow(float* p, size_t n) { __asan_unpoison_memory_region(p, n * sizeof(float)); }
#else
  static void forbid(float*, size_t) {}
  static void allow(float*, size_t) {}
#endif
  float* base;
  size_t length, used;
};

}  // namespace
