// Random words as a function of a key and a counter: a mask is the same on the CPU and on a GPU.
#pragma once
#include "common.h"

namespace ost::OST_SET {

// Four words, or four vectors of them: lane by lane four words.
template <class W>
struct RandomWords {
  W w[4];
};

OST_HD void multiply_words(std::uint32_t a, std::uint32_t b, std::uint32_t* high, std::uint32_t* low) {
  const std::uint64_t product = std::uint64_t(a) * b;
  *high = std::uint32_t(product >> 32), *low = std::uint32_t(product);
}

// Philox4x32-10, Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3". W is a word, or a vector of words.
template <class W>
OST_HD RandomWords<W> philox(std::uint64_t key, RandomWords<W> c) {
  std::uint32_t k0 = std::uint32_t(key), k1 = std::uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    W high0, low0, high1, low1;
    multiply_words(c.w[0], 0xD2511F53u, &high0, &low0);
    multiply_words(c.w[2], 0xCD9E8D57u, &high1, &low1);
    c = {{high1 ^ c.w[1] ^ k0, low1, high0 ^ c.w[3] ^ k1, low0}};
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

OST_HD RandomWords<std::uint32_t> random_words(const RandomRow& row, std::uint32_t quad) {
  return philox<std::uint32_t>(row.key, {{quad, row.second, row.third, row.fourth}});
}

// The units of a layer's output at (layer, direction, t, b).
OST_HD RandomRow unit_row(std::uint64_t key, std::uint32_t layer_direction, std::uint64_t t, std::uint32_t b) {
  return {key, b, std::uint32_t(t), layer_direction ^ std::uint32_t(t >> 32) << 16};
}
// Elements 2^34 part .. 2^34 (part + 1) - 1 of an array.
OST_HD RandomRow element_row(std::uint64_t key, Index part) { return {key, std::uint32_t(part), 0, 0x80000000u}; }

// An element is kept with probability 1 - rate: if its word, divided by 2^32 and rounded down to 24 bits, is not less than the rate.
OST_HD std::uint32_t dropout_limit(double rate) { return std::uint32_t(__builtin_ceil(rate * 16777216.0)); }
template <class W>
OST_HD auto dropout_keeps(W word, std::uint32_t limit) {  // of each word of a vector
  return word >> 8 >= limit;
}

}  // namespace ost::OST_SET
