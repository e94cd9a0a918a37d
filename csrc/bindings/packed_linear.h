// The weights of a Linear layer, packed by one kernel set.
#pragma once
#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"

namespace ost {

template <class T>
struct PackedLinear : Shared {
  const KernelTable* table;
  Index input, output;
  bool backward;
  Buffer<T> memory;

  PackedLinear(const py::object& weight, const py::object& bias, bool backward) : table(kernels()), backward(backward) {
    const auto w = view<const T>(weight, "weight", {{"O", -1}, {"I", -1}}, Strides::kContiguous);
    output = w.shape[0], input = w.shape[1];
    if (output < 1 || input < 1) fail("weight", "shape (O, I) of at least (1, 1)", text_of(w.shape));
    const auto b = optional_view<const T>(bias, "bias", {{"O", output}});
    const auto& k = typed<T>(table).linear;
    memory = Buffer<T>(k.packed_size(input, output, backward), "packed weights");
    GilRelease release;
    k.pack(w.data, b.data, input, output, backward, memory.get());
  }

  py::array_t<T> forward(const py::object& x) const {
    const auto xv = view<const T>(x, "x", {{"N", -1}, {"I", input}});
    auto y = new_array<T>({xv.shape[0], output});
    T* to = y.mutable_data();
    int status;
    {
      GilRelease release;
      status = typed<T>(table).linear.forward(memory.get(), xv.shape[0], input, output, xv.data, xv.strides[0], to);
    }
    check_status(status);
    return y;
  }

  py::object run_backward(const py::object& x, const py::object& dy, const py::object& dweight, const py::object& dbias,
                          bool need_dx) const {
    if (!backward) fail("packed", "weights packed for training", "weights packed for inference only");
    const auto xv = view<const T>(x, "x", {{"N", -1}, {"I", input}});
    const auto dyv = view<const T>(dy, "dy", {{"N", xv.shape[0]}, {"O", output}}, Strides::kContiguous);
    const auto dw = optional_view<T>(dweight, "grads: weight", {{"O", output}, {"I", input}}, Strides::kContiguous, true);
    const auto db = optional_view<T>(dbias, "grads: bias", {{"O", output}}, Strides::kContiguous, true);
    Memory ranges;
    ranges.reads(xv, "x"), ranges.reads(dyv, "dy");
    if (dw.data) ranges.writes(dw, "grads: weight");
    if (db.data) ranges.writes(db, "grads: bias");
    ranges.check();
    py::object dx = py::none();
    T* to = nullptr;
    if (need_dx) {
      auto array = new_array<T>({xv.shape[0], input});
      to = array.mutable_data();
      dx = array;
    }
    int status;
    {
      GilRelease release;
      status =
          typed<T>(table).linear.backward(memory.get(), xv.shape[0], input, output, xv.data, xv.strides[0], dyv.data, to, dw.data, db.data);
    }
    check_status(status);
    return dx;
  }
};

}  // namespace ost
