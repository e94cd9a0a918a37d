// A step of few rows: many blocks, each with 16 outputs of the product for up to 32 rows, read their share of the weights once, threads
// beside each other at different inputs, so that all reads are under way at the same time. What the slices have summed is added in order.
#pragma once
#include "backward.h"

namespace ost::OST_SET {

constexpr int kStreamOut = 16;  // outputs of a block: the rows of a matrix instruction

// Operands of 2 bytes: a warp a slice of the inputs; weights lie as fragments, [tile of outputs][tile of inputs][lane].
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
  // row(n): where the operand of row n lies, null for zeros; tile: of outputs.
  template <class Row>
  OST_HD static void multiply(const Block& block, Space& space, const void* weights, Index tile, Index depth, Index, Row&& row) {
    const Index tiles = ceil_div(depth, 16);
    const FragmentA* packed = static_cast<const FragmentA*>(weights) + tile * tiles * 32;
    PerThread<Sums> sums;
    PerThread<Pointers> from;
    PerThread<FragmentA> left;
    PerThread<FragmentB> right[kTiles];
    block.alone([&](int thread) {
      OST_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        from[thread].row[j] = row(j * 8 + Lane(thread).b_column());
        OST_UNROLL
        for (int c = 0; c < 4; ++c) sums[thread].v[j][c] = 0;
      }
    });
    OST_UNROLL_4
    for (Index first = 0; first < tiles; first += kSlices) {
      block.alone([&](int thread) {
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
    block.each([&](int thread) {
      const Lane lane(thread);
      OST_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        OST_UNROLL
        for (int c = 0; c < 4; ++c) space.sums[thread / 32][lane.sum_row(c)][j * 8 + lane.sum_column(c)] = sums[thread].v[j][c];
      }
    });
  }
};

// Exact: a thread an output and a slice of the inputs, all rows; weights lie as [input][output].
template <class T, int kRows>
struct StreamEngine<T, T, kRows> {
  static constexpr int kSlices = kThreads / kStreamOut, kChunk = 2048 / kRows;  // inputs at a time
  struct alignas(16) Space {
    T sums[kSlices][kStreamOut][kRows + 1];
    T operand[kChunk][kRows];
  };
  struct Sums {
    T v[kRows];
  };
  template <class Row>
  OST_HD static void multiply(const Block& block, Space& space, const void* weights, Index first_out, Index depth, Index stride,
                              Row&& row) {
    const T* panel = static_cast<const T*>(weights) + first_out;
    PerThread<Sums> sums;
    block.alone([&](int thread) {
      OST_UNROLL
      for (int r = 0; r < kRows; ++r) sums[thread].v[r] = T(0);
    });
    for (Index k0 = 0; k0 < depth; k0 += kChunk) {
      block.each([&](int thread) {
        OST_ROLLED
        for (int i = thread; i < kChunk * kRows; i += kThreads) {
          const int r = i / kChunk, k = i % kChunk;
          const T* p = row(r);
          space.operand[k][r] = p && k0 + k < depth ? p[k0 + k] : T(0);
        }
      });
      block.each([&](int thread) {
        const int out = thread % kStreamOut;
        const bool there = first_out + out < stride;
        OST_UNROLL_4
        for (int k = thread / kStreamOut; k < kChunk; k += kSlices) {
          const T w = there && k0 + k < depth ? panel[(k0 + k) * stride + out] : T(0);
          OST_UNROLL
          for (int r = 0; r < kRows; ++r) sums[thread].v[r] = fma(w, space.operand[k][r], sums[thread].v[r]);
        }
      });
    }
    block.each([&](int thread) {
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

// Weights as fragments: tile t of outputs holds `each` of them, from t * each on.
template <class W>
struct StreamPackKernel {
  const W* from;
  FragmentA* to;
  Index outs, ins, out_stride, in_stride;
  int each;
  struct Space {};
  Index tiles() const { return ceil_div(outs, each) * ceil_div(ins, 16); }
  Grid grid() const { return {ceil_div(tiles() * 32, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.each([&](int thread) {
      const Index i = block.x * kThreads + thread, deep = (ins + 15) / 16, tile = i / 32 / deep, k = i / 32 % deep;
      if (tile * each >= outs) return;
      const Lane lane(thread);
      const auto weight = [&](int out, Index in) {
        const Index o = tile * each + out;
        return out < each && o < outs && in < ins ? from[o * out_stride + in * in_stride] : W{};
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

// Phase F of one step.
template <class C, class T, class W, int F, int kRows>
struct StreamStepKernel {
  Problem<T> p;
  Index step;
  using E = StreamEngine<T, W, kRows>;
  using Space = typename E::Space;
  static constexpr int kCount = C::kPhases[F].product.count(), kUnits = kStreamOut / kCount;
  static constexpr bool kEmitted = C::kPhases[F].operand == Operand::kEmitted;
  Grid grid() const { return {ceil_div(p.hidden, kUnits), ceil_div(p.batch, kRows)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.y * kRows, u0 = block.x * kUnits, t = p.clock().time(step);
    const Clock clock = p.clock();
    const bool words = sizeof(W) == 2;
    E::multiply(block, space, words ? p.stream_panels[F + 1] : p.panels[F + 1], words ? block.x : u0 * kCount, p.hidden, p.hidden * kCount,
                [&](int r) -> const T* {
                  const Index b = b0 + r;
                  if (b >= p.batch || !clock.active(t, b)) return nullptr;
                  return kEmitted ? p.emitted + b * p.hidden : hidden_after(p, clock.before(t, b), b);
                });
    block.each([&](int thread) {
      for (int i = thread; i < kRows * kUnits; i += kThreads) {
        const int r = i / kUnits, unit = i % kUnits;
        const Index b = b0 + r, u = u0 + unit;
        if (b >= p.batch || u >= p.hidden) continue;
        T products[kCount];
        OST_UNROLL
        for (int column = 0; column < kCount; ++column) products[column] = streamed<E>(space, unit * kCount + column, r);
        step_cell<C, T, F>(p, clock, t, b, u, products);
      }
    });
  }
};

// dh of step t, and then, unit by unit, the cell's backward of the step before it (in the order of processing): cells of one phase.
template <class C, class T, class V, int kRows>
struct StreamBackwardKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index step;  // its place in the order of processing
  using E = StreamEngine<T, V, kRows>;
  using Space = typename E::Space;
  Grid grid() const { return {ceil_div(p.hidden, kStreamOut), ceil_div(p.batch, kRows)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    constexpr int count = product_columns<C>(1).count();
    const Index b0 = block.y * kRows, u0 = block.x * kStreamOut, t = p.clock().time(step), width = p.hidden * count;
    const bool words = sizeof(V) == 2;
    E::multiply(block, space, words ? p.stream_turned : p.turned[1], words ? block.x : u0, width, p.hidden, [&](int r) -> const T* {
      const Index b = b0 + r;
      return b < p.batch && p.clock().active(t, b) ? g.da[1] + (t * p.batch + b) * width : nullptr;
    });
    block.each([&](int thread) {
      for (int i = thread; i < kRows * kStreamOut; i += kThreads) {
        const int r = i / kStreamOut, out = i % kStreamOut;
        const Index b = b0 + r, u = u0 + out, at = b * p.hidden + u;
        if (b >= p.batch || u >= p.hidden) continue;
        T d[2] = {g.dh[at], C::kStates > 1 ? g.dc[at] : T(0)};
        if (p.clock().active(t, b)) {
          d[0] += streamed<E>(space, out, r);
          cut<C, T>(p, g, t, b, u, d);
        }
        if (step > 0) {
          BackwardOut<C, T> result;
          cell_backward<C, T, 0>(p, g, p.clock().time(step - 1), b, u, d, result);
        }
        g.dh[at] = d[0];
        if constexpr (C::kStates > 1) g.dc[at] = d[1];
      }
    });
  }
};

}  // namespace ost::OST_SET
