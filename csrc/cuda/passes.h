// The order of the kernels in a pass. `run` launches a kernel after those before it.
#pragma once
#include "cluster_backward.h"
#include "loop.h"
#include "norm.h"
#include "persistent.h"
#include "persistent_backward.h"
#include "plan.h"
#include "poison.h"
#include "projection.h"
#include "stream.h"

namespace ost::OST_SET {

// Call f<Word, K>() with the words of the product and the register capacity K of a "loop" kernel: W, or of a float two words.
template <class T, class W, bool kBackward, class F>
void run_loop(int loop, bool split, F&& f) {
  using Word = std::conditional_t<kBackward, typename ExchangeWords<W>::Backward, typename ExchangeWords<W>::Forward>;
  const auto run = [&]<int K>() {
    if (loop != K) return;
    if constexpr (sizeof(W) == 4)
      if (split) return f.template operator()<Split<Word>, K>();
    f.template operator()<W, K>();
  };
  run.template operator()<kLoopCapacity<T, W>[0]>();
  run.template operator()<kLoopCapacity<T, W>[1]>();
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
  if constexpr (units == 8)  // of layers for which there are too few clusters of 4
    if (plan.units == units && plan.peers == 2) return f.template operator()<units, 2>(), true;
  return false;
}

// What clears the exchange buffer of a launch of kernel K.
template <class K, class T>
ClearExchangeKernel clear_exchange(const Problem<T>& p, const LaunchArgs<T>& a, bool backward, bool begin) {
  ClearExchangeKernel clear{a.buffer,
                            K::slot_words(p.hidden),
                            a.slots,
                            a.problems,
                            a.groups,
                            p.batch - a.first_row,
                            {},
                            K::kPhases,
                            K::template Phase<0>::E::kTileWords / 128,
                            backward,
                            begin};
  clear.sent[backward ? K::kPhases - 1 : 0] = K::template Phase<0>::sent(p.hidden);
  if constexpr (K::kPhases > 1) clear.sent[backward ? 0 : 1] = K::template Phase<1>::sent(p.hidden);
  return clear;
}

// Launch over groups of rows and spans of these steps. Each launch starts with a cleared exchange
// buffer; make(launch_args) returns the kernel.
template <class K, class Run, class T, class Make>
void run_launches(Run& run, const Problem<T>& p, Range all, const PassBuffers<T>& exchange, const Plan& plan, bool backward, Make&& make) {
  const Index launches = ceil_div(all.end - all.begin, plan.span);
  const bool begins = backward ? all.end == p.steps : all.begin == 0;
  for (Index row = 0; row < p.batch; row += Index(plan.groups) * kGroupRows)
    for (Index i = 0; i < launches; ++i) {
      const Index first = all.begin + (backward ? launches - 1 - i : i) * plan.span, steps = smaller(plan.span, all.end - first);
      const int groups = int(smaller<Index>(plan.groups, ceil_div(p.batch - row, kGroupRows)));
      const Index slots = K::slots_of(steps);
      const LaunchArgs<T> launch_args{exchange.buffer,  exchange.carry,      first, steps, row, slots, groups,
                                      plan.co_launched, plan.layer_pipelined};
      run(clear_exchange<K>(p, launch_args, backward, begins && row == 0 && i == 0));
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
  if constexpr (supports<C, PersistentDriver>) {
    if (plan.layer_pipelined && kPhaseCount<C> > 1) return false;
    return run_persistent<W>(plan, [&]<int U>() {
      if (kPhaseCount<C> == 1 && plan.layer_pipelined)
        f(static_cast<PersistentOf<C, T, W, U, kPhaseCount<C> == 1 && !kSharedDa<C>>*>(nullptr));
      else
        f(static_cast<PersistentOf<C, T, W, U, false>*>(nullptr));
    });
  }
  return false;
}
template <class C, class T, class V, class F>
bool with_persistent_backward(const Plan& plan, F&& f) {
  if constexpr (supports<C, PersistentDriver>) {
    if (plan.layer_pipelined && kPhaseCount<C> > 1) return false;
    return run_persistent_backward<V>(plan, [&]<int U, int S>() {
      if (kPhaseCount<C> == 1 && plan.layer_pipelined)
        f(static_cast<BackwardPersistentOf<C, T, V, U, S, kPhaseCount<C> == 1 && !kSharedDa<C>>*>(nullptr));
      else
        f(static_cast<BackwardPersistentOf<C, T, V, U, S, false>*>(nullptr));
    });
  }
  return false;
}

// Call f<blocks, warps>() with those of the clusters of so many blocks, if there are any.
template <class W, class F>
void run_cluster(int blocks, F&& f) {
  if (blocks == 2) f.template operator()<2, 8>();
  if (blocks == 4) f.template operator()<4, 8>();
  if constexpr (ExchangeWords<W>::kParts == 1) {
    if (blocks == 8) f.template operator()<8, 8>();
    if (blocks == 16) f.template operator()<16, 4>();
  }
}
template <class C, class T, class W, int kBlocks, int kWarps>
using ClusterOf = ClusterKernel<C, T, typename ExchangeWords<W>::Forward, ExchangeWords<W>::kParts, kBlocks, kWarps>;
template <class C, class T, class V, int kBlocks, int kWarps>
using BackwardClusterOf = BackwardClusterKernel<C, T, typename ExchangeWords<V>::Backward, ExchangeWords<V>::kParts, kBlocks, kWarps>;
// Call f(K*) for the kernel of clusters of so many blocks, if there is one.
template <class C, class T, class W, class F>
void with_cluster(int blocks, F&& f) {
  if constexpr (kClusters<C> && sizeof(T) == 4)
    run_cluster<W>(blocks, [&]<int kBlocks, int kWarps>() { f(static_cast<ClusterOf<C, T, W, kBlocks, kWarps>*>(nullptr)); });
}
template <class C, class T, class V, class F>
void with_cluster_backward(int blocks, F&& f) {
  if constexpr (kClusters<C> && sizeof(T) == 4)
    run_cluster<V>(blocks, [&]<int kBlocks, int kWarps>() { f(static_cast<BackwardClusterOf<C, T, V, kBlocks, kWarps>*>(nullptr)); });
}

// What resets the status of a launch that exchanges nothing through memory.
inline ClearExchangeKernel clear_status(const ExchangeBuffer& buffer) { return {buffer, 4, 0, 1, 1, 0, {}, 1, 1, false, true}; }

// Whether the product of a phase and the cell after it are one kernel: no norm stands between them.
template <class C, int F>
inline constexpr bool kFused = matrix_columns<C>(F + 1) > 0 && !is_normed<C>(F + 1);

// Compute the norms that the cell of phase F needs, of `rows` rows of [T B], and their product.
template <class C, class T, class W, int F, bool kRecompute, class Run>
void norm_phase(Run& run, const Problem<T>& p, Index first, Index rows) {
  if constexpr (norms_emitted<C>(F)) run(EmittedMomentsKernel<C, T, kRecompute>{p, first, rows});
  if constexpr (is_normed<C>(F + 1)) {
    run(ProductKernel<C, T, W, F + 1, !kRecompute>{p, first, rows});
    for_operations<C, F + 1>([&]<int J>() { run(ProductMomentsKernel<C, T, J>{p, first, rows}); });
  }
}

template <class C, class T, class W, int F = 0, class Run>
void run_phases(Run& run, const Problem<T>& p, Index step, int rows) {
  const Index t = p.mask().time(step);
  norm_phase<C, T, W, F, false>(run, p, t * p.batch, p.batch);
  if constexpr (!kFused<C, F>)
    run(PointwiseKernel<C, T, F, false>{p, t * p.batch, p.batch});
  else if (rows == 0)
    run(StepKernel<C, T, W, F>{p, step});
  if constexpr (supports<C, StreamDriver> && sizeof(T) == 4)
    run_stream(rows, [&]<int R>() { run(StreamStepKernel<C, T, W, F, R>{p, step}); });
  if constexpr (F + 1 < kPhaseCount<C>)
    run_phases<C, T, W, F + 1>(run, p, step, rows);
  else if constexpr (is_projected<C>())
    run(ProjectionKernel<C, T, W>{p, t});
}

// Compute gx, with the norms of W x.
template <class C, class T, class W, class Run>
void project(Run& run, Problem<T> p) {
  const Index rows = p.steps * p.batch;
  if constexpr (is_normed<C>(0)) {
    if (!p.px.data && rows > 0) {
      const Index width = matrix_width<C, 0>(p);
      run(ProductKernel<C, T, W, 0, false>{p, 0, rows});
      p.px = {normed_at<C, 0>(p, 0), p.batch * width, width};
    }
    for_operations<C, 0>([&]<int J>() { run(ProductMomentsKernel<C, T, J>{p, 0, rows}); });
  }
  if (p.px.data)
    run(SpreadKernel<C, T>{p});
  else if (p.steps > 0)
    run(ProjectKernel<C, T, W>{p});
}

// Recompute what the cell and its norms save, after a pass that saved the states only.
template <class C, class T, class W, int F = 0, class Run>
void recompute(Run& run, const Problem<T>& p) {
  if (F == 0) project<C, T, W>(run, p);
  if (p.steps == 0) return;
  norm_phase<C, T, W, F, true>(run, p, 0, p.steps * p.batch);
  if constexpr (kFused<C, F>)
    run(RecomputeKernel<C, T, W, F>{p});
  else
    run(PointwiseKernel<C, T, F, true>{p, 0, p.steps * p.batch});
  if constexpr (F + 1 < kPhaseCount<C>) recompute<C, T, W, F + 1>(run, p);
}

// Raise unless an int holds how far what a kernel of all steps reads and writes lies apart from step to step. The backward persistent
// kernels advance in their slots only, for which ExchangeEngine makes sure of it.
template <class N>
void check_stride(const char* name, N numbers) {
  const N apart = larger(numbers, -numbers);
  if (apart > kMostStride) fail(name, "fewer than 2^31 numbers from one step to the next", std::to_string(apart));
}
template <class C, class T>
void check_strides(const Problem<T>& p) {
  check_stride("x", p.y.t), check_stride("x", p.batch * p.hidden * larger(C::kColumns, C::kSaved));
}
template <class C, class T>
void check_strides(const Problem<T>& p, const BackwardProblem<T>& g) {
  check_strides<C>(p);
  check_stride("dy", g.dy.t), check_stride("dy", g.control.dcells.t);
}

// `other` is the second problem of a plan of two.
template <class C, class T, class W, class Run>
void forward(Run& run, const Problem<T>& p, const Problem<T>& other, const PassBuffers<T>& exchange, const Plan& plan) {
  if (p.batch == 0) return;
  if ((plan.units || plan.loop || plan.cluster) && p.steps > 0)
    for (const Problem<T>* one : {&p, &other}) check_strides<C>(*one);
  project<C, T, W>(run, p);
  if (plan.co_launched > 1 && !plan.layer_pipelined) project<C, T, W>(run, other);
  if constexpr (kLoops<C> && sizeof(T) == 4)
    if (p.steps > 0)
      run_loop<T, W, false>(plan.loop, plan.loop_split, [&]<class Word, int K>() { run(LoopKernel<C, T, Word, K>{p, plan.rows}); });
  if constexpr (supports<C, PersistentDriver> && sizeof(T) == 4) {
    if (plan.units && p.steps > 0) {
      with_persistent<C, T, W>(plan, [&]<class K>(K*) {
        run_launches<K>(run, p, Range{0, p.steps}, exchange, plan, false,
                        [&](const LaunchArgs<T>& launch_args) { return K{{p, other}, launch_args}; });
      });
      run(PoisonOutputsKernel<C, T>{p, {}, exchange.buffer, false});
      if (plan.co_launched > 1) run(PoisonOutputsKernel<C, T>{other, {}, exchange.buffer, false});
    }
  }
  if (plan.cluster && p.steps > 0) {
    run(clear_status(exchange.buffer));
    with_cluster<C, T, W>(plan.cluster, [&]<class K>(K*) { run(K{{}, {p, other}, exchange.buffer, plan.co_launched}); });
    run(PoisonOutputsKernel<C, T>{p, {}, exchange.buffer, false});
    if (plan.co_launched > 1) run(PoisonOutputsKernel<C, T>{other, {}, exchange.buffer, false});
  }
  for (Index step = 0; step < (plan.loop || plan.units || plan.cluster ? 0 : p.steps); ++step) run_phases<C, T, W>(run, p, step, plan.rows);
  run(FinalKernel<C, T>{p});
  if (plan.co_launched > 1) run(FinalKernel<C, T>{other});
}

// out[b][k] of step t = init + sum over columns of da transposed[column][k], for the rows that take part.
template <class C, class T, class V, int Q, class Run>
void step_product(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, Index t, T* out, bool add) {
  if constexpr (sizeof(V) == 2)
    if (!has_slices<V>(p.batch)) return run(TransposedProductKernel<C, T, V, Q>{p, g, t * p.batch, p.batch, out, add});
  run(StepProductKernel<C, T, V, Q>{p, g, t});
  run(SumSlicesKernel<C, T, Q>{p, g, t, out, add});
}

template <class C, class T, class V, int F, class Run>
void run_backward_phases(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, Index t) {
  run(CellKernel<C, T, F>{p, g, t});
  if constexpr (norms_emitted<C>(F)) run(EmittedNormGradientKernel<C, T, F>{p, g, t});
  for_operations<C, F + 1>([&]<int J>() { run(ProductNormGradientKernel<C, T, J>{p, g, t * p.batch, p.batch}); });
  [[maybe_unused]] constexpr bool hidden = C::kPhases[F].operand == Operand::kHidden;
  if constexpr (matrix_columns<C>(F + 1) > 0)
    step_product<C, T, V, F + 1>(run, p, g, t, hidden ? g.dh : g.demitted, hidden);  // dh already holds the direct gradient
  if constexpr (F > 0) run_backward_phases<C, T, V, F - 1>(run, p, g, t);
}

// Where the gradients of matrix Q and of its bias go; null: not wanted, or there is none.
template <class C, int Q, class T>
T* weight_of(const RawGradients<T>& to) {
  return Q == 0 ? to.weight_ih : is_projection<C>(Q) ? to.weight_hr : to.weight_hh;
}
template <class C, int Q, class T>
T* bias_of(const RawGradients<T>& to) {
  return Q == 0 ? to.bias_ih : is_projection<C>(Q) ? nullptr : to.bias_hh;
}

// Compute the gradients of weights and biases as sums over the parts of the rows that are run now.
template <class C, class T, class V, class Run>
void sum_weights(Run& run, const Problem<T>& p, const BackwardProblem<T>& g) {
  const Range parts = g.parts_of_rows(p);
  for_matrices<C>([&]<int Q>() {
    if (!g.library && weight_of<C, Q>(g.gradients)) run(WeightKernel<C, T, V, Q>{p, g});
    if (g.library && g.operands[Q]) run(OperandKernel<C, T, Q>{p, g.operands[Q], g.rows(p)});
    if (bias_of<C, Q>(g.gradients)) run(ColumnKernel<T>{g.da[Q], g.bias_sums[Q], p.steps * p.batch, matrix_width<C, Q>(p), g.parts, parts});
  });
}

// Add the sums of all parts to the gradients. Those of the weights may come from a library, in
// another number of parts.
template <class C, class T, class Run>
void add_weights(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, Index parts) {
  for_matrices<C>([&]<int Q>() {
    if (T* weight = weight_of<C, Q>(g.gradients))
      run(AddKernel<C, T>(g.sums[Q], weight, matrix_depth<C, Q>(p), matrix_units<C, Q>(p), parts, Q));
  });
}
template <class C, class T, class Run>
void add_biases(Run& run, const Problem<T>& p, const BackwardProblem<T>& g) {
  for_matrices<C>([&]<int Q>() {
    if (T* bias = bias_of<C, Q>(g.gradients)) run(AddKernel<C, T>(g.bias_sums[Q], bias, 1, p.hidden, g.parts, Q));
  });
}

// Whether the gradient of a weight of one number a unit is wanted.
template <class T>
bool wants_units(const BackwardProblem<T>& g) {
  for (const T* to : g.unit_gradients)
    if (to) return true;
  return false;
}
template <class C, class T, class Run>
void add_units(Run& run, const Problem<T>& p, const BackwardProblem<T>& g) {
  if constexpr (unit_rows<C>() > 0) {
    Index first = 0;
    T* const* to = g.unit_gradients;
    for (const UnitWeights& w : C::kUnitWeights) {
      if (*to) run(AddRowsKernel<T>{g.param_sums + first * p.hidden, *to, g.parts, w.rows * p.hidden, unit_rows<C>() * p.hidden});
      first += w.rows, ++to;
    }
  }
}

// Compute the products of the rows that are run now; at the end of the pass also add up all parts,
// and write the gradients of the states before the first step. `shared_dx`: the gradient of another
// direction goes to the same dx, which therefore waits for the end.
template <class C, class T, class V, class Run>
void products(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, const PassBuffers<T>& exchange, const Plan& plan,
              bool shared_dx) {
  if constexpr (supports<C, PersistentDriver>)
    if ((plan.units || plan.cluster) && p.steps > 0 && g.ends()) run(PoisonOutputsKernel<C, T>{p, g, exchange.buffer, true});
  if (p.steps > 0) {
    for_operations<C, 0>([&]<int J>() { run(ProductNormGradientKernel<C, T, J>{p, g, 0, p.steps * p.batch}); });
    const Range rows = shared_dx ? Range{0, p.steps * p.batch} : g.rows(p);
    if (g.dx.data && !g.library && (!shared_dx || g.ends()))
      run(TransposedProductKernel<C, T, V, 0>{p, g, rows.begin, rows.end - rows.begin, nullptr, g.dx_add});
    sum_weights<C, T, V>(run, p, g);
    if (wants_units(g))
      run(ColumnKernel<T>{g.dparams, g.param_sums, p.steps * p.batch, unit_rows<C>() * p.hidden, g.parts, g.parts_of_rows(p)});
  }
  if (!g.ends()) return;
  if (p.steps > 0) {
    if (!g.library) add_weights<C, T>(run, p, g, g.parts);
    add_biases<C, T>(run, p, g);
    add_units<C, T>(run, p, g);
  }
  const T* left[] = {g.dh, g.dc};
  T *to[] = {g.dh0, g.dc0}, *restart[] = {g.drestart_h, g.drestart_c};
  for (int k = 0; k < C::kStates; ++k) {
    const Index width = state_width<C>(p, k);
    if (to[k]) run(CopyKernel<T>{left[k], to[k], p.batch * width});
    if (restart[k]) run(AddRowsKernel<T>{g.restarts + state_at<C>(p, k, 0, 0), restart[k], p.batch, width, width});
  }
}

// Run all steps, one launch or more for each, the last one first. `rows`: of blocks that stream the weights.
template <class C, class T, class V, class Run>
void through_steps(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, int rows) {
  if (p.steps == 0) return;
  if constexpr (kLoops<C>) {
    // The product of a step, and then the cell of the next one, which adds it up: unless norms of gradients stand between them.
    const bool streams = sizeof(V) == 2 && rows > 0, norms = g.control.clip_norm > 0 || g.control.flow;
    if (streams || (!norms && has_slices<V>(p.batch))) {
      run(CellKernel<C, T, 0>{p, g, p.mask().time(p.steps - 1)});
      for (Index s = p.steps; s-- > 0;) {
        if constexpr (sizeof(V) == 2) run_stream(rows, [&]<int R>() { run(StreamBackwardKernel<C, T, V, R>{p, g, s}); });
        if (streams) continue;
        run(StepProductKernel<C, T, V, 1>{p, g, p.mask().time(s)});
        run(SumCellKernel<C, T>{p, g, s});
      }
      return;
    }
  }
  for (Index s = p.steps; s-- > 0;) {
    const Index t = p.mask().time(s);
    if (g.control.clip_norm > 0) run(NormKernel<C, T>{p, g, t});
    if constexpr (is_projected<C>()) {
      run(OutputGradientKernel<C, T>{p, g, t});
      step_product<C, T, V, kProductCount<C>>(run, p, g, t, g.demitted, false);
    }
    run_backward_phases<C, T, V, kPhaseCount<C> - 1>(run, p, g, t);
    if (g.control.flow) run(FlowKernel<C, T>{p, g, t});
    if (p.times.predecessors || g.control.cuts) run(CutKernel<C, T>{p, g, t});
  }
}

// Run the steps of this chunk, the last one first.
template <class C, class T, class V, class Run>
void through_time(Run& run, const Problem<T>& p, const BackwardProblem<T>& g, const Problem<T>& other, const BackwardProblem<T>& other_g,
                  const PassBuffers<T>& exchange, const Plan& plan) {
  if (g.begins()) {
    run(BackwardBeginKernel<C, T>{p, g});
    if (plan.co_launched > 1) run(BackwardBeginKernel<C, T>{other, other_g});
  }
  if constexpr (supports<C, PersistentDriver> && sizeof(T) == 4) {
    if (plan.units && p.steps > 0) {
      check_strides<C>(p, g);
      if (plan.co_launched > 1) check_strides<C>(other, other_g);
      with_persistent_backward<C, T, V>(plan, [&]<class K>(K*) {
        run_launches<K>(run, p, g.steps(p.steps), exchange, plan, true,
                        [&](const LaunchArgs<T>& launch_args) { return K{{p, other}, {g, other_g}, launch_args}; });
      });
    }
  }
  if (plan.cluster && p.steps > 0) {
    check_strides<C>(p, g), check_strides<C>(other, other_g);
    if (g.begins()) run(clear_status(exchange.buffer));
    with_cluster_backward<C, T, V>(
        plan.cluster, [&]<class K>(K*) { run(K{{}, {p, other}, {g, other_g}, exchange.buffer, plan.co_launched, g.steps(p.steps)}); });
  }
  if constexpr (kLoops<C> && sizeof(T) == 4) {
    if (plan.loop && p.steps > 0) {
      check_strides<C>(p, g);
      run_loop<T, V, true>(plan.loop, plan.loop_split,
                           [&]<class Word, int K>() { run(BackwardLoopKernel<C, T, Word, K>{p, g, plan.rows}); });
    }
  }
  if (!plan.loop && !plan.units && !plan.cluster) through_steps<C, T, V>(run, p, g, plan.rows);
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
