// What follows the launches of a pass whose blocks wait for each other.
#pragma once
#include "backward.h"
#include "exchange.h"

namespace ost::OST_SET {

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
