// All steps in one launch, by clusters of blocks that share nothing with each other. A cluster takes a
// few rows of the batch through all steps, and its blocks keep the recurrent weights of some units
// each in registers. What a block computes of h goes to the shared memory of all of them by stores
// that a barrier there counts (async_store.h), in the order in which the product reads it. A step has
// no barrier of the block: a warp waits for the bytes, multiplies, computes the cells of its own units
// and sends their h.
#pragma once
#include "async_store.h"
#include "cell_walk.h"
#include "shared_weights.h"

namespace ost::OST_SET {

template <class C>
inline constexpr bool kClusters = supports<C, ClusterDriver>;

constexpr int kClusterRows = 8;  // rows of a cluster: the columns of one matrix instruction
constexpr int kWarpUnits = 4;    // units of a warp: a tile of 16 outputs, up to 4 columns of each

// kBlocks blocks of kWarps warps, each with a tile of outputs, whose weights a thread holds as left
// fragments: output 4 n + k of a tile is column n of its unit k. Inputs and words of h are in the order
// of right fragments, in which lane 4 g + i has inputs 4 i to 4 i + 3 of row g.
template <int kParts_, int kBlocks, int kWarps>
struct ClusterShape {
  static constexpr int kPeers = kBlocks, kBlockThreads = 32 * kWarps, kUnits = kWarpUnits * kWarps, kCapacity = kBlocks * kUnits;
  static constexpr int kParts = kParts_, kDepth = kCapacity / 16;  // tiles of inputs
  static constexpr bool kIndependent = true;                       // clusters need not run at the same time
  // What a thread has of a tile of units: unit g % 4 of the warp in row 2 i + g / 4. Its sums are of row 2 i or 2 i + 1 of half of the
  // columns; the lane with the others differs in bit 4.
  static constexpr int kOtherColumns = 16, kNextUnit = 4, kNextPair = 8;  // bits of a lane
  OST_HD static int unit(int thread) { return thread / 32 * kWarpUnits + Lane(thread).g % 4; }
  OST_HD static int row(int thread) { return 2 * Lane(thread).i + Lane(thread).g / 4; }
  OST_HD static bool first_row(int thread) { return Lane(thread).g < 4; }
};

// What PersistentPackKernel asks of an engine: a thread packs fragments of every eighth tile of inputs.
template <class Shape>
struct ClusterFragments {
  static constexpr int kOuts = 4 * Shape::kUnits, kWarps = kThreads / 32;
  OST_HD static int output(int thread, int n, int w) { return n * 16 + Lane(thread).a_row(w); }
  OST_HD static Index input(int thread, Index, Index k, int w) { return (k * kWarps + thread / 32) * 16 + Lane(thread).i * 4 + w / 2 * 2; }
  static constexpr Index kPacked = (Shape::kDepth + kWarps - 1) / kWarps;  // fragments of a thread, of each tile and part
};
// Weight of output `out`, counted from block to block, and input `in`, from panels [in][H][column].
template <class W>
struct ClusterWeight {
  const W* from;
  Index hidden;
  int columns;
  OST_HD float operator()(Index out, Index in) const {
    const Index u = out / 16 * kWarpUnits + out % kWarpUnits;
    const int column = int(out % 16 / kWarpUnits);
    return in < hidden && u < hidden && column < columns ? as_number(from[(in * hidden + u) * columns + column]) : 0;
  }
};

template <class C, class T, class Word, int kParts, int kBlocks, int kWarps>
struct ClusterKernel : ClusterShape<kParts, kBlocks, kWarps> {
  static_assert(supports<C, ClusterDriver>);
  using Shape = ClusterShape<kParts, kBlocks, kWarps>;
  using Walk = CellWalk<C, T>;
  using Fragments = ClusterFragments<Shape>;
  template <class From>
  using Pack = PersistentPackKernel<From, Fragments, Word, kParts, kWarps, 1>;
  using V = typename CellNumbers<T, kParts>::Type;
  using Shape::kBlockThreads, Shape::kUnits, Shape::kDepth;
  static constexpr int kCount = C::kPhases[0].product.count(), kSlots = kDepth * kParts / 2;
  static constexpr int kChains = kParts == 1 ? 4 : 2;                          // sums that do not wait for each other
  static constexpr int kBytes = Shape::kCapacity * kClusterRows * kParts * 2;  // that a block receives in a step
  static constexpr int kPlaces = (kBlocks + 3) / 4;                            // peers to which a thread sends
  static_assert(kCount <= 4 && kDepth % kChains == 0);

  struct Weights {
    FragmentA a[kParts][kDepth];
  };
  struct Sums {
    float v[kParts][kChains][4];
  };
  struct Space {
    StepBarriers<kBytes> arrived;
    FragmentA words[2][kSlots][32];  // of each lane two tiles of inputs, or both parts of one
    typename Walk::Inputs ring[kRing][kBlockThreads];
  };
  struct Products {
    float v[4];
  };
  struct Peers {
    PeerMemory of[kPlaces];
    int place;  // of what it sends for step 0, in bytes
  };

  Problem<T> problems[2];
  ExchangeBuffer buffer;  // the status alone
  int co_launched;
  Grid grid() const { return {kBlocks, ceil_div(problems[0].batch, kClusterRows), co_launched}; }

  // What a block keeps from step to step.
  struct State {
    PerThread<Weights> weights;
    PerThread<Walk> walk;
    PerThread<ForwardOut<C, T>> out;
    PerThread<Peers> peers;
    PerThread<T> published;
    PerThread<bool> runs;
    PerThread<Products> scales, products;
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const typename Walk::Strides strides(p);
    const int steps = kept(int(p.steps)), masked = kept(int(p.times.predecessors || p.times.lengths)),
              taped = kept(int(p.saved != nullptr));
    State state;
    begin(block, space, p, strides, state);
    bool lost = false;
    for (int n = 0; n < steps; ++n) {
      PerThread<Sums> sums;
      if ((lost = space.arrived.wait(block, n, buffer))) break;
      space.arrived.announce_next(block, n);
      multiply(block, space, n % 2, state.weights, sums);
      gather(block, sums, state.scales, state.products);
      block.for_each_thread([&](int thread) {
        async_wait<kRing - 1>();
        Walk& walk = state.walk[thread];
        bool& runs = state.runs[thread];
        runs = walk.there;
        if (masked) runs = walk.there && walk.takes_part(p, n);
        if (runs) {
          const typename Walk::Inputs inputs = space.ring[n % kRing][thread];
          compute_active<C, T, 0, false, V>(p, 0, walk.b, walk.u, inputs.gx, state.products[thread].v, walk.state, state.out[thread]);
        }
        if (masked && walk.there) walk.restart(p, n + 1);
        state.published[thread] = walk.state[0];
      });
      send(block, n + 1, state);  // first, for other blocks wait for it
      block.for_each_thread([&](int thread) {
        Walk& walk = state.walk[thread];
        if (state.runs[thread])
          walk.store(p, state.out[thread], taped);
        else if (masked && walk.there)
          walk.repeat(p, n);
        walk.advance(strides);
        walk.ask(space.ring[n % kRing][thread], n + kRing < steps, strides);
      });
    }
    // What follows the last step is sent as well: no block ends while a store to it is on its way.
    leave_cluster(block, lost || space.arrived.wait(block, steps, buffer));
  }

  // Load the weights, and send the state before the first step.
  OST_HD void begin(const Block& block, Space& space, const Problem<T>& p, const typename Walk::Strides& strides, State& state) const {
    const FragmentA* packed = static_cast<const FragmentA*>(p.shared_panels[0]);
    const int rank = int(block.x);
    block.for_each_thread([&](int thread) {
      const Index tile = thread / 32;
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) {
        OST_UNROLL
        for (int k = 0; k < kDepth; ++k)
          state.weights[thread].a[part][k] =
              packed[((rank * kParts + part) * kWarps + tile) * Fragments::kPacked * kThreads + k * 32 + thread % 32];
      }
      if constexpr (kParts > 1) {
        OST_UNROLL
        for (int k = 0; k < kCount; ++k)
          state.scales[thread].v[k] = p.shared_scales[0][(rank * kWarps + tile) * 16 + k * kWarpUnits + Lane(thread).g % 4];
      }
      Walk& walk = state.walk[thread];
      const Index row = block.y * kClusterRows + Shape::row(thread), unit = rank * kUnits + Shape::unit(thread);
      walk.begin(p, 0, row < p.batch && unit < p.hidden, row, unit, nullptr);
      state.published[thread] = walk.state[0];
      OST_UNROLL
      for (int n = 0; n < kRing; ++n) walk.ask(space.ring[n][thread], n < p.steps, strides);
      if (thread == 0) space.arrived.begin();
    });
    block.sync_cluster();  // all blocks and their barriers are there
    block.for_each_thread([&](int thread) {
      Peers& peers = state.peers[thread];
      OST_UNROLL
      for (int k = 0; k < kPlaces; ++k) peers.of[k] = peer_memory(block, space, smaller(first_peer(thread) + 4 * k, kBlocks - 1));
      peers.place = place(rank * kUnits + thread / 32 * kWarpUnits, Shape::row(thread));
    });
    send(block, 0, state);
  }

  OST_HD static void multiply(const Block& block, const Space& space, int at, PerThread<Weights>& weights, PerThread<Sums>& sums) {
    PerThread<FragmentA> received;
    clear(block, sums);
    OST_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      block.for_each_thread([&](int thread) { received[thread] = space.words[at][slot][thread % 32]; });
      OST_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int k = kParts == 1 ? 2 * slot + half : slot;
        const auto one = [&](int part, int to) {
          multiply_fragments<Word>(
              block, [&](int thread) -> FragmentA& { return weights[thread].a[part][k]; },
              [&](int thread) {
                const FragmentA& w = received[thread];
                return FragmentB{{w.word[2 * half], w.word[2 * half + 1]}};
              },
              [&](int thread) -> float* { return sums[thread].v[to][k % kChains]; });
        };
        if (kParts == 1 || half == 0) one(0, 0);
        if constexpr (kParts > 1) one(half == 0 ? 1 : 0, 1);  // the product of both low-order terms is below the precision of a float
      }
    }
  }

  // Bring the sums of all columns of a unit to the thread of its cell.
  OST_HD static void gather(const Block& block, PerThread<Sums>& sums, PerThread<Products>& scales, PerThread<Products>& products) {
    PerThread<float> own[2], others[2];
    block.for_each_thread([&](int thread) {
      const bool first = Shape::first_row(thread);
      OST_UNROLL
      for (int k = 0; k < 2; ++k) {
        const float even = sum(sums[thread], 2 * k), odd = sum(sums[thread], 2 * k + 1);
        own[k][thread] = first ? even : odd, others[k][thread] = first ? odd : even;
      }
    });
    block.for_each_thread([&](int thread) {
      const bool first = Shape::first_row(thread);
      OST_UNROLL
      for (int k = 0; k < 2; ++k) {
        const float mine = own[k][thread], other = of_neighbour<Shape::kOtherColumns>(others[k], thread);
        products[thread].v[2 * k] = first ? mine : other, products[thread].v[2 * k + 1] = first ? other : mine;
      }
      if constexpr (kParts > 1) {
        OST_UNROLL
        for (int k = 0; k < kCount; ++k) products[thread].v[k] *= scales[thread].v[k];
      }
    });
  }
  OST_HD static float sum(const Sums& sums, int c) {
    float all = sums.v[0][0][c];
    OST_UNROLL
    for (int chain = 1; chain < kChains; ++chain) all += sums.v[0][chain][c];
    if constexpr (kParts > 1) {
      float low = sums.v[1][0][c];
      OST_UNROLL
      for (int chain = 1; chain < kChains; ++chain) low += sums.v[1][chain][c];
      all = fma(low, 1 / kResidualScale<Word>, all);
    }
    return all;
  }

  // Send what the product of step n takes. Four lanes have the same row of the warp's units; each of them sends to other peers.
  OST_HD void send(const Block& block, int n, State& state) const {
    PerThread<std::uint32_t> pairs[kParts];
    block.for_each_thread([&](int thread) {
      const T mine = state.published[thread], other = of_neighbour<Shape::kNextUnit>(state.published, thread);
      if (kResidualScale<Word> > 1 && kParts > 1 && beyond_half(mine)) store_relaxed(buffer.status(), kOutOfRange);
      const bool even = Lane(thread).g % 2 == 0;
      Word low[kParts], high[kParts];
      split_float<Word, kParts>(even ? mine : other, low);
      split_float<Word, kParts>(even ? other : mine, high);
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) pairs[part][thread] = pair_of<Word>(low[part], high[part]);
    });
    block.for_each_thread([&](int thread) {
      const bool first = Lane(thread).g % 4 < 2;
      std::uint32_t words[2 * kParts];
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const std::uint32_t mine = pairs[part][thread], other = of_neighbour<Shape::kNextPair>(pairs[part], thread);
        words[2 * part] = first ? mine : other, words[2 * part + 1] = first ? other : mine;
      }
      const Peers& peers = state.peers[thread];
      const int buffer_bytes = n % 2 * int(sizeof(Space::words) / 2),
                barrier = int(offsetof(Space, arrived)) + StepBarriers<kBytes>::place(n);
      OST_UNROLL
      for (int k = 0; k < kPlaces; ++k)
        if (kBlocks % 4 == 0 || first_peer(thread) + 4 * k < kBlocks)
          store_async<2 * kParts>(peers.of[k], peers.place + buffer_bytes, words, barrier);
    });
  }
  OST_HD static int first_peer(int thread) { return Lane(thread).g % 4; }
  // Where the four words of units u to u + 3 of a row lie for step 0, in bytes.
  OST_HD static int place(int u, int row) {
    const int tile = u / 16, lane = row * 4 + u % 16 / kWarpUnits;
    const int slot = kParts == 1 ? tile / 2 : tile, half = kParts == 1 ? tile % 2 : 0;
    return int(offsetof(Space, words)) + (slot * 32 + lane) * int(sizeof(FragmentA)) + half * 8;
  }
};

}  // namespace ost::OST_SET
