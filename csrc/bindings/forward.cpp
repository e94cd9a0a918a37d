// A forward pass: the arrays that Python gives become one StackCall.
#include <algorithm>
#include <cstdint>
#include <optional>

#include "recurrent.h"

namespace ost {
namespace {

// Where the sequences of flat rows lie: sequence b is `lengths[b]` rows from starts[b] on. Two threads would write a row of two
// that lies in `out` or dx.
void place_rows(const Index* starts, const Index* lengths, Index batch, Index rows, std::vector<Index>* begins, std::vector<Index>* ends) {
  for (Index b = 0; b < batch; ++b) {
    if (starts[b] < 0 || lengths[b] > rows - starts[b])
      fail("starts", "sequences within the " + std::to_string(rows) + " rows",
           std::to_string(lengths[b]) + " rows from row " + std::to_string(starts[b]));
    begins->push_back(starts[b]), ends->push_back(starts[b] + lengths[b]);
  }
  std::vector<Index> order;
  for (Index b = 0; b < batch; ++b)
    if (lengths[b]) order.push_back(b);
  const auto before = [&](Index a, Index b) { return starts[a] < starts[b]; };
  if (!std::is_sorted(order.begin(), order.end(), before)) std::sort(order.begin(), order.end(), before);
  Index end = 0;
  for (const Index b : order) {
    if (starts[b] < end) fail("starts", "sequences of different rows", "row " + std::to_string(starts[b]) + " in two");
    end = starts[b] + lengths[b];
  }
}

// The numbers of a view in memory of their own: they are read again after they were checked, when another thread may have changed
// the caller's.
View<Index> own_copy(View<Index> v, std::vector<Index>* to) {
  if (!v.data) return v;
  to->assign(v.data, v.data + v.shape[0]);
  v.data = to->data();
  return v;
}

template <class T>
class ForwardPass {
 public:
  ForwardPass(std::shared_ptr<PackedStack<T>> packed, const ForwardArguments& arguments)
      : packed_(std::move(packed)), a_(arguments), s_(packed_->shape), device_(device_of(*packed_)) {
    read_x();
    read_states();
    read_lengths();
    if (on_cpu_) read_times();
    if (on_cpu_ && !a_.order.is_none()) read_order();  // kernels of a device need no order
    make_y();
    if (!on_cpu_) place_on_device();
    if (!a_.out.is_none()) check_out();
    lookup_ ? place_table() : place_x();
    call_.y = rows_of(yv_, 1);
  }

  // (y, h_n, c_n, tape); the tape is None unless the pass is for training.
  py::tuple run() {
    const Index parts = s_.layers * s_.directions;
    const auto hn = make_array<T>(device_, {parts, call_.batch, s_.output});
    const bool has_cells = packed_->traits().states > 1;
    const auto cn = has_cells ? make_array<T>(device_, {parts, call_.batch, s_.hidden}) : NewArray<T>{py::none(), nullptr};
    call_.hn = hn.data, call_.cn = cn.data;
    const std::shared_ptr<PyTape<T>> tape = a_.train ? make_tape() : nullptr;
    SignalPoll signals;
    call_.poll = signals.poll();
    int status;
    {
      std::optional<GilRelease> release;  // launches on a device need the GIL
      if (on_cpu_) release.emplace();
      status = stack_forward(*packed_, call_, tape ? &tape->tape : nullptr);
    }
    check_status(status);
    if (!tape) return py::make_tuple(y_, hn.object, cn.object, py::none());
    call_.poll = {};
    tape->tape.call = std::move(call_);  // the vectors keep their memory: x.starts and y.starts stay
    return py::make_tuple(y_, hn.object, cn.object, py::cast(tape));
  }

 private:
  // x, or the numbers of the rows of a table [T,B,1].
  template <class E>
  View<E> view_of_x(const char* width_name, Index width) const {
    const auto axes =
        ragged_ ? std::vector<Axis>{{"N", -1}, {width_name, width}} : sequence_axes(-1, -1, width_name, width, a_.batch_first);
    return time_major(view<E>(a_.x, "x", axes, Strides::kUnitLast, false, device_), a_.batch_first && !ragged_);
  }
  void read_x() {
    if (lookup_) {
      ids_ = view_of_x<Index>("1", 1);
      table_ = view<T>(a_.table, "table", {{"V", -1}, {"I", s_.input}}, Strides::kContiguous);
    } else {
      xv_ = view_of_x<T>("I", s_.input);
    }
    const std::vector<Index>& shape = lookup_ ? ids_.shape : xv_.shape;
    rows_ = shape[0];
    starts_ = own_copy(optional_view<Index>(a_.starts, "starts", {{"B", -1}}, Strides::kContiguous), &own_starts_);
    call_.steps = ragged_ ? a_.span : shape[0], call_.batch = ragged_ ? starts_.shape[0] : shape[1];
    if (call_.steps < 0) fail("span", "at least 0", std::to_string(call_.steps));
    // Products with widths stay within 64 bits, and sums of steps where no row has any.
    if (call_.steps > PTRDIFF_MAX >> 16 || (call_.steps > 0 && call_.batch > (PTRDIFF_MAX >> 24) / call_.steps))
      fail("x", "steps of all sequences that a computer can hold",
           std::to_string(call_.batch) + " sequences of " + std::to_string(call_.steps));
    call_.dropout = a_.dropout, call_.key = a_.key, call_.first_step = a_.first_step;
  }

  View<T> state(const py::object& array, const char* name, Index rows, bool hidden) const {
    return optional_view<T>(array, name, state_axes(s_, rows, hidden), Strides::kContiguous, false, device_);
  }
  void read_states() {
    h0_ = state(a_.h0, "h0", call_.batch, true), c0_ = state(a_.c0, "c0", call_.batch, false);
    call_.h0 = h0_.data, call_.c0 = c0_.data;
    restart_h_ = state(a_.restart_h, "restart_h", -1, true), restart_c_ = state(a_.restart_c, "restart_c", -1, false);
    call_.restart_h = restart_h_.data, call_.restart_c = restart_c_.data;
  }

  void read_lengths() {
    if (ragged_ && a_.lengths.is_none()) fail("lengths", "one for each sequence", "None");
    const bool here = on_cpu_ || py::isinstance<py::array>(a_.lengths);  // a device's are not read: that would wait for it
    if (ragged_ && !here) fail("lengths", "a NumPy array beside flat rows", "an array of a device");
    if (here) lengths_ = own_copy(optional_view<Index>(a_.lengths, "lengths", {{"B", call_.batch}}), &own_lengths_);
    for (Index b = 0; lengths_.data && b < call_.batch; ++b) {
      const Index n = lengths_.data[b];
      if (n < 0 || n > call_.steps)
        fail("lengths", "values from 0 to T = " + std::to_string(call_.steps), std::to_string(n) + " at b = " + std::to_string(b));
    }
    if (ragged_) place_rows(starts_.data, lengths_.data, call_.batch, rows_, &call_.starts[0], &call_.ends[0]);
    if ((!a_.resets.is_none() || !a_.mask.is_none()) && call_.steps > 2147483640)  // the tables count steps in 32 bits
      fail("x", "at most 2147483640 steps with resets or a mask", std::to_string(call_.steps));
  }

  void read_times() {
    const std::vector<Axis> flags = flag_axes(ragged_, call_.steps, call_.batch, rows_), row{{"B", call_.batch}};
    const auto bytes = [](const py::object& array, const char* name, const std::vector<Axis>& axes) {
      return optional_view<std::uint8_t>(array, name, axes).data;
    };
    set_times(call_, s_, lengths_.data, bytes(a_.resets, "resets", flags), bytes(a_.mask, "mask", flags), a_.repeat,
              bytes(a_.held, "held", row), bytes(a_.resets_after, "resets_after", row), bytes(a_.restarted, "restarted", row));
  }

  void read_order() {
    const Index batch = call_.batch;
    std::vector<Index> own;
    const View<Index> v = own_copy(view<Index>(a_.order, "order", {{"B", batch}}, Strides::kContiguous), &own);
    std::vector<bool> seen(std::size_t(batch), false);
    for (Index i = 0; i < batch; ++i) {
      if (v.data[i] < 0 || v.data[i] >= batch || seen[v.data[i]])
        fail("order", "each number below B = " + std::to_string(batch) + " once", std::to_string(v.data[i]) + " at " + std::to_string(i));
      seen[v.data[i]] = true;
    }
    call_.order = std::move(own);
  }

  // Flat outputs lie as x does; where they are made here, one after the other.
  void make_y() {
    const Index steps = call_.steps, batch = call_.batch;
    const bool given = !a_.out.is_none();
    Index rows = 0;
    for (Index b = 0; ragged_ && b < batch; ++b) {
      call_.starts[1].push_back(given ? starts_.data[b] : rows);
      call_.ends[1].push_back(call_.starts[1][b] + lengths_.data[b]);
      rows += lengths_.data[b];
    }
    if (given)
      y_ = a_.out;
    else if (ragged_)
      y_ = make_array<T>(device_, {rows, s_.width()}).object;
    else
      y_ = make_array<T>(device_, {a_.batch_first ? batch : steps, a_.batch_first ? steps : batch, s_.width()}).object;
    const auto axes = ragged_ ? std::vector<Axis>{{"N", given ? rows_ : -1}, {"D*H", s_.width()}}
                              : sequence_axes(steps, batch, "D*H", s_.width(), a_.batch_first);
    yv_ = time_major(view<T>(y_, "out", axes, Strides::kUnitLast, true, device_), a_.batch_first && !ragged_);
  }

  // Tables of the call in the memory of a device: when rows take part, and where those of flat arrays lie.
  void place_on_device() {
    call_.flat_rows = ragged_ ? rows_ : 0;
    const auto array = [](const std::vector<Index>& v) {
      auto out = new_array<Index>({Index(v.size())});
      std::copy(v.begin(), v.end(), out.mutable_data());
      return out;
    };
    const auto rows = [&](int k) { return py::make_tuple(array(call_.starts[k]), array(call_.ends[k])); };
    const auto& backend = *on_device(*packed_);
    py::object times = backend.python().attr("times")(call_.steps, call_.batch, a_.lengths, a_.starts, rows(0), rows(1), a_.resets, a_.mask,
                                                      a_.repeat, a_.held, a_.resets_after, a_.restarted);
    const auto* ends = pointer_to<const Index>(device_, times.attr("lengths"));
    const py::sequence tables = times.attr("tables");
    for (int k : {0, 1}) call_.device_times[k] = {ends, pointer_to<const std::int32_t>(device_, tables[k]), nullptr};
    call_.device_tables = ost::held(std::move(times));
  }

  void check_out() const {
    const bool apart = ragged_ ? rows_are_apart(yv_.strides[0], 0, rows_, 1, s_.width())
                               : rows_are_apart(yv_.strides[0], yv_.strides[1], call_.steps, call_.batch, s_.width());
    if (!apart) fail("out", "rows of its own for every (t, b)", "strides by which they overlap");
    Memory memory;
    memory.writes(yv_, "out");
    lookup_ ? memory.reads(table_, "table") : memory.reads(xv_, "x");
    const std::pair<const View<T>&, const char*> states[] = {
        {h0_, "h0"}, {c0_, "c0"}, {restart_h_, "restart_h"}, {restart_c_, "restart_c"}};
    for (const auto& [array, name] : states)
      if (array.data) memory.reads(array, name);
    memory.check();
  }

  // The rows' numbers are copied: they are checked, and without the GIL another thread may change the caller's.
  void place_table() {
    call_.ids = checked_rows(ids_, table_.shape[0], "step");
    const Index* starts = ragged_ ? call_.starts[0].data() : nullptr;
    const Index* ends = ragged_ ? call_.ends[0].data() : nullptr;
    call_.lookup = {{call_.ids.data(), ragged_ ? 1 : call_.batch, ragged_ ? 0 : 1, starts, ends}, table_.shape[0]};
    call_.x.data = table_.data;
  }
  void place_x() {
    const Rows<T> x = rows_of(xv_, 0);
    call_.x = {x.data, x.t, x.b, x.starts, x.ends};
  }

  // Rows of x (k = 0) or y (k = 1).
  Rows<T> rows_of(const View<T>& v, int k) const {
    if (!ragged_) return v.rows();
    if (on_cpu_) return {v.data, v.strides[0], 0, call_.starts[k].data(), call_.ends[k].data()};
    const py::sequence flat = held_object(call_.device_tables).attr(k == 0 ? "x_rows" : "y_rows");
    return {v.data, v.strides[0], 0, pointer_to<const Index>(device_, flat[0]), pointer_to<const Index>(device_, flat[1])};
  }

  std::shared_ptr<PyTape<T>> make_tape() const {
    auto tape = std::make_shared<PyTape<T>>();
    tape->x = a_.x, tape->y = y_, tape->h0 = a_.h0, tape->c0 = a_.c0, tape->table = a_.table;
    tape->restart_h = a_.restart_h, tape->restart_c = a_.restart_c;
    tape->batch_first = a_.batch_first, tape->ragged = ragged_;
    tape->x_rows = rows_, tape->y_rows = yv_.shape[0];
    tape->resets = !a_.resets.is_none() || !a_.resets_after.is_none();
    tape->tape.packed = packed_, tape->tape.states_only = a_.states_only;
    return tape;
  }

  const std::shared_ptr<PackedStack<T>> packed_;
  const ForwardArguments& a_;
  const StackShape& s_;
  const py::object device_;
  const bool on_cpu_ = device_.is_none(), ragged_ = !a_.starts.is_none(), lookup_ = !a_.table.is_none();
  StackCall<T> call_;
  View<T> xv_, table_, yv_, h0_, c0_, restart_h_, restart_c_;
  View<Index> ids_, starts_, lengths_;
  std::vector<Index> own_starts_, own_lengths_;
  Index rows_ = 0;  // of x along its first axis: N of a ragged one
  py::object y_;
};

}  // namespace

template <class T>
py::tuple forward(const std::shared_ptr<PackedStack<T>>& packed, const ForwardArguments& arguments) {
  return ForwardPass<T>(packed, arguments).run();
}
template py::tuple forward(const std::shared_ptr<PackedStack<float>>&, const ForwardArguments&);
template py::tuple forward(const std::shared_ptr<PackedStack<double>>&, const ForwardArguments&);

}  // namespace ost
