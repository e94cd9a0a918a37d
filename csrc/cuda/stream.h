// Kernels of a step with few rows. Many blocks, each with 16 outputs of the product for up to 32
// rows, read their part of the weights once. Neighbouring threads read different inputs, so that
// all loads are in flight at the same time. The sums of the slices are added in order.
#pragma once
#include "backward.h"

namespace ost::OST_SET {

constexpr int kStreamOut = 16;  // outputs of a block: the rows of a matrix instruction

// Operands of 2 bytes. A warp has a slice of the inputs; weights are fragments, [tile of
// outputs][tile of inputs][lane].
template <class T, class W, int kRows>
struct StreamEngine {
  static constexpr int kSlices = kThreads / 32, kTiles = kRows / 8;
  struct alignas(16) Space {
    T sums[kSlices][kStreamOut][kRows + 1];
  };
  struct Sums {
    float v[kTiles][4];
  };
  struct Pointers {
    const T* row[kTiles];
  };
  // row(n) returns the operand of row n, null for zeros; `tile` is that of the outputs.
  template <class Row>
  OST_HD static void multiply(const Block& block, Space& space, const void* weights, Index tile, Index depth, Index, Row&& row) {
    const Index tiles = ceil_div(depth, 16);
    const FragmentA* packed = static_cast<const FragmentA*>(weights) + tile * tiles * 32;
    PerThread<Sums> sums;
    PerThread<Pointers> from;
    PerThread<FragmentA> left;
    PerThread<FragmentB> right[kTiles];
    clear(block, sums);
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int j = 0; j < kTiles; ++j) from[thread].row[j] = row(j * 8 + Lane(thread).b_column());
    });
    OST_UNROLL_4
    for (Index first = 0; first < tiles; first += kSlices) {
      block.for_each_thread([&](int thread) {
        const Lane lane(thread);
        const Index k = first + thread / 32;
        left[thread] = k < tiles ? packed[k * 32 + thread % 32] : FragmentA{};
        OST_UNROLL
        for (int j = 0; j < kTiles; ++j) {
          const T* p = from[thread].row[j];
          OST_UNROLL
          for (int w = 0; w < 2; ++w) {
            const Index in = k * 16 + lane.b_row(w);
            right[j][thread].word[w] =
                pair_of(Narrow<W>::of(p && in < depth ? p[in] : T(0)), Narrow<W>::of(p && in + 1 < depth ? p[in + 1] : T(0)));
          }
        }
      });
      OST_UNROLL
      for (int j = 0; j < kTiles; ++j)
        multiply_fragments<W>(
            block, [&](int thread) -> FragmentA& { return left[thread]; }, [&](int thread) -> FragmentB& { return right[j][thread]; },
            [&](int thread) -> float* { return sums[thread].v[j]; });
    }
    block.for_each_thread_sync([&](int thread) {
      const Lane lane(thread);
      OST_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        OST_UNROLL
        for (int c = 0; c < 4; ++c) space.sums[thread / 32][lane.sum_row(c)][j * 8 + lane.sum_column(c)] = sums[thread].v[j][c];
      }
    });
  }
};

// Exact operands. A thread has one output and a slice of the inputs, for all rows; weights are
// [input][output].
template <class T, int kRows>
struct StreamEngine<T, T, kRows> {
  static constexpr int kSlices = kThreads / kStreamOut, kInputsAtATime = 2048 / kRows;  // inputs in shared memory at a time
  struct alignas(16) Space {
    T sums[kSlices][kStreamOut][kRows + 1];
    T operand[kInputsAtATime][kRows];
  };
  struct Sums {
    T v[kRows];
  };
  template <class Row>
  OST_HD static void multiply(const Block& block, Space& space, const void* weights, Index first_out, Index depth, Index stride,
                              Row&& row) {
    const T* panel = static_cast<const T*>(weights) + first_out;
    PerThread<Sums> sums;
    clear(block, sums);
    for (Index k0 = 0; k0 < depth; k0 += kInputsAtATime) {
      block.for_each_thread_sync([&](int thread) {
        OST_ROLLED
        for (int i = thread; i < kInputsAtATime * kRows; i += kThreads) {
          const int r = i / kInputsAtATime, k = i % kInputsAtATime;
          const T* p = row(r);
          space.operand[k][r] = p && k0 + k < depth ? p[k0 + k] : T(0);
        }
      });
      block.for_each_thread_sync([&](int thread) {
        const int out = thread % kStreamOut;
        const bool there = first_out + out < stride;
        OST_UNROLL_4
        for (int k = thread / kStreamOut; k < kInputsAtATime; k += kSlices) {
          const T w = there && k0 + k < depth ? panel[(k0 + k) * stride + out] : T(0);
          OST_UNROLL
          for (int r = 0; r < kRows; ++r) sums[thread].v[r] = fma(w, space.operand[k][r], sums[thread].v[r]);
        }
      });
    }
    block.for_each_thread_sync([&](int thread) {
      OST_UNROLL
      for (int r = 0; r < kRows; ++r) space.sums[thread / kStreamOut][thread % kStreamOut][r] = sums[thread].v[r];
    });
  }
};

template <class E, class Space>
OST_HD auto streamed(const Space& space, int out, int row) {
  auto sum = space.sums[0][out][row];
  for (int s = 1; s < E::kSlices; ++s) sum += space.sums[s][out][row];
  return sum;
}

// Pack weights as fragments. Tile t holds `outs_per_tile` outputs, from t * outs_per_tile on.
template <class W>
struct StreamPackKernel {
  const W* from;
  FragmentA* to;
  Index outs, ins, out_stride, in_stride;
  int outs_per_tile;
  struct Space {};
  Index tiles() const { return ceil_div(outs, outs_per_tile) * ceil_div(ins, 16); }
  Grid grid() const { return {ceil_div(tiles() * 32, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, deep = (ins + 15) / 16, tile = i / 32 / deep, k = i / 32 % deep;
      if (tile * outs_per_tile >= outs) return;
      const Lane lane(thread);
      const auto weight = [&](int out, Index in) {
        const Index o = tile * outs_per_tile + out;
        return out < outs_per_tile && o < outs && in < ins ? from[o * out_stride + in * in_stride] : W{};
      };
      FragmentA a;
      for (int w = 0; w < 4; ++w) {
        const Index in = k * 16 + lane.a_column(w);
        a.word[w] = pair_of<W>(weight(lane.a_row(w), in), weight(lane.a_row(w), in + 1));
      }
      to[i] = a;
    });
  }
};

// Run phase F of one step.
template <class C, class T, class W, int F, int kRows>
struct StreamStepKernel {
  Problem<T> p;
  Index step;
  using E = StreamEngine<T, W, kRows>;
  using Space = typename E::Space;
  static constexpr int kCount = C::kPhases[F].product.count(), kUnits = kStreamOut / kCount;
  static constexpr bool kEmitted = C::kPhases[F].operand == Operand::kEmitted;
  static_assert(supports<C, StreamDriver>);
  Grid grid() const { return {ceil_div(p.hidden, kUnits), ceil_div(p.batch, kRows)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.y * kRows, u0 = block.x * kUnits, t = p.mask().time(step);
    const StepMask mask = p.mask();
    const bool words = sizeof(W) == 2;
    E::multiply(block, space, words ? p.stream_panels[F + 1] : p.panels[F + 1], words ? block.x : u0 * kCount, p.hidden, p.hidden * kCount,
                [&](int r) -> const T* {
                  const Index b = b0 + r;
                  if (b >= p.batch || !mask.active(t, b)) return nullptr;
                  return kEmitted ? p.emitted + b * p.hidden : hidden_after<C>(p, mask.predecessor(t, b), b);
                });
    block.for_each_thread_sync([&](int thread) {
      for (int i = thread; i < kRows * kUnits; i += kThreads) {
        const int r = i / kUnits, unit = i % kUnits;
        const Index b = b0 + r, u = u0 + unit;
        if (b >= p.batch || u >= p.hidden) continue;
        T products[kCount];
        OST_UNROLL
        for (int column = 0; column < kCount; ++column) products[column] = streamed<E>(space, unit * kCount + column, r);
        step_cell<C, T, F>(p, mask, t, b, u, products);
      }
    });
  }
};

// Compute dh of step t, and then, unit by unit, the cell's backward of the step before it in the
// order of processing, for cells of one phase.
template <class C, class T, class V, int kRows>
struct StreamBackwardKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index step;  // its number in the order of processing
  using E = StreamEngine<T, V, kRows>;
  using Space = typename E::Space;
  Grid grid() const { return {ceil_div(p.hidden, kStreamOut), ceil_div(p.batch, kRows)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    constexpr int count = product_columns<C>(1).count();
    const Index b0 = block.y * kRows, u0 = block.x * kStreamOut, t = p.mask().time(step), width = p.hidden * count;
    const bool words = sizeof(V) == 2;
    E::multiply(block, space, words ? p.stream_transposed : p.transposed[1], words ? block.x : u0, width, p.hidden, [&](int r) -> const T* {
      const Index b = b0 + r;
      return b < p.batch && p.mask().active(t, b) ? g.da[1] + (t * p.batch + b) * width : nullptr;
    });
    block.for_each_thread_sync([&](int thread) {
      for (int i = thread; i < kRows * kStreamOut; i += kThreads) {
        const int r = i / kStreamOut, out = i % kStreamOut;
        if (b0 + r < p.batch && u0 + out < p.hidden)
          end_step<C, T>(p, g, step, b0 + r, u0 + out, [&] { return streamed<E>(space, out, r); });
      }
    });
  }
};

}  // namespace ost::OST_SET
