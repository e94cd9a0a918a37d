// What Python hands to the kernels of a device: structs of addresses and numbers. Python gives a dictionary of the fields by
// name (ostinato/_abi.py describes the same structs); an unknown or a missing field raises. An address may be None: null.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "../bindings/arrays.h"
#include "plan.h"
#include "problem.h"

namespace ost::OST_SET {

using Address = std::uintptr_t;
using ByProduct = std::array<Address, kMaxProducts>;
using ByPhase = std::array<Address, kMaxPhases>;
using Scalars = std::array<double, kMostScalars>;
using ByUnitWeight = std::array<Address, kMostUnitWeights>;

// Rows [T,B,*], see Rows<T>: null data where there are none.
struct RowsArgs {
  Address data, starts, ends;
  Index t, b;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("data", s.data), f("t", s.t), f("b", s.b), f("starts", s.starts), f("ends", s.ends);
  }
  template <class A>
  Rows<A> rows() const {
    return {reinterpret_cast<A*>(data), t, b, reinterpret_cast<const Index*>(starts), reinterpret_cast<const Index*>(ends)};
  }
};

// Packed weights of one layer and direction, by product of a step where there are several. A projection is one more product.
struct WeightArgs {
  std::string precision;         // of the products: exact, bfloat16, float16
  Index input, hidden, output;   // I, H, P
  ByProduct panels, transposed;  // [depth][H][column], [H][column][depth]; transposed: null for inference
  Address bias, units;           // [H][column], [gains, params][H]
  Scalars scalars;               // numbers of the whole call that the cell reads
  ByProduct stream_panels;       // as fragments; null for words of more than 2 bytes
  Address stream_transposed;
  Address loop_panels, loop_transposed;  // of the kernel in which a block runs all steps; null where there is none
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("precision", s.precision), f("input", s.input), f("hidden", s.hidden), f("output", s.output);
    f("panels", s.panels), f("transposed", s.transposed), f("bias", s.bias), f("units", s.units);
    f("scalars", s.scalars);
    f("stream_panels", s.stream_panels), f("stream_transposed", s.stream_transposed);
    f("loop_panels", s.loop_panels), f("loop_transposed", s.loop_transposed);
  }
};

// Recurrent weights of kernels that partition them among multiprocessors, by phase of a step. All null: none.
struct SharedArgs {
  ByPhase panels, scales, transposed, transposed_scales;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("panels", s.panels), f("scales", s.scales), f("transposed", s.transposed), f("transposed_scales", s.transposed_scales);
  }
};

// One layer and direction of a pass: see Problem.
struct LayerArgs {
  WeightArgs weights;
  SharedArgs shared;
  Index steps, batch;                    // T, B
  bool reverse;                          // from the last step to the first
  Address lengths, predecessors;         // [B], [T+1,B]: see Times
  RowsArgs x, px, y;                     // [T,B,I], [T,B,H,column], [T,B,P]
  Address h0, c0, restart_h, restart_c;  // [B,P], [B,H], [P], [H]
  Address gx;                            // [T,B,H,column]
  Address saved, cells, emitted;         // [T,B,saved,H], [T,B,H], [B,H] or [T,B,H]: see Problem
  Address state, saved_scratch;          // [B,H], [B,saved,H]
  ByProduct normed, normed_scratch;      // [T,B,H,column], the scratch of recurrent products [B,H,column]
  Address moments;                       // [T,B,norm,2]
  Address hn, cn;                        // [B,P], [B,H]
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("weights", s.weights), f("shared", s.shared), f("steps", s.steps), f("batch", s.batch), f("reverse", s.reverse);
    f("lengths", s.lengths), f("predecessors", s.predecessors), f("x", s.x), f("px", s.px), f("y", s.y);
    f("h0", s.h0), f("c0", s.c0), f("restart_h", s.restart_h), f("restart_c", s.restart_c);
    f("gx", s.gx), f("saved", s.saved), f("cells", s.cells), f("emitted", s.emitted);
    f("state", s.state), f("saved_scratch", s.saved_scratch), f("normed", s.normed), f("normed_scratch", s.normed_scratch);
    f("moments", s.moments), f("hn", s.hn), f("cn", s.cn);
  }
};

// What the backward pass of one layer and direction is given besides: see BackwardProblem.
struct GradientArgs {
  RowsArgs dy, dx, dcells;                             // [T,B,P], [T,B,I], [T,B,H]
  bool dx_add;                                         // add to dx instead
  Address dhn, dcn, dh0, dc0;                          // [B,P] of h, [B,H] of c
  Address dh, dc, demitted;                            // [B,P], [B,H], [B,H]
  Address slices;                                      // [slice,B,depth]; null where the plan launches no step
  ByProduct da, dproducts, sums, bias_sums, operands;  // see BackwardProblem; dproducts null: da
  Address dparams, param_sums;                         // [T,B,gains and params,H], [part,gains and params,H]
  Address restarts, scales, squares;                   // [B,P] and [B,H], [states,B], as restarts
  Address flow, cuts;                                  // [T,states,B], [T,B]
  double clip_value, clip_norm;                        // 0: no bound
  bool library;                                        // whether a library computes the products of rows
  Index first_part, last_part;                         // of the rows that are run now
  std::array<Address, 5> gradients;                    // weight_ih, weight_hh, bias_ih, bias_hh, weight_hr
  ByUnitWeight unit_gradients;                         // in the order of the cell's kUnitWeights
  Address drestart_h, drestart_c;                      // [P], [H]
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("dy", s.dy), f("dx", s.dx), f("dcells", s.dcells), f("dx_add", s.dx_add);
    f("dhn", s.dhn), f("dcn", s.dcn), f("dh0", s.dh0), f("dc0", s.dc0), f("dh", s.dh), f("dc", s.dc), f("demitted", s.demitted);
    f("slices", s.slices), f("da", s.da), f("dproducts", s.dproducts), f("sums", s.sums), f("bias_sums", s.bias_sums),
        f("operands", s.operands);
    f("dparams", s.dparams), f("param_sums", s.param_sums);
    f("restarts", s.restarts), f("scales", s.scales), f("squares", s.squares), f("flow", s.flow), f("cuts", s.cuts);
    f("clip_value", s.clip_value), f("clip_norm", s.clip_norm), f("library", s.library);
    f("first_part", s.first_part), f("last_part", s.last_part), f("gradients", s.gradients), f("unit_gradients", s.unit_gradients);
    f("drestart_h", s.drestart_h), f("drestart_c", s.drestart_c);
  }
};

// See Plan.
struct PlanArgs {
  Index loop, rows, units, peers, groups, span, co_launched;
  bool loop_split, layer_pipelined;
  Index cluster;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("loop", s.loop), f("loop_split", s.loop_split), f("rows", s.rows), f("units", s.units), f("peers", s.peers);
    f("groups", s.groups), f("span", s.span), f("co_launched", s.co_launched), f("layer_pipelined", s.layer_pipelined);
    f("cluster", s.cluster);
  }
  Plan plan() const {
    return {int(loop), loop_split, int(rows), int(units), int(peers), int(groups), span, int(co_launched), layer_pipelined, int(cluster)};
  }
};

// One pass over a layer, or over two that run together; which, the action says: forward, backward, through_time, products (two
// halves of backward), recompute, or add (the sums of parts to the gradients).
struct PassArgs {
  std::vector<LayerArgs> layers;
  std::vector<GradientArgs> gradients;  // empty in the forward pass
  PlanArgs plan;
  Address exchange, carry, host_status;  // of kernels that exchange words
  Index spin_limit;                      // 0: as compiled
  Index chunks;                          // parts of the sums that `add` adds up
  Index launches;                        // about: whether recording them pays
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("layers", s.layers), f("gradients", s.gradients), f("plan", s.plan);
    f("exchange", s.exchange), f("carry", s.carry), f("host_status", s.host_status), f("spin_limit", s.spin_limit);
    f("chunks", s.chunks), f("launches", s.launches);
  }
};

// Weights as the user holds them, and where they are packed to.
struct PackArgs {
  Address weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  WeightArgs weights;
  Index loop;       // register capacity of the kernel in which a block runs all steps; 0: none
  bool loop_split;  // whether it multiplies a float as two words of 2 bytes
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("weight_ih", s.weight_ih), f("weight_hh", s.weight_hh), f("bias_ih", s.bias_ih), f("bias_hh", s.bias_hh);
    f("weight_hr", s.weight_hr), f("weights", s.weights), f("loop", s.loop), f("loop_split", s.loop_split);
  }
};

// Recurrent weights for blocks of so many units, made of packed ones. `upstream`: of two pipelined layers it is the one that
// takes in what the other one sends.
struct PackSharedArgs {
  WeightArgs weights;
  SharedArgs shared;
  PlanArgs plan;
  bool upstream;
  Address transposed_upstream;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("weights", s.weights), f("shared", s.shared), f("plan", s.plan), f("upstream", s.upstream);
    f("transposed_upstream", s.transposed_upstream);
  }
};

struct TimesArgs {
  Index steps, batch;
  Address lengths, resets, mask, held, restarted, resets_after, predecessors;
  bool repeat, from_end;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("steps", s.steps), f("batch", s.batch), f("lengths", s.lengths), f("resets", s.resets), f("mask", s.mask), f("held", s.held);
    f("restarted", s.restarted), f("resets_after", s.resets_after), f("predecessors", s.predecessors), f("repeat", s.repeat);
    f("from_end", s.from_end);
  }
};

struct DropArgs {  // of the outputs [T,B,D*H] of a layer
  Address from, to;
  Index steps, batch, hidden, directions, layer, first_step;
  double rate;
  std::uint64_t key;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("from", s.from), f("to", s.to), f("steps", s.steps), f("batch", s.batch), f("hidden", s.hidden);
    f("directions", s.directions), f("layer", s.layer), f("first_step", s.first_step), f("rate", s.rate), f("key", s.key);
  }
};

struct DropFlatArgs {  // of [count] elements
  Address from, to;
  Index count;
  double rate;
  std::uint64_t key;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("from", s.from), f("to", s.to), f("count", s.count), f("rate", s.rate), f("key", s.key);
  }
};

struct ScatterArgs {  // rows [count,width] are added to a table [rows,width], by sorted ids
  Address from, ids, order, to;
  Index count, width, rows;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("from", s.from), f("ids", s.ids), f("order", s.order), f("to", s.to), f("count", s.count), f("width", s.width), f("rows", s.rows);
  }
};

struct MatmulArgs {  // out [rows,columns] = a [rows,depth] b [depth,columns]; strides in elements
  Address a, b, out;
  Index rows, columns, depth, a_row, a_k, b_k, b_column;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("a", s.a), f("b", s.b), f("out", s.out), f("rows", s.rows), f("columns", s.columns), f("depth", s.depth);
    f("a_row", s.a_row), f("a_k", s.a_k), f("b_k", s.b_k), f("b_column", s.b_column);
  }
};

struct CopyRowsArgs {  // [steps,batch,width] to the rows of steps from `first` on, or added to them
  Address from;
  RowsArgs to;
  Index steps, batch, width, first;
  bool add;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("from", s.from), f("to", s.to), f("steps", s.steps), f("batch", s.batch), f("width", s.width), f("first", s.first), f("add", s.add);
  }
};

struct AdamArgs {  // of [count] elements; `where` is a bool that says whether anything changes, or none
  Address p, g, m, v, where;
  Index count;
  double rate, beta1, beta2, eps, weight_decay, correction1, correction2;
  bool decoupled;
  template <class S, class F>
  static void fields(S& s, F&& f) {
    f("p", s.p), f("g", s.g), f("m", s.m), f("v", s.v), f("where", s.where), f("count", s.count), f("rate", s.rate);
    f("beta1", s.beta1), f("beta2", s.beta2), f("eps", s.eps), f("weight_decay", s.weight_decay), f("correction1", s.correction1);
    f("correction2", s.correction2), f("decoupled", s.decoupled);
  }
};

// ---- from a dictionary ----

template <class S>
void read_fields(const py::handle& value, const std::string& path, S* to);

inline void read_field(const py::handle& value, const std::string&, bool* to) { *to = value.cast<bool>(); }
inline void read_field(const py::handle& value, const std::string&, Index* to) { *to = value.cast<Index>(); }
inline void read_field(const py::handle& value, const std::string&, double* to) { *to = value.cast<double>(); }
inline void read_field(const py::handle& value, const std::string&, std::string* to) { *to = value.cast<std::string>(); }
inline void read_field(const py::handle& value, const std::string&, std::uint64_t* to) {  // an address, or a key
  *to = value.is_none() ? 0 : value.cast<std::uint64_t>();
}
template <std::size_t N>
void read_field(const py::handle& value, const std::string& path, std::array<Address, N>* to) {
  const auto items = value.cast<py::sequence>();
  if (items.size() > N) fail(path, "at most " + std::to_string(N) + " addresses", std::to_string(items.size()));
  to->fill(0);
  for (std::size_t i = 0; i < items.size(); ++i) read_field(items[i], path, &(*to)[i]);
}
inline void read_field(const py::handle& value, const std::string& path, Scalars* to) {
  const auto items = value.cast<py::sequence>();
  if (items.size() > to->size()) fail(path, "at most " + std::to_string(to->size()) + " numbers", std::to_string(items.size()));
  to->fill(0);
  for (std::size_t i = 0; i < items.size(); ++i) (*to)[i] = py::float_(items[i]);
}
template <class S>
void read_field(const py::handle& value, const std::string& path, std::vector<S>* to) {
  for (const py::handle item : value.cast<py::sequence>()) to->emplace_back(), read_fields(item, path, &to->back());
}
inline void read_field(const py::handle& value, const std::string& path, RowsArgs* to) {
  value.is_none() ? void(*to = {}) : read_fields(value, path, to);
}
template <class S>
void read_field(const py::handle& value, const std::string& path, S* to) {
  read_fields(value, path, to);
}

template <class S>
void read_fields(const py::handle& value, const std::string& path, S* to) {
  const auto given = value.cast<py::dict>();
  std::size_t known = 0;
  S::fields(*to, [&](const char* name, auto& field) {
    const py::str key(name);
    const std::string at = path + "." + name;
    if (!given.contains(key)) fail(at, "a value", "none");
    const py::object item = given[key];
    read_field(item, at, &field);
    ++known;
  });
  if (known == given.size()) return;
  for (const auto& item : given) {
    bool found = false;
    const auto name = item.first.cast<std::string>();
    S::fields(*to, [&](const char* field, auto&) { found |= name == field; });
    if (!found) fail(path, "the fields that it has", "'" + name + "'");
  }
}
template <class S>
S args_of(const py::dict& values, const std::string& what) {
  S out{};
  read_fields(values, what, &out);
  return out;
}

// ---- a key of all fields ----

template <class S>
void add_to_key(const S& s, std::string* key);
template <class A>
void add_bytes(const A& value, std::string* key) {
  key->append(reinterpret_cast<const char*>(&value), sizeof value);
}
inline void add_field(bool v, std::string* key) { add_bytes(v, key); }
inline void add_field(Index v, std::string* key) { add_bytes(v, key); }
inline void add_field(std::uint64_t v, std::string* key) { add_bytes(v, key); }
inline void add_field(double v, std::string* key) { add_bytes(v, key); }
inline void add_field(const std::string& v, std::string* key) { (*key += v) += ';'; }
template <std::size_t N>
void add_field(const std::array<Address, N>& v, std::string* key) {
  add_bytes(v, key);
}
inline void add_field(const Scalars& v, std::string* key) { add_bytes(v, key); }
template <class S>
void add_field(const std::vector<S>& v, std::string* key) {
  add_bytes(v.size(), key);
  for (const S& item : v) add_to_key(item, key);
}
template <class S>
void add_field(const S& s, std::string* key) {
  add_to_key(s, key);
}
template <class S>
void add_to_key(const S& s, std::string* key) {
  S::fields(s, [&](const char*, const auto& field) { add_field(field, key); });
}

// Names of the fields of a struct, for the test that compares them with Python's.
template <class S>
py::list field_names() {
  py::list out;
  S one{};
  S::fields(one, [&](const char* name, auto&) { out.append(name); });
  return out;
}

}  // namespace ost::OST_SET
