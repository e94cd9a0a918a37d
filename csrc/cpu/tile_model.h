// The tiles of AMX as a class without instructions, for the tests: registers, configuration, and the arithmetic as Intel documents it
// (Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS, TDPBUSD). What would be a fault of the CPU ends the process:
// a shape that LDTILECFG refuses, a tile without a shape, shapes that do not fit each other, and tiles that were not released.
#pragma once
#include "precision.h"

namespace ost::OST_SET {

class ModelTiles {
 public:
  ModelTiles() = default;
  ModelTiles(const ModelTiles&) = delete;
  ~ModelTiles() { require(!configured_); }

  // What the instructions cannot see: rows that are given by pointers lie at a stride.
  template <class W>
  static void require_even(const W* const* rows, Index count) {
    for (Index i = 1; i < count; ++i) require(rows[i] - rows[i - 1] == rows[1] - rows[0]);
  }

  template <class Config>
  void configure(const Config& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (const std::uint8_t byte : config.reserved) require(byte == 0);
    for (int i = 0; i < kNames * 2; ++i) {
      require(config.row_bytes[i] <= kRowBytes && config.rows[i] <= kRows && (config.rows[i] == 0) == (config.row_bytes[i] == 0));
      if (i >= kNames) require(config.rows[i] == 0);
    }
    __builtin_memset(tiles_, 0, sizeof tiles_);
    for (int i = 0; i < kNames; ++i) tiles_[i].rows = config.rows[i], tiles_[i].bytes = config.row_bytes[i];
    configured_ = true;
  }
  void release() {
    __builtin_memset(tiles_, 0, sizeof tiles_);
    configured_ = false;
  }
  template <int I>
  void load(const void* from, Index stride) {
    Tile& t = shaped(I);
    __builtin_memset(t.words, 0, sizeof t.words);
    for (int r = 0; r < t.rows; ++r) __builtin_memcpy(t.words[r], static_cast<const char*>(from) + r * stride, std::size_t(t.bytes));
  }
  template <int I>
  void store(void* to, Index stride) {
    const Tile& t = shaped(I);
    for (int r = 0; r < t.rows; ++r) __builtin_memcpy(static_cast<char*>(to) + r * stride, t.words[r], std::size_t(t.bytes));
  }
  template <class P, int Sums, int Left, int Right>
  void multiply() {
    Tile& c = shaped(Sums);
    const Tile &a = shaped(Left), &b = shaped(Right);
    require(Sums != Left && Sums != Right && Left != Right);
    require(c.rows == a.rows && c.bytes == b.bytes && a.bytes == b.rows * 4);
    for (int m = 0; m < c.rows; ++m)
      for (int n = 0; n < c.bytes / 4; ++n) c.words[m][n] = P::kPack == 2 ? halves(c, a, b, m, n) : bytes(c, a, b, m, n);
  }

 private:
  static constexpr int kNames = 8, kRows = 16, kRowBytes = 64;
  struct Tile {
    int rows, bytes;  // of a row
    std::uint32_t words[kRows][kRowBytes / 4];
  };

  static void require(bool fits) {
    if (!fits) __builtin_trap();
  }
  Tile& shaped(int i) {
    require(configured_ && tiles_[i].rows > 0);
    return tiles_[i];
  }
  static float number(std::uint32_t bits) {
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return flushed(out);
  }
  // Denormal numbers are zero, on the way in and on the way out, whatever the process says of them.
  static float flushed(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  }
  static std::uint32_t halves(const Tile& c, const Tile& a, const Tile& b, int m, int n) {
    float low = 0, high = 0;
    for (int k = 0; k < b.rows; ++k) {
      const std::uint32_t x = a.words[m][k], w = b.words[k][n];
      low = flushed(__builtin_fmaf(number(x << 16), number(w << 16), low));
      high = flushed(__builtin_fmaf(number(x & 0xffff0000u), number(w & 0xffff0000u), high));
    }
    const float sum = flushed(number(c.words[m][n]) + flushed(low + high));
    std::uint32_t bits;
    __builtin_memcpy(&bits, &sum, 4);
    return bits;
  }
  static std::uint32_t bytes(const Tile& c, const Tile& a, const Tile& b, int m, int n) {
    std::uint32_t sum = c.words[m][n];
    for (int k = 0; k < b.rows; ++k)
      for (int shift = 0; shift < 32; shift += 8)
        sum += (a.words[m][k] >> shift & 255u) * std::uint32_t(std::int8_t(b.words[k][n] >> shift & 255u));
    return sum;
  }

  bool configured_ = false;
  Tile tiles_[kNames] = {};
};

}  // namespace ost::OST_SET
