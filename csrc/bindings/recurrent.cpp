// The Python classes of packed stacks, tapes and sums, and what the module tells of cells and plans.
#include "recurrent.h"
#include "sizes.h"

#include <algorithm>

namespace ost {
namespace {

// How a call would be run: a list of groups of layers.
template <class T>
py::list plan(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, const std::string& precision_name,
              Index steps, Index batch, bool dropout, bool train, bool backward, Index projection) {
  const StackShape s = shape_of(cell, input, hidden, layers, bidirectional, false, true, projection);
  // Counted in doubles, as in shape_of: what is kept of a step is at most 16 values for each of a row's units.
  const double width = double(std::max({input, hidden, projection})),
               rows = double(std::max(check_size(steps, "steps"), Index(1))) * check_size(batch, "batch");
  if (double(layers) * rows * width > kMostElements) fail("steps", "at most 2^46 values of all steps", std::to_string(steps));
  const Precision precision = precision_named<T>(precision_name, train);
  const CellTraits& traits = kernels()->traits[int(s.cell)];
  check_cell<T>(traits, s.cell, precision, precision_name, std::size_t(traits.scalars));
  const auto& k = typed<T>(kernels()).cells[int(precision)][int(s.cell)];
  py::list out;
  for (const GroupPlan& g : stack_plan(k, s, steps, batch, dropout, backward)) {
    const CallPlan& p = g.plan;
    py::dict d;
    d["first_layer"] = g.first_layer, d["layers"] = g.layers;
    d["spread"] = p.spread, d["threads"] = p.threads, d["lanes"] = p.row_blocks, d["lane_rows"] = p.row_block_rows;
    d["block_steps"] = p.block_steps, d["together"] = p.concurrent;
    d["tile"] = py::make_tuple(p.tile_rows, p.tile_vectors);
    d["tape_bytes"] = p.tape_bytes, d["workspace_bytes"] = p.workspace_bytes, d["model_seconds"] = p.model_seconds;
    Index packed = 0;
    for (Index layer = g.first_layer; layer < g.first_layer + g.layers; ++layer)
      packed += s.directions * k.packed_size(s.layer_input(layer), s.widths(), train) * Index(sizeof(T));
    d["packed_bytes"] = packed;
    out.append(d);
  }
  return out;
}

// The arguments by name, as Python gives them.
template <class T>
py::tuple call_forward(const std::shared_ptr<PackedStack<T>>& packed, const py::object& x, const py::object& h0, const py::object& c0,
                       const py::object& lengths, bool batch_first, const py::object& out, bool train, double dropout, std::uint64_t key,
                       const py::object& resets, const py::object& mask, bool repeat, const py::object& restart_h,
                       const py::object& restart_c, Index first_step, const py::object& held, const py::object& resets_after,
                       const py::object& restarted, const py::object& order, const py::object& starts, Index span, bool states_only,
                       const py::object& table) {
  return forward(packed,
                 {x,         h0,        c0,         lengths, batch_first,  out,       train, dropout, key,  resets,      mask, repeat,
                  restart_h, restart_c, first_step, held,    resets_after, restarted, order, starts,  span, states_only, table});
}
template <class T>
py::tuple call_backward(PyTape<T>& tape, const py::object& dy, const py::object& dhn, const py::object& dcn, const py::sequence& gradients,
                        bool need_dx, double clip_value, double clip_norm, const py::object& cuts, const py::object& dcells, bool flow,
                        const py::object& dx, bool dx_add, Sums<T>* sums, bool resume, bool more, const py::object& drestart,
                        bool overwrite) {
  return backward(
      tape, {dy, dhn, dcn, gradients, need_dx, clip_value, clip_norm, cuts, dcells, flow, dx, dx_add, resume, more, overwrite, drestart},
      sums);
}

template <class T>
void bind_typed(py::module_& m, const char* packed_name, const char* tape_name) {
  using Packed = PackedStack<T>;
  py::class_<Packed, std::shared_ptr<Packed>>(m, packed_name)
      .def(py::init(&pack_stack<T>), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
           py::arg("bidirectional"), py::arg("weights"), py::arg("backward"), py::arg("reverse") = false, py::arg("precision") = "exact",
           py::arg("numbered") = true, py::arg("proj_size") = 0, py::arg("scalars") = py::tuple(), py::arg("backend") = py::none())
      .def_property_readonly("precision",
                             [](const Packed& p) {
                               const auto* backend = on_device(p);
                               return backend ? py::object(backend->python().attr("precision"))
                                              : py::object(py::str(kPrecisions[int(p.precision)]));
                             })
      .def_property_readonly("backend",
                             [](const Packed& p) {
                               const auto* backend = on_device(p);
                               return backend ? backend->python() : py::object(py::none());
                             })
      .def_property_readonly("kernels", [](const Packed& p) { return std::string(p.table->name); })
      .def_property_readonly("backward", [](const Packed& p) { return p.backward; })
      .def_property_readonly("input_size", [](const Packed& p) { return p.shape.input; })
      .def_property_readonly("hidden_size", [](const Packed& p) { return p.shape.hidden; })
      .def_property_readonly("output_size", [](const Packed& p) { return p.shape.output; })
      .def_property_readonly("layers", [](const Packed& p) { return p.shape.layers; })
      .def_property_readonly("reverse", [](const Packed& p) { return p.shape.reverse; })
      .def_property_readonly("cell", [](const Packed& p) { return std::string(p.traits().name); })
      .def("forward", &call_forward<T>, py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths") = py::none(),
           py::arg("batch_first") = false, py::arg("out") = py::none(), py::kw_only(), py::arg("train") = false, py::arg("dropout") = 0.0,
           py::arg("key") = 0, py::arg("resets") = py::none(), py::arg("mask") = py::none(), py::arg("repeat") = false,
           py::arg("restart_h") = py::none(), py::arg("restart_c") = py::none(), py::arg("first_step") = 0, py::arg("held") = py::none(),
           py::arg("resets_after") = py::none(), py::arg("restarted") = py::none(), py::arg("order") = py::none(),
           py::arg("starts") = py::none(), py::arg("span") = 0, py::arg("states_only") = false, py::arg("table") = py::none())
      .def(
          "sums", [](const std::shared_ptr<Packed>& packed, Index batch) { return sums<T>(packed, batch); }, py::arg("batch"))
      .def("drop", &drop<T>, py::arg("layer"), py::arg("y"), py::arg("rate"), py::arg("key"), py::arg("first_step"));
  py::class_<Sums<T>, std::shared_ptr<Sums<T>>>(m, (std::string("Sums") + (packed_name + 6)).c_str())
      .def_readonly("block_steps", &Sums<T>::block_steps)
      .def_readonly("bytes", &Sums<T>::bytes);
  py::class_<PyTape<T>, std::shared_ptr<PyTape<T>>>(m, tape_name)
      .def("backward", &call_backward<T>, py::arg("dy"), py::arg("dh_n"), py::arg("dc_n"), py::arg("grads"), py::arg("need_dx"),
           py::arg("clip_value") = 0.0, py::arg("clip_norm") = 0.0, py::arg("cuts") = py::none(), py::arg("dcells") = py::none(),
           py::arg("flow") = false, py::arg("dx") = py::none(), py::arg("dx_add") = false, py::arg("sums") = py::none(),
           py::arg("resume") = false, py::arg("more") = false, py::arg("drestart") = py::none(), py::arg("overwrite") = false)
      .def_property_readonly("bytes",
                             [](const PyTape<T>& t) {
                               Index n = 0;
                               for (const auto* list : {&t.tape.saved, &t.tape.cells, &t.tape.outputs, &t.tape.dropped, &t.tape.projected})
                                 for (const Buffer<T>& b : *list) n += b.bytes();
                               for (const auto& pass : t.tape.passes) n += held_object(pass).attr("bytes").template cast<Index>();
                               return n;
                             })
      .def_property_readonly("shape", [](const PyTape<T>& t) { return py::make_tuple(t.tape.call.steps, t.tape.call.batch); })
      .def("cells", &cells<T>)
      .def("hidden", &hidden<T>)
      .def("active", &active<T>)
      .def("saved", &saved<T>, py::arg("k"));
}

// What the module tells of the cells.
void bind_cells(py::module_& m) {
  m.def("cells", [] {
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::dict d;
      d["gates"] = t.gates, d["states"] = t.states, d["params"] = t.params, d["saved"] = t.saved;
      d["tape"] = t.saved + t.deviations[0] + t.deviations[1], d["scalars"] = t.scalars;
      if (t.projected) d["projected"] = 1;
      out[t.name] = d;
    }
    return out;
  });
  // By cell: the names of its unit weights, their rows, and whether they are flat.
  m.def("unit_weights", [] {
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::list list;
      for (int k = 0; k < t.unit_weights; ++k) list.append(py::make_tuple(t.units[k].name, t.units[k].rows, t.units[k].flat));
      out[t.name] = list;
    }
    return out;
  });
  // By cell and driver: what the driver lacks for it, or nothing.
  m.def("drivers", [] {
    constexpr const char* names[kDriverCount] = {"plain", "cpu", "step", "stream", "loop", "persistent", "cluster"};
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::dict d;
      for (int i = 0; i < kDriverCount; ++i) d[names[i]] = t.lacks[i] ? t.lacks[i] : "";
      out[t.name] = d;
    }
    return out;
  });
}

}  // namespace

void bind_recurrent(py::module_& m) {
  bind_typed<float>(m, "PackedFloat32", "TapeFloat32");
  bind_typed<double>(m, "PackedFloat64", "TapeFloat64");
  bind_cells(m);
  m.def(
      "plan",
      [](int itemsize, const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, const std::string& precision,
         Index steps, Index batch, bool dropout, bool train, bool backward, Index projection) {
        if (itemsize != 4 && itemsize != 8) fail("itemsize", "4 or 8", std::to_string(itemsize));
        return (itemsize == 4 ? plan<float> : plan<double>)(cell, input, hidden, layers, bidirectional, precision, steps, batch, dropout,
                                                            train, backward, projection);
      },
      py::arg("itemsize"), py::arg("cell"), py::arg("input"), py::arg("hidden"), py::arg("layers"), py::arg("bidirectional"),
      py::arg("precision"), py::arg("steps"), py::arg("batch"), py::arg("dropout"), py::arg("train"), py::arg("backward"),
      py::arg("proj_size") = 0);
  // An array whose memory is kept for another one when it is freed. It is not filled.
  m.def(
      "kept_array",
      [](const py::dtype& dtype, const py::sequence& sizes) {
        if (dtype.kind() != 'f') fail("dtype", "a dtype of floats", std::string(py::str(dtype)));  // memory as it comes is no object
        check_sequence(sizes, "shape");
        std::vector<py::ssize_t> shape;
        py::ssize_t bytes = dtype.itemsize();
        for (const py::handle n : sizes) {
          shape.push_back(n.cast<py::ssize_t>());
          if (shape.back() < 0 || __builtin_mul_overflow(bytes, shape.back(), &bytes))
            fail("shape", "sizes whose array fits in memory", std::string(py::str(sizes)));
        }
        void* block = allocate_block(std::size_t(bytes));
        if (!block) throw std::bad_alloc();
        return py::array(dtype, shape, block, py::capsule(block, &free_block));
      },
      py::arg("dtype"), py::arg("shape"));
  m.def("balance_rows", [](const py::object& lengths) {
    const auto v = view<Index>(lengths, "lengths", {{"B", -1}}, Strides::kContiguous);
    const std::vector<Index> order = balance_rows(std::vector<Index>(v.data, v.data + v.shape[0]));
    auto out = new_array<Index>({v.shape[0]});
    std::copy(order.begin(), order.end(), out.mutable_data());
    return out;
  });
  // The table of what each step starts from, [T+1,B], which kernels that are given addresses need.
  m.def("times_table", [](Index steps, Index batch, const py::object& lengths, const py::object& resets, const py::object& mask,
                          bool repeat, bool reverse) {
    const auto lv = optional_view<Index>(lengths, "lengths", {{"B", batch}}, Strides::kContiguous);
    const auto rv = optional_view<std::uint8_t>(resets, "resets", {{"T", steps}, {"B", batch}}, Strides::kContiguous);
    const auto mv = optional_view<std::uint8_t>(mask, "mask", {{"T", steps}, {"B", batch}}, Strides::kContiguous);
    if (!rv.data && !mv.data) fail("resets, mask", "one of them", "None");
    StackCall<float> call;
    call.steps = steps, call.batch = batch;
    set_times(call, {CellId::kGru, 1, 1, 1, 1, 1, reverse}, lv.data, rv.data, mv.data, repeat);
    py::array_t<std::int32_t> out(std::vector<py::ssize_t>{steps + 1, batch});
    std::copy(call.predecessors[reverse].begin(), call.predecessors[reverse].end(), out.mutable_data());
    return out;
  });
  m.def("philox_word", &philox_word, py::arg("key"), py::arg("layer_direction"), py::arg("t"), py::arg("b"), py::arg("unit"));
}

}  // namespace ost
