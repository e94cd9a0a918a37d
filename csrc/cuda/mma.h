// The matrix instruction of 2-byte operands, out(16x8) += a(16x16) b(16x8), run by every warp of a
// block: the layout of its fragments, and the instruction, or its emulation on the CPU.
#pragma once
#include "block.h"
#include "half.h"
#include "math.h"

namespace ost::OST_SET {

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": of lane 4 g + i, word w of a holds row g (+8 if w is odd) and
// columns 2 i, 2 i + 1 (+8 if w > 1); word w of b holds rows 2 i, 2 i + 1 (+8 if w is 1) of column g; sum c has row g (+8 if c > 1) and
// column 2 i (+1 if c is odd).
struct Lane {
  int g, i;
  OST_HD explicit Lane(int thread) : g(thread % 32 / 4), i(thread % 4) {}
  OST_HD int a_row(int word) const { return g + word % 2 * 8; }
  OST_HD int a_column(int word) const { return 2 * i + word / 2 * 8; }
  OST_HD int b_row(int word) const { return 2 * i + word * 8; }
  OST_HD int b_column() const { return g; }
  OST_HD int sum_row(int c) const { return g + c / 2 * 8; }
  OST_HD int sum_column(int c) const { return 2 * i + c % 2; }
};

struct alignas(16) FragmentA {
  std::uint32_t word[4];
};
struct FragmentB {
  std::uint32_t word[2];
};

// Read two neighbouring numbers as one word.
template <class W>
OST_HD std::uint32_t pair_at(const W* p) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const std::uint32_t*>(p);
#else
  return std::uint32_t(p[0].bits) | std::uint32_t(p[1].bits) << 16;
#endif
}
template <class W>
OST_HD std::uint32_t pair_of(W low, W high) {
  return std::uint32_t(low.bits) | std::uint32_t(high.bits) << 16;
}

#if defined(__CUDA_ARCH__)
OST_HD void mma(Half, const FragmentA& a, const FragmentB& b, float* c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}
OST_HD void mma(Bfloat, const FragmentA& a, const FragmentB& b, float* c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}
#endif

// Add to sums(thread)[4] the thread's part of its warp's product a(thread) b(thread).
template <class W, class A, class B, class S>
OST_HD void multiply_fragments([[maybe_unused]] const Block& block, A&& a, B&& b, S&& sums) {
#if defined(__CUDA_ARCH__)
  block.for_each_thread([&](int thread) { mma(W{}, a(thread), b(thread), sums(thread)); });
#else
  // Products of 2-byte numbers are exact as floats, so a sum rounds once, as with a fused instruction.
  typedef float Row __attribute__((vector_size(32)));
  const auto half = [](std::uint32_t word, int k) { return widen(W{std::uint16_t(word >> 16 * k)}); };
  for (int first = 0; first < block.threads; first += 32) {
    float left[16][16];
    Row right[16], out[16];
    for (int thread = first; thread < first + 32; ++thread) {
      const Lane lane(thread);
      for (int w = 0; w < 4; ++w)
        for (int k = 0; k < 2; ++k) left[lane.a_row(w)][lane.a_column(w) + k] = half(a(thread).word[w], k);
      for (int w = 0; w < 2; ++w)
        for (int k = 0; k < 2; ++k) right[lane.b_row(w) + k][lane.b_column()] = half(b(thread).word[w], k);
    }
    for (int thread = first; thread < first + 32; ++thread) {
      const Lane lane(thread);
      for (int c = 0; c < 4; ++c) out[lane.sum_row(c)][lane.sum_column(c)] = sums(thread)[c];
    }
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < 16; ++k) out[row] += left[row][k] * right[k];
    for (int thread = first; thread < first + 32; ++thread) {
      const Lane lane(thread);
      for (int c = 0; c < 4; ++c) sums(thread)[c] = out[lane.sum_row(c)][lane.sum_column(c)];
    }
  }
#endif
}

}  // namespace ost::OST_SET
