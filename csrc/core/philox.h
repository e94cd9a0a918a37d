// Random words as a function of a key and a counter: a mask is the same on the CPU and on a GPU.
#pragma once
#include "common.h"

namespace ost::OST_SET {

struct Words {
  std::uint32_t w[4];
};

// Philox4x32-10, Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".
OST_HD Words philox(std::uint64_t key, Words c) {
  std::uint32_t k0 = std::uint32_t(key), k1 = std::uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c.w[0], p1 = std::uint64_t(0xCD9E8D57u) * c.w[2];
    c = {{std::uint32_t(p1 >> 32) ^ c.w[1] ^ k0, std::uint32_t(p1), std::uint32_t(p0 >> 32) ^ c.w[3] ^ k1, std::uint32_t(p0)}};
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

// Random words of units 4 quad .. 4 quad + 3 at (layer, direction, t, b).
OST_HD Words unit_words(std::uint64_t key, std::uint32_t layer_direction, std::uint64_t t, std::uint32_t b, std::uint32_t quad) {
  return philox(key, {{quad, b, std::uint32_t(t), layer_direction ^ std::uint32_t(t >> 32) << 16}});
}
// Random words of elements 4 quad .. 4 quad + 3 of an array.
OST_HD Words element_words(std::uint64_t key, Index quad) {
  return philox(key, {{std::uint32_t(quad), std::uint32_t(quad >> 32), 0, 0x80000000u}});
}

// An element is kept with probability 1 - rate.
OST_HD bool dropout_keeps(std::uint32_t word, double rate) { return double(word >> 8) * (1.0 / 16777216.0) >= rate; }

}  // namespace ost::OST_SET
