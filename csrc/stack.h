// The order of layers and directions, forward and backward: one stack a call, on every device. Compiled once; it knows
// kernels only through a backend, which allocates and launches. y of a layer is [T,B,D*P]: forward half first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cpu/pool.h"
#include "kernel_table.h"

namespace ost {

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(const std::string& what) : text(what) {}
  const char* what() const noexcept override { return text.c_str(); }
  std::string text;
};

// Base of what Python holds by a shared_ptr, which std::make_shared made. Where pybind11 has no memory to register an object, it
// deletes what it was given although the shared_ptr owns it: of these types that does nothing.
struct Shared {
  static void operator delete(void*) {}
};

// Memory of a backend: on the CPU 64-byte aligned, and an error names what it was for and how many bytes. What the pointer
// belongs to is kept alive.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Index count, const char* what) : count_(count) {
    const bool possible = count >= 0 && count <= (PTRDIFF_MAX - 64) / Index(sizeof(T));
    void* p = possible ? allocate_block(std::size_t(count) * sizeof(T) + 64) : nullptr;
    if (!p)
      throw OutOfMemory(std::string(what) + ": cannot allocate " +
                        (possible ? std::to_string(std::size_t(count) * sizeof(T)) + " bytes" : std::to_string(count) + " numbers"));
    data_.reset(static_cast<T*>(p), [](T* block) { free_block(block); });
  }
  Buffer(const std::shared_ptr<void>& owner, T* data, Index count) : data_(owner, data), count_(count) {}
  T* get() const { return data_.get(); }
  Index bytes() const { return count_ * Index(sizeof(T)); }

 private:
  std::shared_ptr<T> data_;
  Index count_ = 0;
};

struct StackShape {
  CellId cell;
  Index input, hidden, output, layers;  // output: of h, P; that of the units except where a cell projects it
  int directions;
  bool reverse = false;  // the first (or only) direction runs from the end
  bool numbered = true;  // errors name arrays by layer and direction: weight_ih_l0
  Index layer_input(Index layer) const { return layer == 0 ? input : directions * output; }
  Index width() const { return directions * output; }
  Widths widths() const { return {hidden, output}; }
};

template <class T>
struct Backend;

// Weights of a whole stack, packed by one kernel set; immutable, so a running call keeps its snapshot.
template <class T>
struct PackedStack : Shared {
  // `scalars`: the numbers that the cell's functions read, the same in every layer and direction.
  PackedStack(const KernelTable* table, const StackShape& shape, Precision precision, const std::vector<RawWeights<T>>& weights,
              bool backward, const std::vector<double>& scalars = {});
  // A device packs the weights itself: `parts` have sizes and no panels.
  PackedStack(const KernelTable* table, const StackShape& shape, std::shared_ptr<const Backend<T>> backend, bool backward);
  const KernelTable* table;
  StackShape shape;
  Precision precision;
  bool backward;
  std::vector<PackedWeights<T>> parts;  // [layer * D + direction]
  Buffer<T> memory;
  std::shared_ptr<const Backend<T>> backend;
  const TypedKernels<T>& kernels() const { return typed<T>(table); }
  const CellKernels<T>& cell() const { return kernels().cells[int(precision)][int(shape.cell)]; }
  const CellTraits& traits() const { return table->traits[int(shape.cell)]; }
  // Elements of a row of the tape; where W x is looked up (`ahead`) its deviations are with the table.
  Index tape_width(bool ahead) const {
    const CellTraits& t = traits();
    return (t.saved + t.deviations[1] + (ahead ? 0 : t.deviations[0])) * padded_hidden();
  }
  Index padded_hidden() const { return (shape.hidden + kernels().lanes - 1) / kernels().lanes * kernels().lanes; }
};

// One call's inputs, and what a forward pass keeps for the backward one.
template <class T>
struct StackCall {
  Index steps = 0, batch = 0;
  Rows<const T> x{};  // [T,B,I]; with a lookup the table [N,I]
  Lookup lookup{};    // of the first layer; its ids point to `ids`
  std::vector<Index> ids;
  Rows<T> y{};                           // [T,B,D*P]
  const T *h0 = nullptr, *c0 = nullptr;  // [L*D,B,P] and [L*D,B,H]
  T *hn = nullptr, *cn = nullptr;
  std::vector<Index> lengths, order;                   // empty: all T
  std::vector<Index> starts[2], ends[2];               // of ragged x and y, whose own point here
  std::vector<std::int32_t> predecessors[2];           // by direction: from the start, from the end; empty: as lengths say
  std::vector<Index> stops, offsets;                   // steps that each row has; where its part of a flat `predecessors` begins, or empty
  std::vector<Index> tape;                             // where each row's part of a flat tape begins, or empty
  const T *restart_h = nullptr, *restart_c = nullptr;  // [L*D,P] and [L*D,H], null means zeros
  double dropout = 0;                                  // between layers
  Index first_step = 0;                                // of a longer sequence that these steps belong to: dropout counts from its beginning
  std::uint64_t key = 0;
  Poll poll{};
  // On a device the tables lie in its memory, and of the vectors above only the starts and ends are filled.
  std::shared_ptr<void> device_tables;
  Times device_times[2]{};  // by direction, as `predecessors`
  Index flat_rows = 0;      // of a ragged x

  Index tape_rows() const {  // in memory; a flat tape has those that are there
    return tape.empty() ? steps * batch : tape.back() + stops.back();
  }
};

template <class T>
struct Tape {
  std::shared_ptr<const PackedStack<T>> packed;
  StackCall<T> call;
  std::vector<Buffer<T>> saved, cells;  // [layer * D + direction]
  bool states_only = false;             // saved is empty: the backward pass recomputes it, a chunk at a time
  std::vector<Buffer<T>> outputs;       // of layers below the last, as they were
  std::vector<Buffer<T>> dropped;       // the same after dropout; empty without
  std::vector<Buffer<T>> projected;     // what the first layer's directions made of a table; empty without
  // On a device: what its kernels saved, instead of `saved` and `cells`.
  std::vector<std::shared_ptr<void>> passes;  // [layer * D + direction]
};

// Which layers run as one group of kernel calls, and how: what stack_forward and stack_backward do, for explain().
struct GroupPlan {
  Index first_layer, layers;
  CallPlan plan;
  bool exchanged = false;         // backward: the kernels hand the gradients between the group's layers on, in memory of their own
  std::shared_ptr<void> planned;  // what a device's planner has chosen
};
template <class T>
std::vector<GroupPlan> stack_plan(const CellKernels<T>& cell, const StackShape& shape, Index steps, Index batch, bool dropout,
                                  bool backward);

// What the rows take part in. lengths, resets and mask may be null; resets and mask are [T,B], or flat where x is (call.starts): the state
// is that of a restart before a step (for the direction from the end: after it, so that the pieces are the same), and a step that is
// skipped carries the state over. `repeat`: its output is that of the step before it, else zero. For steps out of the middle of a sequence:
// held [B], the rows that have an output to repeat from the step before; restarted [B], those that were reset and have not run since;
// resets_after [B], those for which a piece begins behind the last step.
template <class T>
void set_times(StackCall<T>& call, const StackShape& shape, const Index* lengths, const std::uint8_t* resets, const std::uint8_t* mask,
               bool repeat, const std::uint8_t* held = nullptr, const std::uint8_t* resets_after = nullptr,
               const std::uint8_t* restarted = nullptr);

// The rows in an order of which any range has about the same to do.
std::vector<Index> balance_rows(const std::vector<Index>& lengths);

// Whether a row takes part in a step.
template <class T>
bool takes_part(const StackCall<T>& call, Index t, Index b);

// rows [T,B,D*P] of a layer: to = from * mask / (1 - rate); from and to may be the same.
template <class T>
void drop_rows(const StackShape& shape, Index layer, const StackCall<T>& call, const T* from, T* to);

template <class T>
struct StackGradients;

// What a stack needs of what its layers run on: memory and launches. Order, states, dropout and tape are the stack's.
template <class T>
struct Backend {
  explicit Backend(bool on_cpu) : on_cpu(on_cpu) {}
  virtual ~Backend() = default;
  const bool on_cpu;
  virtual Buffer<T> allocate(Index count, const char* what) const = 0;
  // Groups in the order of their layers. Null: the forward pass.
  virtual std::vector<GroupPlan> plan(const PackedStack<T>&, const StackCall<T>&, const StackGradients<T>* backward) const = 0;
  // Add memory for what the pass of one layer and direction saves to the tape, and tell the call of it.
  virtual void save(const PackedStack<T>&, const StackCall<T>&, Tape<T>* tape, ForwardCall<T>* call) const = 0;
  // The calls of one group; tape null in inference. Both return a Status.
  virtual int forward(const PackedStack<T>&, const StackCall<T>&, const GroupPlan&, const std::vector<ForwardCall<T>>&,
                      Tape<T>* tape) const = 0;
  virtual int backward(const Tape<T>&, const StackGradients<T>&, const GroupPlan&, const std::vector<BackwardCall<T>>&) const = 0;
  virtual void drop(const StackShape& shape, Index layer, const StackCall<T>& call, const T* from, T* to) const = 0;  // see drop_rows
};

// The kernels of the set that packed the weights.
template <class T>
struct CpuBackend : Backend<T> {
  CpuBackend() : Backend<T>(true) {}
  Buffer<T> allocate(Index count, const char* what) const override { return {count, what}; }
  std::vector<GroupPlan> plan(const PackedStack<T>& packed, const StackCall<T>& call, const StackGradients<T>* backward) const override {
    return stack_plan(packed.cell(), packed.shape, call.steps, call.batch, call.dropout > 0, backward != nullptr);
  }
  void save(const PackedStack<T>& packed, const StackCall<T>& call, Tape<T>* tape, ForwardCall<T>* f) const override {
    const CellTraits& traits = packed.traits();
    const Index rows = call.tape_rows();
    tape->saved.push_back(tape->states_only ? Buffer<T>() : allocate(rows * packed.tape_width(f->projected), "tape"));
    tape->cells.push_back(allocate(traits.states > 1 ? rows * packed.padded_hidden() : 0, "tape"));
    f->saved = tape->saved.back().get();
    if (traits.states > 1) f->cells = tape->cells.back().get();
  }
  int forward(const PackedStack<T>& packed, const StackCall<T>&, const GroupPlan& group, const std::vector<ForwardCall<T>>& calls,
              Tape<T>*) const override {
    return packed.cell().forward(calls.data(), int(calls.size()), group.layers > 1);
  }
  int backward(const Tape<T>& tape, const StackGradients<T>&, const GroupPlan& group,
               const std::vector<BackwardCall<T>>& calls) const override {
    return tape.packed->cell().backward(calls.data(), int(calls.size()), group.layers > 1);
  }
  void drop(const StackShape& shape, Index layer, const StackCall<T>& call, const T* from, T* to) const override {
    drop_rows(shape, layer, call, from, to);
  }
};

// tape null: inference. Returns a Status.
template <class T>
int stack_forward(const PackedStack<T>& packed, const StackCall<T>& call, Tape<T>* tape);

template <class T>
struct StackGradients {
  Rows<const T> dy{};                      // data null: zeros
  const T *dhn = nullptr, *dcn = nullptr;  // [L*D,B,P] and [L*D,B,H]
  Rows<T> dx{};                            // data null: not wanted
  T *dh0 = nullptr, *dc0 = nullptr;
  T *drestart_h = nullptr, *drestart_c = nullptr;  // [L*D,P] and [L*D,H]
  T clip_value = 0, clip_norm = 0;
  const std::uint8_t* cuts = nullptr;            // [T,B], or flat where x is
  Rows<const T> dcells{};                        // [L*D][T,B,H], L*D blocks one after the other
  Index dcells_part = 0;                         // elements from one to the next
  double* flow = nullptr;                        // [L*D,T,states]; on a device [L*D,T,states,B]
  Index flow_part = 0;                           // elements from one to the next
  mutable std::shared_ptr<void> scratch;         // working arrays of a device, kept from group to group
  const std::vector<Buffer<T>>* sums = nullptr;  // [L*D]: see BackwardCall
  bool resume = false, more = false;
  bool dx_add = false;                   // add to dx instead
  bool overwrite = false;                // see BackwardCall
  std::vector<RawGradients<T>> weights;  // [layer * D + direction]
};
template <class T>
int stack_backward(const Tape<T>& tape, const StackGradients<T>& gradients, Poll poll);

// Philox4x32-10 (Salmon et al. 2011) as a function: the random word of one unit at (layer, direction, t, b).
std::uint32_t philox_word(std::uint64_t key, std::uint32_t layer_direction, std::uint64_t t, std::uint32_t b, std::uint32_t unit);
// y[i] = x[i] / (1 - rate) where kept, else 0; counter: position of the element.
template <class T>
void dropout_flat(Index n, const T* x, T* y, double rate, std::uint64_t key);

}  // namespace ost
