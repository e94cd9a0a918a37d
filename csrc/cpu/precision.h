// What a product multiplies. A policy says how rows of operands and panels of weights are encoded into words, one word a
// lane, and how a word of a row times a vector of words is added up. States, sums and gradients stay real everywhere.
//
//   Exact<T>  a word is one T; rows are read where they lie.
//   BFloat    a word is two bfloat16; rows are rounded (to nearest, ties to even) into scratch. Sums are float32.
//   Int8      a word is four bytes: weights in -127..127 with a scale a row of the weight, operands 0..255 (128 is zero) with
//             a scale a row. Sums are exact in int32, so only the rounding of the operands is lost. Forward only.
//
// Sets without the instruction (VDPBF16PS, VPDPBUSD; BFDOT, USDOT or SDOT on aarch64) widen first: the same values in more
// instructions. With AVX2 and AVX-512 a word is then multiplied in two parts, one after the other, and rows of operands lie in memory
// as parts, so that a part is broadcast by one load (Zen 3, LSTM: bfloat16 runs 1.7 times as fast as with a shift and a mask of every
// word, which gcc makes in general registers). AVX2's own VPMADDUBSW would saturate at 16 bits (255 * 127 * 2 = 64770) and is not used.
#pragma once
#include "simd.h"

namespace ost::OST_SET {

template <class T>
struct Exact {
  using Real = T;
  using Word = T;
  using Acc = Vec<T>;
  using Weights = Vec<T>;
  using Factor = Vec<T>;                                  // what is multiplied: a part of a vector of words
  static constexpr int kPack = 1, kParts = 1, kHead = 0;  // elements and parts a word; rows of a panel before the first word
  static constexpr bool kEncodes = false, kSumsAreExact = false;
  static OST_HD Weights load(const T* p) { return Weights::load(p); }
  static OST_HD Weights load_encoded(const T* p, Index n) { return n < Weights::kLanes ? Weights::load_part(p, int(n)) : Weights::load(p); }
  static OST_HD Weights splat(T x) { return Weights(x); }
  static OST_HD Factor factor(const T* p, int) { return Weights::load(p); }
  static OST_HD Factor operand(T x) { return Weights(x); }
  static OST_HD Acc start(const T* init, const T*) { return Acc::load(init); }
  static OST_HD Acc multiply(Factor x, Factor w, Acc acc) { return fma(x, w, acc); }
  static OST_HD Vec<T> finish(Acc acc, const T*, const T*, const T*) { return acc; }
  static OST_HD const T* encode(const T* row, Index, T*) { return row; }
  // Word i of the result: element i of kPack rows; a row that is null counts as zeros.
  static OST_HD void interleave_rows(const T* const* rows, Index n, T* out) {
    if (rows[0])
      __builtin_memcpy(out, rows[0], std::size_t(n) * sizeof(T));
    else
      __builtin_memset(out, 0, std::size_t(n) * sizeof(T));
  }
  static OST_HD void interleave_operands(const T* const* rows, Index n, T* out) { interleave_rows(rows, n, out); }
};

OST_HD Words load_words(const std::uint32_t* p) {
  Words w;
  __builtin_memcpy(&w, p, kVectorBytes);
  return w;
}
OST_HD Words splat_word(std::uint32_t x) { return Words{} + x; }

// Sets that multiply words in two parts: wide vectors without an instruction for words of two bfloat16, or of four bytes.
#if defined(__AVX2__) && !defined(__AVX512BF16__)
#define OST_HALVES_IN_PARTS
#endif
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
#define OST_BYTES_IN_PARTS
#endif

// Two floats a lane from the bits of two bfloat16, and back.
OST_HD Vec<float> low_half(Words w) { return (Vec<float>::Raw)(w << 16); }
OST_HD Vec<float> high_half(Words w) { return (Vec<float>::Raw)(w & 0xffff0000u); }
OST_HD Words half_bits(Vec<float> x) {  // rounded to bfloat16, in the low 16 bits
  const Words u = (Words)x.v;
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
  return (u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
}
// Lane i: bfloat16 of (low[i], high[i]).
OST_HD Words pair_words(Vec<float> low, Vec<float> high) { return half_bits(low) | half_bits(high) << 16; }

struct BFloat {
  using Real = float;
  using Word = std::uint32_t;
  using Acc = Vec<float>;
  using Weights = Words;
  static constexpr int kPack = 2, kHead = 0;
  static constexpr bool kEncodes = true, kSumsAreExact = false;
#if defined(OST_HALVES_IN_PARTS)  // each is a float
  using Factor = Vec<float>;
  static constexpr int kParts = 2;
  static OST_HD Factor factor(const Word* p, int part) { return part == 0 ? low_half(load(p)) : high_half(load(p)); }
  static OST_HD Factor operand(Word x) {
    float bits;
    __builtin_memcpy(&bits, &x, sizeof x);
    return Factor(bits);
  }
#else
  using Factor = Words;
  static constexpr int kParts = 1;
  static OST_HD Factor factor(const Word* p, int) { return load(p); }
  static OST_HD Factor operand(Word x) { return splat(x); }
#endif
  static OST_HD Words load(const Word* p) { return load_words(p); }
  static OST_HD Words load_encoded(const Word* p, Index) { return load_words(p); }  // encoded rows are whole vectors
  static OST_HD Words splat(Word x) { return splat_word(x); }
  static OST_HD Acc start(const float* init, const Word*) { return Acc::load(init); }
  static OST_HD Acc multiply(Factor x, Factor w, Acc acc) {
#if defined(OST_HALVES_IN_PARTS)
    return fma(x, w, acc);
#elif defined(__AVX512BF16__)
    return (Acc::Raw)_mm512_dpbf16_ps((__m512)acc.v, (__m512bh)x, (__m512bh)w);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (Acc::Raw)vbfdotq_f32((float32x4_t)acc.v, (bfloat16x8_t)x, (bfloat16x8_t)w);
#else
    return fma(high_half(x), high_half(w), fma(low_half(x), low_half(w), acc));
#endif
  }
  static OST_HD Vec<float> finish(Acc acc, const float*, const Word*, const Word*) { return acc; }

  static const Word* encode(const float* row, Index n, Word* out) {
#if defined(OST_HALVES_IN_PARTS)
    using V = Vec<float>;
    for (Index i = 0; i < n; i += V::kLanes) {
      const Words bits = half_bits(n - i >= V::kLanes ? V::load(row + i) : V::load_part(row + i, int(n - i))) << 16;
      __builtin_memcpy(out + i, &bits, kVectorBytes);
    }
    return out;
#else
    return encode_weights(row, n, out);
#endif
  }
  static const Word* encode_weights(const float* row, Index n, Word* out) {
    constexpr int L = Vec<float>::kLanes;
    std::uint16_t* to = reinterpret_cast<std::uint16_t*>(out);
    Index i = 0;
#if defined(__AVX512BF16__)
    for (; i + 2 * L <= n; i += 2 * L) {
      const __m512bh both = _mm512_cvtne2ps_pbh((__m512)Vec<float>::load(row + i + L).v, (__m512)Vec<float>::load(row + i).v);
      __builtin_memcpy(to + i, &both, kVectorBytes);
    }
#endif
    for (; i < n; i += L) {
      const Words bits = half_bits(n - i >= L ? Vec<float>::load(row + i) : Vec<float>::load_part(row + i, int(n - i)));
      typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
      const Halves halves = __builtin_convertvector(bits, Halves);
      __builtin_memcpy(to + i, &halves, kVectorBytes / 2);
    }
    return out;
  }

  static void interleave_rows(const float* const* rows, Index n, Word* out) {
    using V = Vec<float>;
    for (Index i = 0; i < n; i += V::kLanes) {
      const bool whole = n - i >= V::kLanes;
      const auto load = [&](const float* row) { return !row ? V(0.0f) : whole ? V::load(row + i) : V::load_part(row + i, int(n - i)); };
      const V low = load(rows[0]), high = load(rows[1]);
#if defined(__AVX512BF16__)
      const Words w = (Words)_mm512_cvtne2ps_pbh((__m512)high.v, (__m512)low.v);  // low halves first: 16 of low, 16 of high
      typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes)));
      const Words pairs = (Words)__builtin_shufflevector((Halves)w, (Halves)w, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8,
                                                         24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
      const Words pairs = pair_words(low, high);
#endif
      if (whole)
        __builtin_memcpy(out + i, &pairs, kVectorBytes);
      else
        __builtin_memcpy(out + i, &pairs, std::size_t(n - i) * sizeof(Word));
    }
  }
  // Of operands, the parts of a word side by side.
  static void interleave_operands(const float* const* rows, Index n, Word* out) {
    interleave_rows(rows, n, out);
    if constexpr (kParts > 1)
      for (Index i = n; i-- > 0;) {
        const Word pair = out[i];
        out[2 * i] = pair << 16, out[2 * i + 1] = pair & 0xffff0000u;
      }
  }
};

struct Int8 {
  using Real = float;
  using Word = std::uint32_t;
  struct Acc {
    Ints v;
  };
  using Weights = Words;
  using Factor = Words;
  typedef std::int16_t Shorts __attribute__((vector_size(kVectorBytes)));
  static constexpr int kPack = 4, kHead = 2;  // head: minus 128 times the sum of each column, and its scale
  static constexpr bool kEncodes = true, kSumsAreExact = true;
  static OST_HD Words load(const Word* p) { return load_words(p); }
  static OST_HD Words load_encoded(const Word* p, Index) { return load_words(p); }  // encoded rows are whole vectors
  static OST_HD Words splat(Word x) { return splat_word(x); }
#if defined(OST_BYTES_IN_PARTS)  // the bytes 0 and 2, and 1 and 3, as 16 bits each
  static constexpr int kParts = 2;
  static OST_HD Factor factor(const Word* p, int part) {
    const Words w = load(p);
    return (Words)((part == 0 ? (Shorts)w << 8 : (Shorts)w) >> 8);
  }
#else
  static constexpr int kParts = 1;
  static OST_HD Factor factor(const Word* p, int) { return load(p); }
#endif
  static OST_HD Factor operand(Word x) { return splat(x); }
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
  // SDOT takes signed bytes: x - 128, which is x with its highest bit turned, needs no correction.
  static constexpr Word kOne = 0x81818181u;  // a word of four operands that are one
  static OST_HD Acc start(const float*, const Word*) { return {Ints{}}; }
#else
  static constexpr Word kOne = kParts == 1 ? 0x01010101u : 0x00010001u;
  static OST_HD Acc start(const float*, const Word* head) { return {(Ints)load_words(head)}; }
#endif
  static OST_HD Acc multiply(Factor x, Factor w, Acc acc) {
#if defined(__AVX512VNNI__)
    return {(Ints)_mm512_dpbusd_epi32((__m512i)acc.v, (__m512i)x, (__m512i)w)};
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return {(Ints)vusdotq_s32((int32x4_t)acc.v, (uint8x16_t)x, (int8x16_t)w)};
#elif defined(__ARM_FEATURE_DOTPROD)
    return {(Ints)vdotq_s32((int32x4_t)acc.v, (int8x16_t)(x ^ 0x80808080u), (int8x16_t)w)};
#elif defined(__AVX512BW__)
    return {acc.v + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w)};
#elif defined(__AVX2__)
    // Both in one piece: gcc would take all products of a part before it adds them, and keep those in memory.
    Words product;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc.v), "=&x"(product) : "x"(x), "x"(w));
    return acc;
#else
    for (int k = 0; k < 4; ++k) acc.v += (Ints)(x >> (8 * k) & 255u) * ((Ints)(w << (24 - 8 * k)) >> 24);
    return acc;
#endif
  }
  static OST_HD Vec<float> finish(Acc acc, const float* init, const Word* scales, const Word* row_scale) {
    Vec<float> scale = (Vec<float>::Raw)load_words(scales);
    float row;
    __builtin_memcpy(&row, row_scale, 4);
    return fma(Vec<float>(__builtin_convertvector(acc.v, Vec<float>::Raw)), scale * Vec<float>(row), Vec<float>::load(init));
  }

  // Bytes round(x / scale) + offset, scale = max |x| / 127 (NaN if any x is NaN or infinite, so that the results are too).
  static OST_HD float bytes(const float* row, Index n, int offset, Word* out) {
    using V = Vec<float>;
    constexpr int L = V::kLanes;
    const auto load = [&](Index i) { return n - i >= L ? V::load(row + i) : V::load_part(row + i, int(n - i)); };
    V top(0.0f), bad(0.0f);
    for (Index i = 0; i < n; i += L) {
      const V x = load(i), size = select(x < V(0.0f), -x, x);
      top = select(top < size, size, top);
      bad = bad + x * V(0.0f);
    }
    float most = 0;
    for (int i = 0; i < L; ++i) most = larger(most, top.v[i]);
    const float scale = most / 127, inverse = most > 0 ? 127 / most : 0;
    typedef std::uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
    std::uint8_t* to = reinterpret_cast<std::uint8_t*>(out);
    const V magic(RoundMagic<float>::value);
    for (Index i = 0; i < n; i += L) {
      const Ints q = (Ints)(load(i) * V(inverse) + magic).v - (Ints)magic.v + offset;
      const Bytes b = __builtin_convertvector((Words)q & 255u, Bytes);
      __builtin_memcpy(to + i, &b, kVectorBytes / 4);
    }
    return scale + sum_lanes(bad);
  }
  static const Word* encode_weights(const float* row, Index n, Word* out, Word* correction, Word* scale) {
    const float s = bytes(row, n, 0, out);
    __builtin_memcpy(scale, &s, 4);
    constexpr Index L = Vec<float>::kLanes;
    const auto* bytes_of = reinterpret_cast<const std::int8_t*>(out);
    Acc sums{Ints{}};
    Index i = 0;
    for (; i + L * kPack <= n; i += L * kPack)
      for (int part = 0; part < kParts; ++part) sums = multiply(splat(kOne), factor(out + i / kPack, part), sums);
    std::int32_t sum = 0;
    for (Index lane = 0; lane < L; ++lane) sum += sums.v[lane];
    for (; i < n; ++i) sum += bytes_of[i];
    *correction = Word(-128 * sum);
    return out;
  }
  static const Word* encode(const float* row, Index n, Word* out) {
    const float scale = bytes(row, n, 128, out);
    const Index count = ceil_div(n, kPack);
    if constexpr (kParts > 1)
      for (Index i = count; i-- > 0;) {
        const Word word = out[i];
        out[2 * i] = word & 0x00ff00ffu, out[2 * i + 1] = word >> 8 & 0x00ff00ffu;
      }
    __builtin_memcpy(out + kParts * count, &scale, 4);
    return out;
  }
};

template <class P>
OST_HD constexpr Index words(Index depth) {
  return ceil_div(depth, P::kPack);
}
template <class P>
OST_HD constexpr Index panel_rows(Index depth) {
  return words<P>(depth) + P::kHead;
}
// Words to set aside for an encoded row, of operands or of weights: whole vectors, and one more for the scale.
template <class P>
OST_HD constexpr Index row_words(Index depth) {
  constexpr int L = Vec<typename P::Real>::kLanes;
  return P::kEncodes ? ceil_div(depth, L * P::kPack) * L * P::kParts + L : 0;
}

// An L x L square of words, rows to columns: log2 L rounds in which rows i and i + D change their off-diagonal blocks.
template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  using type = Sequence<I...>;
};
template <int D, class R, int... J>
OST_HD void exchange(R& a, R& b, Sequence<J...>) {
  constexpr int L = sizeof...(J);
  const R x = a, y = b;
  a = __builtin_shufflevector(x, y, ((J & D) == 0 ? J : J - D + L)...);
  b = __builtin_shufflevector(x, y, ((J & D) == 0 ? J + D : J + L)...);
}
template <class R, int L, int D = 1>
OST_HD void transpose_square(R (&r)[L]) {
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if ((i & D) == 0) exchange<D>(r[i], r[i + D], typename MakeSequence<L>::type());
  if constexpr (2 * D < L) transpose_square<R, L, 2 * D>(r);
}

template <class P, int L>
OST_HD void transpose_rows(typename P::Weights (&rows)[L]) {
  if constexpr (P::kEncodes)
    transpose_square(rows);
  else
    transpose_square(reinterpret_cast<typename P::Weights::Raw(&)[L]>(rows));
}

}  // namespace ost::OST_SET
