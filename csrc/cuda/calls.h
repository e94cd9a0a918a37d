// From Python's structs to kernels; the module for the device and the emulation share this file. Python has checked shapes and
// dtypes of the arrays.
#pragma once
#include <string>

#include "abi.h"
#include "extras.h"
#include "passes.h"
#include "replay.h"

namespace ost::OST_SET {

template <class A>
A* pointer(Address address) {
  return reinterpret_cast<A*>(address);
}
template <class A>
A* needed(Address address, const char* name) {
  if (!address) fail(name, "an address", "none");
  return pointer<A>(address);
}
template <class A, std::size_t N>
void set_pointers(const std::array<Address, N>& from, A** to) {
  for (std::size_t i = 0; i < N; ++i) to[i] = pointer<A>(from[i]);
}

template <class C, class T>
Problem<T> problem(const WeightArgs& w, const SharedArgs& shared) {
  Problem<T> p{};
  p.input = w.input, p.hidden = w.hidden, p.output = w.output;
  set_pointers(w.panels, p.panels), set_pointers(w.transposed, p.transposed), set_pointers(w.stream_panels, p.stream_panels);
  set_pointers(shared.panels, p.shared_panels), set_pointers(shared.transposed, p.shared_transposed);
  set_pointers(shared.scales, p.shared_scales), set_pointers(shared.transposed_scales, p.shared_transposed_scales);
  p.stream_transposed = pointer<void>(w.stream_transposed);
  p.loop_panels = pointer<void>(w.loop_panels), p.loop_transposed = pointer<void>(w.loop_transposed);
  p.bias = pointer<T>(w.bias), p.gains = pointer<T>(w.units), p.params = p.gains + kGains<C> * w.hidden;
  for (int k = 0; k < kMostScalars; ++k) p.scalars[k] = T(w.scalars[k]);
  return p;
}
template <class C, class T>
Problem<T> problem(const LayerArgs& a) {
  Problem<T> p = problem<C, T>(a.weights, a.shared);
  p.steps = a.steps, p.batch = a.batch, p.reverse = a.reverse;
  p.times = {pointer<const Index>(a.lengths), pointer<const std::int32_t>(a.predecessors), nullptr};
  p.x = a.x.rows<const T>(), p.px = a.px.rows<const T>(), p.y = a.y.rows<T>();
  p.h0 = pointer<T>(a.h0), p.c0 = pointer<T>(a.c0), p.restart_h = pointer<T>(a.restart_h), p.restart_c = pointer<T>(a.restart_c);
  p.gx = pointer<T>(a.gx), p.saved = pointer<T>(a.saved), p.cells = pointer<T>(a.cells), p.emitted = pointer<T>(a.emitted);
  p.state = pointer<T>(a.state), p.saved_scratch = pointer<T>(a.saved_scratch);
  set_pointers(a.normed, p.normed), set_pointers(a.normed_scratch, p.normed_scratch), p.moments = pointer<T>(a.moments);
  p.hn = pointer<T>(a.hn), p.cn = pointer<T>(a.cn);
  return p;
}

template <class C, class T>
BackwardProblem<T> backward_problem(const GradientArgs& a, Index steps, Index batch) {
  BackwardProblem<T> g{};
  g.dy = a.dy.rows<const T>(), g.dx = a.dx.rows<T>(), g.dx_add = a.dx_add;
  g.dhn = pointer<T>(a.dhn), g.dcn = pointer<T>(a.dcn), g.dh0 = pointer<T>(a.dh0), g.dc0 = pointer<T>(a.dc0);
  g.dh = needed<T>(a.dh, "dh"), g.dc = pointer<T>(a.dc), g.demitted = pointer<T>(a.demitted);
  g.slices = pointer<T>(a.slices);
  set_pointers(a.da, g.da), set_pointers(a.sums, g.sums), set_pointers(a.bias_sums, g.bias_sums), set_pointers(a.operands, g.operands);
  if (kSharedDa<C>) g.da[1] = g.da[0];
  for_matrices<C>([&]<int Q>() { g.dproducts[Q] = is_normed<C>(Q) ? pointer<T>(a.dproducts[Q]) : g.da[Q]; });
  g.dparams = pointer<T>(a.dparams), g.param_sums = pointer<T>(a.param_sums);
  g.restarts = needed<T>(a.restarts, "restarts"), g.scales = pointer<T>(a.scales), g.squares = pointer<T>(a.squares);
  g.control = {T(a.clip_value), T(a.clip_norm), pointer<const std::uint8_t>(a.cuts), a.dcells.rows<const T>(), pointer<double>(a.flow)};
  g.library = a.library, g.parts = gradient_parts(steps, batch), g.chunk = {a.first_part, a.last_part};
  const auto to = [&](int i) { return pointer<T>(a.gradients[i]); };
  g.gradients = {to(0), to(1), to(2), to(3), to(4), {}};
  set_pointers(a.unit_gradients, g.unit_gradients);
  g.drestart_h = pointer<T>(a.drestart_h), g.drestart_c = pointer<T>(a.drestart_c);
  return g;
}

// Raise unless the kernels that partition the weights among multiprocessors can run this.
template <class C, class T, class W, class V>
void check_persistent(const Plan& plan, Index hidden, bool backward) {
  bool there = false, fits = false;
  if constexpr (sizeof(T) == 4) {
    const auto check_fit = [&]<class K>(K*) { fits = K::fits(hidden, plan.layer_pipelined); };
    there = backward ? with_persistent_backward<C, T, V>(plan, check_fit) : with_persistent<C, T, W>(plan, check_fit);
  }
  if (!there)
    fail("units", "those of a kernel that there is for this cell in float32",
         std::to_string(plan.units) + " with " + std::to_string(plan.peers) + " peers");
  if (!fits)
    fail("units", "blocks with room for all weights", std::to_string(plan.units) + " of " + std::to_string(hidden) + " hidden units");
  if (plan.co_launched < 1 || plan.co_launched > 2) fail("co_launched", "1 or 2 problems in a launch", std::to_string(plan.co_launched));
  if (plan.groups < 1 || plan.span < 1) fail("groups", "a group and a step, at least", std::to_string(plan.groups));
}

// Raise unless there are clusters of so many blocks that can run this.
template <class C, class T, class W, class V>
void check_cluster(const Plan& plan, Index hidden, bool backward) {
  int capacity = 0;
  const auto ask = [&]<class K>(K*) { capacity = K::kCapacity; };
  backward ? with_cluster_backward<C, T, V>(plan.cluster, ask) : with_cluster<C, T, W>(plan.cluster, ask);
  if (!capacity)
    fail("cluster", "the blocks of a cluster that there is a kernel for, for this cell in float32", std::to_string(plan.cluster));
  if (hidden > capacity)
    fail("cluster", "clusters with room for all weights",
         std::to_string(plan.cluster) + " blocks for " + std::to_string(hidden) + " units");
  if (plan.co_launched < 1 || plan.co_launched > 2 || plan.layer_pipelined)
    fail("co_launched", "1 problem in a launch of clusters, or 2 directions", std::to_string(plan.co_launched));
}

// Raise unless there is a kernel of that register capacity, 0 is none, and of such words.
template <class C, class T, class W>
void check_loop(int loop, bool split) {
  if (split && (!loop || sizeof(W) != 4)) fail("loop_split", "false but for float32 in a kernel of all steps", "true");
  if (loop && !(kLoops<C> && sizeof(T) == 4 && (loop == kLoopCapacity<T, W>[0] || loop == kLoopCapacity<T, W>[1])))
    fail("loop", "a register capacity that there is a kernel for", std::to_string(loop));
}

// Pack the recurrent weights for the blocks of clusters.
template <class C, class T, class W, class V, class Run>
void pack_cluster(Run& run, const PackSharedArgs& a, const Problem<T>& p, const Plan& plan) {
  const SharedArgs& to = a.shared;
  check_cluster<C, T, W, V>(plan, p.hidden, to.transposed[0] != 0);
  const auto one = [&]<class K, class From>(K*, const From& from, Address fragments, Address scales) {
    using Pack = typename K::template Pack<From>;
    run(Pack{from, needed<FragmentA>(fragments, "shared"), pointer<float>(scales), K::Fragments::kPacked, K::kPeers});
  };
  if (to.panels[0])
    with_cluster<C, T, W>(plan.cluster, [&]<class K>(K* kernel) {
      one(kernel, ClusterWeight<W>{static_cast<const W*>(p.panels[1]), p.hidden, K::kCount}, to.panels[0], to.scales[0]);
    });
  if (to.transposed[0])
    with_cluster_backward<C, T, V>(plan.cluster, [&]<class K>(K* kernel) {
      const BackwardClusterWeight<V> from{static_cast<const V*>(p.transposed[1]), p.hidden, K::kCount};
      one(kernel, from, to.transposed[0], to.transposed_scales[0]);
    });
}

// Pack the recurrent weights for blocks of so many units, from panels and transposed panels.
template <class C, class T, class W, class V, class Run>
void act(Run& run, const PackSharedArgs& a) {
  const Problem<T> p = problem<C, T>(a.weights, a.shared);
  const Plan plan = a.plan.plan();
  if constexpr (sizeof(T) == 4) {
    if (plan.cluster) return pack_cluster<C, T, W, V>(run, a, p, plan);
    check_persistent<C, T, W, V>(plan, p.hidden, a.shared.transposed[0] != 0);
    const auto one = [&]<class K, int F, class Word>(K*, const void* own, const void* upstream, Address to, Address scales,
                                                     bool transposed) {
      using From = SharedWeights<Word>;
      using Phase = typename K::template Phase<F>;
      const Index inputs = Phase::E::padded(Phase::sent(p.hidden));
      const From from{static_cast<const Word*>(own),
                      a.upstream ? static_cast<const Word*>(upstream) : nullptr,
                      p.hidden,
                      inputs,
                      Phase::kColumns,
                      product_columns<C>(F + 1),
                      product_columns<C>(0),
                      transposed};
      run(typename Phase::template Pack<From>{from, needed<FragmentA>(to, "shared"), pointer<float>(scales),
                                              2 * Phase::E::depth(inputs) * (1 + a.upstream), K::blocks_of(p.hidden)});
    };
    if (a.shared.panels[0])
      with_persistent<C, T, W>(plan, [&]<class K>(K* kernel) {
        for_phases<C>([&]<int F>() {
          one.template operator()<K, F, W>(kernel, p.panels[F + 1], p.panels[0], a.shared.panels[F], a.shared.scales[F], false);
        });
      });
    if (a.shared.transposed[0])
      with_persistent_backward<C, T, V>(plan, [&]<class K>(K* kernel) {
        for_phases<C>([&]<int F>() {
          one.template operator()<K, F, V>(kernel, p.transposed[F + 1], pointer<void>(a.transposed_upstream), a.shared.transposed[F],
                                           a.shared.transposed_scales[F], true);
        });
      });
  } else {
    fail("units", "0 for float64", std::to_string(plan.units));
  }
}

// Pack weights as the user holds them. W: words of the operands of the forward pass; V: those of the backward pass.
template <class C, class T, class W, class V, class Run>
void act(Run& run, const PackArgs& a) {
  const WeightArgs& w = a.weights;
  const Problem<T> p = problem<C, T>(w, {});
  check_loop<C, T, W>(int(a.loop), a.loop_split);
  for_matrices<C>([&]<int Q>() {
    const T* raw = needed<const T>(Q == 0 ? a.weight_ih : is_projection<C>(Q) ? a.weight_hr : a.weight_hh, "weights");
    run(PackKernel<C, T, W, V>(raw, needed<W>(w.panels[Q], "panels"), pointer<V>(w.transposed[Q]), matrix_depth<C, Q>(p),
                               matrix_units<C, Q>(p), Q));
  });
  if constexpr (supports<C, StreamDriver> && sizeof(W) == 2) {
    for (int q = 1; q < kProductCount<C>; ++q) {
      const Index columns = product_columns<C>(q).count(), width = p.hidden * columns;
      if (auto* to = pointer<FragmentA>(w.stream_panels[q]))
        run(StreamPackKernel<W>{static_cast<const W*>(p.panels[q]), to, width, p.hidden, 1, width, int(kStreamOut / columns * columns)});
    }
    const Index width = p.hidden * product_columns<C>(1).count();
    if (auto* to = pointer<FragmentA>(w.stream_transposed))
      run(StreamPackKernel<V>{static_cast<const V*>(p.transposed[1]), to, p.hidden, width, 1, p.hidden, kStreamOut});
  }
  if constexpr (kLoops<C> && sizeof(T) == 4) {
    const Index columns = p.hidden * product_columns<C>(1).count();
    const auto pack = [&]<class E, class From>(E*, const From*, const void* from, Address to, bool transposed) {
      const LoopWeight<From> weight{static_cast<const From*>(from), p.hidden, columns, transposed ? p.hidden : columns, transposed};
      if (to) run(EnginePackKernel<E, LoopWeight<From>>{weight, pointer<typename E::Word>(to)});
    };
    run_loop<T, W, false>(int(a.loop), a.loop_split, [&]<class Word, int K>() {
      pack(static_cast<typename LoopKernel<C, T, Word, K>::E*>(nullptr), static_cast<const W*>(nullptr), p.panels[1], w.loop_panels, false);
    });
    run_loop<T, V, true>(int(a.loop), a.loop_split, [&]<class Word, int K>() {
      pack(static_cast<typename BackwardLoopKernel<C, T, Word, K>::E*>(nullptr), static_cast<const V*>(nullptr), p.transposed[1],
           w.loop_transposed, true);
    });
  }
  run(PackBiasKernel<C, T>{pointer<const T>(a.bias_ih), pointer<const T>(a.bias_hh), needed<T>(w.bias, "bias"), p.hidden});
}

enum class Action { kForward, kBackward, kThroughTime, kProducts, kRecompute, kAdd };
constexpr const char* kActions[] = {"forward", "backward", "through_time", "products", "recompute", "add"};

struct Pass {
  Action action;
  const PassArgs& args;
};

// Raise unless there are kernels for this plan.
template <class C, class T, class W, class V>
void check_plan(const Plan& plan, Index hidden, bool backward) {
  const int rows = plan.rows;
  check_loop<C, T, W>(plan.loop, plan.loop_split);
  if (plan.loop) {
    if (rows != 1 && rows != 2 && rows != 4 && rows != 8) fail("rows", "1, 2, 4 or 8 of a block that runs all steps", std::to_string(rows));
  } else if (rows &&
             (!supports<C, StreamDriver> || sizeof(T) != 4 || (rows != 8 && rows != 16 && rows != 32) || (backward && !kLoops<C>))) {
    fail("rows", "8, 16 or 32 in float32 of a cell without norms and projection, backward of one phase", std::to_string(rows));
  }
  if (plan.units) check_persistent<C, T, W, V>(plan, hidden, backward);
  if (plan.cluster) check_cluster<C, T, W, V>(plan, hidden, backward);
}

// Run a backward pass, or one of its halves.
template <class C, class T, class V, class Run>
void run_backward(Run& run, const Pass& pass, const Problem<T>& p, const Problem<T>& other, const PassBuffers<T>& exchange,
                  const Plan& plan) {
  const std::vector<GradientArgs>& given = pass.args.gradients;
  const auto g = backward_problem<C, T>(given.front(), p.steps, p.batch);
  if ((plan.units || plan.cluster) && (g.squares || g.control.clip_norm > 0))
    fail(plan.units ? "units" : "cluster", "0 where norms of steps are asked for", std::to_string(plan.units + plan.cluster));
  const bool streams = sizeof(V) == 2 && plan.rows > 0;
  if (!plan.loop && !plan.units && !plan.cluster && !streams && has_slices<V>(p.batch)) needed<T>(given.front().slices, "slices");
  auto other_g = backward_problem<C, T>(given.back(), p.steps, p.batch);
  other_g.chunk = g.chunk;
  const bool with_steps = pass.action != Action::kProducts, with_products = pass.action != Action::kThroughTime;
  const bool whole = g.begins() && g.ends(), some = plan.units && !(with_steps && with_products);
  if (g.chunk.begin < 0 || g.chunk.end <= g.chunk.begin || g.chunk.end > g.parts || !(whole || some))
    fail("first_part, last_part", "all " + std::to_string(g.parts) + " parts, or some of them where blocks share the weights",
         std::to_string(g.chunk.begin) + " and " + std::to_string(g.chunk.end));
  backward<C, T, V>(run, p, g, other, other_g, exchange, plan, with_steps, with_products);
}

template <class C, class T, class W, class V, class Run>
void act(Run& run, const Pass& pass) {
  const PassArgs& a = pass.args;
  const Action action = pass.action;
  const bool back = action == Action::kBackward || action == Action::kThroughTime || action == Action::kProducts;
  const Plan plan = a.plan.plan();
  if (a.layers.size() != std::size_t(larger(1, plan.co_launched)))
    fail("layers", "as many as the plan runs together, " + std::to_string(plan.co_launched), std::to_string(a.layers.size()));
  if ((back || action == Action::kAdd) && a.gradients.size() != a.layers.size())
    fail("gradients", "one for each layer", std::to_string(a.gradients.size()));
  const Problem<T> p = problem<C, T>(a.layers.front()), other = problem<C, T>(a.layers.back());
  if (action == Action::kRecompute) return recompute<C, T, W>(run, p);
  if (action == Action::kAdd) return add_weights<C, T>(run, p, backward_problem<C, T>(a.gradients.front(), p.steps, p.batch), a.chunks);
  check_plan<C, T, W, V>(plan, p.hidden, back);
  PassBuffers<T> exchange{};
  if (plan.units || plan.cluster) {
    const int limit = a.spin_limit ? int(a.spin_limit) : kSpinLimit;
    exchange = {{needed<std::uint32_t>(a.exchange, "exchange"), pointer<std::uint32_t>(a.host_status), limit}, pointer<T>(a.carry)};
  }
  if (back) return run_backward<C, T, V>(run, pass, p, other, exchange, plan);
  forward<C, T, W>(run, p, other, exchange, plan);
}

// With float16 the backward pass uses bfloat16: gradients need the range of a float, and no scale.
template <class C, class Run, class A>
void act_in(Run& run, int itemsize, const std::string& precision, const A& a) {
  if constexpr (scalar_count<C>() == 0) {  // cells whose functions a call chooses have no kernels for shorter words
    if (precision == "float16" && itemsize == 4) return act<C, float, Half, Bfloat>(run, a);
    if (precision == "bfloat16" && itemsize == 4) return act<C, float, Bfloat, Bfloat>(run, a);
  }
  if (precision != "exact") fail("precision", "exact, or bfloat16 or float16 for float32", "'" + precision + "'");
  if (itemsize == 4) return act<C, float, float, float>(run, a);
  act<C, double, double, double>(run, a);
}

template <class Run, class A, class... N>
void act_on(Run& run, CellId cell, int itemsize, const std::string& precision, const A& a, CellList<N...>) {
  ((cell == N::id ? act_in<typename N::Cell>(run, itemsize, precision, a) : void()), ...);
}

// ---- what belongs to no cell ----

template <class T, class Run>
void act(Run& run, const TimesArgs& a) {
  const auto bytes = [](Address address) { return pointer<const std::uint8_t>(address); };
  const MaskInputs given{a.steps,
                         a.batch,
                         pointer<const Index>(a.lengths),
                         bytes(a.resets),
                         bytes(a.mask),
                         bytes(a.held),
                         bytes(a.restarted),
                         bytes(a.resets_after),
                         a.repeat,
                         a.from_end};
  run(TimesKernel{given, needed<std::int32_t>(a.predecessors, "predecessors")});
}
template <class T, class Run>
void act(Run& run, const DropArgs& a) {
  run(DropKernel<T>{pointer<const T>(a.from), pointer<T>(a.to), a.steps, a.batch, a.hidden, a.directions, a.layer, a.first_step, a.rate,
                    a.key});
}
template <class T, class Run>
void act(Run& run, const DropFlatArgs& a) {
  run(DropFlatKernel<T>{pointer<const T>(a.from), pointer<T>(a.to), a.count, a.rate, a.key});
}
template <class T, class Run>
void act(Run& run, const ScatterArgs& a) {
  run(ScatterKernel<T>{pointer<const T>(a.from), pointer<const Index>(a.ids), pointer<const Index>(a.order), pointer<T>(a.to), a.count,
                       a.width, a.rows});
}
template <class T, class Run>
void act(Run& run, const MatmulArgs& a) {
  run(MatmulKernel<T>{pointer<const T>(a.a), pointer<const T>(a.b), pointer<T>(a.out), a.rows, a.columns, a.depth, a.a_row, a.a_k, a.b_k,
                      a.b_column});
}
template <class T, class Run>
void act(Run& run, const CopyRowsArgs& a) {
  run(CopyRowsKernel<T>{pointer<const T>(a.from), a.to.rows<T>(), a.steps, a.batch, a.width, a.first, a.add});
}
template <class T, class Run>
void act(Run& run, const AdamArgs& a) {
  const AdamStep step{a.rate, a.beta1, a.beta2, a.eps, a.weight_decay, a.correction1, a.correction2, a.decoupled};
  run(AdamKernel<T>{AdamRule<T>(step), a.count, pointer<T>(a.p), pointer<const T>(a.g), pointer<T>(a.m), pointer<T>(a.v),
                    pointer<const bool>(a.where)});
}

// ---- by name ----

// Call with(args, act), where act(run) launches. `cell` is ignored for actions that belong to no cell.
template <class With>
void with_action(const std::string& action, int cell, int itemsize, const py::dict& values, With&& with) {
  const auto of_cell = [&](const auto& args, const std::string& precision, const auto& a) {
    with(args, [&](const auto& run) { act_on(run, CellId(cell), itemsize, precision, a, DeviceCells()); });
  };
  const auto of_none = [&]<class A>(A*) {
    const A args = args_of<A>(values, action);
    with(args, [&](const auto& run) { itemsize == 4 ? act<float>(run, args) : act<double>(run, args); });
  };
  for (int i = 0; i < int(std::size(kActions)); ++i) {
    if (action != kActions[i]) continue;
    const auto args = args_of<PassArgs>(values, action);
    if (args.layers.empty()) fail(action + ".layers", "one or two", "none");
    return of_cell(args, args.layers.front().weights.precision, Pass{Action(i), args});
  }
  if (action == "pack") {
    const auto args = args_of<PackArgs>(values, action);
    return of_cell(args, args.weights.precision, args);
  }
  if (action == "pack_shared") {
    const auto args = args_of<PackSharedArgs>(values, action);
    return of_cell(args, args.weights.precision, args);
  }
  if (action == "times") return of_none(static_cast<TimesArgs*>(nullptr));
  if (action == "drop") return of_none(static_cast<DropArgs*>(nullptr));
  if (action == "drop_flat") return of_none(static_cast<DropFlatArgs*>(nullptr));
  if (action == "scatter") return of_none(static_cast<ScatterArgs*>(nullptr));
  if (action == "matmul") return of_none(static_cast<MatmulArgs*>(nullptr));
  if (action == "copy_rows") return of_none(static_cast<CopyRowsArgs*>(nullptr));
  if (action == "adam") return of_none(static_cast<AdamArgs*>(nullptr));
  fail("action", "one that is known", "'" + action + "'");
}

// Return about how many launches an action takes: what is recorded as a graph has many.
template <class A>
Index launches_of(const A& args) {
  if constexpr (requires { args.launches; })
    return args.launches;
  else
    return 1;
}

// Return a key of all that the launches of an action depend on.
template <class A>
std::string key_of(const std::string& action, int cell, int itemsize, const A& args, std::uintptr_t stream) {
  std::string key = action;
  add_bytes(cell, &key), add_bytes(itemsize, &key), add_bytes(stream, &key);
  add_to_key(args, &key);
  return key;
}

}  // namespace ost::OST_SET
