// All steps in one launch, over many multiprocessors: a block keeps the recurrent weights of a few hidden units in its registers, a group
// of blocks holds those of all units, and what every block needs of the others goes through the mailbox, once in every phase of a step: h
// or what the phase before emitted forward, da backward. Groups share the batch, 16 rows each, and know nothing of each other. All blocks
// of a launch must run at the same time. A pass is cut into launches of so many steps that the mailbox stays in the L2 cache.
#pragma once
#include "backward.h"
#include "mailbox.h"
#include "mma.h"

namespace ost::OST_SET {

constexpr int kGroupRows = 16;  // of the batch
constexpr float kFloatMax = 3.402823466e38f;
constexpr int kWeightWords = 32;  // fragments of weights that a thread keeps, at most: 128 registers

// The words that go through the mailbox: those of the product, or of products that are exact two parts of half the bits each.
template <class W>
struct Sent {
  using Forward = W;
  using Backward = W;
  static constexpr int kParts = 1;
};
template <>
struct Sent<float> {
  using Forward = Half;
  using Backward = Bfloat;  // gradients need the range
  static constexpr int kParts = 2;
};

// Tiles of inputs that a thread asks for at the same time, as many as registers have room for beside weights and sums.
constexpr int tiles_at_a_time(int out_tiles, int parts) {
  if (parts == 2) return out_tiles == 1 ? 2 : 4;
  return out_tiles == 1 ? 8 : out_tiles == 3 ? 5 : 4;
}

// What a block takes in at a step: a slot, and behind it, of the same size, one of the layer that it follows, or null.
struct Inputs {
  const std::uint32_t *own, *ahead;
  Index tiles;  // of each
  OST_HD Index all() const { return ahead ? 2 * tiles : tiles; }
};

// sums[out][row] = weights times what the mailbox brings: a block of `kPeers` and in it a warp a share of the inputs, tile by tile of 16 in
// turn, of which a warp has at most kDepth and kShared lie in the shared memory, for want of registers. kChunk tiles are asked for at the
// same time.
template <class Word, int kParts, int kTiles, int kDepth, int kChunk, int kPeers = 1, int kShared = 0>
struct MailboxEngine {
  static constexpr int kWarps = kThreads / 32, kRowTiles = kGroupRows / 8, kWords = 2 * kParts;
  static constexpr int kKept = kDepth - kShared;
  static_assert(kKept > 0);
  struct Weights {
    FragmentA a[kParts][kTiles][kKept];
  };
  struct Sums {
    float v[kParts][kTiles][kRowTiles][4];
  };
  struct alignas(16) Received {
    std::uint32_t word[kChunk][kRowTiles][kWords];  // of a part both words of its fragment
  };
  struct alignas(16) Space {
    FragmentA rest[kParts][kTiles][kShared > 0 ? kShared : 1][kShared > 0 ? kThreads : 1];
    float sums[kWarps][kTiles * 16][kGroupRows + 1];
    OST_HD float sum(int out, int row) const {
      float s = sums[0][out][row];
      for (int w = 1; w < kWarps; ++w) s += sums[w][out][row];
      return s;
    }
  };

  // Words of a slot: as the right fragments of the product, [8 rows][tile of inputs][lane][part][2].
  OST_HD static Index tile_of(Index k, int warp, Index rank) { return (k * kWarps + warp) * kPeers + rank; }
  static bool fits(Index tiles) { return depth(tiles) <= kDepth; }
  OST_HD static Index depth(Index tiles) { return (tiles + kWarps * kPeers - 1) / (kWarps * kPeers); }
  OST_HD static Index slot_words(Index tiles) { return kRowTiles * tiles * 32 * kWords; }

  OST_HD static FragmentA& weight(Weights& weights, Space& space, int thread, int part, int n, int k) {
    return k < kKept ? weights.a[part][n][k < kKept ? k : 0] : space.rest[part][n][k < kKept ? 0 : k - kKept][thread];
  }
  OST_HD static void load(const Block& block, PerThread<Weights>& weights, Space& space, const void* from, Index tiles) {
    const Index depth = MailboxEngine::depth(tiles);
    const FragmentA* packed = static_cast<const FragmentA*>(from) + block.x * kParts * kTiles * depth * kThreads;
    block.alone([&](int thread) {
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

  // Inputs `in` (even) and the one after it, of a row.
  OST_HD static void send(std::uint32_t* slot, Index in, int row, Index tiles, float low, float high) {
    Word l[kParts], h[kParts];
    split<Word, kParts>(low, l);
    split<Word, kParts>(high, h);
    const Index i = ((row / 8 * tiles + in / 16) * 32 + row % 8 * 4 + in % 8 / 2) * kWords + in % 16 / 8;
    OST_UNROLL
    for (int part = 0; part < kParts; ++part) post(slot + i + 2 * part, sent(l[part], h[part]));
  }
  // `lost`: the thread no longer waits.
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space, const Mailbox& box, const Inputs& inputs,
                              Index rows, PerThread<bool>& lost) {
    const Index tiles = inputs.all();
    PerThread<Sums> sums;
    PerThread<Received> received;
    block.alone([&](int thread) {
      float* v = &sums[thread].v[0][0][0][0];
      OST_UNROLL
      for (int i = 0; i < int(sizeof(Sums) / sizeof(float)); ++i) v[i] = 0;
    });
    OST_UNROLL
    for (int first = 0; first < kDepth; first += kChunk) {
      if (first * kWarps * kPeers >= tiles) break;
      block.alone([&](int thread) { receive(thread, received[thread], box, inputs, first, block.x % kPeers, rows, lost[thread]); });
      block.warps_meet();
      OST_UNROLL
      for (int k = 0; k < kChunk; ++k) {
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
            if constexpr (kParts > 1) one(0, 1, 1), one(1, 0, 1);  // the product of both rests is below what a float shows
          }
        }
      }
    }
    block.each([&](int thread) {
      const Lane lane(thread);
      OST_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        OST_UNROLL
        for (int j = 0; j < kRowTiles; ++j) {
          OST_UNROLL
          for (int c = 0; c < 4; ++c) {
            float s = sums[thread].v[0][n][j][c];
            if constexpr (kParts > 1) s = fma(sums[thread].v[1][n][j][c], 1 / kLift<Word>, s);
            space.sums[thread / 32][n * 16 + lane.sum_row(c)][j * 8 + lane.sum_column(c)] = s;
          }
        }
      }
    });
  }

  OST_HD static void receive(int thread, Received& in, const Mailbox& box, const Inputs& inputs, int first, Index rank, Index rows,
                             bool& lost) {
    const Lane lane(thread);
    const auto from = [&](int k, int j) {
      const Index tile = tile_of(first + k, thread / 32, rank), tiles = inputs.tiles;
      if (tile >= inputs.all() || j * 8 + lane.b_column() >= rows) return static_cast<const std::uint32_t*>(nullptr);
      return (tile < tiles ? inputs.own + (j * tiles + tile) * (32 * kWords) : inputs.ahead + (j * tiles + tile - tiles) * (32 * kWords)) +
             thread % 32 * kWords;
    };
    OST_UNROLL
    for (int k = 0; k < kChunk; ++k) {
      OST_UNROLL
      for (int j = 0; j < kRowTiles; ++j) {
        OST_UNROLL
        for (int w = 0; w < kWords; ++w) in.word[k][j][w] = 0;
        if (const std::uint32_t* p = from(k, j)) look<kWords>(p, in.word[k][j]);
      }
    }
    for (int looks = 0; !lost; ++looks) {
      bool missing = false;
      OST_UNROLL
      for (int k = 0; k < kChunk; ++k) {
        OST_UNROLL
        for (int j = 0; j < kRowTiles; ++j)
          if (empty<kWords>(in.word[k][j])) {
            missing = true;
            look<kWords>(from(k, j), in.word[k][j]);
          }
      }
      if (!missing) return;
      lost = !patient(box, looks);
    }
  }
};

// What the launches of a pass are given beside the problem.
template <class T>
struct Exchange {
  Mailbox box;
  T* carry;  // [problem][states][B][H], from launch to launch
};
// One of them.
template <class T>
struct Piece {
  Mailbox box;
  T* carry;
  Index first_step, steps, first_row;
  int groups, problems;
  bool wave;  // the second problem is a layer that follows the first: it takes in what that one sends as well
};

OST_HD float as_float(float w) { return w; }
template <class W>
OST_HD float as_float(W w) {
  return widen(w);
}
// weight(out, in) of a layer, from panels, or backward from turned panels: one side of it are its units, the other one columns [begin, end)
// of each unit. Behind the `inputs` of the recurrent product come those of the product of the input with the layer that is followed.
template <class W>
struct SharedWeights {
  const W *own, *ahead;  // null: zeros
  Index hidden, inputs;
  Columns columns, own_columns, ahead_columns;
  bool turned;
  OST_HD float operator()(Index out, Index in) const {
    const bool second = in >= inputs;
    const Index i = second ? in - inputs : in, k = turned ? out : i, u = (turned ? i : out) / columns.count();
    const int column = columns.begin + int((turned ? i : out) % columns.count());
    const Columns of = second ? ahead_columns : own_columns;
    const W* from = second ? ahead : own;
    if (!from || u >= hidden || k >= hidden || !of.has(column)) return 0;
    const Index n = of.count(), at = column - of.begin;
    return as_float(from[turned ? (u * n + at) * hidden + k : (k * hidden + u) * n + at]);
  }
};

// Weights of all blocks as fragments, [block][part][tile of outputs][tile of inputs of a warp][thread], each output's by a power of two, so
// that the parts of a float are within the range of Half: [block][output]. Peers have the same outputs, and each its own inputs.
template <class F, class E, class Word, int kParts, int kTiles, int kPeers>
struct PersistentPackKernel {
  F from;
  FragmentA* to;
  float* scales;  // null: none
  Index tiles, blocks;
  int each;  // outputs of a block and its peers
  static constexpr int kOuts = kTiles * 16, kSlices = kThreads / kOuts;
  struct Space {
    float top[kSlices][kOuts], scale[kOuts];
  };
  Grid grid() const { return {blocks}; }
  OST_HD float weight(Index block, int out, Index in) const { return out < each ? from(block / kPeers * each + out, in) : 0; }
  OST_HD void operator()(const Block& block, Space& space) const {
    block.each([&](int thread) {
      const int out = thread % kOuts, slice = thread / kOuts;
      if (slice >= kSlices || !scales) return;
      float top = 0;
      for (Index in = slice; in < tiles * 16; in += kSlices) {
        const float w = weight(block.x, out, in), size = w < 0 ? -w : w;
        if (size <= kFloatMax && size > top) top = size;
      }
      space.top[slice][out] = top;
    });
    block.each([&](int thread) {
      if (thread >= kOuts) return;
      float top = 0;
      for (int slice = 0; slice < kSlices && scales; ++slice) top = larger(top, space.top[slice][thread]);
      space.scale[thread] = scales ? power_below(top) : 1;
      if (scales) scales[block.x * kOuts + thread] = 1 / space.scale[thread];
    });
    const Index depth = E::depth(tiles), count = kParts * kTiles * depth;
    block.each([&](int thread) {
      const Lane lane(thread);
      for (Index i = 0; i < count; ++i) {
        const int part = int(i / (kTiles * depth)), n = int(i / depth % kTiles);
        const Index in = E::tile_of(i % depth, thread / 32, block.x % kPeers) * 16;
        FragmentA a;
        for (int w = 0; w < 4; ++w) {
          const int out = n * 16 + lane.a_row(w);
          Word low[kParts], high[kParts];
          split<Word, kParts>(weight(block.x, out, in + lane.a_column(w)) * space.scale[out], low);
          split<Word, kParts>(weight(block.x, out, in + lane.a_column(w) + 1) * space.scale[out], high);
          a.word[w] = part == 0 ? pair_of<Word>(low[0], high[0]) : pair_of<Word>(low[kParts - 1], high[kParts - 1]);
        }
        to[(block.x * count + i) * kThreads + thread] = a;
      }
    });
  }
  // A power of two that brings a number to between 1 and 2, of what a float has such powers for.
  OST_HD static float power_below(float top) {
    float scale = 1;
    if (top == 0) return scale;
    for (; top * scale >= 2 && scale > 1e-37f;) scale /= 2;
    for (; top * scale < 1 && scale < 1e37f;) scale *= 2;
    return scale;
  }
};

// A thing of every phase from F on.
template <template <int> class Of, int F, int kEnd>
struct OfPhases {
  Of<F> own;
  OfPhases<Of, F + 1, kEnd> others;
};
template <template <int> class Of, int kEnd>
struct OfPhases<Of, kEnd, kEnd> {};
template <int F, template <int> class Of, int kFirst, int kEnd>
OST_HD auto& of_phase(OfPhases<Of, kFirst, kEnd>& all) {
  if constexpr (F == kFirst)
    return all.own;
  else
    return of_phase<F>(all.others);
}

// Columns of a unit that the weights of a phase feed forward, and that are sent backward: all where layers share a launch.
template <class C>
constexpr Columns shared_columns(int phase, bool wave) {
  return wave ? Columns{0, C::kColumns} : product_columns<C>(phase + 1);
}
// Tiles of outputs of a block, and columns, of all phases.
template <class C>
constexpr int all_out_tiles(int units, bool wave) {
  int tiles = 0;
  for (int f = 0; f < kPhaseCount<C>; ++f) tiles += (units * shared_columns<C>(f, wave).count() + 15) / 16;
  return tiles;
}
template <class C>
constexpr int all_columns(bool wave) {
  int count = 0;
  for (int f = 0; f < kPhaseCount<C>; ++f) count += shared_columns<C>(f, wave).count();
  return count;
}

// What a block of a launch has: units from u0 on of rows from b0 on, one a thread, and its group's part of each slot.
template <int kUnits>
struct Share {
  Index b0, u0, hidden;
  Index rows;  // that there are
  std::uint32_t* slots;
  Index stride;  // from slot to slot
  Index behind;  // the slots of the layer that this one follows, or 0
  template <class T>
  OST_HD Share(const Block& block, const Problem<T>& p, const Piece<T>& piece, Index slot_words)
      : b0(piece.first_row + block.y * kGroupRows),
        u0(block.x * kUnits),
        hidden(p.hidden),
        rows(smaller<Index>(kGroupRows, p.batch - b0)),
        slots(piece.box.slots() + (block.z * piece.groups + block.y) * slot_words),
        stride(piece.problems * piece.groups * slot_words),
        behind(piece.wave && block.z > 0 ? piece.groups * slot_words : 0) {}
  OST_HD std::uint32_t* slot(Index step_of_piece) const { return slots + step_of_piece * stride; }
  OST_HD const std::uint32_t* ahead(Index step_of_piece) const { return behind ? slot(step_of_piece) - behind : nullptr; }
  // Whether no launch of this pass before has been given up.
  template <class T>
  OST_HD static bool well(const Piece<T>& piece) {
    std::uint32_t verdict;
    look<1>(piece.box.verdict(), &verdict);
    return verdict == kWell;
  }
  // f(thread, b, row, unit, u) of every thread that has a unit of a row.
  template <class F>
  OST_HD void each(const Block& block, F&& f) const {
    block.alone([&](int thread) {
      const int row = thread / kUnits, unit = thread % kUnits;
      if (row < rows && u0 + unit < hidden) f(thread, b0 + row, row, unit, u0 + unit);
    });
  }
};

// One or two problems in a launch: two directions; or (kWave) a layer and the one above it, whose product of the input is taken here as
// well, from what the lower one sends, in all columns.
template <class C, class T, class Word, int kParts, int kUnits, bool kWave>
struct PersistentKernel {
  static_assert(supports<C, PersistentDriver>);
  static constexpr int kPhases = kPhaseCount<C>, kPeers = 1;
  template <int F>
  struct Phase {
    static constexpr Columns kColumns = shared_columns<C>(F, kWave);
    static constexpr int kOuts = kUnits * kColumns.count(), kTiles = (kOuts + 15) / 16;
    static constexpr int kDepth = kWeightWords / (kParts * all_out_tiles<C>(kUnits, kWave));
    static constexpr int kAtATime = smaller(tiles_at_a_time(kTiles, kParts), kPhases == 1 ? kDepth : 4);
    using E = MailboxEngine<Word, kParts, kTiles, kDepth, kAtATime, 1, kPhases == 1 ? 0 : 1>;
    template <class From>
    using Pack = PersistentPackKernel<From, E, Word, kParts, kTiles, 1>;
    OST_HD static Index tiles_of(Index hidden) { return (hidden + 15) / 16; }
  };
  template <int F>
  using Weights = PerThread<typename Phase<F>::E::Weights>;
  template <int F>
  using Product = typename Phase<F>::E::Space;
  Problem<T> problems[2];
  Piece<T> piece;
  struct Space {
    OfPhases<Product, 0, kPhases> products;
    T state[C::kStates][kGroupRows][kUnits], emitted[kGroupRows][kUnits];
  };
  OST_HD static Index tiles_of(Index hidden) { return Phase<0>::tiles_of(hidden); }       // of inputs, in every phase
  OST_HD static Index blocks_of(Index hidden) { return tiles_of(hidden) * 16 / kUnits; }  // whole tiles of inputs, so that all are sent
  OST_HD static Index slot_words(Index hidden) { return Phase<0>::E::slot_words(tiles_of(hidden)); }
  static bool fits(Index hidden, bool wave) { return Phase<0>::E::fits(tiles_of(hidden) * (1 + wave)); }
  Grid grid() const { return {blocks_of(problems[0].hidden), piece.groups, piece.problems}; }

  struct Next {
    T gx[C::kColumns];
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const Clock clock = p.clock();
    const Index tiles = tiles_of(p.hidden);
    const Share<kUnits> share(block, p, piece, slot_words(p.hidden));
    OfPhases<Weights, 0, kPhases> weights;
    PerThread<Next> next;  // of the step to come: asked for while the product of the one before is under way
    PerThread<ForwardOut<C, T>> out;
    PerThread<bool> lost, ran;
    for_phases<C>([&]<int F>() {
      Phase<F>::E::load(block, of_phase<F>(weights), of_phase<F>(space.products), p.shared_panels[F], share.behind ? 2 * tiles : tiles);
    });
    block.alone([&](int thread) {
      lost[thread] = !share.well(piece);
      if (thread >= kGroupRows * kUnits) return;
      for (int k = 0; k < C::kStates; ++k) space.state[k][thread / kUnits][thread % kUnits] = T(0);
      space.emitted[thread / kUnits][thread % kUnits] = T(0);
    });
    share.each(block, [&](int thread, Index b, int row, int unit, Index u) {
      T state[C::kStates];
      for (int k = 0; k < C::kStates; ++k)
        state[k] = piece.first_step > 0 ? piece.carry[((block.z * C::kStates + k) * p.batch + b) * p.hidden + u]
                                        : value(k == 0 ? hidden_after(p, kInitial, b) : cell_after(p, kInitial, b), u);
      prepare(p, clock, piece.first_step, b, u, state, next[thread]);
      for (int k = 0; k < C::kStates; ++k) space.state[k][row][unit] = state[k];
    });
    block.warps_meet();
    send(block, space.state[0], share, share.slot(0), tiles);
    for (Index n = 0; n < piece.steps; ++n) {
      const Index step = piece.first_step + n, t = clock.time(step);
      for_phases<C>([&]<int F>() {
        constexpr bool last = F + 1 == kPhases;
        constexpr Columns columns = Phase<F>::kColumns, product = C::kPhases[F].product;
        auto& sums = of_phase<F>(space.products);
        const Index slot = n * kPhases + F;
        const Inputs inputs{share.slot(slot), share.ahead(slot + 1), tiles};
        Phase<F>::E::multiply(block, of_phase<F>(weights), sums, piece.box, inputs, share.rows, lost);
        share.each(block, [&](int thread, Index b, int row, int unit, Index u) {
          const float* scales = kParts > 1 ? p.shared_scales[F] + block.x * Phase<F>::kTiles * 16 : nullptr;
          T products[product.count()] = {}, state[C::kStates];
          OST_UNROLL
          for (int i = 0; i < columns.count(); ++i) {
            T sum = sums.sum(unit * columns.count() + i, row);
            if constexpr (kParts > 1) sum *= scales[unit * columns.count() + i];
            if (product.has(columns.begin + i))
              products[columns.begin + i - product.begin] = sum;
            else
              next[thread].gx[columns.begin + i] += sum;
          }
          OST_UNROLL
          for (int k = 0; k < C::kStates; ++k) state[k] = space.state[k][row][unit];
          ran[thread] = compute<C, T, F>(p, clock, t, b, u, next[thread].gx, products, state, out[thread]);
          if constexpr (last) {
            prepare(p, clock, step + 1, b, u, state, next[thread]);
            OST_UNROLL
            for (int k = 0; k < C::kStates; ++k) space.state[k][row][unit] = state[k];
          } else {
            space.emitted[row][unit] = ran[thread] ? out[thread].emitted : T(0);
          }
        });
        block.warps_meet();
        // First of all: the others wait for it.
        if (!last || n + 1 < piece.steps + (piece.wave && block.z == 0))
          send(block, last ? space.state[0] : space.emitted, share, share.slot(slot + 1), tiles);
        if constexpr (last)
          share.each(block, [&](int thread, Index b, int, int, Index u) { keep<C, T, F>(p, clock, t, b, u, ran[thread], out[thread]); });
        if constexpr (kPhases == 1) block.meet();  // the sums have been read; those of two phases lie apart
      });
    }
    if (piece.first_step + piece.steps < p.steps)
      share.each(block, [&](int, Index b, int row, int unit, Index u) {
        for (int k = 0; k < C::kStates; ++k)
          piece.carry[((block.z * C::kStates + k) * p.batch + b) * p.hidden + u] = space.state[k][row][unit];
      });
  }

  // The state that a step starts from, where it is not the one that was left, and its share of the projected input.
  OST_HD static void prepare(const Problem<T>& p, const Clock& clock, Index step, Index b, Index u, T* state, Next& next) {
    if (step >= p.steps) return;
    const Index t = clock.time(step);
    if (!clock.active(t, b)) return;
    if (p.times.before && clock.before(t, b) == kRestart)
      for (int k = 0; k < C::kStates; ++k) state[k] = value(k == 0 ? p.restart_h : p.restart_c, u);
    const T* gx = p.gx ? p.gx + (t * p.batch + b) * p.hidden * C::kColumns : p.bias;
    OST_UNROLL
    for (int column = 0; column < C::kColumns; ++column) next.gx[column] = gx[u * C::kColumns + column];
    if (p.times.before && step + 1 < p.steps) soon(p.times.before + clock.time(step + 1) * p.batch + b);  // the state to send hangs on it
  }

  // What the others need of the block's units; what a warp sends its own threads have left in the shared memory.
  OST_HD void send(const Block& block, const T (&from)[kGroupRows][kUnits], const Share<kUnits>& share, std::uint32_t* slot,
                   Index tiles) const {
    block.alone([&](int thread) {
      const int row = thread / kUnits, unit = thread % kUnits;
      if (row >= share.rows || unit % 2) return;
      const T *low = &from[row][unit], *high = low + 1;
      if (kLift<Word> > 1 && kParts > 1 && (beyond_half(*low) || beyond_half(*high))) post(piece.box.verdict(), kRange);
      Phase<0>::E::send(slot, share.u0 + unit, row, tiles, *low, *high);
    });
  }
};

// The same of the backward pass, the phases of a step from the last one on: of each unit of a block dh, or the gradient of what it emitted,
// from da of all. That is several times as much as h, so that blocks which can write to each other's shared memory, `kSplit` of them, take
// in a share each, for the units of all of them, and hand on the sums. Of two layers the upper one comes first, and the other takes in what
// it sends in place of dy.
template <class C, class T, class Word, int kParts, int kUnits, int kSplit, bool kWave>
struct BackwardPersistentKernel {
  static_assert(supports<C, PersistentDriver>);
  static constexpr int kPhases = kPhaseCount<C>, kPeers = kSplit, kTiles = kSplit * kUnits / 16;
  OST_HD static Index blocks_of(Index hidden) { return (hidden + kSplit * kUnits - 1) / (kSplit * kUnits) * kSplit; }
  template <int F>
  struct Phase {
    static constexpr Columns kColumns = shared_columns<C>(F, kWave);
    static constexpr int kCount = kColumns.count(), kAll = all_columns<C>(kWave), kOuts = kSplit * kUnits;
    static constexpr int kDepth = kWeightWords * kCount / (kParts * kTiles * kAll);
    static constexpr int kWanted = kSplit == 1 ? kParts - 1 + (kPhases > 1) : kParts == 1 ? 3 : 6;  // so that registers do not spill
    static constexpr int kShared = smaller((kWanted * kCount + kAll - 1) / kAll, kDepth - 1);
    using E = MailboxEngine<Word, kParts, kTiles, kDepth, smaller(kSplit == 1 ? 4 : 4 / kParts, kDepth), kSplit, kShared>;
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
  Piece<T> piece;
  struct Given : Gathered<C, T> {
    T odd[1 + sizeof(Gathered<C, T>) / sizeof(T) % 2];  // words of a thread: so their own banks
  };
  struct Space {
    OfPhases<Product, 0, kPhases> products;
    T d[C::kStates][kGroupRows][kUnits];
    T da[kPhases][kGroupRows][kUnits * all_columns<C>(kWave)];
    Given given[kThreads];                                   // of the step to come, on its way while the product of this one is under way
    T sums[kSplit > 1 ? 2 : 1][kSplit][kGroupRows][kUnits];  // by peer; of this exchange and the one before, which a peer may still read
  };
  static_assert(kSplit == 1 || sizeof(Space) <= 160 << 10);  // sm_90 and sm_100 have 227 KB; others have no clusters (module.cu)
  // A slot has room for the phase that sends most.
  OST_HD static Index slot_words(Index hidden) {
    Index most = 0;
    for_phases<C>([&]<int F>() { most = larger(most, Phase<F>::E::slot_words(Phase<F>::tiles_of(hidden))); });
    return most;
  }
  static bool fits(Index hidden, bool wave) {
    bool all = true;
    for_phases<C>([&]<int F>() { all = all && Phase<F>::E::fits(Phase<F>::tiles_of(hidden) * (1 + wave)); });
    return all;
  }
  Grid grid() const { return {blocks_of(problems[0].hidden), piece.groups, piece.problems}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Problem<T>& p = problems[block.z];
    const BackwardProblem<T>& g = gradients[block.z];
    const Clock clock = p.clock();
    const int rank = int(block.x % kSplit);
    const Share<kUnits> share(block, p, piece, slot_words(p.hidden));
    OfPhases<Weights, 0, kPhases> weights;
    PerThread<BackwardOut<C, T>> out;
    PerThread<T> demitted;
    PerThread<bool> lost;
    for_phases<C>([&]<int F>() {
      const Index tiles = Phase<F>::tiles_of(p.hidden);
      Phase<F>::E::load(block, of_phase<F>(weights), of_phase<F>(space.products), p.shared_turned[F], share.behind ? 2 * tiles : tiles);
    });
    block.alone([&](int thread) {
      lost[thread] = !share.well(piece);
      T* da = &space.da[0][0][0];
      for (int i = thread; i < int(sizeof space.da / sizeof(T)); i += kThreads) da[i] = T(0);
    });
    if constexpr (kSplit > 1)
      block.peers_meet();  // all are there
    else
      block.meet();
    share.each(block, [&](int thread, Index b, int row, int unit, Index u) {
      OST_UNROLL
      for (int k = 0; k < C::kStates; ++k) space.d[k][row][unit] = (k == 0 ? g.dh : g.dc)[b * p.hidden + u];
      ask(p, g, clock.time(piece.first_step + piece.steps - 1), b, u, space.given[thread]);
    });
    for (Index n = piece.steps - (share.behind ? 0 : 1); n >= 0; --n) {  // n = steps: what the last one of them is given
      const Index t = clock.time(piece.first_step + n);
      for_phases<C>([&]<int kBefore>() {
        constexpr int F = kPhases - 1 - kBefore, count = Phase<F>::kCount, begin = Phase<F>::kColumns.begin;
        const Index slot = n * kPhases + F, tiles = Phase<F>::tiles_of(p.hidden);
        if (n < piece.steps) {
          share.each(block, [&](int thread, Index b, int row, int unit, Index) {
            T d[2] = {space.d[0][row][unit], C::kStates > 1 ? space.d[C::kStates - 1][row][unit] : T(0)};
            landed();
            Gathered<C, T> given = space.given[thread];
            apply<C, T, F>(p, g, b, given, kBefore > 0 ? demitted[thread] : T(0), d, out[thread]);
            OST_UNROLL
            for (int column = 0; column < count; ++column) space.da[F][row][unit * count + column] = out[thread].da[begin + column];
            OST_UNROLL
            for (int k = 0; k < C::kStates && F == 0; ++k) space.d[k][row][unit] = d[k];
          });
          block.warps_meet();
          send<F>(block, space, share, share.slot(slot), tiles);
          share.each(block, [&](int thread, Index b, int, int, Index u) {
            keep_gradients<C, T, F>(p, g, t, b, u, space.given[thread], out[thread]);
            if (F == 0 && n > 0) ask(p, g, clock.time(piece.first_step + n - 1), b, u, space.given[thread]);
          });
        }
        auto& product = of_phase<F>(space.products);
        const Inputs inputs{share.slot(slot), n > 0 ? share.ahead(slot - 1) : nullptr, tiles};  // behind the steps' slots: one of zeros
        Phase<F>::E::multiply(block, of_phase<F>(weights), product, piece.box, inputs, share.rows, lost);
        if constexpr (kSplit > 1) {
          block.alone([&](int thread) {
            OST_UNROLL
            for (int i = thread; i < kSplit * kGroupRows * kUnits; i += kThreads) {
              const int to = i / (kGroupRows * kUnits), row = i / kUnits % kGroupRows, unit = i % kUnits;
              block.peer(space, to).sums[slot % 2][rank][row][unit] = product.sum(to * kUnits + unit, row);
            }
          });
          block.peers_meet();
        }
        share.each(block, [&](int thread, Index b, int row, int unit, Index u) {
          if (!share.behind && !clock.active(t, b)) return;  // da of such a row is zero, that of the step before from above may not be
          T sum = kSplit > 1 ? space.sums[slot % 2][0][row][unit] : product.sum(unit, row);
          OST_UNROLL
          for (int peer = 1; peer < kSplit; ++peer) sum += space.sums[slot % 2][peer][row][unit];
          if constexpr (kParts > 1) sum *= p.shared_turned_scales[F][block.x * kTiles * 16 + rank * kUnits + unit];
          if constexpr (F > 0) {
            demitted[thread] = sum;
            return;
          }
          T d[2] = {space.d[0][row][unit] + sum, C::kStates > 1 ? space.d[C::kStates - 1][row][unit] : T(0)};
          if (!share.behind) cut<C, T>(p, g, t, b, u, d);  // layers go together where nothing is cut
          OST_UNROLL
          for (int k = 0; k < C::kStates; ++k) space.d[k][row][unit] = d[k];
        });
        if constexpr (kSplit == 1 && kPhases == 1) block.meet();  // the sums have been read; those of two phases lie apart
      });
    }
    share.each(block, [&](int, Index b, int row, int unit, Index u) {
      g.dh[b * p.hidden + u] = space.d[0][row][unit];
      if constexpr (C::kStates > 1) g.dc[b * p.hidden + u] = space.d[1][row][unit];
    });
  }

  OST_HD static void ask(const Problem<T>& p, const BackwardProblem<T>& g, Index t, Index b, Index u, Given& given) {
    gather<C, T, 0>(p, g, t, b, u, given, [](T& to, const T* from) { fetch<sizeof(T)>(&to, from); });
  }

  // da of a phase; a warp sends the rows of its own threads.
  template <int F>
  OST_HD void send(const Block& block, const Space& space, const Share<kUnits>& share, std::uint32_t* slot, Index tiles) const {
    constexpr int count = Phase<F>::kCount, pairs = kUnits * count / 2, rows = 32 / kUnits;
    block.alone([&](int thread) {
      OST_UNROLL
      for (int i = thread % 32; i < rows * pairs; i += 32) {
        const int row = thread / 32 * rows + i / pairs, in = i % pairs * 2;
        if (row < share.rows) Phase<F>::E::send(slot, share.u0 * count + in, row, tiles, space.da[F][row][in], space.da[F][row][in + 1]);
      }
    });
  }
};

// After the launches of a pass: where one was given up, what it has left is no number, and the host is told.
template <class C, class T>
struct VerdictKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Mailbox box;
  bool backward;
  struct Space {};
  static constexpr Index kBlocks = 64;
  Grid grid() const { return {kBlocks}; }
  OST_HD void operator()(const Block& block, Space&) const {
    const std::uint32_t verdict = *box.verdict();
    if (verdict == kWell) return;
    const T nan = T(__builtin_nanf(""));
    const Index rows = p.steps * p.batch;
    block.each([&](int thread) {
      const Index first = block.x * kThreads + thread, stride = kBlocks * kThreads;
      if (first == 0 && box.report) *box.report = verdict;
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
