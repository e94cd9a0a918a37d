// From Python's addresses to kernels; the module for the device and the emulation share this file.
// Arrays come as addresses by name; Python has checked their shapes and dtypes.
#pragma once
#include <string>

#include "../bindings/arrays.h"
#include "extras.h"
#include "passes.h"
#include "replay.h"

namespace ost::OST_SET {

class Addresses {
 public:
  explicit Addresses(py::dict values) : values_(std::move(values)) {}
  Addresses other() const { return Addresses(values_["other"].cast<py::dict>()); }  // values of the second problem of a plan of two
  template <class A>
  A* get(const std::string& name) const {
    const py::str key(name);
    if (!values_.contains(key) || values_[key].is_none()) return nullptr;
    return reinterpret_cast<A*>(values_[key].template cast<std::uintptr_t>());
  }
  template <class A>
  A* need(const std::string& name) const {
    A* p = get<A>(name);
    if (!p) fail(name, "an address", "none");
    return p;
  }
  template <class N>
  N number(const char* name, N otherwise = 0) const {
    const py::str key(name);
    return values_.contains(key) && !values_[key].is_none() ? values_[key].template cast<N>() : otherwise;
  }
  std::string text(const char* name) const { return values_[py::str(name)].template cast<std::string>(); }
  template <class A>
  Rows<A> rows(const std::string& name) const {
    return {get<A>(name), number<Index>((name + "_t").c_str()), number<Index>((name + "_b").c_str()), get<const Index>(name + "_starts"),
            get<const Index>(name + "_ends")};
  }

 private:
  py::dict values_;
};

template <class C, class T>
Problem<T> problem(const Addresses& a) {
  Problem<T> p{};
  p.steps = a.number<Index>("steps"), p.batch = a.number<Index>("batch");
  p.input = a.number<Index>("input"), p.hidden = a.number<Index>("hidden"), p.reverse = a.number<int>("reverse") != 0;
  p.times = {a.get<const Index>("lengths"), a.get<const std::int32_t>("before"), nullptr};
  p.x = a.rows<const T>("x"), p.px = a.rows<const T>("px"), p.y = a.rows<T>("y");
  p.h0 = a.get<const T>("h0"), p.c0 = a.get<const T>("c0");
  p.restart_h = a.get<const T>("restart_h"), p.restart_c = a.get<const T>("restart_c");
  for (int q = 0; q < kProductCount<C>; ++q) {
    p.panels[q] = a.get<const void>("panels" + std::to_string(q));
    p.transposed[q] = a.get<const void>("transposed" + std::to_string(q));
    p.stream_panels[q] = a.get<const void>("stream_panels" + std::to_string(q));
  }
  p.stream_transposed = a.get<const void>("stream_transposed");
  for (int f = 0; f < kPhaseCount<C>; ++f) {
    const std::string n = std::to_string(f);
    p.shared_panels[f] = a.get<const void>("shared_panels" + n), p.shared_transposed[f] = a.get<const void>("shared_transposed" + n);
    p.shared_scales[f] = a.get<const float>("shared_scales" + n),
    p.shared_transposed_scales[f] = a.get<const float>("shared_transposed_scales" + n);
  }
  p.loop_panels = a.get<const void>("loop_panels"), p.loop_transposed = a.get<const void>("loop_transposed");
  p.bias = a.get<const T>("bias"), p.params = a.get<const T>("params");
  p.gx = a.get<T>("gx"), p.saved = a.get<T>("saved"), p.cells = a.get<T>("cells");
  p.state = a.get<T>("state"), p.saved_scratch = a.get<T>("saved_scratch"), p.emitted = a.get<T>("emitted");
  p.hn = a.get<T>("hn"), p.cn = a.get<T>("cn");
  return p;
}

template <class C, class T>
BackwardProblem<T> backward_problem(const Addresses& a, Index steps, Index batch) {
  BackwardProblem<T> g{};
  g.dy = a.rows<const T>("dy"), g.dhn = a.get<const T>("dhn"), g.dcn = a.get<const T>("dcn");
  g.dh = a.need<T>("dh"), g.dc = a.get<T>("dc"), g.demitted = a.get<T>("demitted");
  for (int q = 0; q < kProductCount<C>; ++q) {
    const std::string n = std::to_string(q == 1 && kSharedDa<C> ? 0 : q);
    g.da[q] = a.get<T>("da" + n), g.sums[q] = a.get<T>("sums" + std::to_string(q)),
    g.bias_sums[q] = a.get<T>("bias_sums" + std::to_string(q)), g.operands[q] = a.get<T>("operands" + std::to_string(q));
  }
  g.dparams = a.get<T>("dparams"), g.restarts = a.need<T>("restarts"), g.scales = a.get<T>("scales"), g.squares = a.get<T>("squares");
  g.control = {a.number<T>("clip_value"), a.number<T>("clip_norm"), a.get<const std::uint8_t>("cuts"), a.rows<const T>("dcells"),
               a.get<double>("flow")};
  g.library = a.number<int>("library") != 0;
  g.dx = a.rows<T>("dx"), g.dx_add = a.number<int>("dx_add") != 0;
  g.dh0 = a.get<T>("dh0"), g.dc0 = a.get<T>("dc0"), g.param_sums = a.get<T>("param_sums"), g.parts = gradient_parts(steps, batch);
  g.chunk = {a.number<Index>("first_part", 0), a.number<Index>("last_part", g.parts)};
  g.gradients = {a.get<T>("dweight_ih"), a.get<T>("dweight_hh"),       a.get<T>("dbias_ih"),
                 a.get<T>("dbias_hh"),   a.get<T>("dweight_peephole"), nullptr};
  g.drestart_h = a.get<T>("drestart_h"), g.drestart_c = a.get<T>("drestart_c");
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

// Pack the recurrent weights for blocks of so many units, from panels and transposed panels.
template <class C, class T, class W, class V, class Run>
void pack_persistent(Run& run, const Problem<T>& p, const Plan& plan, const Addresses& a) {
  if constexpr (sizeof(T) == 4) {
    const bool has_upstream =
        a.number<int>("has_upstream") != 0;  // of two pipelined layers, the one that takes in what the other one sends
    const auto one = [&]<class K, int F, class Word>(K*, const void* own, const void* upstream, const char* to, const char* scales,
                                                     bool transposed) {
      using From = SharedWeights<Word>;
      using Phase = typename K::template Phase<F>;
      const std::string n = std::to_string(F);
      const Index tiles = Phase::tiles_of(p.hidden);
      const From from{static_cast<const Word*>(own),
                      has_upstream ? static_cast<const Word*>(upstream) : nullptr,
                      p.hidden,
                      tiles * 16,
                      Phase::kColumns,
                      product_columns<C>(F + 1),
                      product_columns<C>(0),
                      transposed};
      run(typename Phase::template Pack<From>{from, a.need<FragmentA>(to + n), a.get<float>(scales + n), tiles * (1 + has_upstream),
                                              K::blocks_of(p.hidden), Phase::kOuts});
    };
    if (a.get<void>("shared_panels0"))
      with_persistent<C, T, W>(plan, [&]<class K>(K* kernel) {
        for_phases<C>([&]<int F>() {
          one.template operator()<K, F, W>(kernel, p.panels[F + 1], p.panels[0], "shared_panels", "shared_scales", false);
        });
      });
    if (a.get<void>("shared_transposed0"))
      with_persistent_backward<C, T, V>(plan, [&]<class K>(K* kernel) {
        for_phases<C>([&]<int F>() {
          one.template operator()<K, F, V>(kernel, p.transposed[F + 1], a.get<void>("transposed_upstream"), "shared_transposed",
                                           "shared_transposed_scales", true);
        });
      });
  }
}

enum class Action { kPack, kForward, kBackward, kAdd, kRecompute, kPackPersistent, kThroughTime, kProducts };
constexpr const char* kActions[] = {"pack", "forward", "backward", "add", "recompute", "pack_persistent", "through_time", "products"};

// W: words of the operands of the forward pass; V: those of the backward pass.
template <class C, class T, class W, class V, class Run>
void act(Run& run, Action action, const Addresses& a) {
  const Problem<T> p = problem<C, T>(a);
  const Plan plan{a.number<int>("loop"),   a.number<int>("rows"),   a.number<int>("units"),          a.number<int>("peers", 1),
                  a.number<int>("groups"), a.number<Index>("span"), a.number<int>("co_launched", 1), a.number<int>("layer_pipelined") != 0};
  const int loop = plan.loop, rows = plan.rows;
  const bool with_steps = action == Action::kBackward || action == Action::kThroughTime,
             with_products = action == Action::kBackward || action == Action::kProducts, back = with_steps || with_products;
  if (loop && !(kLoops<C> && sizeof(T) == 4 && (loop == kLoopCapacity<T, W>[0] || loop == kLoopCapacity<T, W>[1])))
    fail("loop", "a register capacity that there is a kernel for", std::to_string(loop));
  if (rows && (sizeof(T) != 4 || (rows != 8 && rows != 16 && rows != 32) || (back && !kLoops<C>)))
    fail("rows", "8, 16 or 32 in float32, backward of one phase", std::to_string(rows));
  PassBuffers<T> exchange{};
  if (plan.units) check_persistent<C, T, W, V>(plan, p.hidden, back || a.get<void>("shared_transposed0"));
  if (action == Action::kPackPersistent) return pack_persistent<C, T, W, V>(run, p, plan, a);
  if (plan.units) {
    exchange = {{a.need<std::uint32_t>("exchange"), a.get<std::uint32_t>("host_status"), a.number<int>("spin_limit", kSpinLimit)},
                a.get<T>("carry")};
  }
  if (action == Action::kRecompute) return recompute<C, T, W>(run, p);
  if (action == Action::kAdd) return add_weights<C, T>(run, p, backward_problem<C, T>(a, p.steps, p.batch), a.number<Index>("chunks", 1));
  const bool pass = action == Action::kForward || back;
  const Addresses b = pass && plan.co_launched > 1 ? a.other() : a;
  const Problem<T> other = problem<C, T>(b);
  if (action == Action::kForward) return forward<C, T, W>(run, p, other, exchange, plan);
  if (back) {
    const auto g = backward_problem<C, T>(a, p.steps, p.batch);
    if (plan.units && (g.squares || g.control.clip_norm > 0))
      fail("units", "0 where norms of steps are asked for", std::to_string(plan.units));
    auto other_g = backward_problem<C, T>(b, p.steps, p.batch);
    other_g.chunk = g.chunk;
    const bool whole = g.begins() && g.ends();
    const bool some = plan.units && !(with_steps && with_products);
    if (g.chunk.begin < 0 || g.chunk.end <= g.chunk.begin || g.chunk.end > g.parts || !(whole || some))
      fail("first_part, last_part", "all " + std::to_string(g.parts) + " parts, or some of them where blocks share the weights",
           std::to_string(g.chunk.begin) + " and " + std::to_string(g.chunk.end));
    return backward<C, T, V>(run, p, g, other, other_g, exchange, plan, with_steps, with_products);
  }
  for (int q = 0; q < kProductCount<C>; ++q) {
    const T* raw = a.need<const T>(q == 0 ? "weight_ih" : "weight_hh");
    const std::string n = std::to_string(q);
    run(PackKernel<C, T, W, V>(raw, a.need<W>("panels" + n), a.get<V>("transposed" + n), p.depth(q), p.hidden, q));
  }
  if constexpr (sizeof(W) == 2) {
    for (int q = 1; q < kProductCount<C>; ++q) {
      const Index columns = product_columns<C>(q).count(), width = p.hidden * columns;
      if (auto* to = a.get<FragmentA>("stream_panels" + std::to_string(q)))
        run(StreamPackKernel<W>{static_cast<const W*>(p.panels[q]), to, width, p.hidden, 1, width, int(kStreamOut / columns * columns)});
    }
    const Index width = p.hidden * product_columns<C>(1).count();
    if (auto* to = a.get<FragmentA>("stream_transposed"))
      run(StreamPackKernel<V>{static_cast<const V*>(p.transposed[1]), to, p.hidden, width, 1, p.hidden, kStreamOut});
  }
  if constexpr (kLoops<C> && sizeof(T) == 4)
    run_loop<T, W>(loop, [&]<int K>() {
      using Forward = typename LoopKernel<C, T, W, K>::E;
      using Backward = typename BackwardLoopKernel<C, T, V, K>::E;
      const Index columns = p.hidden * product_columns<C>(1).count();
      const auto pack = [&]<class E, class Word>(E*, const void* from, void* to, bool transposed) {
        const LoopWeight<Word> weight{static_cast<const Word*>(from), p.hidden, columns, transposed ? p.hidden : columns, transposed};
        if (to) run(EnginePackKernel<E, LoopWeight<Word>>{weight, static_cast<typename E::Word*>(to)});
      };
      pack.template operator()<Forward, W>(nullptr, p.panels[1], a.get<void>("loop_panels"), false);
      pack.template operator()<Backward, V>(nullptr, p.transposed[1], a.get<void>("loop_transposed"), true);
    });
  run(PackBiasKernel<C, T>{a.get<const T>("bias_ih"), a.get<const T>("bias_hh"), a.need<T>("bias"), p.hidden});
}

// With float16 the backward pass uses bfloat16: gradients need the range of a float, and no scale.
template <class C, class Run>
void act_in(Run& run, Action action, int itemsize, const std::string& precision, const Addresses& a) {
  if (precision == "float16" && itemsize == 4) return act<C, float, Half, Bfloat>(run, action, a);
  if (precision == "bfloat16" && itemsize == 4) return act<C, float, Bfloat, Bfloat>(run, action, a);
  if (precision != "exact") fail("precision", "exact, or bfloat16 or float16 for float32", "'" + precision + "'");
  if (itemsize == 4) return act<C, float, float, float>(run, action, a);
  act<C, double, double, double>(run, action, a);
}

template <class Run, class... N>
void act_on(Run& run, Action action, CellId cell, int itemsize, const std::string& precision, const Addresses& a, CellList<N...>) {
  ((cell == N::id ? act_in<typename N::Cell>(run, action, itemsize, precision, a) : void()), ...);
}

// Run an action that belongs to no cell; return false if there is none of that name.
template <class T, class Run>
bool extra(Run& run, const std::string& action, const Addresses& a) {
  const auto n = [&](const char* name) { return a.number<Index>(name); };
  if (action == "times") {
    const Given given{n("steps"),
                      n("batch"),
                      a.get<const Index>("lengths"),
                      a.get<const std::uint8_t>("resets"),
                      a.get<const std::uint8_t>("mask"),
                      a.get<const std::uint8_t>("held"),
                      a.get<const std::uint8_t>("restarted"),
                      a.get<const std::uint8_t>("resets_after"),
                      n("repeat") != 0,
                      n("from_end") != 0};
    run(TimesKernel{given, a.need<std::int32_t>("before")});
  } else if (action == "drop") {
    run(DropKernel<T>{a.get<const T>("from"), a.get<T>("to"), n("steps"), n("batch"), n("hidden"), n("directions"), n("layer"),
                      n("first_step"), a.number<double>("rate"), a.number<std::uint64_t>("key")});
  } else if (action == "drop_flat") {
    run(DropFlatKernel<T>{a.get<const T>("from"), a.get<T>("to"), n("count"), a.number<double>("rate"), a.number<std::uint64_t>("key")});
  } else if (action == "scatter") {
    run(ScatterKernel<T>{a.get<const T>("from"), a.get<const Index>("ids"), a.get<const Index>("order"), a.get<T>("to"), n("count"),
                         n("width"), n("rows")});
  } else if (action == "matmul") {
    run(MatmulKernel<T>{a.get<const T>("a"), a.get<const T>("b"), a.get<T>("out"), n("rows"), n("columns"), n("depth"), n("a_row"),
                        n("a_k"), n("b_k"), n("b_column")});
  } else if (action == "copy_rows") {
    run(CopyRowsKernel<T>{a.get<const T>("from"), a.rows<T>("to"), n("steps"), n("batch"), n("width"), n("first"), n("add") != 0});
  } else if (action == "adam") {
    const auto x = [&](const char* name) { return a.number<double>(name); };
    const AdamStep step{x("rate"),         x("beta1"),       x("beta2"),       x("eps"),
                        x("weight_decay"), x("correction1"), x("correction2"), n("decoupled") != 0};
    run(AdamKernel<T>{AdamRule<T>(step), n("count"), a.get<T>("p"), a.get<const T>("g"), a.get<T>("m"), a.get<T>("v")});
  } else {
    return false;
  }
  return true;
}

// `cell` is ignored for actions that belong to no cell.
template <class Run>
void act_by_name(Run& run, const std::string& action, int cell, int itemsize, const py::dict& values) {
  const Addresses a(values);
  if (itemsize == 4 ? extra<float>(run, action, a) : extra<double>(run, action, a)) return;
  for (int i = 0; i < int(std::size(kActions)); ++i)
    if (action == kActions[i]) return act_on(run, Action(i), CellId(cell), itemsize, a.text("precision"), a, DeviceCells());
  fail("action", "one that is known", "'" + action + "'");
}

// Return a key of all that the launches of an action depend on.
inline std::string key_of(const std::string& action, int cell, int itemsize, const py::dict& values, std::uintptr_t stream) {
  std::string key = action;
  const auto add = [&](const auto& v) { key.append(reinterpret_cast<const char*>(&v), sizeof v); };
  add(cell), add(itemsize), add(stream);
  for (const auto& [name, value] : values) {
    if (value.is_none()) continue;
    key += std::string(py::str(name)) += '=';
    if (py::isinstance<py::float_>(value))
      add(value.template cast<double>());
    else if (py::isinstance<py::dict>(value))
      key += key_of("", cell, itemsize, py::reinterpret_borrow<py::dict>(value), stream);
    else if (py::isinstance<py::str>(value))
      key += std::string(py::str(value)) += ';';
    else
      add(PyLong_AsUnsignedLongLongMask(value.ptr()));  // strides may be negative
  }
  return key;
}

// Return for each cell the columns of a pre-activation, those of each product, and whether the
// products share their gradients.
template <class... N>
py::list columns_of(CellList<N...>) {
  py::list out;
  const auto one = [&]<class C, int... Q>(C*, std::integer_sequence<int, Q...>) {
    py::list products;
    (products.append(product_columns<C>(Q).count()), ...);
    out.append(py::make_tuple(C::kColumns, products, kSharedDa<C>));
  };
  (one(static_cast<typename N::Cell*>(nullptr), std::make_integer_sequence<int, kProductCount<typename N::Cell>>()), ...);
  return out;
}

// Return the bytes of the weights that the kernel of all steps loads, forward and backward.
template <class C, class W, class V>
py::tuple loop_bytes(int capacity) {
  Index forward = 0, backward = 0;
  if constexpr (kLoops<C>)
    run_loop<float, W>(capacity, [&]<int K>() {
      forward = kThreads * Index(sizeof(typename LoopKernel<C, float, W, K>::E::Weights));
      backward = kThreads * Index(sizeof(typename BackwardLoopKernel<C, float, V, K>::E::Weights));
    });
  return py::make_tuple(forward, backward);
}
template <class... N>
py::tuple loop_bytes_of(CellId cell, const std::string& precision, int capacity, CellList<N...>) {
  py::tuple out;
  ((cell == N::id ? void(out = precision == "exact"      ? loop_bytes<typename N::Cell, float, float>(capacity)
                               : precision == "bfloat16" ? loop_bytes<typename N::Cell, Bfloat, Bfloat>(capacity)
                                                         : loop_bytes<typename N::Cell, Half, Bfloat>(capacity))
                  : void()),
   ...);
  return out;
}

}  // namespace ost::OST_SET
