// What a tape tells of the forward pass that made it: states and gates of every step.
#include <cstring>

#include "recurrent.h"

namespace ost {
namespace {

// Rows [part][T,B,width] (or [B,T,width]) of something that the tape holds; zeros where a row does not take part.
template <class T, class F>
py::array_t<T> tape_rows(const PyTape<T>& t, Index width, F&& copy) {
  const StackCall<T>& call = t.tape.call;
  const StackShape& s = t.tape.packed->shape;
  const Index parts = s.layers * s.directions, n = call.steps * call.batch;
  auto array = t.batch_first ? new_array<T>({parts, call.batch, call.steps, width}) : new_array<T>({parts, call.steps, call.batch, width});
  T* out = array.mutable_data();
  for (Index part = 0; part < parts; ++part)
    for (Index i = 0; i < n; ++i) {
      const Index step = i / call.batch, position = i % call.batch, b = call.order.empty() ? position : call.order[position];
      T* row = out + (part * n + (t.batch_first ? b * call.steps + step : step * call.batch + b)) * width;
      if (takes_part(call, step, b))
        copy(part, call.tape.empty() ? i : call.tape[b] + step, step, b, row);
      else
        std::memset(row, 0, std::size_t(width) * sizeof(T));
    }
  return array;
}
// Ask the library of a device's arrays about the tape.
template <class T, class... A>
py::object ask_device(const PyTape<T>& t, const char* what, A&&... rest) {
  py::list passes;
  for (const auto& pass : t.tape.passes) passes.append(held_object(pass));
  return on_device(*t.tape.packed)
      ->python()
      .attr(what)(passes, held_object(t.tape.call.device_tables), t.batch_first, std::forward<A>(rest)...);
}
}  // namespace

template <class T>
py::object cells(const PyTape<T>& t) {
  const PackedStack<T>& packed = *t.tape.packed;
  if (packed.traits().states < 2) throw py::type_error(std::string("cells: expected a cell with two states, got ") + packed.traits().name);
  if (on_device(packed)) return ask_device(t, "cells");
  const Index h = packed.shape.hidden, padded = packed.padded_hidden();
  return tape_rows(t, h, [&](Index part, Index i, Index, Index, T* row) {
    std::memcpy(row, t.tape.cells[part].get() + i * padded, std::size_t(h) * sizeof(T));
  });
}
template <class T>
py::object hidden(const PyTape<T>& t) {
  const StackShape& s = t.tape.packed->shape;
  const StackCall<T>& call = t.tape.call;
  if (on_device(*t.tape.packed)) return ask_device(t, "hidden", t.y);
  return tape_rows(t, s.output, [&](Index part, Index, Index step, Index b, T* row) {
    const Index layer = part / s.directions;
    const T* from = layer + 1 < s.layers ? t.tape.outputs[layer].get() + (step * call.batch + b) * s.width()
                    : call.y.starts      ? call.y.data + (call.y.starts[b] + step) * call.y.t
                                         : call.y.data + step * call.y.t + b * call.y.b;
    std::memcpy(row, from + part % s.directions * s.output, std::size_t(s.output) * sizeof(T));
  });
}
template <class T>
py::object active(const PyTape<T>& t) {
  const StackCall<T>& call = t.tape.call;
  if (const auto* backend = on_device(*t.tape.packed)) return backend->python().attr("active")(held_object(call.device_tables));
  py::array_t<bool> out(std::vector<py::ssize_t>{call.steps, call.batch});
  bool* to = out.mutable_data();
  for (Index i = 0, n = call.steps * call.batch; i < n; ++i) to[i] = takes_part(call, i / call.batch, i % call.batch);
  return out;
}
template <class T>
py::object saved(const PyTape<T>& t, int k) {
  const PackedStack<T>& packed = *t.tape.packed;
  const int count = packed.traits().saved;
  if (t.tape.states_only) throw py::type_error("gates: expected a pass that keeps them, got one that keeps the states only");
  if (k < 0 || k >= count) fail("k", "a number from 0 to " + std::to_string(count - 1), std::to_string(k));
  if (on_device(packed)) return ask_device(t, "saved", k);
  const Index h = packed.shape.hidden;
  return tape_rows(t, h, [&](Index part, Index i, Index, Index, T* row) {
    const bool ahead = t.tape.call.lookup.ids.data && part < packed.shape.directions;
    packed.cell().saved(t.tape.saved[part].get() + i * packed.tape_width(ahead), h, k, row);
  });
}

#define OST_TAPE(T)                             \
  template py::object cells(const PyTape<T>&);  \
  template py::object hidden(const PyTape<T>&); \
  template py::object active(const PyTape<T>&); \
  template py::object saved(const PyTape<T>&, int);
OST_TAPE(float)
OST_TAPE(double)
#undef OST_TAPE

}  // namespace ost
