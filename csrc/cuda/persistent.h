// All steps in one launch, on many multiprocessors. A block keeps the recurrent weights of a few
// hidden units in its registers, and a group of blocks holds those of all units. Blocks exchange
// what the product of a phase needs through the exchange buffer: forward h, or what the phase
// before emitted; backward da. Groups divide the batch, 16 rows each, and are independent. All
// blocks of a launch must run at the same time. A pass is cut into launches of so many steps that
// the exchange buffer stays in the L2 cache.
#pragma once
#include "backward.h"
#include "exchange.h"
#include "mma.h"

namespace ost::OST_SET {

constexpr int kGroupRows = 16;  // rows of the batch of a group
constexpr float kFloatMax = 3.402823466e38f;
constexpr int kWeightWords = 32;  // fragments of weights that a thread holds, at most: 128 registers

// How far a pointer may advance from step to step: kernels hold strides as int.
constexpr Index kMostStride = 0x7fffffff;

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

// Neighbouring numbers that are read or written at once.
template <int n>
struct alignas(n % 4 == 0   ? 16
               : n % 2 == 0 ? 8
                            : 4) Floats {
  float v[n];
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
    OST_HD Floats<n> sum(int out, int row) const {
      const auto of_warp = [&](int w) { return *reinterpret_cast<const Floats<n>*>(&sums[w][row_begin(row) + out]); };
      Floats<n> all = of_warp(0);
      OST_UNROLL
      for (int w = 1; w < kWarps; ++w) {
        const Floats<n> one = of_warp(w);
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
    block.for_each_thread([&](int thread) {
      float* v = &sums[thread].v[0][0][0];
      OST_UNROLL
      for (int i = 0; i < int(sizeof(Sums) / sizeof(float)); ++i) v[i] = 0;
    });
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
        Floats<2> two;
        OST_UNROLL
        for (int c = 0; c < 2; ++c) {
          two.v[c] = sums.v[0][n][2 * half + c];
          if constexpr (kParts > 1) two.v[c] = fma(sums.v[1][n][2 * half + c], 1 / kResidualScale<Word>, two.v[c]);
        }
        *reinterpret_cast<Floats<2>*>(&space.sums[thread / 32][row_begin(lane.sum_row(2 * half)) + n * 8 + lane.sum_column(0)]) = two;
      }
    }
  }
};

// Buffers of the launches of a pass.
template <class T>
struct PassBuffers {
  ExchangeBuffer buffer;
  T* carry;  // [problem][states][B][H]: states from launch to launch
};
// Arguments of one launch.
template <class T>
struct LaunchArgs {
  ExchangeBuffer buffer;
  T* carry;
  Index first_step, steps, first_row;
  Index slots;  // of each problem of a group
  int groups, problems;
  bool layer_pipelined;  // the second problem is a layer whose upstream layer is the first
};

OST_HD float as_float(float w) { return w; }
template <class W>
OST_HD float as_float(W w) {
  return widen(w);
}
// weight(out, in) of a layer, from panels, or backward from transposed panels. One index goes over
// units, the other one over columns [begin, end) of each unit. After the `inputs` of the recurrent
// product come those of the product that connects the layer with its upstream layer.
template <class W>
struct SharedWeights {
  const W *own, *upstream;  // null means zeros
  Index hidden, inputs;
  Columns columns, own_columns, upstream_columns;
  bool transposed;
  OST_HD float operator()(Index out, Index in) const {
    const bool second = in >= inputs;
    const Index i = second ? in - inputs : in, k = transposed ? out : i, u = (transposed ? i : out) / columns.count();
    const int column = columns.begin + int((transposed ? i : out) % columns.count());
    const Columns of = second ? upstream_columns : own_columns;
    const W* from = second ? upstream : own;
    if (!from || u >= hidden || k >= hidden || !of.has(column)) return 0;
    const Index n = of.count(), at = column - of.begin;
    return as_float(from[transposed ? (u * n + at) * hidden + k : (k * hidden + u) * n + at]);
  }
};

// Pack the weights of all blocks as fragments, [block][part][tile of outputs][tile of inputs of a
// warp][thread]. Each output has a power of two as its scale, [block][output], so that both parts
// of a float are within the range of Half. Peers have the same outputs, and different inputs.
template <class F, class E, class Word, int kParts, int kTiles, int kPeers>
struct PersistentPackKernel {
  F from;
  FragmentA* to;
  float* scales;        // null: no scales
  Index depth, blocks;  // tiles of a warp
  static constexpr int kOuts = kTiles * 16, kSlices = kThreads / kOuts;
  struct Space {
    float top[kSlices][kOuts], scale[kOuts];
  };
  Grid grid() const { return {blocks}; }
  OST_HD float weight(Index block, int out, Index in) const { return out < E::kOuts ? from(block / kPeers * E::kOuts + out, in) : 0; }
  OST_HD void operator()(const Block& block, Space& space) const {
    block.for_each_thread_sync([&](int thread) {
      const int out = thread % kOuts, slice = thread / kOuts;
      if (slice >= kSlices || !scales) return;
      float top = 0;
      for (Index in = slice; in < depth * 16 * E::kWarps * kPeers; in += kSlices) {
        const float w = weight(block.x, out, in), size = w < 0 ? -w : w;
        if (size <= kFloatMax && size > top) top = size;
      }
      space.top[slice][out] = top;
    });
    block.for_each_thread_sync([&](int thread) {
      if (thread >= kOuts) return;
      float top = 0;
      for (int slice = 0; slice < kSlices && scales; ++slice) top = larger(top, space.top[slice][thread]);
      space.scale[thread] = scales ? power_below(top) : 1;
      if (scales) scales[block.x * kOuts + thread] = 1 / space.scale[thread];
    });
    const Index count = kParts * kTiles * depth;
    block.for_each_thread_sync([&](int thread) {
      for (Index i = 0; i < count; ++i) {
        const int part = int(i / (kTiles * depth)), n = int(i / depth % kTiles);
        FragmentA a;
        for (int w = 0; w < 4; ++w) {
          const int out = E::output(thread, n, w);
          const Index in = E::input(thread, block.x % kPeers, i % depth, w);
          Word low[kParts], high[kParts];
          split_float<Word, kParts>(weight(block.x, out, in) * space.scale[out], low);
          split_float<Word, kParts>(weight(block.x, out, in + 1) * space.scale[out], high);
          a.word[w] = part == 0 ? pair_of<Word>(low[0], high[0]) : pair_of<Word>(low[kParts - 1], high[kParts - 1]);
        }
        to[(block.x * count + i) * kThreads + thread] = a;
      }
    });
  }
  // Return a power of two that brings a number to [1, 2), as far as floats have such powers.
  OST_HD static float power_below(float top) {
    float scale = 1;
    if (top == 0) return scale;
    for (; top * scale >= 2 && scale > 1e-37f;) scale /= 2;
    for (; top * scale < 1 && scale < 1e37f;) scale *= 2;
    return scale;
  }
};

// One object for each phase from F on.
template <template <int> class Of, int F, int kEnd>
struct PerPhase {
  Of<F> own;
  PerPhase<Of, F + 1, kEnd> others;
};
template <template <int> class Of, int kEnd>
struct PerPhase<Of, kEnd, kEnd> {};
template <int F, template <int> class Of, int kFirst, int kEnd>
OST_HD auto& get_phase(PerPhase<Of, kFirst, kEnd>& all) {
  if constexpr (F == kFirst)
    return all.own;
  else
    return get_phase<F>(all.others);
}

// Columns of a unit that the weights of a phase feed forward, and that are exchanged backward: all
// columns where layers are pipelined.
template <class C>
constexpr Columns shared_columns(int phase, bool layer_pipelined) {
  return layer_pipelined ? Columns{0, C::kColumns} : product_columns<C>(phase + 1);
}
// Tiles of outputs of a block, summed over all phases; and columns.
template <class C>
constexpr int all_out_tiles(int units, bool layer_pipelined) {
  int tiles = 0;
  for (int f = 0; f < kPhaseCount<C>; ++f) tiles += (units * shared_columns<C>(f, layer_pipelined).count() + 15) / 16;
  return tiles;
}
template <class C>
constexpr int all_columns(bool layer_pipelined) {
  int count = 0;
  for (int f = 0; f < kPhaseCount<C>; ++f) count += shared_columns<C>(f, layer_pipelined).count();
  return count;
}

// The part of a problem that a block computes: units from u0 on, of rows from b0 on, one unit of
// one row a thread; and the slots of its group, [slot][problem]: a slot of the second problem is
// followed by the next one of the first, which is that of its upstream layer.
// Of the threads of a warp half have rows below 8, the others the same units of the rows 8 further.
template <int kUnits>
struct BlockRange {
  static constexpr int kCells = kGroupRows * kUnits, kAside = 16 / kUnits;  // rows of half a warp
  static_assert(16 % kUnits == 0);
  OST_HD static int row_of(int thread) { return thread / 32 * kAside + thread % 16 / kUnits + thread % 32 / 16 * 8; }
  OST_HD static int unit_of(int thread) { return thread % kUnits; }
  OST_HD static int thread_of(int row, int unit) { return row % 8 / kAside * 32 + row / 8 * 16 + row % kAside * kUnits + unit; }
  OST_HD bool has(int thread) const { return thread < kCells && row_of(thread) < rows && u0 + unit_of(thread) < hidden; }
  // Whether it sends, zeros where it has no unit: the first of two rows is within the batch.
  OST_HD bool sends(int thread) const { return thread < kCells && row_of(thread) % 8 < rows; }
  Index b0, u0, hidden;
  Index rows;  // rows within the batch
  Index z;     // which of the two problems
  std::uint32_t* slots;
  Index stride;  // words from slot to slot
  bool upstream;
  template <class T>
  OST_HD BlockRange(const Block& block, const Problem<T>& p, const LaunchArgs<T>& launch_args, Index slot_words)
      : b0(launch_args.first_row + block.y * kGroupRows),
        u0(block.x * kUnits),
        hidden(p.hidden),
        rows(smaller<Index>(kGroupRows, p.batch - b0)),
        z(block.z),
        slots(launch_args.buffer.slots() + (block.y * launch_args.slots * launch_args.problems + block.z) * slot_words),
        stride(launch_args.problems * slot_words),
        upstream(launch_args.layer_pipelined && block.z > 0) {}
  OST_HD std::uint32_t* slot(Index number) const { return slots + number * stride; }
  // Return whether no earlier launch of this pass has been given up.
  template <class T>
  OST_HD static bool ok(const LaunchArgs<T>& launch_args) {
    return poll(launch_args.buffer.status()) == kOk;
  }
};

constexpr int kRing = 4;  // steps whose projected inputs are on their way: one step ahead is too late, for memory takes longer

// A launch of one or two problems: two directions, or (kPipelined) a layer and the one above it.
// The upper layer computes its input product here too, in all columns, from the h that the lower
// layer exchanges. Where a thread reads and writes in a step is a pointer that advances from step to
// step.
template <class C, class T, class Word, int kParts, int kUnits, bool kPipelined>
struct PersistentKernel {
  static_assert(supports<C, PersistentDriver>);
  static constexpr int kPhases = kPhaseCount<C>, kPeers = 1, kCells = BlockRange<kUnits>::kCells;
  using V = typename CellNumbers<T, kParts>::Type;
  template <int F>
  struct Phase {
    static constexpr Columns kColumns = shared_columns<C>(F, kPipelined);
    static constexpr int kOuts = kUnits * kColumns.count(), kTiles = (kOuts + 15) / 16;
    static constexpr int kDepth = kWeightWords / (kParts * all_out_tiles<C>(kUnits, kPipelined)) / 2 * 2;
    static constexpr int kAtATime = smaller(pairs_at_a_time(kTiles, kParts), kDepth / 2);
    using E = ExchangeEngine<Word, kParts, kOuts, kDepth, kAtATime, 1, kPhases == 1 ? 0 : 1>;
    template <class From>
    using Pack = PersistentPackKernel<From, E, Word, kParts, kTiles, 1>;
    OST_HD static Index sent(Index hidden) { return blocks_of(hidden) * kUnits; }
  };
  template <int F>
  using Weights = PerThread<typename Phase<F>::E::Weights>;
  template <int F>
  using Product = typename Phase<F>::E::Space;
  Problem<T> problems[2];
  LaunchArgs<T> launch_args;
  struct alignas(C::kColumns % 4 == 0 ? 16 : sizeof(T)) Inputs {
    T gx[C::kColumns];
  };
  struct Space {
    PerPhase<Product, 0, kPhases> products;
    Inputs ring[kRing * kCells];  // a thread reads what it has asked for itself
  };
  OST_HD static Index blocks_of(Index hidden) { return ceil_div(hidden, kUnits); }
  OST_HD static Index slot_words(Index hidden) { return Phase<0>::E::slot_words(Phase<0>::sent(hidden)); }
  static bool fits(Index hidden, bool layer_pipelined) {
    return Phase<0>::E::depth(Phase<0>::sent(hidden)) * (1 + layer_pipelined) <= Phase<0>::E::kPairs;
  }
  static Index slots_of(Index steps) { return steps * kPhases + 1; }  // what follows the last step is sent as well
  Grid grid() const { return {blocks_of(problems[0].hidden), launch_args.groups, launch_args.problems}; }

  // One unit of one row: its state, where it stands, and what is read and written there.
  struct Cell {
    bool there, sends;  // of two units of two rows, one thread sends
    Index b, u;
    T state[C::kStates];
    const T* gx;
    T *y, *c = nullptr, *saved;
    std::uint32_t* out;
  };
  // How far they go from step to step. An int is widened by the instruction that adds it.
  struct Strides {
    int gx, y, c, saved, slot;
    OST_HD Strides(const Problem<T>& p, Index slot_stride) {
      const Index forth = p.reverse ? -1 : 1, row = forth * p.batch * p.hidden;
      gx = kept(int(p.gx ? row * C::kColumns : 0)), y = kept(int(forth * p.y.t)), c = kept(int(p.cells ? row : 0));
      saved = kept(int(p.saved ? row * C::kSaved : 0)), slot = kept(int(slot_stride));
    }
  };

  // What a block keeps from step to step.
  struct Walk {
    const int masked, taped, steps;  // masked: some rows take part in some steps only
    const BlockRange<kUnits> range;
    const Strides strides;
    const int pairs;
    PerPhase<Weights, 0, kPhases> weights;
    PerThread<Cell> cells;
    PerThread<ForwardOut<C, T>> out;
    PerThread<T> published;
    PerThread<const std::uint32_t*> in;
    PerThread<bool> lost, runs;
    int at = 0;  // in the ring
    OST_HD Walk(const Block& block, const Problem<T>& p, const LaunchArgs<T>& launch_args)
        : masked(kept(int(p.times.predecessors || p.times.lengths))),
          taped(kept(int(p.saved != nullptr))),
          steps(kept(int(launch_args.steps))),
          range(block, p, launch_args, slot_words(p.hidden)),
          strides(p, range.stride),
          pairs(int(Phase<0>::E::depth(Phase<0>::sent(p.hidden))) * (1 + range.upstream)) {}
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    Walk walk(block, p, launch_args);
    for_phases<C>([&]<int F>() {
      Phase<F>::E::load(block, get_phase<F>(walk.weights), get_phase<F>(space.products), p.shared_panels[F], walk.pairs);
    });
    block.for_each_thread([&](int thread) {
      walk.lost[thread] = !walk.range.ok(launch_args);
      walk.in[thread] = walk.range.slot(0) + Phase<0>::E::first_word(thread, 0);
      Cell& cell = walk.cells[thread];
      begin(thread, walk.range, cell);
      walk.published[thread] = cell.state[0];
      OST_UNROLL
      for (int n = 0; n < kRing; ++n) ask(cell, space.ring[n * kCells + thread % kCells], n < walk.steps, walk.strides);
    });
    send(block, walk.cells, walk.published, walk.strides);
    for (int n = 0; n < walk.steps; ++n) for_phases<C>([&]<int F>() { run_phase<F>(block, space, p, n, walk); });
    if (launch_args.first_step + launch_args.steps < p.steps)
      block.for_each_thread([&](int thread) {
        const Cell& cell = walk.cells[thread];
        if (!cell.there) return;
        for (int k = 0; k < C::kStates; ++k) launch_args.carry[carried(p, block.z, k, cell)] = cell.state[k];
      });
  }

  // One phase of step n of this launch: the product, the cells, and what others wait for.
  template <int F>
  OST_HD void run_phase(const Block& block, Space& space, const Problem<T>& p, int n, Walk& walk) const {
    constexpr bool last = F + 1 == kPhases;
    auto& sums = get_phase<F>(space.products);
    Phase<F>::E::multiply(block, get_phase<F>(walk.weights), sums, launch_args.buffer, walk.in, walk.pairs, walk.lost);
    block.for_each_thread([&](int thread) {
      walk.in[thread] += walk.strides.slot;
      async_wait<kRing - 1>();
      Cell& cell = walk.cells[thread];
      bool& runs = walk.runs[thread];
      runs = cell.there;
      if (walk.masked) runs = cell.there && takes_part(p, n, cell);
      if (runs) {
        T products[C::kPhases[F].product.count()];
        Inputs inputs = space.ring[walk.at + thread];
        take_sums<F>(sums, kParts > 1 ? p.shared_scales[F] + block.x * Phase<F>::kTiles * 16 : nullptr, thread, products, inputs.gx);
        compute_active<C, T, F, false, V>(p, 0, cell.b, cell.u, inputs.gx, products, cell.state, walk.out[thread]);  // time is for norms
      }
      if (last && walk.masked && cell.there) restart(p, launch_args.first_step + n + 1, cell);
      walk.published[thread] = last ? cell.state[0] : runs ? walk.out[thread].emitted : T(0);
    });
    block.sync_warp();
    send(block, walk.cells, walk.published, walk.strides);  // first, for other blocks wait for it
    if constexpr (last) {
      block.for_each_thread([&](int thread) {
        Cell& cell = walk.cells[thread];
        if (walk.runs[thread])
          store(p, cell, walk.out[thread], walk.taped);
        else if (walk.masked && cell.there)
          repeat(p, n, cell);
        cell.y += walk.strides.y, cell.c += walk.strides.c, cell.saved += walk.strides.saved;
        ask(cell, space.ring[walk.at + thread % kCells], n + kRing < walk.steps, walk.strides);
      });
      walk.at = (walk.at + kCells) & (kRing * kCells - 1);
    }
    if constexpr (kPhases == 1) block.sync_block();  // the sums have been read; those of two phases lie apart
  }

  OST_HD static Index carried(const Problem<T>& p, Index z, int k, const Cell& cell) {
    return ((z * C::kStates + k) * p.batch + cell.b) * p.hidden + cell.u;
  }

  // The state that the launch starts from: that of the pass, or of the launch before; zeros where there is no row.
  OST_HD void begin(int thread, const BlockRange<kUnits>& range, Cell& cell) const {
    const Index z = range.z;
    const Problem<T>& p = problems[z];
    const StepMask mask = p.mask();
    const int row = range.row_of(thread), unit = range.unit_of(thread);
    const Index step = launch_args.first_step, t = mask.time(step);
    cell.there = range.has(thread);
    cell.sends = range.sends(thread) && unit % 2 == 0 && row < 8;
    const Index b = cell.b = cell.there ? range.b0 + row : range.b0, u = cell.u = cell.there ? range.u0 + unit : 0;
    for (int k = 0; k < C::kStates; ++k) {
      const T* from = k == 0 ? hidden_after<C>(p, kInitial, b) : cell_after(p, kInitial, b);
      cell.state[k] = !cell.there ? T(0) : step > 0 ? launch_args.carry[carried(p, z, k, cell)] : value(from, u);
    }
    if (cell.there) restart(p, step, cell);
    cell.gx = (p.gx ? p.gx + (t * p.batch + b) * p.hidden * C::kColumns : p.bias) + u * C::kColumns;
    cell.y = at(p.y, t, b) + u;
    if constexpr (C::kStates > 1) cell.c = (p.cells ? p.cells + t * p.batch * p.hidden : p.state) + b * p.hidden + u;
    cell.saved = p.saved ? p.saved + (t * p.batch + b) * C::kSaved * p.hidden + u : nullptr;
    cell.out = range.slot(0) + Phase<0>::E::place(range.u0 + unit, row % 8);
  }

  // Whether a row takes part in a step of this launch, and the output that it repeats if not.
  OST_HD bool takes_part(const Problem<T>& p, int n, const Cell& cell) const {
    const StepMask mask = p.mask();
    return mask.active(mask.time(launch_args.first_step + n), cell.b);
  }
  OST_HD void repeat(const Problem<T>& p, int n, const Cell& cell) const {
    const StepMask mask = p.mask();
    repeat_output<C>(p, mask, mask.time(launch_args.first_step + n), cell.b, cell.u);
  }

  // Load the state that a step starts from, if it is that of a restart.
  OST_HD static void restart(const Problem<T>& p, Index step, Cell& cell) {
    if (!p.times.predecessors || step >= p.steps) return;
    const StepMask mask = p.mask();
    const Index t = mask.time(step);
    if (!mask.active(t, cell.b) || mask.predecessor(t, cell.b) != kRestart) return;
    for (int k = 0; k < C::kStates; ++k) cell.state[k] = value(k == 0 ? p.restart_h : p.restart_c, cell.u);
  }

  // Ask for the projected input of the next step for which that has not been done, if there is one.
  OST_HD static void ask(Cell& cell, Inputs& to, bool more, const Strides& strides) {
    if (cell.there && more) {
      if constexpr (C::kColumns % 4 == 0)
        copy_async<sizeof(Inputs)>(&to, cell.gx);
      else
        for (int column = 0; column < C::kColumns; ++column) copy_async<sizeof(T)>(&to.gx[column], cell.gx + column);
    }
    async_commit();
    cell.gx += strides.gx;
  }

  // Sums of a unit's columns: those of the recurrent product to `products`; those of the layer below, where layers are pipelined, are added
  // to gx. `scales` are null where words have one part.
  template <int F>
  OST_HD static void take_sums(const Product<F>& product, const float* scales, int thread, T* products, T* gx) {
    constexpr Columns columns = Phase<F>::kColumns, recurrent = C::kPhases[F].product;
    const int row = BlockRange<kUnits>::row_of(thread), unit = BlockRange<kUnits>::unit_of(thread);
    const auto sums = product.template sum<columns.count()>(unit * columns.count(), row);
    OST_UNROLL
    for (int i = 0; i < columns.count(); ++i) {
      T sum = sums.v[i];
      if constexpr (kParts > 1) sum *= scales[unit * columns.count() + i];
      if (recurrent.has(columns.begin + i))
        products[columns.begin + i - recurrent.begin] = sum;
      else
        gx[columns.begin + i] += sum;
    }
  }

  // Store what a step returned for a row that takes part.
  OST_HD static void store(const Problem<T>& p, const Cell& cell, const ForwardOut<C, T>& out, int taped) {
    *cell.y = out.state[0];
    if constexpr (C::kStates > 1) *cell.c = out.state[1];
    if (taped)
      for (int k = 0; k < C::kSaved; ++k) cell.saved[k * p.hidden] = out.saved[k];
  }

  // Publish h of this block's units, or what a phase emitted.
  OST_HD void send(const Block& block, PerThread<Cell>& cells, PerThread<T>& published, const Strides& strides) const {
    using E = typename Phase<0>::E;
    PerThread<typename E::template Sent<1>> sent;
    block.for_each_thread([&](int thread) {
      const T low = published[thread], high = of_neighbour<1>(published, thread);
      if (kResidualScale<Word> > 1 && kParts > 1 && cells[thread].there && (beyond_half(low) || beyond_half(high)))
        store_relaxed(launch_args.buffer.status(), kOutOfRange);
      sent[thread].set(0, low, high);
    });
    E::template send<1>(block, sent, [&](int thread) { return cells[thread].sends; }, [&](int thread) { return cells[thread].out; });
    block.for_each_thread([&](int thread) { cells[thread].out += strides.slot; });
  }
};

// The backward pass; the phases of a step run from the last one on. A block computes dh of its
// units, or the gradient of what they emitted, from da of all units. Since da is several times as
// large as h, the `kSplit` blocks of a cluster each take in a part of it, for the units of all of
// them, and write the sums to each other's shared memory. Of two pipelined layers the upper one
// runs first; the lower one takes in its da in place of dy.
template <class C, class T, class Word, int kParts, int kUnits, int kSplit, bool kPipelined>
struct BackwardPersistentKernel {
  static_assert(supports<C, PersistentDriver>);
  static constexpr int kPhases = kPhaseCount<C>, kPeers = kSplit, kTiles = kSplit * kUnits / 16, kLast = C::kStates - 1;
  static constexpr int kDas = kSharedDa<C> ? 1 : kProductCount<C>;
  using Units = BlockRange<kUnits>;
  static constexpr int kCells = Units::kCells;
  using V = typename CellNumbers<T, kParts>::Type;
  OST_HD static Index blocks_of(Index hidden) { return (hidden + kSplit * kUnits - 1) / (kSplit * kUnits) * kSplit; }
  template <int F>
  struct Phase {
    static constexpr Columns kColumns = shared_columns<C>(F, kPipelined);
    static constexpr int kCount = kColumns.count(), kAll = all_columns<C>(kPipelined), kOuts = kSplit * kUnits;
    static constexpr int kDepth = kWeightWords * kCount / (kParts * kTiles * kAll) / 2 * 2;
    static constexpr int kWanted = kSplit == 1 ? kParts - 1 + (kPhases > 1) : kParts == 1 ? 3 : 6;  // chosen so that registers do not spill
    static constexpr int kShared = smaller((kWanted * kCount + kAll - 1) / kAll, kDepth - 1);
    static constexpr int kWords = kCount > 2 ? 2 : 1;  // that a thread sends, at most
    using E = ExchangeEngine<Word, kParts, kOuts, kDepth, smaller(kSplit == 1 ? 2 : 2 / kParts, kDepth / 2), kSplit, kShared>;
    template <class From>
    using Pack = PersistentPackKernel<From, E, Word, kParts, kTiles, kSplit>;
    OST_HD static Index sent(Index hidden) { return blocks_of(hidden) * kUnits * kCount; }
  };
  template <int F>
  using Weights = PerThread<typename Phase<F>::E::Weights>;
  template <int F>
  using Product = typename Phase<F>::E::Space;
  Problem<T> problems[2];
  BackwardProblem<T> gradients[2];
  LaunchArgs<T> launch_args;
  // What a cell reads of a step. Of two states the equations read c alone, before and after the step.
  struct Given {
    T saved[C::kSaved | 1];  // an odd number of words a thread avoids bank conflicts
    T previous, dy;
    T next, dcell;  // where the general code is needed, see Walk
  };
  struct Space {
    PerPhase<Product, 0, kPhases> products;
    // By peer, double-buffered: a peer may still read those of the exchange before.
    alignas(16) T sums[kSplit > 1 ? 2 : 1][kSplit][kSplit > 1 ? kCells : 1];
    Given ring[kRing * kCells];  // a thread reads what it has asked for itself
  };
  static_assert(kSplit == 1 || sizeof(Space) <= 160 << 10);  // sm_90 and sm_100 have 227 KB; others have no clusters (module.cu)
  // A slot has room for the phase with the most words.
  OST_HD static Index slot_words(Index hidden) {
    Index most = 0;
    for_phases<C>([&]<int F>() { most = larger(most, Phase<F>::E::slot_words(Phase<F>::sent(hidden))); });
    return most;
  }
  template <int F>
  OST_HD static Index pairs_of(Index hidden, bool upstream) {
    return Phase<F>::E::depth(Phase<F>::sent(hidden)) * (1 + upstream);
  }
  static bool fits(Index hidden, bool layer_pipelined) {
    bool all = true;
    for_phases<C>([&]<int F>() { all = all && pairs_of<F>(hidden, layer_pipelined) <= Phase<F>::E::kPairs; });
    return all;
  }
  // Two slots of zeros: before the last step, and after the first one, what the upstream layer has not.
  static Index slots_of(Index steps) { return steps * kPhases + 2; }
  Grid grid() const { return {blocks_of(problems[0].hidden), launch_args.groups, launch_args.problems}; }

  // One unit of one row: the gradients of its states, where it stands, and what is read and written there.
  struct Cell {
    bool there, sends[kPhases];
    int b, u;
    T d[C::kStates], next, demitted;
    T param[C::kParams + 1], scale[kPhases];
    const T *saved, *previous, *dy;
    T *da[kDas], *dparams, *emitted;
    std::uint32_t* out[kPhases];  // in the slot of the next step
  };
  // What it returns.
  struct Out {
    T da[C::kColumns], dparam[C::kParams + 1], emitted;
  };
  // How far they go from step to step. An int is widened by the instruction that adds it.
  struct Strides {
    int row, previous, dy, slot;  // row: units of a step
    OST_HD Strides(const Problem<T>& p, const BackwardProblem<T>& g, Index slot_stride) {
      const Index back = p.reverse ? 1 : -1;
      row = kept(int(back * p.batch * p.hidden)), slot = kept(int(slot_stride));
      previous = kept(int(back * (kLast > 0 ? p.batch * p.hidden : p.y.t))), dy = kept(int(g.dy.data ? back * g.dy.t : 0));
    }
  };
  // What a block keeps from step to step. `general`: some rows take part in some steps only, or gradients are cut, clipped or added to c.
  struct Walk {
    const int general, steps, hidden;
    const Units range;
    const Strides strides;
    int pairs[kPhases];
    PerPhase<Weights, 0, kPhases> weights;
    PerThread<Cell> cells;
    PerThread<Out> out;
    PerThread<const std::uint32_t*> in;
    PerThread<T*> gifts;
    PerThread<bool> lost;
    int at = 0;      // in the ring
    int buffer = 0;  // of sums by peer
    OST_HD Walk(const Block& block, const Problem<T>& p, const BackwardProblem<T>& g, const LaunchArgs<T>& launch_args)
        : general(
              kept(int(p.times.predecessors || p.times.lengths || g.control.cuts || g.control.dcells.data || g.control.clip_value > 0))),
          steps(kept(int(launch_args.steps))),
          hidden(kept(int(p.hidden))),
          range(block, p, launch_args, slot_words(p.hidden)),
          strides(p, g, range.stride) {
      for_phases<C>([&]<int F>() { pairs[F] = kept(int(pairs_of<F>(p.hidden, range.upstream))); });
    }
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    Walk walk(block, p, g, launch_args);
    for_phases<C>([&]<int F>() {
      Phase<F>::E::load(block, get_phase<F>(walk.weights), get_phase<F>(space.products), p.shared_transposed[F], walk.pairs[F]);
    });
    if constexpr (kSplit > 1)
      block.sync_cluster();  // all blocks of the cluster have started
    else
      block.sync_block();
    const int ahead = walk.range.upstream;  // it begins a slot earlier, with what the upstream layer gives the last step
    block.for_each_thread([&](int thread) {
      walk.lost[thread] = !walk.range.ok(launch_args);
      walk.in[thread] = walk.range.slot(1 - ahead) + Phase<0>::E::first_word(thread, block.x % kSplit);
      if constexpr (kSplit > 1) walk.gifts[thread] = gift_place(block, space, thread);
      begin(block, thread, walk);
      OST_UNROLL
      for (int i = 0; i < kRing; ++i) ask(p, g, walk, thread, space.ring[i * kCells + thread % kCells], walk.steps - 1 - i);
    });
    for (int n = walk.steps - 1 + ahead; n >= 0; --n) {
      for_phases<C>([&]<int kBefore>() {
        constexpr int F = kPhases - 1 - kBefore;
        if (n < walk.steps) run_phase<F>(block, space, p, g, n, walk);
        Phase<F>::E::multiply(block, get_phase<F>(walk.weights), get_phase<F>(space.products), launch_args.buffer, walk.in, walk.pairs[F],
                              walk.lost);
        if constexpr (kSplit > 1) give_to_peers<F>(block, space, walk);
        block.for_each_thread([&](int thread) {
          walk.in[thread] += walk.strides.slot;
          if (walk.cells[thread].there) take_sum<F>(space, p, g, n, walk, thread);
        });
        walk.buffer ^= 1;
        if constexpr (kSplit == 1 && kPhases == 1) block.sync_block();  // the sums have been read; those of two phases lie apart
      });
    }
    block.for_each_thread([&](int thread) {
      const Cell& cell = walk.cells[thread];
      if (!cell.there) return;
      g.dh[cell.b * p.hidden + cell.u] = cell.d[0];
      if constexpr (C::kStates > 1) g.dc[cell.b * p.hidden + cell.u] = cell.d[1];
    });
  }

  // The cells of a phase of step n of this launch, and what others wait for.
  template <int F>
  OST_HD void run_phase(const Block& block, Space& space, const Problem<T>& p, const BackwardProblem<T>& g, int n, Walk& walk) const {
    using E = typename Phase<F>::E;
    constexpr int count = Phase<F>::kCount;
    PerThread<typename E::template Sent<Phase<F>::kWords>> sent;
    block.for_each_thread([&](int thread) {
      async_wait<kRing - 1>();
      run_cell<F>(p, g, n, walk, thread, space.ring[walk.at + thread % kCells]);
    });
    block.for_each_thread([&](int thread) {
      const T* da = walk.out[thread].da + Phase<F>::kColumns.begin;
      auto& words = sent[thread];
      if constexpr (count % 2 == 0) {
        OST_UNROLL
        for (int i = 0; i < count / 2; ++i) words.set(i, da[2 * i], da[2 * i + 1]);
      } else {  // two units have an odd number of words each: the first one sends one more than the second
        const T next = of_partner<1>(walk.out, thread, [](const Out& out, int) { return out.da[Phase<F>::kColumns.begin]; });
        const bool odd = thread % 2;
        if constexpr (count == 1)
          words.set(0, da[0], next);
        else
          words.set(0, odd ? da[1] : da[0], odd ? da[2] : da[1]), words.set(1, da[2], next);
      }
    });
    E::template send<Phase<F>::kWords>(
        block, sent, [&](int thread) { return walk.cells[thread].sends[F]; }, [&](int thread) { return walk.cells[thread].out[F]; });
    block.for_each_thread([&](int thread) {
      Cell& cell = walk.cells[thread];
      cell.out[F] += walk.strides.slot * kPhases;
      if (cell.there) store<F>(cell, walk.out[thread], walk.hidden);
      if constexpr (F == 0) {
        advance(cell, walk.strides);
        ask(p, g, walk, thread, space.ring[walk.at + thread % kCells], n - kRing);
      }
    });
    if constexpr (F == 0) walk.at = (walk.at + kCells) & (kRing * kCells - 1);
  }

  // Run the cell's backward of phase F for one unit of a row; da is zero where there is none, and where the row takes no part.
  template <int F>
  OST_HD void run_cell(const Problem<T>& p, const BackwardProblem<T>& g, int n, Walk& walk, int thread, const Given& given) const {
    Cell& cell = walk.cells[thread];
    auto& out = walk.out[thread];
    constexpr Columns own = C::kPhases[F].own;
    OST_UNROLL
    for (int column = 0; column < C::kColumns; ++column)
      if (F + 1 == kPhases || own.has(column)) out.da[column] = T(0);
    OST_UNROLL
    for (int k = 0; k < C::kParams && F + 1 == kPhases; ++k) out.dparam[k] = T(0);
    out.emitted = T(0);
    if (!cell.there) return;
    BackwardIn<C, V> in;
    BackwardOut<C, V> result;
    in.next[kLast] = cell.next;
    T dh = cell.d[0] + given.dy, dc = cell.d[kLast];
    if (walk.general) {
      const StepMask mask = p.mask();
      if (!mask.active(mask.time(launch_args.first_step + n), cell.b)) {
        if (F == 0) cell.d[0] = dh;
        return;
      }
      in.next[kLast] = given.next;
      dh = incoming(g, cell.d[0], given.dy), dc = incoming(g, dc, given.dcell);
    }
    if constexpr (kLast > 0) in.previous[0] = in.next[0] = V(__builtin_nanf(""));  // not among what is given
    in.previous[kLast] = given.previous, in.dstate[kLast] = dc, in.dstate[0] = dh;
    in.demitted = cell.demitted;
    OST_UNROLL
    for (int k = 0; k < C::kSaved; ++k) in.saved[k] = given.saved[k];
    OST_UNROLL
    for (int k = 0; k < C::kParams; ++k) in.param[k] = cell.param[k], result.dparam[k] = V(0);
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) result.dprevious[k] = V(0);
    C::template backward<F>(in, result);
    OST_UNROLL
    for (int column = 0; column < C::kColumns; ++column)
      if (own.has(column)) out.da[column] = T(result.da[column]);
    if constexpr (F == 0) {
      OST_UNROLL
      for (int k = 0; k < C::kStates; ++k) cell.d[k] = T(result.dprevious[k]);
      OST_UNROLL
      for (int k = 0; k < C::kParams; ++k) out.dparam[k] = T(result.dparam[k]);
      if constexpr (has_emitted_operand<C>()) out.emitted = T(C::emitted(in.saved, in.previous, in.next));
      cell.next = given.previous;
    }
  }

  // f<0>(), f<1>(): every da that is stored, of so many columns.
  template <int Q>
  static constexpr int kDaColumns = product_columns<C>(Q).count();
  template <int Q = 0, class Function>
  OST_HD static void for_das(Function&& f) {
    f.template operator()<Q>();
    if constexpr (Q + 1 < kDas) for_das<Q + 1>(f);
  }
  // Store the gradients of a phase.
  template <int F, int Q = 0>
  OST_HD static void store(const Cell& cell, const Out& out, int hidden) {
    constexpr Columns columns = product_columns<C>(Q), own = C::kPhases[F].own;
    if constexpr (kDas == 1 && C::kColumns == 4) {
      *reinterpret_cast<Floats<4>*>(cell.da[0]) = {{out.da[0], out.da[1], out.da[2], out.da[3]}};
    } else {
      OST_UNROLL
      for (int column = own.begin; column < own.end; ++column)
        if (columns.has(column)) cell.da[Q][column - columns.begin] = out.da[column];
      if constexpr (Q + 1 < kDas) return store<F, Q + 1>(cell, out, hidden);
    }
    if constexpr (F == 0) {
      OST_UNROLL
      for (int k = 0; k < C::kParams; ++k) cell.dparams[k * hidden] = out.dparam[k];
      if constexpr (has_emitted_operand<C>()) *cell.emitted = out.emitted;
    }
  }
  OST_HD static void advance(Cell& cell, const Strides& strides) {
    for_das([&]<int Q>() { cell.da[Q] += strides.row * kDaColumns<Q>; });
    if constexpr (C::kParams > 0) cell.dparams += strides.row * unit_rows<C>();
    if constexpr (has_emitted_operand<C>()) cell.emitted += strides.row;
  }

  // Add the product of a phase to the gradients of the states; that of a phase after the first is the gradient of what was emitted.
  template <int F>
  OST_HD void take_sum(Space& space, const Problem<T>& p, const BackwardProblem<T>& g, int n, Walk& walk, int thread) const {
    Cell& cell = walk.cells[thread];
    T sum;
    if constexpr (kSplit == 1)
      sum = get_phase<F>(space.products).template sum<1>(Units::unit_of(thread), Units::row_of(thread)).v[0];
    else
      sum = space.sums[walk.buffer][0][thread];
    OST_UNROLL
    for (int peer = 1; peer < kSplit; ++peer) sum += space.sums[walk.buffer][peer][thread];
    if constexpr (kParts > 1) sum *= cell.scale[F];
    if constexpr (F > 0) {
      cell.demitted = sum;
    } else {
      const bool cuts = walk.general && !walk.range.upstream;  // layers are pipelined only where nothing is cut
      const StepMask mask = p.mask();
      const Index t = mask.time(launch_args.first_step + n);
      if (cuts && !mask.active(t, cell.b)) return;  // da of such a row is zero; that of the upstream layer may not be
      cell.d[0] += sum;
      if (cuts) cut<C, T>(p, g, t, cell.b, cell.u, cell.d);
    }
  }

  // Where a thread stands in the last step of the launch, and the gradients that the launch starts from.
  OST_HD void begin(const Block& block, int thread, Walk& walk) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    const Units& range = walk.range;
    const StepMask mask = p.mask();
    Cell& cell = walk.cells[thread];
    const int unit = range.unit_of(thread), g8 = range.row_of(thread) % 8;
    const bool second = thread % 32 >= 16, odd = thread % 2;
    const Index step = launch_args.first_step + launch_args.steps - 1, t = mask.time(step);
    cell.there = range.has(thread);
    const Index b = cell.there ? range.b0 + range.row_of(thread) : range.b0, u = cell.there ? range.u0 + unit : 0, row = t * p.batch + b;
    cell.b = int(b), cell.u = int(u);
    cell.demitted = T(0);
    for (int k = 0; k < C::kStates; ++k) cell.d[k] = (k == 0 ? g.dh : g.dc)[b * p.hidden + u];
    for (int k = 0; k < C::kParams; ++k) cell.param[k] = p.params[k * p.hidden + u];
    cell.saved = saved_at<C>(p, t, b) + u;
    cell.previous = (kLast > 0 ? p.cells + row * p.hidden : at(p.y, t, b)) + u;
    cell.next = walk.general ? T(0) : *cell.previous;
    cell.previous += walk.strides.previous;
    cell.dy = g.dy.data ? at(g.dy, t, b) + u : launch_args.buffer.zero();
    for_das([&]<int Q>() { cell.da[Q] = g.da[Q] + (row * p.hidden + u) * kDaColumns<Q>; });
    if constexpr (C::kParams > 0) cell.dparams = dparams_at<C>(p, g, row, u);
    if constexpr (has_emitted_operand<C>()) cell.emitted = p.emitted + row * p.hidden + u;
    for_phases<C>([&]<int kBefore>() {
      constexpr int F = kPhases - 1 - kBefore, count = Phase<F>::kCount, words = Phase<F>::kWords;
      const int first = unit * count + (count % 2 && odd);  // inputs of the first word of this unit
      const bool both = words == 2 && !(count == 3 && odd), has = count > 1 || !odd;
      cell.sends[F] = range.sends(thread) && has && (both || !second);
      cell.out[F] = range.slot(1 + kBefore) + Phase<F>::E::place(range.u0 * count + first + (both && second ? 2 : 0), g8);
      if constexpr (kParts > 1) cell.scale[F] = p.shared_transposed_scales[F][block.x * kTiles * 16 + block.x % kSplit * kUnits + unit];
    });
  }

  // Ask for what step n of this launch reads, if there is such a step, and go on to the one before it.
  OST_HD void ask(const Problem<T>& p, const BackwardProblem<T>& g, Walk& walk, int thread, Given& to, int n) const {
    Cell& cell = walk.cells[thread];
    if (cell.there && n >= 0) {
      if (walk.general) {
        ask_general(p, g, mask_time(p, n), cell, to);
      } else {
        OST_UNROLL
        for (int k = 0; k < C::kSaved; ++k) copy_async<sizeof(T)>(&to.saved[k], cell.saved + k * walk.hidden);
        const T* previous = cell.previous;
        if (n == 0 && launch_args.first_step == 0) previous = state_after(p, kInitial, cell);
        copy_async<sizeof(T)>(&to.previous, previous);
        copy_async<sizeof(T)>(&to.dy, cell.dy);
      }
    }
    async_commit();
    cell.saved += walk.strides.row * C::kSaved, cell.previous += walk.strides.previous, cell.dy += walk.strides.dy;
  }
  OST_HD Index mask_time(const Problem<T>& p, int n) const { return p.mask().time(launch_args.first_step + n); }
  // Where rows take part in some steps only, addresses are computed anew; what is not there is zero.
  OST_HD void ask_general(const Problem<T>& p, const BackwardProblem<T>& g, Index t, const Cell& cell, Given& to) const {
    const StepMask mask = p.mask();
    const Index b = cell.b, u = cell.u;
    const auto gradient = [&](const Rows<const T>& rows) { return rows.data ? at(rows, t, b) + u : launch_args.buffer.zero(); };
    const bool active = mask.active(t, b);
    copy_async<sizeof(T)>(&to.dy, active || mask.repeats(t, b) != kSkipped ? gradient(g.dy) : launch_args.buffer.zero());
    if (!active) return;
    const T* saved = saved_at<C>(p, t, b) + u;
    OST_UNROLL
    for (int k = 0; k < C::kSaved; ++k) copy_async<sizeof(T)>(&to.saved[k], saved + k * p.hidden);
    copy_async<sizeof(T)>(&to.previous, state_after(p, mask.predecessor(t, b), cell));
    copy_async<sizeof(T)>(&to.next, state_after(p, t, cell));
    copy_async<sizeof(T)>(&to.dcell, kLast > 0 ? gradient(g.control.dcells) : launch_args.buffer.zero());
  }
  // The state that the equations read, c where there is one.
  OST_HD const T* state_after(const Problem<T>& p, Index step, const Cell& cell) const {
    const T* row = kLast > 0 ? cell_after(p, step, cell.b) : hidden_after<C>(p, step, cell.b);
    return row ? row + cell.u : launch_args.buffer.zero();
  }

  // Every block has a part of the inputs, and sums for the units of all blocks of its cluster: a thread gives neighbouring ones of a row.
  static constexpr int kGift = kSplit * kCells / kThreads;
  OST_HD static int gift_row(int thread) { return thread / (kSplit * kUnits / kGift); }
  OST_HD static int gift_out(int thread) { return thread % (kSplit * kUnits / kGift) * kGift; }
  OST_HD static T* gift_place(const Block& block, Space& space, int thread) {
    const int out = gift_out(thread);
    return &block.peer(space, out / kUnits).sums[0][block.x % kSplit][Units::thread_of(gift_row(thread), out % kUnits)];
  }
  template <int F>
  OST_HD static void give_to_peers(const Block& block, Space& space, Walk& walk) {
    block.for_each_thread([&](int thread) {
      auto& product = get_phase<F>(space.products);
      *reinterpret_cast<Floats<kGift>*>(walk.gifts[thread] + walk.buffer * (kSplit * kCells)) =
          product.template sum<kGift>(gift_out(thread), gift_row(thread));
    });
    block.sync_cluster();
  }
};

// Run after the launches of a pass. If one was given up, set the outputs to NaN and report the
// status to the host.
template <class C, class T>
struct PoisonOutputsKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  ExchangeBuffer buffer;
  bool backward;
  struct Space {};
  static constexpr Index kBlocks = 64;
  Grid grid() const { return {kBlocks}; }
  OST_HD void operator()(const Block& block, Space&) const {
    const std::uint32_t status = *buffer.status();
    if (status == kOk) return;
    const T nan = T(__builtin_nanf(""));
    const Index rows = p.steps * p.batch;
    block.for_each_thread_sync([&](int thread) {
      const Index first = block.x * kThreads + thread, stride = kBlocks * kThreads;
      if (first == 0 && buffer.host_status) *buffer.host_status = status;
      for (Index i = first; i < rows * p.hidden; i += stride) {
        const Index row = i / p.hidden, t = row / p.batch, b = row % p.batch, u = i % p.hidden;
        if (backward) {
          for (int k = 0; k < C::kParams; ++k) g.dparams[(row * C::kParams + k) * p.hidden + u] = nan;
          OST_UNROLL
          for (int q = 0; q < kProductCount<C>; ++q)
            for (int column = 0; column < product_columns<C>(q).count(); ++column)
              g.da[q][i * product_columns<C>(q).count() + column] = nan;
        } else {
          if (!p.y.starts || p.y.starts[b] + t < p.y.ends[b]) at(p.y, t, b)[u] = nan;
          if (C::kStates > 1 && p.cells) p.cells[i] = nan;
        }
      }
      for (Index i = first; i < rows * p.input && backward && g.dx.data; i += stride) {
        const Index row = i / p.input, t = row / p.batch, b = row % p.batch;
        if (!g.dx.starts || g.dx.starts[b] + t < g.dx.ends[b]) at(g.dx, t, b)[i % p.input] = nan;
      }
      for (Index i = first; i < p.batch * p.hidden; i += stride) {
        if (backward) g.dh[i] = nan;
        for (int k = 0; k < C::kStates && backward; ++k) g.restarts[k * p.batch * p.hidden + i] = nan;
        if (C::kStates > 1 && (backward || p.state)) (backward ? g.dc : p.state)[i] = nan;
      }
    });
  }
};

}  // namespace ost::OST_SET
