// All steps in one launch, on many multiprocessors. A block keeps the recurrent weights of a few
// hidden units in its registers, and a group of blocks holds those of all units. Blocks exchange
// what the product of a phase needs through the exchange buffer: forward h, or what the phase
// before emitted; backward da. Groups divide the batch, 16 rows each, and are independent. All
// blocks of a launch must run at the same time. A pass is cut into launches of so many steps that
// the exchange buffer stays in the L2 cache.
#pragma once
#include "cell_walk.h"
#include "partition.h"
#include "shared_weights.h"

namespace ost::OST_SET {

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
  using Inputs = typename CellWalk<C, T>::Inputs;
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

  struct Cell : CellWalk<C, T> {
    bool sends;  // of two units of two rows, one thread sends
    std::uint32_t* out;
  };
  struct Strides : CellWalk<C, T>::Strides {
    int slot;
    OST_HD Strides(const Problem<T>& p, Index slot_stride) : CellWalk<C, T>::Strides(p), slot(kept(int(slot_stride))) {}
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
      for (int n = 0; n < kRing; ++n) cell.ask(space.ring[n * kCells + thread % kCells], n < walk.steps, walk.strides);
    });
    send(block, walk.cells, walk.published, walk.strides);
    for (int n = 0; n < walk.steps; ++n) for_phases<C>([&]<int F>() { run_phase<F>(block, space, p, n, walk); });
    if (launch_args.first_step + launch_args.steps < p.steps)
      block.for_each_thread([&](int thread) {
        const Cell& cell = walk.cells[thread];
        if (!cell.there) return;
        for (int k = 0; k < C::kStates; ++k) carry_of(p, block.z)[(k * p.batch + cell.b) * p.hidden + cell.u] = cell.state[k];
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
      if (walk.masked) runs = cell.there && cell.takes_part(p, launch_args.first_step + n);
      if (runs) {
        T products[C::kPhases[F].product.count()];
        Inputs inputs = space.ring[walk.at + thread];
        take_sums<F>(sums, kParts > 1 ? p.shared_scales[F] + block.x * Phase<F>::kTiles * 16 : nullptr, thread, products, inputs.gx);
        compute_active<C, T, F, false, V>(p, 0, cell.b, cell.u, inputs.gx, products, cell.state, walk.out[thread]);  // time is for norms
      }
      if (last && walk.masked && cell.there) cell.restart(p, launch_args.first_step + n + 1);
      walk.published[thread] = last ? cell.state[0] : runs ? walk.out[thread].emitted : T(0);
    });
    block.sync_warp();
    send(block, walk.cells, walk.published, walk.strides);  // first, for other blocks wait for it
    if constexpr (last) {
      block.for_each_thread([&](int thread) {
        Cell& cell = walk.cells[thread];
        if (walk.runs[thread])
          cell.store(p, walk.out[thread], walk.taped);
        else if (walk.masked && cell.there)
          cell.repeat(p, launch_args.first_step + n);
        cell.advance(walk.strides);
        cell.ask(space.ring[walk.at + thread % kCells], n + kRing < walk.steps, walk.strides);
      });
      walk.at = (walk.at + kCells) & (kRing * kCells - 1);
    }
    if constexpr (kPhases == 1) block.sync_block();  // the sums have been read; those of two phases lie apart
  }

  // The states of a problem from launch to launch, [states][B][H].
  OST_HD T* carry_of(const Problem<T>& p, Index z) const { return launch_args.carry + z * C::kStates * p.batch * p.hidden; }

  // The state that the launch starts from: that of the pass, or of the launch before; zeros where there is no row.
  OST_HD void begin(int thread, const BlockRange<kUnits>& range, Cell& cell) const {
    const Problem<T>& p = problems[range.z];
    const int row = range.row_of(thread), unit = range.unit_of(thread);
    const Index step = launch_args.first_step;
    cell.sends = range.sends(thread) && unit % 2 == 0 && row < 8;
    cell.begin(p, step, range.has(thread), range.b0 + row, range.u0 + unit, step > 0 ? carry_of(p, range.z) : nullptr);
    cell.out = range.slot(0) + Phase<0>::E::place(range.u0 + unit, row % 8);
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

}  // namespace ost::OST_SET
