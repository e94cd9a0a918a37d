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

// Tiles of inputs that a thread has in flight: as many as registers have room for beside weights
// and sums.
constexpr int tiles_at_a_time(int out_tiles, int parts) {
  if (parts == 2) return out_tiles == 1 ? 2 : 4;
  return out_tiles == 1 ? 8 : out_tiles == 3 ? 5 : 4;
}

// The inputs of a block at a step: a slot, followed by the slot of the upstream layer, of the same
// size, or null.
struct Inputs {
  const std::uint32_t *own, *upstream;
  Index tiles;  // tiles of each of the two
  OST_HD Index all() const { return upstream ? 2 * tiles : tiles; }
};

// sums[out][row] = weights times the inputs from the exchange buffer. The `kPeers` blocks of a
// cluster, and the warps of a block, take tiles of 16 inputs in turn. A warp has at most kDepth
// tiles, of which the weights of kShared lie in shared memory for want of registers; kTilesInFlight
// tiles are loaded at the same time.
template <class Word, int kParts, int kTiles, int kDepth, int kTilesInFlight, int kPeers = 1, int kShared = 0>
struct ExchangeEngine {
  static constexpr int kWarps = kThreads / 32, kRowTiles = kGroupRows / 8, kWords = 2 * kParts;
  static constexpr int kInRegisters = kDepth - kShared;
  static_assert(kInRegisters > 0);
  struct Weights {
    FragmentA a[kParts][kTiles][kInRegisters];
  };
  struct Sums {
    float v[kParts][kTiles][kRowTiles][4];
  };
  struct alignas(16) Received {
    std::uint32_t word[kTilesInFlight][kRowTiles][kWords];  // both words of the fragment of each part
  };
  struct alignas(16) Space {
    FragmentA in_shared[kParts][kTiles][kShared > 0 ? kShared : 1][kShared > 0 ? kThreads : 1];
    float sums[kWarps][kTiles * 16][kGroupRows + 1];
    OST_HD float sum(int out, int row) const {
      float s = sums[0][out][row];
      for (int w = 1; w < kWarps; ++w) s += sums[w][out][row];
      return s;
    }
  };

  // The words of a slot are the right fragments of the product, [8 rows][tile of
  // inputs][lane][part][2].
  OST_HD static Index tile_of(Index k, int warp, Index rank) { return (k * kWarps + warp) * kPeers + rank; }
  static bool fits(Index tiles) { return depth(tiles) <= kDepth; }
  OST_HD static Index depth(Index tiles) { return (tiles + kWarps * kPeers - 1) / (kWarps * kPeers); }
  OST_HD static Index slot_words(Index tiles) { return kRowTiles * tiles * 32 * kWords; }

  OST_HD static FragmentA& weight(Weights& weights, Space& space, int thread, int part, int n, int k) {
    return k < kInRegisters ? weights.a[part][n][k < kInRegisters ? k : 0]
                            : space.in_shared[part][n][k < kInRegisters ? 0 : k - kInRegisters][thread];
  }
  OST_HD static void load(const Block& block, PerThread<Weights>& weights, Space& space, const void* from, Index tiles) {
    const Index depth = ExchangeEngine::depth(tiles);
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

  // Write inputs `in` (even) and `in + 1` of a row.
  OST_HD static void send(std::uint32_t* slot, Index in, int row, Index tiles, float low, float high) {
    Word l[kParts], h[kParts];
    split_float<Word, kParts>(low, l);
    split_float<Word, kParts>(high, h);
    const Index i = ((row / 8 * tiles + in / 16) * 32 + row % 8 * 4 + in % 8 / 2) * kWords + in % 16 / 8;
    OST_UNROLL
    for (int part = 0; part < kParts; ++part) store_relaxed(slot + i + 2 * part, encode(l[part], h[part]));
  }
  // `lost`: a thread has timed out and no longer waits.
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space, const ExchangeBuffer& buffer,
                              const Inputs& inputs, Index rows, PerThread<bool>& lost) {
    const Index tiles = inputs.all();
    PerThread<Sums> sums;
    PerThread<Received> received;
    block.for_each_thread([&](int thread) {
      float* v = &sums[thread].v[0][0][0][0];
      OST_UNROLL
      for (int i = 0; i < int(sizeof(Sums) / sizeof(float)); ++i) v[i] = 0;
    });
    OST_UNROLL
    for (int first = 0; first < kDepth; first += kTilesInFlight) {
      if (first * kWarps * kPeers >= tiles) break;
      block.for_each_thread(
          [&](int thread) { receive(thread, received[thread], buffer, inputs, first, block.x % kPeers, rows, lost[thread]); });
      block.sync_warp();
      OST_UNROLL
      for (int k = 0; k < kTilesInFlight; ++k) {
        if (first + k >= kDepth || (first + k) * kWarps * kPeers >= tiles) break;
        OST_UNROLL
        for (int j = 0; j < kRowTiles; ++j) {
          if (j * 8 >= rows) break;
          OST_UNROLL
          for (int n = 0; n < kTiles; ++n) {
            const auto one = [&](int left, int right, int to) {
              multiply_fragments<Word>(
                  block, [&](int thread) -> FragmentA& { return weight(weights[thread], space, thread, left, n, first + k); },
                  [&](int thread) {
                    return FragmentB{{received[thread].word[k][j][2 * right], received[thread].word[k][j][2 * right + 1]}};
                  },
                  [&](int thread) -> float* { return sums[thread].v[to][n][j]; });
            };
            one(0, 0, 0);
            if constexpr (kParts > 1) one(0, 1, 1), one(1, 0, 1);  // the product of both low-order terms is below the precision of a float
          }
        }
      }
    }
    block.for_each_thread_sync([&](int thread) {
      const Lane lane(thread);
      OST_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        OST_UNROLL
        for (int j = 0; j < kRowTiles; ++j) {
          OST_UNROLL
          for (int c = 0; c < 4; ++c) {
            float s = sums[thread].v[0][n][j][c];
            if constexpr (kParts > 1) s = fma(sums[thread].v[1][n][j][c], 1 / kResidualScale<Word>, s);
            space.sums[thread / 32][n * 16 + lane.sum_row(c)][j * 8 + lane.sum_column(c)] = s;
          }
        }
      }
    });
  }

  OST_HD static void receive(int thread, Received& in, const ExchangeBuffer& buffer, const Inputs& inputs, int first, Index rank,
                             Index rows, bool& lost) {
    const Lane lane(thread);
    const auto from = [&](int k, int j) {
      const Index tile = tile_of(first + k, thread / 32, rank), tiles = inputs.tiles;
      if (tile >= inputs.all() || j * 8 + lane.b_column() >= rows) return static_cast<const std::uint32_t*>(nullptr);
      return (tile < tiles ? inputs.own + (j * tiles + tile) * (32 * kWords)
                           : inputs.upstream + (j * tiles + tile - tiles) * (32 * kWords)) +
             thread % 32 * kWords;
    };
    OST_UNROLL
    for (int k = 0; k < kTilesInFlight; ++k) {
      OST_UNROLL
      for (int j = 0; j < kRowTiles; ++j) {
        OST_UNROLL
        for (int w = 0; w < kWords; ++w) in.word[k][j][w] = 0;
        if (const std::uint32_t* p = from(k, j)) poll<kWords>(p, in.word[k][j]);
      }
    }
    for (int polls = 0; !lost; ++polls) {
      bool missing = false;
      OST_UNROLL
      for (int k = 0; k < kTilesInFlight; ++k) {
        OST_UNROLL
        for (int j = 0; j < kRowTiles; ++j)
          if (is_unset<kWords>(in.word[k][j])) {
            missing = true;
            poll<kWords>(from(k, j), in.word[k][j]);
          }
      }
      if (!missing) return;
      lost = !keep_polling(buffer, polls);
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
  float* scales;  // null: no scales
  Index tiles, blocks;
  int outs_per_block;  // outputs of a block and its peers
  static constexpr int kOuts = kTiles * 16, kSlices = kThreads / kOuts;
  struct Space {
    float top[kSlices][kOuts], scale[kOuts];
  };
  Grid grid() const { return {blocks}; }
  OST_HD float weight(Index block, int out, Index in) const {
    return out < outs_per_block ? from(block / kPeers * outs_per_block + out, in) : 0;
  }
  OST_HD void operator()(const Block& block, Space& space) const {
    block.for_each_thread_sync([&](int thread) {
      const int out = thread % kOuts, slice = thread / kOuts;
      if (slice >= kSlices || !scales) return;
      float top = 0;
      for (Index in = slice; in < tiles * 16; in += kSlices) {
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
    const Index depth = E::depth(tiles), count = kParts * kTiles * depth;
    block.for_each_thread_sync([&](int thread) {
      const Lane lane(thread);
      for (Index i = 0; i < count; ++i) {
        const int part = int(i / (kTiles * depth)), n = int(i / depth % kTiles);
        const Index in = E::tile_of(i % depth, thread / 32, block.x % kPeers) * 16;
        FragmentA a;
        for (int w = 0; w < 4; ++w) {
          const int out = n * 16 + lane.a_row(w);
          Word low[kParts], high[kParts];
          split_float<Word, kParts>(weight(block.x, out, in + lane.a_column(w)) * space.scale[out], low);
          split_float<Word, kParts>(weight(block.x, out, in + lane.a_column(w) + 1) * space.scale[out], high);
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
// one row a thread; and the slots of its group.
template <int kUnits>
struct BlockRange {
  Index b0, u0, hidden;
  Index rows;  // rows within the batch
  std::uint32_t* slots;
  Index stride;           // words from slot to slot
  Index upstream_offset;  // words back to the slots of the upstream layer, or 0
  template <class T>
  OST_HD BlockRange(const Block& block, const Problem<T>& p, const LaunchArgs<T>& launch_args, Index slot_words)
      : b0(launch_args.first_row + block.y * kGroupRows),
        u0(block.x * kUnits),
        hidden(p.hidden),
        rows(smaller<Index>(kGroupRows, p.batch - b0)),
        slots(launch_args.buffer.slots() + (block.z * launch_args.groups + block.y) * slot_words),
        stride(launch_args.problems * launch_args.groups * slot_words),
        upstream_offset(launch_args.layer_pipelined && block.z > 0 ? launch_args.groups * slot_words : 0) {}
  OST_HD std::uint32_t* slot(Index step_of_launch) const { return slots + step_of_launch * stride; }
  OST_HD const std::uint32_t* upstream(Index step_of_launch) const {
    return upstream_offset ? slot(step_of_launch) - upstream_offset : nullptr;
  }
  // Return whether no earlier launch of this pass has been given up.
  template <class T>
  OST_HD static bool ok(const LaunchArgs<T>& launch_args) {
    std::uint32_t status;
    poll<1>(launch_args.buffer.status(), &status);
    return status == kOk;
  }
  // Call f(thread, b, row, unit, u) for every thread that has a unit of a row.
  template <class F>
  OST_HD void for_each_unit(const Block& block, F&& f) const {
    block.for_each_thread([&](int thread) {
      const int row = thread / kUnits, unit = thread % kUnits;
      if (row < rows && u0 + unit < hidden) f(thread, b0 + row, row, unit, u0 + unit);
    });
  }
};

// A launch of one or two problems: two directions, or (kPipelined) a layer and the one above it.
// The upper layer computes its input product here too, in all columns, from the h that the lower
// layer exchanges.
template <class C, class T, class Word, int kParts, int kUnits, bool kPipelined>
struct PersistentKernel {
  static_assert(supports<C, PersistentDriver>);
  static constexpr int kPhases = kPhaseCount<C>, kPeers = 1;
  template <int F>
  struct Phase {
    static constexpr Columns kColumns = shared_columns<C>(F, kPipelined);
    static constexpr int kOuts = kUnits * kColumns.count(), kTiles = (kOuts + 15) / 16;
    static constexpr int kDepth = kWeightWords / (kParts * all_out_tiles<C>(kUnits, kPipelined));
    static constexpr int kAtATime = smaller(tiles_at_a_time(kTiles, kParts), kPhases == 1 ? kDepth : 4);
    using E = ExchangeEngine<Word, kParts, kTiles, kDepth, kAtATime, 1, kPhases == 1 ? 0 : 1>;
    template <class From>
    using Pack = PersistentPackKernel<From, E, Word, kParts, kTiles, 1>;
    OST_HD static Index tiles_of(Index hidden) { return (hidden + 15) / 16; }
  };
  template <int F>
  using Weights = PerThread<typename Phase<F>::E::Weights>;
  template <int F>
  using Product = typename Phase<F>::E::Space;
  Problem<T> problems[2];
  LaunchArgs<T> launch_args;
  struct Space {
    PerPhase<Product, 0, kPhases> products;
    T state[C::kStates][kGroupRows][kUnits], emitted[kGroupRows][kUnits];
  };
  OST_HD static Index tiles_of(Index hidden) { return Phase<0>::tiles_of(hidden); }  // tiles of inputs, in every phase
  OST_HD static Index blocks_of(Index hidden) {
    return tiles_of(hidden) * 16 / kUnits;
  }  // whole tiles of inputs: every word of a slot is written
  OST_HD static Index slot_words(Index hidden) { return Phase<0>::E::slot_words(tiles_of(hidden)); }
  static bool fits(Index hidden, bool layer_pipelined) { return Phase<0>::E::fits(tiles_of(hidden) * (1 + layer_pipelined)); }
  Grid grid() const { return {blocks_of(problems[0].hidden), launch_args.groups, launch_args.problems}; }

  struct Next {
    T gx[C::kColumns];
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const StepMask mask = p.mask();
    const Index tiles = tiles_of(p.hidden);
    const BlockRange<kUnits> range(block, p, launch_args, slot_words(p.hidden));
    PerPhase<Weights, 0, kPhases> weights;
    PerThread<Next> next;  // gx of the next step, loaded while the product of this one runs
    PerThread<ForwardOut<C, T>> out;
    PerThread<bool> lost, ran;
    for_phases<C>([&]<int F>() {
      Phase<F>::E::load(block, get_phase<F>(weights), get_phase<F>(space.products), p.shared_panels[F],
                        range.upstream_offset ? 2 * tiles : tiles);
    });
    block.for_each_thread([&](int thread) { lost[thread] = !range.ok(launch_args); });
    begin(block, space, range, next);
    send(block, space.state[0], range, range.slot(0), tiles);
    for (Index n = 0; n < launch_args.steps; ++n) {
      const Index step = launch_args.first_step + n, t = mask.time(step);
      for_phases<C>([&]<int F>() {
        constexpr bool last = F + 1 == kPhases;
        auto& sums = get_phase<F>(space.products);
        const Index slot = n * kPhases + F;
        const Inputs inputs{range.slot(slot), range.upstream(slot + 1), tiles};
        Phase<F>::E::multiply(block, get_phase<F>(weights), sums, launch_args.buffer, inputs, range.rows, lost);
        range.for_each_unit(block, [&](int thread, Index b, int row, int unit, Index u) {
          T products[C::kPhases[F].product.count()] = {}, state[C::kStates];
          take_sums<F>(sums, kParts > 1 ? p.shared_scales[F] + block.x * Phase<F>::kTiles * 16 : nullptr, row, unit, products,
                       next[thread].gx);
          OST_UNROLL
          for (int k = 0; k < C::kStates; ++k) state[k] = space.state[k][row][unit];
          ran[thread] = compute<C, T, F>(p, mask, t, b, u, next[thread].gx, products, state, out[thread]);
          if constexpr (last) {
            prepare(p, mask, step + 1, b, u, state, next[thread]);
            OST_UNROLL
            for (int k = 0; k < C::kStates; ++k) space.state[k][row][unit] = state[k];
          } else {
            space.emitted[row][unit] = ran[thread] ? out[thread].emitted : T(0);
          }
        });
        block.sync_warp();
        // Publish the state first: other blocks wait for it.
        if (!last || n + 1 < launch_args.steps + (launch_args.layer_pipelined && block.z == 0))
          send(block, last ? space.state[0] : space.emitted, range, range.slot(slot + 1), tiles);
        if constexpr (last)
          range.for_each_unit(
              block, [&](int thread, Index b, int, int, Index u) { store_outputs<C, T, F>(p, mask, t, b, u, ran[thread], out[thread]); });
        if constexpr (kPhases == 1) block.sync_block();  // the sums have been read; those of two phases lie apart
      });
    }
    if (launch_args.first_step + launch_args.steps < p.steps)
      range.for_each_unit(block, [&](int, Index b, int row, int unit, Index u) {
        for (int k = 0; k < C::kStates; ++k)
          launch_args.carry[((block.z * C::kStates + k) * p.batch + b) * p.hidden + u] = space.state[k][row][unit];
      });
  }

  // The states that the launch starts from: those of the pass, or of the launch before; zeros where there is no row.
  OST_HD void begin(const Block& block, Space& space, const BlockRange<kUnits>& range, PerThread<Next>& next) const {
    const Problem<T>& p = problems[block.z];
    const StepMask mask = p.mask();
    block.for_each_thread([&](int thread) {
      if (thread >= kGroupRows * kUnits) return;
      for (int k = 0; k < C::kStates; ++k) space.state[k][thread / kUnits][thread % kUnits] = T(0);
      space.emitted[thread / kUnits][thread % kUnits] = T(0);
    });
    range.for_each_unit(block, [&](int thread, Index b, int row, int unit, Index u) {
      T state[C::kStates];
      for (int k = 0; k < C::kStates; ++k)
        state[k] = launch_args.first_step > 0 ? launch_args.carry[((block.z * C::kStates + k) * p.batch + b) * p.hidden + u]
                                              : value(k == 0 ? hidden_after<C>(p, kInitial, b) : cell_after(p, kInitial, b), u);
      prepare(p, mask, launch_args.first_step, b, u, state, next[thread]);
      for (int k = 0; k < C::kStates; ++k) space.state[k][row][unit] = state[k];
    });
    block.sync_warp();
  }

  // Sums of a unit's columns: those of the recurrent product to `products`; those of the layer below, where layers are pipelined, are added
  // to gx. `scales` are null where words have one part.
  template <int F>
  OST_HD static void take_sums(const Product<F>& sums, const float* scales, int row, int unit, T* products, T* gx) {
    constexpr Columns columns = Phase<F>::kColumns, product = C::kPhases[F].product;
    OST_UNROLL
    for (int i = 0; i < columns.count(); ++i) {
      T sum = sums.sum(unit * columns.count() + i, row);
      if constexpr (kParts > 1) sum *= scales[unit * columns.count() + i];
      if (product.has(columns.begin + i))
        products[columns.begin + i - product.begin] = sum;
      else
        gx[columns.begin + i] += sum;
    }
  }

  // Load the state that a step starts from, if it is that of a restart, and the projected input.
  OST_HD static void prepare(const Problem<T>& p, const StepMask& mask, Index step, Index b, Index u, T* state, Next& next) {
    if (step >= p.steps) return;
    const Index t = mask.time(step);
    if (!mask.active(t, b)) return;
    if (p.times.predecessors && mask.predecessor(t, b) == kRestart)
      for (int k = 0; k < C::kStates; ++k) state[k] = value(k == 0 ? p.restart_h : p.restart_c, u);
    const T* gx = p.gx ? p.gx + (t * p.batch + b) * p.hidden * C::kColumns : p.bias;
    OST_UNROLL
    for (int column = 0; column < C::kColumns; ++column) next.gx[column] = gx[u * C::kColumns + column];
    if (p.times.predecessors && step + 1 < p.steps)
      prefetch(p.times.predecessors + mask.time(step + 1) * p.batch + b);  // it decides which state is published
  }

  // Publish h of this block's units. Each warp sends only rows that its own threads wrote to shared
  // memory, so no block barrier is needed.
  OST_HD void send(const Block& block, const T (&from)[kGroupRows][kUnits], const BlockRange<kUnits>& range, std::uint32_t* slot,
                   Index tiles) const {
    block.for_each_thread([&](int thread) {
      const int row = thread / kUnits, unit = thread % kUnits;
      if (row >= range.rows || unit % 2) return;
      const T *low = &from[row][unit], *high = low + 1;
      if (kResidualScale<Word> > 1 && kParts > 1 && (beyond_half(*low) || beyond_half(*high)))
        store_relaxed(launch_args.buffer.status(), kOutOfRange);
      Phase<0>::E::send(slot, range.u0 + unit, row, tiles, *low, *high);
    });
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
  static constexpr int kPhases = kPhaseCount<C>, kPeers = kSplit, kTiles = kSplit * kUnits / 16;
  OST_HD static Index blocks_of(Index hidden) { return (hidden + kSplit * kUnits - 1) / (kSplit * kUnits) * kSplit; }
  template <int F>
  struct Phase {
    static constexpr Columns kColumns = shared_columns<C>(F, kPipelined);
    static constexpr int kCount = kColumns.count(), kAll = all_columns<C>(kPipelined), kOuts = kSplit * kUnits;
    static constexpr int kDepth = kWeightWords * kCount / (kParts * kTiles * kAll);
    static constexpr int kWanted = kSplit == 1 ? kParts - 1 + (kPhases > 1) : kParts == 1 ? 3 : 6;  // chosen so that registers do not spill
    static constexpr int kShared = smaller((kWanted * kCount + kAll - 1) / kAll, kDepth - 1);
    using E = ExchangeEngine<Word, kParts, kTiles, kDepth, smaller(kSplit == 1 ? 4 : 4 / kParts, kDepth), kSplit, kShared>;
    template <class From>
    using Pack = PersistentPackKernel<From, E, Word, kParts, kTiles, kSplit>;
    OST_HD static Index tiles_of(Index hidden) { return blocks_of(hidden) * kUnits * kCount / 16; }
  };
  template <int F>
  using Weights = PerThread<typename Phase<F>::E::Weights>;
  template <int F>
  using Product = typename Phase<F>::E::Space;
  Problem<T> problems[2];
  BackwardProblem<T> gradients[2];
  LaunchArgs<T> launch_args;
  struct Padded : Gathered<C, T> {
    T odd[1 + sizeof(Gathered<C, T>) / sizeof(T) % 2];  // an odd number of words a thread avoids bank conflicts
  };
  struct Space {
    PerPhase<Product, 0, kPhases> products;
    T d[C::kStates][kGroupRows][kUnits];
    T da[kPhases][kGroupRows][kUnits * all_columns<C>(kPipelined)];
    Padded given[kThreads];                                  // inputs of the next step, copied while the product of this one runs
    T sums[kSplit > 1 ? 2 : 1][kSplit][kGroupRows][kUnits];  // by peer, double-buffered: a peer may still read those of the exchange before
  };
  static_assert(kSplit == 1 || sizeof(Space) <= 160 << 10);  // sm_90 and sm_100 have 227 KB; others have no clusters (module.cu)
  // A slot has room for the phase with the most words.
  OST_HD static Index slot_words(Index hidden) {
    Index most = 0;
    for_phases<C>([&]<int F>() { most = larger(most, Phase<F>::E::slot_words(Phase<F>::tiles_of(hidden))); });
    return most;
  }
  static bool fits(Index hidden, bool layer_pipelined) {
    bool all = true;
    for_phases<C>([&]<int F>() { all = all && Phase<F>::E::fits(Phase<F>::tiles_of(hidden) * (1 + layer_pipelined)); });
    return all;
  }
  Grid grid() const { return {blocks_of(problems[0].hidden), launch_args.groups, launch_args.problems}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    const StepMask mask = p.mask();
    const BlockRange<kUnits> range(block, p, launch_args, slot_words(p.hidden));
    PerPhase<Weights, 0, kPhases> weights;
    PerThread<BackwardOut<C, T>> out;
    PerThread<T> demitted;
    PerThread<bool> lost;
    for_phases<C>([&]<int F>() {
      const Index tiles = Phase<F>::tiles_of(p.hidden);
      Phase<F>::E::load(block, get_phase<F>(weights), get_phase<F>(space.products), p.shared_transposed[F],
                        range.upstream_offset ? 2 * tiles : tiles);
    });
    block.for_each_thread([&](int thread) { lost[thread] = !range.ok(launch_args); });
    begin(block, space, range);
    for (Index n = launch_args.steps - (range.upstream_offset ? 0 : 1); n >= 0;
         --n) {  // n = steps: what the upstream layer gives the last step
      const Index t = mask.time(launch_args.first_step + n);
      for_phases<C>([&]<int kBefore>() {
        constexpr int F = kPhases - 1 - kBefore, count = Phase<F>::kCount, begin = Phase<F>::kColumns.begin;
        const Index slot = n * kPhases + F, tiles = Phase<F>::tiles_of(p.hidden);
        if (n < launch_args.steps) {
          range.for_each_unit(block, [&](int thread, Index b, int row, int unit, Index) {
            T d[2] = {space.d[0][row][unit], C::kStates > 1 ? space.d[C::kStates - 1][row][unit] : T(0)};
            async_wait();
            Gathered<C, T> given = space.given[thread];
            apply<C, T, F>(p, g, b, given, kBefore > 0 ? demitted[thread] : T(0), d, out[thread]);
            OST_UNROLL
            for (int column = 0; column < count; ++column) space.da[F][row][unit * count + column] = out[thread].da[begin + column];
            OST_UNROLL
            for (int k = 0; k < C::kStates && F == 0; ++k) space.d[k][row][unit] = d[k];
          });
          block.sync_warp();
          send<F>(block, space, range, range.slot(slot), tiles);
          range.for_each_unit(block, [&](int thread, Index b, int, int, Index u) {
            store_gradients<C, T, F>(p, g, t, b, u, space.given[thread], out[thread]);
            if (F == 0 && n > 0) prefetch_async(p, g, mask.time(launch_args.first_step + n - 1), b, u, space.given[thread]);
          });
        }
        auto& product = get_phase<F>(space.products);
        const Inputs inputs{range.slot(slot), n > 0 ? range.upstream(slot - 1) : nullptr,
                            tiles};  // the slot after the last step holds zeros
        Phase<F>::E::multiply(block, get_phase<F>(weights), product, launch_args.buffer, inputs, range.rows, lost);
        if constexpr (kSplit > 1) give_to_peers(block, space, product, int(slot % 2));
        take_sums<F>(block, space, range, product, t, int(slot % 2), demitted);
        if constexpr (kSplit == 1 && kPhases == 1) block.sync_block();  // the sums have been read; those of two phases lie apart
      });
    }
    range.for_each_unit(block, [&](int, Index b, int row, int unit, Index u) {
      g.dh[b * p.hidden + u] = space.d[0][row][unit];
      if constexpr (C::kStates > 1) g.dc[b * p.hidden + u] = space.d[1][row][unit];
    });
  }

  // Add the product of a phase to the gradients of the states; that of a phase after the first is the gradient of what was emitted.
  template <int F>
  OST_HD void take_sums(const Block& block, Space& space, const BlockRange<kUnits>& range, const typename Phase<F>::E::Space& product,
                        Index t, int buffer, PerThread<T>& demitted) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    const StepMask mask = p.mask();
    const int rank = int(block.x % kSplit);
    range.for_each_unit(block, [&](int thread, Index b, int row, int unit, Index u) {
      if (!range.upstream_offset && !mask.active(t, b)) return;  // da of such a row is zero; that of the upstream layer may not be
      T sum = summed(space, product, buffer, row, unit);
      if constexpr (kParts > 1) sum *= p.shared_transposed_scales[F][block.x * kTiles * 16 + rank * kUnits + unit];
      if constexpr (F > 0) {
        demitted[thread] = sum;
        return;
      }
      T d[2] = {space.d[0][row][unit] + sum, C::kStates > 1 ? space.d[C::kStates - 1][row][unit] : T(0)};
      if (!range.upstream_offset) cut<C, T>(p, g, t, b, u, d);  // layers are pipelined only where nothing is cut
      OST_UNROLL
      for (int k = 0; k < C::kStates; ++k) space.d[k][row][unit] = d[k];
    });
  }

  // The gradients that the launch starts from, and what its first step needs of the tape.
  OST_HD void begin(const Block& block, Space& space, const BlockRange<kUnits>& range) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    block.for_each_thread([&](int thread) {
      T* da = &space.da[0][0][0];
      for (int i = thread; i < int(sizeof space.da / sizeof(T)); i += kThreads) da[i] = T(0);
    });
    if constexpr (kSplit > 1)
      block.sync_cluster();  // all blocks of the cluster have started
    else
      block.sync_block();
    range.for_each_unit(block, [&](int thread, Index b, int row, int unit, Index u) {
      OST_UNROLL
      for (int k = 0; k < C::kStates; ++k) space.d[k][row][unit] = (k == 0 ? g.dh : g.dc)[b * p.hidden + u];
      prefetch_async(p, g, p.mask().time(launch_args.first_step + launch_args.steps - 1), b, u, space.given[thread]);
    });
  }

  // Every block has a part of the inputs, and sums for the units of all blocks of its cluster.
  template <class Product>
  OST_HD static void give_to_peers(const Block& block, Space& space, const Product& product, int buffer) {
    const int rank = int(block.x % kSplit);
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int i = thread; i < kSplit * kGroupRows * kUnits; i += kThreads) {
        const int to = i / (kGroupRows * kUnits), row = i / kUnits % kGroupRows, unit = i % kUnits;
        block.peer(space, to).sums[buffer][rank][row][unit] = product.sum(to * kUnits + unit, row);
      }
    });
    block.sync_cluster();
  }
  // The sum of a unit of this block over all peers.
  template <class Product>
  OST_HD static T summed(const Space& space, const Product& product, int buffer, int row, int unit) {
    T sum = kSplit > 1 ? space.sums[buffer][0][row][unit] : product.sum(unit, row);
    OST_UNROLL
    for (int peer = 1; peer < kSplit; ++peer) sum += space.sums[buffer][peer][row][unit];
    return sum;
  }

  OST_HD static void prefetch_async(const Problem<T>& p, const BackwardProblem<T>& g, Index t, Index b, Index u, Padded& given) {
    gather<C, T, 0>(p, g, t, b, u, given, [](T& to, const T* from) { copy_async<sizeof(T)>(&to, from); });
  }

  // Publish da of a phase; each warp sends the rows of its own threads.
  template <int F>
  OST_HD void send(const Block& block, const Space& space, const BlockRange<kUnits>& range, std::uint32_t* slot, Index tiles) const {
    constexpr int count = Phase<F>::kCount, pairs = kUnits * count / 2, rows = 32 / kUnits;
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int i = thread % 32; i < rows * pairs; i += 32) {
        const int row = thread / 32 * rows + i / pairs, in = i % pairs * 2;
        if (row < range.rows) Phase<F>::E::send(slot, range.u0 * count + in, row, tiles, space.da[F][row][in], space.da[F][row][in + 1]);
      }
    });
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
