// The projection of h, h = W_hr m: after the last phase of a step, and before the first one on the way
// back.
#pragma once
#include "backward.h"

namespace ost::OST_SET {

// Compute h of step t, and store what rows repeat that take no part in it.
template <class C, class T, class W>
struct ProjectionKernel {
  Problem<T> p;
  Index t;
  using Space = ProductSpace<T, W>;
  static constexpr int kMatrix = kProductCount<C>;
  Grid grid() const { return {ceil_div(p.output, kTileN), ceil_div(p.batch, kTileM)}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.y * kTileM, n0 = block.x * kTileN;
    const StepMask mask = p.mask();
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space, Range{0, p.hidden},
        [&](int m, Index k) { return b0 + m < p.batch ? operand<C, T, kMatrix, true>(p, t * p.batch + b0 + m, k) : T(0); },
        [&](Index k, int n) { return n0 + n < p.output ? static_cast<const W*>(p.panels[kMatrix])[k * p.output + n0 + n] : W{}; }, sums);
    for_sums<W>(block, sums, [&](int m, int n, T sum) {
      const Index b = b0 + m, j = n0 + n;
      if (b >= p.batch || j >= p.output) return;
      if (mask.active(t, b))
        at(p.y, t, b)[j] = sum;
      else
        repeat_output<C>(p, mask, t, b, j);
    });
  }
};

// Take the gradient of h after step t, by all paths, as da of the projection. All of it goes on through m.
template <class C, class T>
struct OutputGradientKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * p.output, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, b = i / p.output, j = i % p.output;
      if (b >= p.batch) return;
      const StepMask mask = p.mask();
      T d(0);
      if (mask.active(t, b)) {
        d = incoming(g, g.dh[i], gradient_at(g.dy, t, b, j));
        if (g.control.clip_norm > 0) d = d * g.scales[b];
        if (g.squares) g.squares[state_at<C>(p, 0, b, j)] = d * d;
        g.dh[i] = T(0);
      } else if (mask.repeats(t, b) != kSkipped) {
        g.dh[i] += gradient_at(g.dy, t, b, j);
      }
      g.da[kProductCount<C>][t * p.batch * p.output + i] = d;
    });
  }
};

}  // namespace ost::OST_SET
