// The backward pass of the kernels in persistent.h; the phases of a step run from the last one on. A block computes dh of its
// units, or the gradient of what they emitted, from da of all units. Since da is several times as
// large as h, the `kSplit` blocks of a cluster each take in a part of it, for the units of all of
// them, and write the sums to each other's shared memory. Of two pipelined layers the upper one
// runs first; the lower one takes in its da in place of dy.
#pragma once
#include "cell_walk_back.h"
#include "partition.h"
#include "shared_weights.h"

namespace ost::OST_SET {

template <class C, class T, class Word, int kParts, int kUnits, int kSplit, bool kPipelined>
struct BackwardPersistentKernel {
  static_assert(supports<C, PersistentDriver>);
  static constexpr int kPhases = kPhaseCount<C>, kPeers = kSplit, kTiles = kSplit * kUnits / 16;
  using Units = BlockRange<kUnits>;
  static constexpr int kCells = Units::kCells;
  using Back = CellWalkBack<C, T, typename CellNumbers<T, kParts>::Type>;
  using Given = typename Back::Given;
  using Pass = typename Back::Pass;
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

  struct Cell : Back {
    bool sends[kPhases];
    T scale[kPhases];
    std::uint32_t* out[kPhases];  // in the slot of the next step
  };
  // What a block keeps from step to step.
  struct Walk {
    const int steps;
    const Units range;
    const int slot_stride;
    int pairs[kPhases];
    PerPhase<Weights, 0, kPhases> weights;
    PerThread<Cell> cells;
    PerThread<typename Back::Out> out;
    PerThread<const std::uint32_t*> in;
    PerThread<T*> gifts;
    PerThread<bool> lost;
    int at = 0;      // in the ring
    int buffer = 0;  // of sums by peer
    OST_HD Walk(const Block& block, const Problem<T>& p, const LaunchArgs<T>& launch_args)
        : steps(kept(int(launch_args.steps))), range(block, p, launch_args, slot_words(p.hidden)), slot_stride(kept(int(range.stride))) {
      for_phases<C>([&]<int F>() { pairs[F] = kept(int(pairs_of<F>(p.hidden, range.upstream))); });
    }
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    const Pass pass(p, g, launch_args.buffer, launch_args.first_step);
    Walk walk(block, p, launch_args);
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
      begin(block, thread, pass, walk);
      OST_UNROLL
      for (int i = 0; i < kRing; ++i) walk.cells[thread].ask(pass, walk.steps - 1 - i, space.ring[i * kCells + thread % kCells]);
    });
    for (int n = walk.steps - 1 + ahead; n >= 0; --n) {
      for_phases<C>([&]<int kBefore>() {
        constexpr int F = kPhases - 1 - kBefore;
        if (n < walk.steps) run_phase<F>(block, space, pass, n, walk);
        Phase<F>::E::multiply(block, get_phase<F>(walk.weights), get_phase<F>(space.products), launch_args.buffer, walk.in, walk.pairs[F],
                              walk.lost);
        if constexpr (kSplit > 1) give_to_peers<F>(block, space, walk);
        block.for_each_thread([&](int thread) {
          walk.in[thread] += walk.slot_stride;
          if (walk.cells[thread].there) take_sum<F>(space, pass, n, walk, thread);
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
  OST_HD void run_phase(const Block& block, Space& space, const Pass& pass, int n, Walk& walk) const {
    using E = typename Phase<F>::E;
    constexpr int count = Phase<F>::kCount;
    PerThread<typename E::template Sent<Phase<F>::kWords>> sent;
    block.for_each_thread([&](int thread) {
      async_wait<kRing - 1>();
      walk.cells[thread].template run<F>(pass, n, space.ring[walk.at + thread % kCells], walk.out[thread]);
    });
    block.for_each_thread([&](int thread) {
      const T* da = walk.out[thread].da + Phase<F>::kColumns.begin;
      auto& words = sent[thread];
      if constexpr (count % 2 == 0) {
        OST_UNROLL
        for (int i = 0; i < count / 2; ++i) words.set(i, da[2 * i], da[2 * i + 1]);
      } else {  // two units have an odd number of words each: the first one sends one more than the second
        const T next = of_partner<1>(walk.out, thread, [](const typename Back::Out& out, int) { return out.da[Phase<F>::kColumns.begin]; });
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
      cell.out[F] += walk.slot_stride * kPhases;
      if (cell.there) cell.template store<F>(walk.out[thread], pass.strides);
      if constexpr (F == 0) {
        cell.advance(pass.strides);
        cell.ask(pass, n - kRing, space.ring[walk.at + thread % kCells]);
      }
    });
    if constexpr (F == 0) walk.at = (walk.at + kCells) & (kRing * kCells - 1);
  }

  // Add the product of a phase to the gradients of the states; that of a phase after the first is the gradient of what was emitted.
  template <int F>
  OST_HD void take_sum(Space& space, const Pass& pass, int n, Walk& walk, int thread) const {
    Cell& cell = walk.cells[thread];
    T sum;
    if constexpr (kSplit == 1)
      sum = get_phase<F>(space.products).template sum<1>(Units::unit_of(thread), Units::row_of(thread)).v[0];
    else
      sum = space.sums[walk.buffer][0][thread];
    OST_UNROLL
    for (int peer = 1; peer < kSplit; ++peer) sum += space.sums[walk.buffer][peer][thread];
    if constexpr (kParts > 1) sum *= cell.scale[F];
    if constexpr (F > 0)
      cell.demitted = sum;
    else  // layers are pipelined only where nothing is cut; da of a row that takes no part is zero, that of the upstream layer may not be
      cell.add(pass, n, pass.general && !walk.range.upstream, sum);
  }

  // Where a thread stands in the last step of the launch, and the gradients that the launch starts from.
  OST_HD void begin(const Block& block, int thread, const Pass& pass, Walk& walk) const {
    const Problem<T>& p = pass.p;
    const Units& range = walk.range;
    Cell& cell = walk.cells[thread];
    const int unit = range.unit_of(thread), row = range.row_of(thread);
    const bool second = thread % 32 >= 16, odd = thread % 2;
    cell.begin(pass, walk.steps - 1, range.has(thread), range.b0 + row, range.u0 + unit);
    for_phases<C>([&]<int kBefore>() {
      constexpr int F = kPhases - 1 - kBefore, count = Phase<F>::kCount, words = Phase<F>::kWords;
      const int first = unit * count + (count % 2 && odd);  // inputs of the first word of this unit
      const bool both = words == 2 && !(count == 3 && odd), has = count > 1 || !odd;
      cell.sends[F] = range.sends(thread) && has && (both || !second);
      cell.out[F] = range.slot(1 + kBefore) + Phase<F>::E::place(range.u0 * count + first + (both && second ? 2 : 0), row % 8);
      if constexpr (kParts > 1) cell.scale[F] = p.shared_transposed_scales[F][block.x * kTiles * 16 + block.x % kSplit * kUnits + unit];
    });
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
      *reinterpret_cast<Numbers<float, kGift>*>(walk.gifts[thread] + walk.buffer * (kSplit * kCells)) =
          product.template sum<kGift>(gift_out(thread), gift_row(thread));
    });
    block.sync_cluster();
  }
};

}  // namespace ost::OST_SET
