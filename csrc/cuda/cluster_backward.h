// The backward pass by clusters (cluster.h). A block has da of its own units, which its warps share
// through its shared memory, and multiplies it by the weights between those units and all others.
// The sums go to the blocks of the units that they are for, in float32: they are fewer bytes than da
// of all units. The owner of a unit adds up what the blocks have sent, in their order.
#pragma once
#include "cell_walk_back.h"
#include "cluster.h"

namespace ost::OST_SET {

// What PersistentPackKernel asks of an engine. All blocks have the same outputs, and each the four
// columns of its own units as inputs: those that the product does not feed are zero.
template <class Shape>
struct BackwardClusterFragments {
  static constexpr int kOuts = Shape::kCapacity, kWarps = kThreads / 32;
  OST_HD static int output(int thread, int n, int w) { return n * 16 + 2 * Lane(thread).g + w % 2; }
  OST_HD static Index input(int thread, Index rank, Index k, int w) {
    return rank * 4 * Shape::kUnits + (k * kWarps + thread / 32) * 16 + Lane(thread).i * 4 + w / 2 * 2;
  }
  static constexpr Index kPacked = 1;  // fragments of a thread, of each tile of outputs and part
};
// Weight of unit `out` and input `in`, from transposed panels [H][column][out].
template <class W>
struct BackwardClusterWeight {
  const W* from;
  Index hidden;
  int columns;
  OST_HD float operator()(Index out, Index in) const {
    const Index u = in / 4;
    const int column = int(in % 4);
    return out < hidden && u < hidden && column < columns ? as_number(from[(u * columns + column) * hidden + out]) : 0;
  }
};

template <class C, class T, class Word, int kParts, int kBlocks, int kWarps>
struct BackwardClusterKernel : ClusterShape<kParts, kBlocks, kWarps> {
  static_assert(supports<C, ClusterDriver>);
  using Shape = ClusterShape<kParts, kBlocks, kWarps>;
  using Fragments = BackwardClusterFragments<Shape>;
  using Shape::kBlockThreads, Shape::kUnits;
  static constexpr Columns kColumns = C::kPhases[0].product;
  static constexpr int kCount = kColumns.count(), kOutTiles = Shape::kCapacity / 16;
  // A warp has kTiles tiles of outputs; with fewer of them than warps, several divide the inputs of a tile.
  static constexpr int kTiles = kOutTiles > kWarps ? kOutTiles / kWarps : 1, kSlices = kOutTiles < kWarps ? kWarps / kOutTiles : 1;
  static constexpr int kDepth = kWarps / kSlices, kSources = kBlocks * kSlices;
  static constexpr int kChains = kTiles >= 4 ? 1 : 4 / kTiles;                  // sums that do not wait for each other
  static constexpr int kBytes = kSources * kBlockThreads * int(sizeof(float));  // that a block receives in a step
  template <class From>
  using Pack = PersistentPackKernel<From, Fragments, Word, kParts, kOutTiles, kBlocks>;
  static_assert(kCount <= 4 && kDepth % kChains == 0 && kDepth % 2 == 0);

  struct Weights {
    FragmentA a[kParts][kTiles][kDepth];
  };
  struct Sums {
    float v[kTiles][kParts][kChains][4];
  };
  struct alignas(8) Pairs {
    std::uint32_t word[2];
  };
  using Walk = CellWalkBack<C, T, typename CellNumbers<T, kParts>::Type>;
  using Pass = typename Walk::Pass;
  struct Space {
    StepBarriers<kBytes> arrived;
    alignas(16) float sums[2][kSources][kBlockThreads];
    // Right fragments of each tile of inputs. Two, since a warp may write those of the next step while another still reads: the sums
    // for which it waits come from other warps.
    Pairs da[2][kParts][kWarps][32];
    typename Walk::Given ring[kRing][kBlockThreads];
  };
  struct Peers {
    PeerMemory of[kTiles];
    int place[kTiles];  // of the sums of a tile, in bytes
    float scales[kTiles][2];
  };
  struct State {
    PerThread<Weights> weights;
    PerThread<Walk> walk;
    PerThread<Peers> peers;
    PerThread<typename Walk::Out> out;
  };

  Problem<T> problems[2];
  BackwardProblem<T> gradients[2];
  ExchangeBuffer buffer;  // the header alone
  int co_launched;
  Range range;  // the steps of this launch
  Grid grid() const { return {kBlocks, ceil_div(problems[0].batch, kClusterRows), co_launched}; }

  // The cell of a thread: its sums lie where the thread looks for them, and the threads of a warp have neighbouring units.
  OST_HD static int unit(int thread) { return thread / 128 * 16 + thread % 128 / 16 * 2 + thread / 2 % 2; }
  OST_HD static int row(int thread) { return thread / 4 % 4 * 2 + thread % 2; }
  OST_HD static int tile(int thread, int m) { return thread / 32 / kSlices * kTiles + m; }
  OST_HD static int slice(int thread) { return thread / 32 % kSlices; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    const Pass pass(p, g, buffer, range.begin);
    const int steps = kept(int(range.end - range.begin));
    State state;
    begin(block, space, pass, steps, state);
    bool lost = false;
    for (int n = 0; n < steps; ++n) {
      const int step = steps - 1 - n;
      block.for_each_thread([&](int thread) {
        async_wait<kRing - 1>();
        state.walk[thread].template run<0>(pass, step, space.ring[n % kRing][thread], state.out[thread]);
        put(space, thread, n % 2, state.out[thread]);
      });
      if (block.sync_block_any(lost)) break;
      multiply_and_send(block, space, n % 2, state);
      block.for_each_thread([&](int thread) {
        Walk& walk = state.walk[thread];
        if (walk.there) walk.template store<0>(state.out[thread], pass.strides);
        walk.advance(pass.strides);
        walk.ask(pass, step - kRing, space.ring[n % kRing][thread]);
      });
      if ((lost = space.arrived.wait(block, n, buffer))) continue;  // to where the warps of a block meet
      space.arrived.announce_next(block, n);
      block.for_each_thread([&](int thread) {
        Walk& walk = state.walk[thread];
        float sum = space.sums[n % 2][0][thread];
        OST_UNROLL
        for (int source = 1; source < kSources; ++source) sum += space.sums[n % 2][source][thread];
        if (walk.there) walk.add(pass, step, pass.general, sum);
      });
    }
    block.for_each_thread([&](int thread) {
      const Walk& walk = state.walk[thread];
      if (!walk.there) return;
      g.dh[walk.b * p.hidden + walk.u] = walk.d[0];
      if constexpr (C::kStates > 1) g.dc[walk.b * p.hidden + walk.u] = walk.d[1];
    });
    leave_cluster(block, lost);
  }

  OST_HD void begin(const Block& block, Space& space, const Pass& pass, int steps, State& state) const {
    const Problem<T>& p = pass.p;
    const FragmentA* packed = static_cast<const FragmentA*>(p.shared_transposed[0]);
    const int rank = int(block.x);
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) {
        OST_UNROLL
        for (int m = 0; m < kTiles; ++m) {
          OST_UNROLL
          for (int k = 0; k < kDepth; ++k)
            state.weights[thread].a[part][m][k] =
                packed[((rank * kParts + part) * kOutTiles + tile(thread, m)) * kThreads + (slice(thread) * kDepth + k) * 32 + thread % 32];
        }
      }
      Walk& walk = state.walk[thread];
      const Index at_row = block.y * kClusterRows + row(thread), at_unit = rank * kUnits + unit(thread);
      walk.begin(pass, steps - 1, at_row < p.batch && at_unit < p.hidden, at_row, at_unit);
      OST_UNROLL
      for (int n = 0; n < kRing; ++n) walk.ask(pass, steps - 1 - n, space.ring[n][thread]);
      if (thread == 0) space.arrived.begin();
    });
    block.sync_cluster();  // all blocks and their barriers are there
    block.for_each_thread([&](int thread) {
      Peers& peers = state.peers[thread];
      OST_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const int first = tile(thread, m) * 16;  // unit
        peers.of[m] = peer_memory(block, space, first / kUnits);
        const int source = rank * kSlices + slice(thread), at = first % kUnits / 16 * 128 + thread % 32 * 4;
        peers.place[m] = int(offsetof(Space, sums)) + (source * kBlockThreads + at) * int(sizeof(float));
        OST_UNROLL
        for (int half = 0; half < 2; ++half)
          peers.scales[m][half] =
              kParts > 1 ? p.shared_transposed_scales[0][rank * Shape::kCapacity + first + 2 * Lane(thread).g + half] : 1;
      }
    });
  }

  // Write da of a unit as words of the product.
  OST_HD static void put(Space& space, int thread, int at, const typename Walk::Out& out) {
    Word words[4][kParts];
    OST_UNROLL
    for (int column = 0; column < 4; ++column)
      split_float<Word, kParts>(column < kCount ? out.da[column < kCount ? kColumns.begin + column : 0] : T(0), words[column]);
    OST_UNROLL
    for (int part = 0; part < kParts; ++part)
      space.da[at][part][unit(thread) / 4][row(thread) * 4 + unit(thread) % 4] = {
          {pair_of<Word>(words[0][part], words[1][part]), pair_of<Word>(words[2][part], words[3][part])}};
  }

  OST_HD static void multiply_and_send(const Block& block, const Space& space, int at, State& state) {
    PerThread<Sums> sums;
    PerThread<Pairs> da[kParts];
    clear(block, sums);
    OST_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      block.for_each_thread([&](int thread) {
        OST_UNROLL
        for (int part = 0; part < kParts; ++part) da[part][thread] = space.da[at][part][slice(thread) * kDepth + k][thread % 32];
      });
      OST_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const auto one = [&](int left, int right, int to) {
          multiply_fragments<Word>(
              block, [&](int thread) -> FragmentA& { return state.weights[thread].a[left][m][k]; },
              [&](int thread) { return FragmentB{{da[right][thread].word[0], da[right][thread].word[1]}}; },
              [&](int thread) -> float* { return sums[thread].v[m][to][k % kChains]; });
        };
        one(0, 0, 0);
        if constexpr (kParts > 1) one(1, 0, 1), one(0, 1, 1);
      }
    }
    block.for_each_thread([&](int thread) {
      const Peers& peers = state.peers[thread];
      OST_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        std::uint32_t words[4];
        OST_UNROLL
        for (int c = 0; c < 4; ++c) words[c] = word_of(sum(sums[thread], m, c) * peers.scales[m][c / 2]);
        store_async<4>(peers.of[m], peers.place[m] + at * int(sizeof(Space::sums) / 2), words,
                       int(offsetof(Space, arrived)) + StepBarriers<kBytes>::place(at));
      }
    });
  }
  OST_HD static float sum(const Sums& sums, int m, int c) {
    float all[kParts];
    OST_UNROLL
    for (int part = 0; part < kParts; ++part) {
      all[part] = sums.v[m][part][0][c];
      OST_UNROLL
      for (int chain = 1; chain < kChains; ++chain) all[part] += sums.v[m][part][chain][c];
    }
    if constexpr (kParts > 1) return fma(all[1], 1 / kResidualScale<Word>, all[0]);
    return all[0];
  }
};

}  // namespace ost::OST_SET
