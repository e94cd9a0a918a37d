// A product whose weights stay in the registers of blocks for all steps of a launch, and whose inputs
// come from the exchange buffer.
#pragma once
#include "exchange.h"
#include "mma.h"

namespace ost::OST_SET {

constexpr int kGroupRows = 16;    // rows of the batch of a group
constexpr int kWeightWords = 32;  // fragments of weights that a thread holds, at most: 128 registers

// The words that are exchanged: those of the product, or, for exact products, two parts of half the
// bits each.
template <class W>
struct ExchangeWords {
  using Forward = W;
  using Backward = W;
  static constexpr int kParts = 1;
};
template <>
struct ExchangeWords<float> {
  using Forward = Half;
  using Backward = Bfloat;  // gradients need the range
  static constexpr int kParts = 2;
};

// Pairs of tiles of inputs that a thread has in flight: as many as registers have room for beside
// weights and sums.
constexpr int pairs_at_a_time(int out_tiles, int parts) { return parts == 2 ? 1 : out_tiles == 1 ? 4 : 2; }

// sums[row][out] = the inputs of a row from the exchange buffer times weights. The `kPeers` blocks of
// a cluster, and the warps of a block, take pairs of tiles of 16 inputs in turn. A warp has at most
// kDepth tiles, of which the weights of kShared lie in shared memory for want of registers; kInFlight
// pairs are asked for at the same time.
//
// The words of a slot are the left fragments of the product, [tile of 16 inputs][part][lane][4]: two
// inputs of rows g and g + 8 of the batch, which are written in one piece, and the two after them.
// (The order of inputs within a tile is ours to choose, since weights are packed in the same one.)
// What nobody sends, rows beyond the batch and inputs beyond the last block's, is zero before the
// launch. So a thread asks for 16 bytes of every tile, at a distance from one pointer that the
// compiler knows, and tests one word of each piece.
template <class Word, int kParts, int kOutputs, int kDepth, int kInFlight, int kPeers = 1, int kShared = 0>
struct ExchangeEngine {
  static constexpr int kWarps = kThreads / 32, kPairs = kDepth / 2;
  static constexpr int kOuts = kOutputs, kTiles = (kOuts + 15) / 16, kHalves = (kOuts + 7) / 8, kInRegisters = kDepth - kShared;
  static constexpr int kTileWords = kParts * 128, kPairWords = 2 * kTileWords;
  static constexpr int kWarpWords = kPairWords * kWarps * kPeers;  // from a warp's pair to its next
  static_assert(kInRegisters > 0 && kDepth % 2 == 0);
  // A pointer advances by the slots of both phases of two problems, each with room for the inputs whose weights fit.
  static_assert(Index(2) * 2 * kPairs * kWarpWords <= kMostStride);
  struct Weights {
    FragmentA a[kParts][kTiles][kInRegisters];  // as right fragments: words 0 and 1 of outputs 0 to 7, 2 and 3 of outputs 8 to 15
  };
  struct Sums {
    float v[kParts][kHalves][4];
  };
  struct alignas(16) Received {
    FragmentA tile[kInFlight][2][kParts];
  };
  // Rows lie 8 banks apart, so that pairs of sums are written without bank conflicts; where they are half a cycle of the banks wide, so do
  // rows g, and g + 8 lies in the other half, since a warp reads both.
  static constexpr bool kNarrow = kOuts <= 16;
  static constexpr int kRowFloats = (kOuts + 31) / 32 * 32 + 8;
  OST_HD static int row_begin(int row) { return kNarrow ? row % 8 * kRowFloats + row / 8 * 16 : row * kRowFloats; }
  struct alignas(16) Space {
    FragmentA in_shared[kParts][kTiles][kShared > 0 ? kShared : 1][kShared > 0 ? kThreads : 1];
    float sums[kWarps][(kNarrow ? 8 : kGroupRows) * kRowFloats];
    // The sums of n neighbouring outputs, of which the first is a multiple of n.
    template <int n>
    OST_HD Numbers<float, n> sum(int out, int row) const {
      const auto of_warp = [&](int w) { return *reinterpret_cast<const Numbers<float, n>*>(&sums[w][row_begin(row) + out]); };
      Numbers<float, n> all = of_warp(0);
      OST_UNROLL
      for (int w = 1; w < kWarps; ++w) {
        const Numbers<float, n> one = of_warp(w);
        OST_UNROLL
        for (int i = 0; i < n; ++i) all.v[i] += one.v[i];
      }
      return all;
    }
  };

  OST_HD static Index depth(Index inputs) { return ceil_div(inputs, 32 * kWarps * kPeers); }  // pairs of a warp
  OST_HD static Index padded(Index inputs) { return depth(inputs) * (32 * kWarps * kPeers); }
  OST_HD static Index slot_words(Index inputs) { return depth(inputs) * kWarpWords; }
  // Where a thread asks for its first words.
  OST_HD static Index first_word(int thread, Index rank) { return (thread / 32 * kPeers + rank) * kPairWords + thread % 32 * 4; }
  // The first of the two inputs, and the output, of word w of the weights of a thread's tiles k and n.
  OST_HD static Index input(int thread, Index rank, Index k, int w) {
    return ((k / 2 * kWarps + thread / 32) * kPeers + rank) * 32 + k % 2 * 16 + Lane(thread).i * 4 + w % 2 * 2;
  }
  OST_HD static int output(int thread, int n, int w) { return n * 16 + w / 2 * 8 + Lane(thread).g; }

  OST_HD static FragmentA& weight(Weights& weights, Space& space, int thread, int part, int n, int k) {
    return k < kInRegisters ? weights.a[part][n][k < kInRegisters ? k : 0]
                            : space.in_shared[part][n][k < kInRegisters ? 0 : k - kInRegisters][thread];
  }
  // `pairs` of a warp are there.
  OST_HD static void load(const Block& block, PerThread<Weights>& weights, Space& space, const void* from, Index pairs) {
    const Index depth = 2 * pairs;
    const FragmentA* packed = static_cast<const FragmentA*>(from) + block.x * kParts * kTiles * depth * kThreads;
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) {
        OST_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          OST_UNROLL
          for (int k = 0; k < kDepth; ++k)
            weight(weights[thread], space, thread, part, n, k) =
                k < depth ? packed[((part * kTiles + n) * depth + k) * kThreads + thread] : FragmentA{};
        }
      }
    });
  }

  // The place of inputs `in` (even) and `in + 1` of rows g and g + 8.
  OST_HD static Index place(Index in, int g) { return in / 16 * kTileWords + (g * 4 + in % 16 / 4) * 4 + in % 4 / 2 * 2; }
  // One or two words of a thread, of its own row, in each part.
  template <int kCount>
  struct Sent {
    std::uint32_t word[kCount][kParts];
    OST_HD void set(int i, float low, float high) {
      Word l[kParts], h[kParts];
      split_float<Word, kParts>(low, l);
      split_float<Word, kParts>(high, h);
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) word[i][part] = encode(l[part], h[part]);
    }
  };
  // Half of the threads of a warp have rows g, the other half rows g + 8 of the same inputs. The first ones write the first words of
  // both, the others the second ones, if there are two.
  template <int kCount, class Sends, class At>
  OST_HD static void send(const Block& block, PerThread<Sent<kCount>>& sent, Sends&& sends, At&& at) {
    block.for_each_thread([&](int thread) {
      const bool second = thread % 32 >= 16;
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const auto own = sent[thread].word;
        const std::uint32_t other = of_partner<16>(sent, thread, [&](const Sent<kCount>& its, int whose) {
          return whose % 32 < 16 ? its.word[kCount - 1][part] : its.word[0][part];
        });
        const std::uint32_t low = second && kCount > 1 ? other : own[0][part], high = second && kCount > 1 ? own[kCount - 1][part] : other;
        if (sends(thread)) store_pair(at(thread) + part * 128, low, high);
      }
    });
  }

  // `from`: where a thread asks for its first words, of `pairs`, at least one; `lost`: it has timed out and no longer waits.
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space, const ExchangeBuffer& buffer,
                              PerThread<const std::uint32_t*>& from, int pairs, PerThread<bool>& lost) {
    PerThread<Sums> sums;
    PerThread<Received> received;
    clear(block, sums);
    OST_UNROLL
    for (int first = 0; first < kPairs; first += kInFlight) {
      if (first > 0 && first >= pairs) break;
      block.for_each_thread([&](int thread) {
        OST_UNROLL
        for (int k = 0; k < kInFlight; ++k)
          if (first + k == 0 || (first + k < kPairs && first + k < pairs))
            look(from[thread] + (first + k) * kWarpWords, received[thread].tile[k]);
      });
      OST_UNROLL
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k > 0 && (first + k >= kPairs || first + k >= pairs)) break;
        block.for_each_thread(
            [&](int thread) { wait(from[thread] + (first + k) * kWarpWords, received[thread].tile[k], buffer, lost[thread]); });
        block.sync_warp();
        multiply_pair(block, weights, space, first + k, sums, [&](int thread) -> Words& { return received[thread].tile[k]; });
      }
    }
    block.for_each_thread_sync([&](int thread) { store(thread, sums[thread], space); });
  }

  // Add the product of pair `pair`.
  using Words = FragmentA[2][kParts];
  template <class R>
  OST_HD static void multiply_pair(const Block& block, PerThread<Weights>& weights, Space& space, int pair, PerThread<Sums>& sums,
                                   R&& received) {
    OST_UNROLL
    for (int k = 0; k < 2; ++k) {
      OST_UNROLL
      for (int n = 0; n < kHalves; ++n) {
        const auto one = [&](int left, int right, int to) {
          multiply_fragments<Word>(
              block, [&](int thread) -> FragmentA& { return received(thread)[k][left]; },
              [&](int thread) {
                const FragmentA& w = weight(weights[thread], space, thread, right, n / 2, 2 * pair + k);
                return FragmentB{{w.word[n % 2 * 2], w.word[n % 2 * 2 + 1]}};
              },
              [&](int thread) -> float* { return sums[thread].v[to][n]; });
        };
        one(0, 0, 0);
        if constexpr (kParts > 1) one(0, 1, 1), one(1, 0, 1);  // the product of both low-order terms is below the precision of a float
      }
    }
  }

  OST_HD static void look(const std::uint32_t* from, Words& words) {
    OST_UNROLL
    for (int k = 0; k < 2; ++k) {
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) poll_pairs(from + k * kTileWords + part * 128, words[k][part].word);
    }
  }
  OST_HD static bool is_missing(const Words& words) {
    bool missing = false;
    OST_UNROLL
    for (int k = 0; k < 2; ++k) {
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) missing |= is_unset(words[k][part].word);
    }
    return missing;
  }
  // Look again, until all words are set.
  OST_HD static void wait(const std::uint32_t* from, Words& words, const ExchangeBuffer& buffer, bool& lost) {
    for (int polls = 0; is_missing(words) && !lost; ++polls) {
      look(from, words);
      lost = !keep_polling(buffer, polls);
    }
  }

  // Each thread has the sums of two neighbouring outputs for two rows.
  OST_HD static void store(int thread, const Sums& sums, Space& space) {
    const Lane lane(thread);
    OST_UNROLL
    for (int n = 0; n < kHalves; ++n) {
      OST_UNROLL
      for (int half = 0; half < 2; ++half) {
        Numbers<float, 2> two;
        OST_UNROLL
        for (int c = 0; c < 2; ++c) {
          two.v[c] = sums.v[0][n][2 * half + c];
          if constexpr (kParts > 1) two.v[c] = fma(sums.v[1][n][2 * half + c], 1 / kResidualScale<Word>, two.v[c]);
        }
        *reinterpret_cast<Numbers<float, 2>*>(&space.sums[thread / 32][row_begin(lane.sum_row(2 * half)) + n * 8 + lane.sum_column(0)]) =
            two;
      }
    }
  }
};

}  // namespace ost::OST_SET
