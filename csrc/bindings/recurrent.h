// Stacks of recurrent layers as Python holds them: packed weights, a tape between a forward pass and its pullback, sums of
// gradients. What the files of these bindings share; the templates are instantiated where they are defined.
#pragma once
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"
#include "device_backend.h"

namespace ost {

template <class T>
const DeviceBackend<T>* on_device(const PackedStack<T>& packed) {
  return packed.backend->on_cpu ? nullptr : static_cast<const DeviceBackend<T>*>(packed.backend.get());
}
template <class T>
py::object device_of(const PackedStack<T>& packed) {
  const auto* backend = on_device(packed);
  return backend ? backend->device() : py::object(py::none());
}

// What Python holds between forward and pullback. The arrays are kept alive here.
template <class T>
struct PyTape : Shared {
  Tape<T> tape;
  py::object x, y, h0, c0, restart_h, restart_c, table;
  bool batch_first, resets, ragged;
  Index x_rows, y_rows;  // of ragged ones: the caller may give its array another shape
};

template <class T>
View<T> time_major(View<T> v, bool batch_first) {
  if (batch_first) std::swap(v.shape[0], v.shape[1]), std::swap(v.strides[0], v.strides[1]);
  return v;
}

inline std::vector<Axis> sequence_axes(Index steps, Index batch, const char* name, Index width, bool batch_first) {
  if (batch_first) return {{"B", batch}, {"T", steps}, {name, width}};
  return {{"T", steps}, {"B", batch}, {name, width}};
}

// Axes of the states of all layers and directions: of h, or of c; without B where `batch` is negative.
inline std::vector<Axis> state_axes(const StackShape& s, Index batch, bool hidden) {
  const Index parts = s.layers * s.directions;
  std::vector<Axis> axes{{parts == 1 ? "1" : "L*D", parts}};
  if (batch >= 0) axes.push_back({"B", batch});
  axes.push_back(hidden && s.output != s.hidden ? Axis{"P", s.output} : Axis{"H", s.hidden});
  return axes;
}

// Whether every (t, b) has a row of its own: the finer axis steps over whole rows, the coarser over all that the finer covers.
inline bool rows_are_apart(Index stride_t, Index stride_b, Index steps, Index batch, Index width) {
  const Index st = std::abs(stride_t), sb = std::abs(stride_b);
  if (steps * batch <= 1) return true;
  if (st >= sb) return (batch < 2 || sb >= width) && (steps < 2 || st >= (batch - 1) * sb + width);
  return (steps < 2 || st >= width) && (batch < 2 || sb >= (steps - 1) * st + width);
}

// Resets, mask and cuts: for every step of every row, or one for each of `rows` flat ones.
inline std::vector<Axis> flag_axes(bool ragged, Index steps, Index batch, Index rows) {
  return ragged ? std::vector<Axis>{{"N", rows}} : std::vector<Axis>{{"T", steps}, {"B", batch}};
}

// Sums of the weights' gradients that outlive a call: one for each layer and direction.
template <class T>
struct Sums : Shared {
  std::vector<Buffer<T>> parts;
  Index block_steps = 1, bytes = 0, batch = 0;
  std::shared_ptr<const PackedStack<T>> packed;  // that it was made for
  bool more = false;                             // whether it holds the sums of segments, and others are to follow
};

// ---- pack.cpp ----

inline constexpr const char* kPrecisions[kPrecisionCount] = {"exact", "bfloat16", "int8"};

template <class T>
Precision precision_named(const std::string& name, bool backward);

CellId cell_named(const std::string& name);

// `projection` is P of a projected cell, and 0 of the others, whose h is as wide as they have units.
StackShape shape_of(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, bool reverse, bool numbered,
                    Index projection);

// Raise unless there are kernels for the cell in that precision, and as many numbers of the call as it reads.
template <class T>
void check_cell(const CellTraits& traits, CellId cell, Precision precision, const std::string& name, std::size_t scalars);

template <class T>
std::shared_ptr<PackedStack<T>> pack_stack(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional,
                                           const py::sequence& weights, bool backward, bool reverse, const std::string& precision_name,
                                           bool numbered, Index projection, const py::sequence& scalars, const py::object& launcher);

// Arrays of one (layer, direction): weight_ih, weight_hh, bias_ih, bias_hh, of which the biases may be None; the cell's unit weights, or
// one None; and weight_hr of a cell that is projected. They are kept in `held` as long as the pointers are used.
template <class T, class Raw>
Raw raw_arrays(const StackShape& s, const CellTraits& traits, Index part, const py::sequence& arrays, const char* prefix, bool writable,
               std::vector<py::object>& held, const py::object& device);

// ---- forward.cpp ----

// What Python gives to a forward pass. Arrays may be None where it says so.
struct ForwardArguments {
  const py::object& x;                      // [T,B,I] ([B,T,I] where batch_first), or flat rows [N,I]; with a table the numbers of its rows
  const py::object &h0, &c0;                // [L*D,B,P] and [L*D,B,H], or None for zeros
  const py::object& lengths;                // [B], or None for T each
  bool batch_first;                         // of x and y
  const py::object& out;                    // where y goes, or None
  bool train;                               // whether a tape is kept
  double dropout;                           // between layers
  std::uint64_t key;                        // of the random numbers of dropout
  const py::object &resets, &mask;          // [T,B] or flat, or None
  bool repeat;                              // a step that is masked repeats the output before it
  const py::object &restart_h, &restart_c;  // [L*D,P] and [L*D,H] that a reset sets, or None for zeros
  Index first_step;                         // of a longer sequence that these steps belong to
  const py::object &held, &resets_after, &restarted;  // [B], or None: see set_times
  const py::object& order;                            // [B] in which rows are run, or None
  const py::object& starts;                           // [B], the first rows of flat sequences, or None
  Index span;                                         // T of flat sequences
  bool states_only;                                   // whether the tape leaves out what the backward pass can make again
  const py::object& table;                            // [V,I] that x looks up, or None
};
// Return (y, h_n, c_n, tape); the tape is None unless the pass is for training.
template <class T>
py::tuple forward(const std::shared_ptr<PackedStack<T>>& packed, const ForwardArguments& arguments);

// ---- backward.cpp ----

// What Python gives to a backward pass. Arrays may be None where it says so.
struct BackwardArguments {
  const py::object& dy;           // as y, or None for zeros
  const py::object &dhn, &dcn;    // as the states, or None for zeros
  const py::sequence& gradients;  // by layer and direction: arrays that gradients are added to, or None
  bool need_dx;                   // whether dx is made
  double clip_value, clip_norm;   // of the gradient of the state after every step; 0: no bound
  const py::object& cuts;         // [T,B] or flat: steps before which no gradient goes, or None
  const py::object& dcells;       // [L*D,T,B,H], gradients of c after every step, or None
  bool flow;                      // whether the norms of the states' gradients are kept
  const py::object& dx;           // where dx goes, or None
  bool dx_add;                    // whether dx is added to what is there
  bool resume, more;              // with `sums`: they hold those of other segments; others follow
  bool overwrite;                 // whether gradients go in the place of what the arrays hold, as if that were zero
  const py::object& drestart;     // (h, c) that the gradients of what resets set are added to, or None
};
// Return (dx, dh0, dc0, drestart_h, drestart_c, flow), with None for what was not asked for.
template <class T>
py::tuple backward(PyTape<T>& tape, const BackwardArguments& arguments, Sums<T>* sums);

template <class T>
std::shared_ptr<Sums<T>> sums(const std::shared_ptr<const PackedStack<T>>& packed, Index batch);

// What dropout leaves of the outputs y [T,B,D*H] of a layer that is run by itself: as in a stack.
template <class T>
void drop(const PackedStack<T>& packed, Index layer, const py::object& y, double rate, std::uint64_t key, Index first_step);

// ---- tape.cpp ----

// States and what the cell saves, [L*D,T,B,width]; which rows took part, [T,B].
template <class T>
py::object cells(const PyTape<T>& tape);
template <class T>
py::object hidden(const PyTape<T>& tape);
template <class T>
py::object active(const PyTape<T>& tape);
template <class T>
py::object saved(const PyTape<T>& tape, int k);

}  // namespace ost
