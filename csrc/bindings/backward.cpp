// A backward pass: the arrays that Python gives become one StackGradients.
#include <algorithm>
#include <limits>
#include <optional>

#include "recurrent.h"

namespace ost {
namespace {

template <class T>
class BackwardPass {
 public:
  BackwardPass(PyTape<T>& tape, const BackwardArguments& arguments, Sums<T>* sums)
      : t_(tape), a_(arguments), s_(tape.tape.packed->shape), traits_(tape.tape.packed->traits()), device_(device_of(*tape.tape.packed)) {
    if (!tape_.packed->backward) fail("packed", "weights packed for training", "weights packed for inference only");
    read_dy();
    read_weights();
    make_dx();
    dh0_ = states_of(batch_, true, false);
    if (has_cells_) dc0_ = states_of(batch_, false, false);
    g_.dh0 = dh0_.data, g_.dc0 = dc0_.data;
    g_.clip_value = bound(a_.clip_value), g_.clip_norm = bound(a_.clip_norm);
    read_cuts();
    if (!a_.dcells.is_none()) read_dcells();
    place_restarts();
    if (on_cpu_) refuse_overlaps();
    if (sums && on_cpu_) take_sums(sums);
    if (a_.overwrite) overwrite();
    if (a_.flow) make_norms();
  }

  py::tuple run() {
    SignalPoll signals;
    int status;
    {
      std::optional<GilRelease> release;
      if (on_cpu_) release.emplace();
      status = stack_backward(tape_, g_, signals.poll());
    }
    check_status(status);
    if (sums_) sums_->more = a_.more;
    if (a_.flow && !on_cpu_) norms_.object = on_device(*tape_.packed)->python().attr("sum_rows")(norms_.object);
    return py::make_tuple(dx_, dh0_.object, dc0_.object, drestart_h_.object, drestart_c_.object, norms_.object);
  }

 private:
  // A bound of 0 would be none.
  static T bound(double x) { return x > 0 ? std::max(T(x), std::numeric_limits<T>::min()) : T(0); }

  // A view of the gradient of x or y; `flat` is the number of rows where they are ragged.
  View<T> sequences(const py::object& array, const char* name, Index flat, const char* width_name, Index width, bool writable) const {
    const auto axes =
        ragged_ ? std::vector<Axis>{{"N", flat}, {width_name, width}} : sequence_axes(steps_, batch_, width_name, width, t_.batch_first);
    return time_major(view<T>(array, name, axes, Strides::kUnitLast, writable, device_), t_.batch_first && !ragged_);
  }
  // y and x of the forward pass are read again, and so are the arrays of gradients that come in.
  void refuse_overlaps() const {
    Memory memory;
    const std::pair<const py::object&, const char*> inputs[] = {{t_.x, "x"},
                                                                {t_.y, "y"},
                                                                {t_.h0, "h0"},
                                                                {t_.c0, "c0"},
                                                                {t_.table, "table"},
                                                                {t_.restart_h, "restart_h"},
                                                                {t_.restart_c, "restart_c"},
                                                                {a_.dy, "dy"},
                                                                {a_.dhn, "dh_n"},
                                                                {a_.dcn, "dc_n"},
                                                                {a_.cuts, "cuts"},
                                                                {a_.dcells, "dcells"}};
    for (const auto& [array, name] : inputs) memory.reads(array, name);
    for (const py::object& array : held_) memory.writes(array, "grads");
    if (!a_.dx.is_none()) memory.writes(a_.dx, "dx");
    for (const py::object& array : given_restarts_) memory.writes(array, "drestart");
    memory.check();
  }
  T* state(const py::object& array, const char* name, Index rows, bool hidden, bool writable) const {
    return optional_view<T>(array, name, state_axes(s_, rows, hidden), Strides::kContiguous, writable, device_).data;
  }
  NewArray<T> states_of(Index rows, bool hidden, bool zeros) const {
    const Index width = hidden ? s_.output : s_.hidden;
    return make_array<T>(device_, rows < 0 ? std::vector<Index>{parts_, width} : std::vector<Index>{parts_, rows, width}, zeros);
  }

  void read_dy() {
    if (!a_.dy.is_none()) {
      const auto v = sequences(a_.dy, "dy", ragged_ ? t_.y_rows : 0, "D*H", s_.width(), false);
      g_.dy = {v.data, v.strides[0], ragged_ ? 0 : v.strides[1], tape_.call.y.starts, tape_.call.y.ends};
      if (steps_ * batch_ == 0) g_.dy.data = nullptr;
    }
    g_.dhn = state(a_.dhn, "dh_n", batch_, true, false), g_.dcn = state(a_.dcn, "dc_n", batch_, false, false);
  }

  void read_weights() {
    if (Index(py::len(a_.gradients)) != parts_)
      fail("grads", std::to_string(parts_) + " groups of arrays", std::to_string(py::len(a_.gradients)));
    StackShape s = s_;  // weight_ih of a first layer that looks its input up has a column for each row of the table
    const bool lookup = tape_.call.lookup.ids.data;
    if (lookup) s.input = tape_.call.lookup.rows;
    if (lookup && (a_.need_dx || !a_.dx.is_none())) fail("need_dx", "False with a table", "True");
    for (Index part = 0; part < parts_; ++part)
      g_.weights.push_back(raw_arrays<T, RawGradients<T>>(s, traits_, part, a_.gradients[part], "grads: ", true, held_, device_));
  }

  // Whether there are flat rows that belong to no sequence, as in a segment of steps: nothing writes their gradient.
  bool has_other_rows() const {
    Index count = 0;
    for (Index b = 0; ragged_ && b < batch_; ++b) count += tape_.call.ends[0][b] - tape_.call.starts[0][b];
    return ragged_ && count < flat_;
  }

  void make_dx() {
    dx_ = a_.dx;
    if (dx_.is_none() && a_.need_dx) {
      const Index rows[] = {t_.batch_first ? batch_ : steps_, t_.batch_first ? steps_ : batch_};
      const auto shape = ragged_ ? std::vector<Index>{flat_, s_.input} : std::vector<Index>{rows[0], rows[1], s_.input};
      dx_ = make_array<T>(device_, shape, has_other_rows()).object;
    }
    if (dx_.is_none()) return;
    const auto v = sequences(dx_, "dx", flat_, "I", s_.input, true);
    const bool apart = ragged_ ? rows_are_apart(v.strides[0], 0, flat_, 1, s_.input)
                               : rows_are_apart(v.strides[0], v.strides[1], steps_, batch_, s_.input);
    if (!apart) fail("dx", "rows of its own for every (t, b)", "strides by which they overlap");
    g_.dx = {v.data, v.strides[0], ragged_ ? 0 : v.strides[1], tape_.call.x.starts, tape_.call.x.ends};
    g_.dx_add = !a_.dx.is_none() && a_.dx_add;
  }

  void read_cuts() {
    if (on_cpu_) {
      g_.cuts = optional_view<std::uint8_t>(a_.cuts, "cuts", flag_axes(ragged_, steps_, batch_, flat_)).data;
    } else if (!a_.cuts.is_none()) {
      device_cuts_ = on_device(*tape_.packed)->python().attr("cuts")(a_.cuts, held_object(tape_.call.device_tables));
      g_.cuts = pointer_to<const std::uint8_t>(device_, device_cuts_);
    }
  }

  void read_dcells() {
    if (!has_cells_) fail("dcells", std::string("None for the cell ") + traits_.name, "an array");
    const Axis parts{"L*D", parts_}, steps{"T", steps_}, batch{"B", batch_}, units{"H", s_.hidden};
    const std::vector<Axis> axes =
        t_.batch_first ? std::vector<Axis>{parts, batch, steps, units} : std::vector<Axis>{parts, steps, batch, units};
    const auto v = view<T>(a_.dcells, "dcells", axes, Strides::kUnitLast, false, device_);
    g_.dcells = {v.data, v.strides[t_.batch_first ? 2 : 1], v.strides[t_.batch_first ? 1 : 2]};
    g_.dcells_part = v.strides[0];
  }

  void take_sums(Sums<T>* sums) {
    if (sums->packed != tape_.packed || sums->batch != batch_) fail("sums", "those made for these weights and B", "others");
    if (tape_.call.lookup.ids.data) fail("sums", "None with a table", "sums");
    if (a_.resume != sums->more)
      fail("resume", sums->more ? "True, as the sums hold those of other segments" : "False with new sums", a_.resume ? "True" : "False");
    sums->more = false;  // until the pass is done
    sums_ = sums;
    g_.sums = &sums->parts, g_.resume = a_.resume, g_.more = a_.more;
  }

  // Without a step the kernels write nothing.
  void overwrite() {
    if (!on_cpu_) fail("overwrite", "False for arrays of a device", "True");
    g_.overwrite = true;
    for (const py::object& array : held_)
      if (steps_ * batch_ == 0 && !array.is_none()) {
        auto a = py::reinterpret_borrow<py::array>(array);
        std::memset(a.mutable_data(), 0, std::size_t(a.nbytes()));
      }
  }

  void place_restarts() {
    if (!a_.drestart.is_none()) {
      if (!py::isinstance<py::tuple>(a_.drestart) || py::len(a_.drestart) != 2)
        throw py::type_error("drestart: expected a pair (h, c), got " + std::string(py::repr(a_.drestart)));
      const auto pair = py::reinterpret_borrow<py::tuple>(a_.drestart);
      const py::object h = pair[0], c = pair[1];
      given_restarts_ = {h, c};
      g_.drestart_h = state(h, "drestart_h", -1, true, true), g_.drestart_c = state(c, "drestart_c", -1, false, true);
    } else if (t_.resets) {
      drestart_h_ = states_of(-1, true, true);
      if (has_cells_) drestart_c_ = states_of(-1, false, true);
      g_.drestart_h = drestart_h_.data, g_.drestart_c = drestart_c_.data;
    }
  }

  // The kernels of a device leave the sum over the rows to the library of its arrays.
  void make_norms() {
    std::vector<Index> axes{parts_, steps_, traits_.states};
    if (!on_cpu_) axes.push_back(batch_);
    norms_ = make_array<double>(device_, axes, true);
    g_.flow = norms_.data, g_.flow_part = steps_ * traits_.states * (on_cpu_ ? 1 : batch_);
  }

  PyTape<T>& t_;
  const BackwardArguments& a_;
  const Tape<T>& tape_ = t_.tape;
  const StackShape& s_;
  const CellTraits& traits_;
  const py::object device_;
  const bool on_cpu_ = device_.is_none(), ragged_ = t_.ragged, has_cells_ = traits_.states > 1;
  const Index steps_ = tape_.call.steps, batch_ = tape_.call.batch, parts_ = s_.layers * s_.directions;
  const Index flat_ = ragged_ ? t_.x_rows : 0;
  StackGradients<T> g_;
  std::vector<py::object> held_, given_restarts_;
  Sums<T>* sums_ = nullptr;
  py::object dx_, device_cuts_ = py::none();
  NewArray<T> dh0_{py::none(), nullptr}, dc0_ = dh0_, drestart_h_ = dh0_, drestart_c_ = dh0_;
  NewArray<double> norms_{py::none(), nullptr};
};

}  // namespace

template <class T>
py::tuple backward(PyTape<T>& tape, const BackwardArguments& arguments, Sums<T>* sums) {
  return BackwardPass<T>(tape, arguments, sums).run();
}
template py::tuple backward(PyTape<float>&, const BackwardArguments&, Sums<float>*);
template py::tuple backward(PyTape<double>&, const BackwardArguments&, Sums<double>*);

template <class T>
std::shared_ptr<Sums<T>> sums(const std::shared_ptr<const PackedStack<T>>& owner, Index batch) {
  const PackedStack<T>& packed = *owner;
  if (batch < 0) fail("batch", "at least 0", std::to_string(batch));
  auto out = std::make_shared<Sums<T>>();
  out->packed = owner, out->batch = batch;
  const StackShape& s = packed.shape;
  if (on_device(packed)) return out;  // nothing outlives a call there: each adds to the gradients
  if (!packed.cell().sums_size) fail("packed", "weights packed for training", "weights packed for inference only");
  for (Index part = 0; part < s.layers * s.directions; ++part) {
    const Index n = packed.cell().sums_size(batch, s.layer_input(part / s.directions), s.widths(), &out->block_steps);
    out->parts.emplace_back(n, "sums of gradients");
    out->bytes += n * Index(sizeof(T));
  }
  return out;
}
template std::shared_ptr<Sums<float>> sums(const std::shared_ptr<const PackedStack<float>>&, Index);
template std::shared_ptr<Sums<double>> sums(const std::shared_ptr<const PackedStack<double>>&, Index);

template <class T>
void drop(const PackedStack<T>& packed, Index layer, const py::object& y, double rate, std::uint64_t key, Index first_step) {
  const auto v = view<T>(y, "y", {{"T", -1}, {"B", -1}, {"D*H", packed.shape.width()}}, Strides::kContiguous, true, device_of(packed));
  StackCall<T> call;
  call.steps = v.shape[0], call.batch = v.shape[1], call.dropout = rate, call.key = key, call.first_step = first_step;
  packed.backend->drop(packed.shape, layer, call, v.data, v.data);
}
template void drop(const PackedStack<float>&, Index, const py::object&, double, std::uint64_t, Index);
template void drop(const PackedStack<double>&, Index, const py::object&, double, std::uint64_t, Index);

}  // namespace ost
