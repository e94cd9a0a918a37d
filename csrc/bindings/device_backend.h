// The backend of a device: arrays of its array library, and launches by Python (ostinato/_backend.py). The GIL is held.
#pragma once
#include "../stack.h"
#include "arrays.h"

namespace ost {

// A Python object as the owner of memory, or as something that only a backend can read.
inline std::shared_ptr<void> held(py::object object) { return std::make_shared<py::object>(std::move(object)); }
inline const py::object& held_object(const std::shared_ptr<void>& owner) { return *static_cast<const py::object*>(owner.get()); }

inline py::object address(const void* p) { return p ? py::object(py::int_(reinterpret_cast<std::uintptr_t>(p))) : py::none(); }
template <class A>
A* pointer_to(const py::object& device, const py::object& array) {
  return array.is_none() ? nullptr : reinterpret_cast<A*>(device.attr("address")(array).template cast<std::uintptr_t>());
}

template <class T>
class DeviceBackend final : public Backend<T> {
 public:
  explicit DeviceBackend(py::object launcher) : Backend<T>(false), python_(std::move(launcher)), device_(python_.attr("device")) {}
  const py::object& python() const { return python_; }
  const py::object& device() const { return device_; }

  Buffer<T> allocate(Index count, const char*) const override {
    const auto array = make_array<T>(device_, {count});
    return {held(array.object), array.data, count};
  }

  std::vector<GroupPlan> plan(const PackedStack<T>&, const StackCall<T>& call, const StackGradients<T>* g) const override {
    const bool by_step = g && (g->clip_norm > 0 || g->flow);
    const bool steady =
        !call.device_times[0].predecessors && !call.device_times[1].predecessors && !call.dropout && !by_step && !(g && g->cuts);
    std::vector<GroupPlan> out;
    for (const py::handle group : python_.attr("groups")(call.steps, call.batch, g != nullptr, steady, by_step)) {
      const auto [first, layers, planned] = group.cast<std::tuple<Index, Index, py::object>>();
      out.push_back({first, layers, {}, layers > 1, held(planned)});
    }
    return out;
  }

  void save(const PackedStack<T>&, const StackCall<T>&, Tape<T>*, ForwardCall<T>*) const override {}  // `forward` returns it

  int forward(const PackedStack<T>& packed, const StackCall<T>& call, const GroupPlan& group, const std::vector<ForwardCall<T>>& calls,
              Tape<T>* tape) const override {
    py::list given;
    for (const ForwardCall<T>& f : calls) {
      const Index part = f.weights - packed.parts.data();
      given.append(python_.attr("forward_call")(part, rows(f.x, part < packed.shape.directions ? call.flat_rows : 0), rows(f.y),
                                                pair(f.h0, f.c0), pair(f.hn, f.cn), address(f.times.predecessors),
                                                pair(f.restart_h, f.restart_c)));
    }
    const py::list passes = python_.attr("forward")(given, sizes(call), held_object(group.planned), address(calls[0].times.lengths),
                                                    tape != nullptr, tape && tape->states_only);
    for (const py::handle pass : passes) tape->passes.push_back(held(py::reinterpret_borrow<py::object>(pass)));
    return kOk;
  }

  int backward(const Tape<T>& tape, const StackGradients<T>& g, const GroupPlan& group,
               const std::vector<BackwardCall<T>>& calls) const override {
    py::list given;
    for (const BackwardCall<T>& b : calls) {
      const RawGradients<T>& to = b.gradients;
      given.append(python_.attr("backward_call")(held_object(tape.passes[b.weights - tape.packed->parts.data()]), optional_rows(b.dy),
                                                 pair(b.dhn, b.dcn), pair(b.dh0, b.dc0), gradient_addresses(tape.packed->traits(), to),
                                                 optional_rows(b.dx), b.dx_add, optional_rows(b.control.dcells),
                                                 pair(b.drestart_h, b.drestart_c), address(b.control.flow)));
    }
    if (!g.scratch) g.scratch = held(python_.attr("scratch")());
    python_.attr("backward")(given, held_object(group.planned), g.clip_value, g.clip_norm, address(g.cuts), held_object(g.scratch));
    return kOk;
  }

  void drop(const StackShape&, Index layer, const StackCall<T>& call, const T* from, T* to) const override {
    python_.attr("drop")(address(from), address(to), sizes(call), layer, call.dropout, call.key, call.first_step);
  }

 private:
  static py::tuple sizes(const StackCall<T>& call) { return py::make_tuple(call.steps, call.batch); }
  // In the order of the weights that `pack` is given.
  static py::list gradient_addresses(const CellTraits& traits, const RawGradients<T>& to) {
    py::list out;
    for (const T* weight : {to.weight_ih, to.weight_hh, to.bias_ih, to.bias_hh}) out.append(address(weight));
    for (int k = 0, row = 0; k < traits.unit_weights; row += traits.units[k++].rows) out.append(address(to.units[row]));
    if (!traits.unit_weights) out.append(py::none());  // the place of weights that this cell has none of
    if (traits.projected) out.append(address(to.weight_hr));
    return out;
  }
  static py::tuple pair(const T* h, const T* c) { return py::make_tuple(address(h), address(c)); }
  // `count`: the rows of a flat array, all of which the product of a library reads.
  template <class A>
  py::object rows(const Rows<A>& r, Index count = 0) const {
    return python_.attr("rows")(reinterpret_cast<std::uintptr_t>(r.data), r.t, r.b, address(r.starts), address(r.ends), count);
  }
  template <class A>
  py::object optional_rows(const Rows<A>& r) const {
    return r.data ? rows(r) : py::object(py::none());
  }

  py::object python_, device_;
};

}  // namespace ost
