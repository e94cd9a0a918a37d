// The order of the kernels in a pass. `run` launches a kernel after those before it.
#pragma once
#include "loop.h"
#include "persistent.h"
#include "plan.h"
#include "stream.h"

namespace ost::OST_SET {

// Call f<K>() with the register capacity K of the plan.
template <class T, class W, class F>
void run_loop(int loop, F&& f) {
  if (loop == kLoopCapacity<T, W>[0]) f.template operator()<kLoopCapacity<T, W>[0]>();
  if (loop == kLoopCapacity<T, W>[1]) f.template operator()<kLoopCapacity<T, W>[1]>();
}

// Call f<R>() with the rows of the plan.
template <class F>
void run_stream(int rows, F&& f) {
  if (rows == 8) f.template operator()<8>();
  if (rows == 16) f.template operator()<16>();
  if (rows == 32) f.template operator()<32>();
}

// Call f<units>(), or backward f<units, peers>(), with those of the plan. Return false if there is
// no such kernel.
template <class W, class F>
bool run_persistent(const Plan& plan, F&& f) {
  if (plan.peers != 1) return false;
  if (plan.units == 8) return f.template operator()<8>(), true;
  if constexpr (ExchangeWords<W>::kParts == 1)
    if (plan.units == 16) return f.template operator()<16>(), true;
  return false;
}
template <class V, class F>
bool run_persistent_backward(const Plan& plan, F&& f) {
  constexpr int units = ExchangeWords<V>::kParts == 1 ? 16 : 8;  // units of a block with peers
  if (plan.units == 16 && plan.peers == 1) return f.template operator()<16, 1>(), true;
  if (plan.units == units && plan.peers == 4) return f.template operator()<units, 4>(), true;
  return false;
}

// Launch over groups of rows and spans of these steps. Each launch starts with a cleared exchange
// buffer; make(launch_args) returns the kernel.
template <class Run, class T, class Make>
void run_launches(Run& run, const Problem<T>& p, Range all, const PassBuffers<T>& exchange, const Plan& plan, Index slot_words, int phases,
                  bool backward, Make&& make) {
  const Index launches = ceil_div(all.end - all.begin, plan.span);
  const bool begins = backward ? all.end == p.steps : all.begin == 0;
  for (Index row = 0; row < p.batch; row += Index(plan.groups) * kGroupRows)
    for (Index i = 0; i < launches; ++i) {
      const Index first = all.begin + (backward ? launches - 1 - i : i) * plan.span, steps = smaller(plan.span, all.end - first);
      const int groups = int(smaller<Index>(plan.groups, ceil_div(p.batch - row, kGroupRows)));
      const LaunchArgs<T> launch_args{exchange.buffer, exchange.carry, first, steps, row, groups, plan.co_launched, plan.layer_pipelined};
      const Index slot = plan.co_launched * groups * slot_words;  // words of a slot of all groups and problems
      const Index after_last =
          plan.layer_pipelined ? slot : 0;  // forward the last step's h for the layer above; backward zeros before the last step
      run(ClearExchangeKernel{exchange.buffer, steps * phases * slot + after_last, backward ? after_last : 0,
                              begins && row == 0 && i == 0});
      run(make(launch_args));
    }
}
template <class C, class T, class W, int kUnits, bool kPipelined>
using PersistentOf = PersistentKernel<C, T, typename ExchangeWords<W>::Forward, ExchangeWords<W>::kParts, kUnits, kPipelined>;
template <class C, class T, class V, int kUnits, int kPeers, bool kPipelined>
using BackwardPersistentOf =
    BackwardPersistentKernel<C, T, typename ExchangeWords<V>::Backward, ExchangeWords<V>::kParts, kUnits, kPeers, kPipelined>;

// Call f(K*) for the kernel type of the plan, or return false if there is none. Pipelined layers
// exchange other columns only where the products of a cell do not share theirs.
template <class C, class T, class W, class F>
bool with_persistent(const Plan& plan, F&& f) {
  if (plan.layer_pipelined && kPhaseCount<C> > 1) return false;
  if constexpr (!supports<C, PersistentDriver>)
    return false;
  else
    return run_persistent<W>(plan, [&]<int U>() {
      if (kPhaseCount<C> == 1 && plan.layer_pipelined)
        f(static_cast<PersistentOf<C, T, W, U, kPhaseCount<C> == 1 && !kSharedDa<C>>*>(nullptr));
      else
        f(static_cast<PersistentOf<C, T, W, U, false>*>(nullptr));
    });
}
template <class C, class T, class V, class F>
bool with_persistent_backward(const Plan& plan, F&& f) {
  if (plan.layer_pipelined && kPhaseCount<C> > 1) return false;
  if constexpr (!supports<C, PersistentDriver>)
    return false;
  else
    return run_persistent_backward<V>(plan, [&]<int U, int S>() {
      if (kPhaseCount<C> == 1 && plan.layer_pipelined)
        f(static_cast<BackwardPersistentOf<C, T, V, U, S, kPhaseCount<C> == 1 && !kSharedDa<C>>*>(nullptr));
      else
        f(static_cast<BackwardPersistentOf<C, T, V, U, S, false>*>(nullptr));
    });
}

template <class C, class T, class W, int F = 0, class Run>
void run_phases(Run& run, const Problem<T>& p, Index step, int rows) {
  if (rows == 0) run(StepKernel<C, T, W, F>{p, step});
  if constexpr (sizeof(T) == 4) run_stream(rows, [&]<int R>() { run(StreamStepKernel<C, T, W, F, R>{p, step}); });
  if constexpr (F + 1 < kPhaseCount<C>) run_phases<C, T, W, F + 1>(run, p, step, rows);
}

template <class C, class T, class W, class Run>
void project(Run& run, const Problem<T>& p) {
  if (p.px.data)
    run(SpreadKernel<C, T>{p});
  else if (p.steps > 0)
    run(ProjectKernel<C, T, W>{p});
}

// Recompute what the cell saves, after a pass that saved the states only.
template <class C, class T, class W, int F = 0, class Run>
void recompute(Run& run, const Problem<T>& p) {
  if (F == 0) project<C, T, W>(run, p);
  if (p.steps > 0) run(RecomputeKernel<C, T, W, F>{p});
  if constexpr (F + 1 < kPhaseCount<C>) recompute<C, T, W, F + 1>(run, p);
}

// `other` is the second problem of a plan of two.
template <class C, class T, class W, class Run>
void forward(Run& run, const Problem<T>& p, const Problem<T>& other, const PassBuffers<T>& exchange, const Plan& plan) {
  if (p.batch == 0) return;
  project<C, T, W>(run, p);
  if (plan.co_launched > 1 && !plan.layer_pipelined) project<C, T, W>(run, other);
  if constexpr (kLoops<C> && sizeof(T) == 4) run_loop<T, W>(plan.loop, [&]<int K>() { run(LoopKernel<C, T, W, K>{p}); });
  if constexpr (sizeof(T) == 4) {
    if (plan.units && p.steps > 0) {
      with_persistent<C, T, W>(plan, [&]<class K>(K*) {
        run_launches(run, p, Range{0, p.steps}, exchange, plan, K::slot_words(p.hidden), K::kPhases, false,
                     [&](const LaunchArgs<T>& launch_args) { return K{{p, other}, launch_args}; });
      });
      run(PoisonOutputsKernel<C, T>{p, {}, exchange.buffer, false});
      if (plan.co_launched > 1) run(PoisonOutputsKernel<C, T>{other, {}, exchange.buffer, false});
    }
  }
  for (Index step = 0; step < (plan.loop || plan.units ? 0 : p.steps); ++step) run_phases<C, T, W>(run, p, step, plan.rows);
  run(FinalKernel<C, T>{p});
  if (plan.co_launched > 1) run(FinalKernel<C, T>{other});
}

template <class C, class T, class V, int F, class Run>
void run_backward_phases(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, Index t) {
  run(CellKernel<C, T, F>{p, g, t});
  constexpr bool hidden = C::kPhases[F].operand == Operand::kHidden;
  run(TransposedProductKernel<C, T, V, F + 1>{p, g, t * p.batch, p.batch, hidden ? g.dh : g.demitted,
                                              hidden});  // dh already holds the direct gradient
  if constexpr (F > 0) run_backward_phases<C, T, V, F - 1>(run, p, g, t);
}

// Compute the gradients of weights and biases as sums over the parts of the rows that are run now.
template <class C, class T, class V, int Q, class Run>
void sum_weights(Run& run, const Problem<T>& p, const BackwardProblem<T>& g) {
  const Range parts = g.parts_of_rows(p);
  const Index width = p.hidden * product_columns<C>(Q).count();
  if (!g.library && (Q == 0 ? g.gradients.weight_ih : g.gradients.weight_hh)) run(WeightKernel<C, T, V, Q>{p, g});
  if (g.library && g.operands[Q]) run(OperandKernel<C, T, Q>{p, g.operands[Q], g.rows(p)});
  if (Q == 0 ? g.gradients.bias_ih : g.gradients.bias_hh)
    run(ColumnKernel<T>{g.da[Q], g.bias_sums[Q], p.steps * p.batch, width, g.parts, parts});
  if constexpr (Q + 1 < kProductCount<C>) sum_weights<C, T, V, Q + 1>(run, p, g);
}

// Add the sums of all parts to the gradients. Those of the weights may come from a library, in
// another number of parts.
template <class C, class T, int Q = 0, class Run>
void add_weights(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, Index parts) {
  if (T* weight = Q == 0 ? g.gradients.weight_ih : g.gradients.weight_hh)
    run(AddKernel<C, T>(g.sums[Q], weight, p.depth(Q), p.hidden, parts, Q));
  if constexpr (Q + 1 < kProductCount<C>) add_weights<C, T, Q + 1>(run, p, g, parts);
}
template <class C, class T, int Q = 0, class Run>
void add_biases(Run& run, const Problem<T>& p, const BackwardProblem<T>& g) {
  if (T* bias = Q == 0 ? g.gradients.bias_ih : g.gradients.bias_hh) run(AddKernel<C, T>(g.bias_sums[Q], bias, 1, p.hidden, g.parts, Q));
  if constexpr (Q + 1 < kProductCount<C>) add_biases<C, T, Q + 1>(run, p, g);
}

// Compute the products of the rows that are run now; at the end of the pass also add up all parts,
// and write the gradients of the states before the first step. `shared_dx`: the gradient of another
// direction goes to the same dx, which therefore waits for the end.
template <class C, class T, class V, class Run>
void products(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, const PassBuffers<T>& exchange, const Plan& plan,
              bool shared_dx) {
  if (plan.units && p.steps > 0 && g.ends()) run(PoisonOutputsKernel<C, T>{p, g, exchange.buffer, true});
  if (p.steps > 0) {
    const Range rows = shared_dx ? Range{0, p.steps * p.batch} : g.rows(p);
    if (g.dx.data && !g.library && (!shared_dx || g.ends()))
      run(TransposedProductKernel<C, T, V, 0>{p, g, rows.begin, rows.end - rows.begin, nullptr, g.dx_add});
    sum_weights<C, T, V, 0>(run, p, g);
    if (C::kParams > 0 && g.gradients.units[0])
      run(ColumnKernel<T>{g.dparams, g.param_sums, p.steps * p.batch, C::kParams * p.hidden, g.parts, g.parts_of_rows(p)});
  }
  if (!g.ends()) return;
  if (p.steps > 0) {
    if (!g.library) add_weights<C, T>(run, p, g, g.parts);
    add_biases<C, T>(run, p, g);
    if (C::kParams > 0 && g.gradients.units[0]) run(AddRowsKernel<T>{g.param_sums, g.gradients.units[0], g.parts, C::kParams * p.hidden});
  }
  const T* left[] = {g.dh, g.dc};
  T *to[] = {g.dh0, g.dc0}, *restart[] = {g.drestart_h, g.drestart_c};
  for (int k = 0; k < C::kStates; ++k) {
    if (to[k]) run(CopyKernel<T>{left[k], to[k], p.batch * p.hidden});
    if (restart[k]) run(AddRowsKernel<T>{g.restarts + k * p.batch * p.hidden, restart[k], p.batch, p.hidden});
  }
}

// Run the steps of this chunk, the last one first.
template <class C, class T, class V, class Run>
void through_time(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, const Problem<T>& other, const BackwardProblem<T>& other_g,
                  const PassBuffers<T>& exchange, const Plan& plan) {
  const int rows = plan.rows;
  if (g.begins()) {
    run(BackwardBeginKernel<C, T>{p, g});
    if (plan.co_launched > 1) run(BackwardBeginKernel<C, T>{other, other_g});
  }
  if constexpr (sizeof(T) == 4) {
    if (plan.units && p.steps > 0)
      with_persistent_backward<C, T, V>(plan, [&]<class K>(K*) {
        run_launches(run, p, g.steps(p.steps), exchange, plan, K::slot_words(p.hidden), K::kPhases, true,
                     [&](const LaunchArgs<T>& launch_args) { return K{{p, other}, {g, other_g}, launch_args}; });
      });
  }
  if constexpr (kLoops<C> && sizeof(T) == 4) {
    run_loop<T, V>(plan.loop, [&]<int K>() { run(BackwardLoopKernel<C, T, V, K>{p, g}); });
    if (rows > 0 && p.steps > 0) run(CellKernel<C, T, 0>{p, g, p.mask().time(p.steps - 1)});
    for (Index s = rows > 0 ? p.steps : 0; s-- > 0;) run_stream(rows, [&]<int R>() { run(StreamBackwardKernel<C, T, V, R>{p, g, s}); });
  }
  for (Index s = plan.loop || plan.units || rows ? 0 : p.steps; s-- > 0;) {
    const Index t = p.reverse ? p.steps - 1 - s : s;
    if (g.control.clip_norm > 0) run(NormKernel<C, T>{p, g, t});
    run_backward_phases<C, T, V, kPhaseCount<C> - 1>(run, p, g, t);
    if (g.control.flow) run(FlowKernel<C, T>{p, g, t});
    if (p.times.predecessors || g.control.cuts) run(CutKernel<C, T>{p, g, t});
  }
}

// Run steps and products, or only one of them, where the products run beside the steps of the next
// chunk.
template <class C, class T, class V, class Run>
void backward(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, const Problem<T>& other, const BackwardProblem<T>& other_g,
              const PassBuffers<T>& exchange, const Plan& plan, bool with_steps, bool with_products) {
  if (p.batch == 0) return;
  if (with_steps) through_time<C, T, V>(run, p, g, other, other_g, exchange, plan);
  if (!with_products) return;
  const bool shared_dx = plan.co_launched > 1 && !plan.layer_pipelined;
  products<C, T, V>(run, p, g, exchange, plan, shared_dx);
  if (plan.co_launched > 1) products<C, T, V>(run, other, other_g, exchange, plan, shared_dx);
}

}  // namespace ost::OST_SET
