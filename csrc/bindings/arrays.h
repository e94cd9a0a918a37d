// NumPy arrays on their way into the native code. All checks of rank, extent, dtype, byte order,
// alignment and stride are here, and every message names the argument, what was expected and what
// came.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../kernel_table.h"

namespace ost {
namespace py = pybind11;

struct Axis {
  const char* name;
  Index size;
};  // size -1: any

template <class T>
struct View {
  T* data = nullptr;
  std::vector<Index> shape, strides;  // in elements
  Index size() const {
    Index n = 1;
    for (Index k : shape) n *= k;
    return n;
  }
  Rows<T> rows() const { return {data, strides[0], strides[1]}; }
};

inline std::string text_of(const std::vector<Index>& shape) {
  std::string s;
  for (Index k : shape) s.append(s.empty() ? "(" : ", ").append(std::to_string(k));
  return s.empty() ? "()" : s + (shape.size() == 1 ? ",)" : ")");
}
inline std::string text_of(const std::vector<Axis>& axes) {
  std::string names, sizes;
  for (const Axis& a : axes) {
    names.append(names.empty() ? "(" : ", ").append(a.name);
    sizes.append(sizes.empty() ? "(" : ", ").append(a.size < 0 ? "*" : std::to_string(a.size));
  }
  const char* end = axes.size() == 1 ? ",)" : ")";
  return names + end + " = " + sizes + end;
}

[[noreturn]] inline void fail(const std::string& name, const std::string& expected, const std::string& got) {
  throw py::value_error(name + ": expected " + expected + ", got " + got);
}

enum class Strides { kUnitLast, kContiguous };

// What is read of an array before it is checked: of NumPy, or of the array library of a device.
struct ArrayFacts {
  void* data;
  bool writable;
  py::dtype dtype;
  std::vector<Index> shape, strides;  // in bytes
};
// `device` is the Python object (ostinato._device.Device) of the arrays that are taken, or None for those of NumPy.
ArrayFacts facts_of(py::handle object, const std::string& name, const std::string& dtype, const py::object& device);
// An array of a device that is not initialised, and the address of its first element.
std::pair<py::object, void*> new_device_array(const py::object& device, const std::vector<Index>& shape, const py::dtype& dtype,
                                              bool zeros);

// The name of a dtype: NumPy's own takes 2 us to ask for.
template <class T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, Index>) return "int64";
  static_assert(sizeof(T) == 1 || std::is_floating_point_v<T> || std::is_same_v<T, Index>);
  return "uint8";
}

template <class T>
View<std::remove_const_t<T>> view(py::handle object, const std::string& name, const std::vector<Axis>& axes,
                                  Strides need = Strides::kUnitLast, bool writable = false, const py::object& device = py::none()) {
  using E = std::remove_const_t<T>;
  const std::string wanted = dtype_name<E>();
  ArrayFacts array = facts_of(object, name, wanted, device);
  if (!array.dtype.equal(py::dtype::of<E>())) {
    const std::string got = py::str(array.dtype);
    if (array.dtype.kind() == 'f' && array.dtype.itemsize() == sizeof(E) && array.dtype.byteorder() != '=')
      throw py::type_error(name + ": expected native byte order, got dtype " + got + "; use " + name + ".astype(np." + wanted + ")");
    throw py::type_error(name + ": expected dtype " + wanted + ", got " + got + "; use " + name + ".astype(np." + wanted + ")");
  }
  View<E> v;
  v.shape = std::move(array.shape);
  v.strides.reserve(v.shape.size());
  bool fits = v.shape.size() == axes.size();
  for (std::size_t i = 0; fits && i < axes.size(); ++i) fits = axes[i].size < 0 || axes[i].size == v.shape[i];
  if (!fits) fail(name, "shape " + text_of(axes), text_of(v.shape));
  v.data = static_cast<E*>(array.data);
  bool aligned = reinterpret_cast<std::uintptr_t>(v.data) % sizeof(E) == 0;
  for (std::size_t i = 0; i < v.shape.size(); ++i) {
    aligned &= array.strides[i] % Index(sizeof(E)) == 0 || v.shape[i] <= 1;
    v.strides.push_back(array.strides[i] / Index(sizeof(E)));
  }
  if (v.size() == 0) aligned = true;
  if (!aligned)
    fail(name, "memory and strides aligned to the item size of " + std::to_string(sizeof(E)) + " bytes",
         "a misaligned array with strides " + text_of(array.strides) + "; use " + name + ".copy()");
  Index run = 1;
  for (std::size_t i = v.shape.size(); i-- > 0;) {
    const bool checked = need == Strides::kContiguous || i + 1 == v.shape.size();
    if (checked && v.shape[i] > 1 && v.strides[i] != run && v.size() > 0)
      fail(name, need == Strides::kContiguous ? "a C-contiguous array" : "unit stride on the last axis",
           "strides " + text_of(array.strides) + " bytes; use np.ascontiguousarray(" + name + ")");
    run *= v.shape[i];
  }
  if (writable && !array.writable) fail(name, "a writable array", "a read-only one");
  return v;
}

template <class T>
View<std::remove_const_t<T>> optional_view(const py::object& object, const std::string& name, const std::vector<Axis>& axes,
                                           Strides need = Strides::kContiguous, bool writable = false,
                                           const py::object& device = py::none()) {
  return object.is_none() ? View<std::remove_const_t<T>>{} : view<T>(object, name, axes, need, writable, device);
}

// The range of bytes that a view touches; {0, 0} of one without elements.
template <class T>
std::pair<std::uintptr_t, std::uintptr_t> extent(const View<T>& v) {
  Index low = 0, high = 0;
  if (v.size() == 0) return {0, 0};
  for (std::size_t i = 0; i < v.shape.size(); ++i) (v.strides[i] < 0 ? low : high) += (v.shape[i] - 1) * v.strides[i];
  const auto base = reinterpret_cast<std::uintptr_t>(v.data);
  return {base + std::uintptr_t(low * Index(sizeof(T))), base + std::uintptr_t((high + 1) * Index(sizeof(T)))};
}

// The memory that a call reads and writes: no output may lie in that of an input or of another output, since kernels write outputs
// before they have read all inputs.
class Memory {
 public:
  Memory() { parts_.reserve(8); }
  template <class T>
  void reads(const View<T>& v, const char* name) {
    add(extent(v), name, false);
  }
  template <class T>
  void writes(const View<T>& v, const char* name) {
    add(extent(v), name, true);
  }
  void reads(py::handle array, const char* name) { add(array, name, false); }
  void writes(py::handle array, const char* name) { add(array, name, true); }
  // Raise if an output overlaps anything else.
  void check();

 private:
  struct Part {
    std::uintptr_t begin, end;
    const char* name;
    bool written;
  };
  void add(std::pair<std::uintptr_t, std::uintptr_t> range, const char* name, bool written) {
    if (range.first < range.second) parts_.push_back({range.first, range.second, name, written});
  }
  void add(py::handle array, const char* name, bool written);  // of NumPy; nothing else is compared
  std::vector<Part> parts_;
};

template <class T>
py::array_t<T> new_array(std::vector<Index> shape) {
  return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

// A new array, of NumPy or of a device, and the address of its first element.
template <class T>
struct NewArray {
  py::object object;
  T* data;
};
template <class T>
NewArray<T> make_array(const py::object& device, const std::vector<Index>& shape, bool zeros = false) {
  if (device.is_none()) {
    auto array = new_array<T>(shape);
    if (zeros) std::memset(array.mutable_data(), 0, std::size_t(array.nbytes()));
    return {array, array.mutable_data()};
  }
  const auto [array, data] = new_device_array(device, shape, py::dtype::of<T>(), zeros);
  return {array, static_cast<T*>(data)};
}

// The numbers of a sequence; an error names the argument.
std::vector<double> numbers_of(const py::sequence& given, const char* name);

// Check for a pending Ctrl-C, at most every 20 ms: taking the GIL back costs up to its switch
// interval of 5 ms.
class SignalPoll {
 public:
  Poll poll();

 private:
  static int ask(void* self);
  double last_ = 0;
};

// The numbers of a table's rows in x [n], [N, 1] or [T, B, 1], checked, in the order of memory or time. A copy: without the GIL another
// thread may change the caller's array. `place` names the first axis in an error.
template <class T>
std::vector<Index> checked_rows(const View<T>& x, Index rows, const char* place) {
  std::vector<Index> out;
  out.reserve(std::size_t(x.size()));
  const bool steps = x.shape.size() == 3;
  for (Index i = 0; i < x.shape[0]; ++i)
    for (Index k = 0; k < (steps ? x.shape[1] : 1); ++k) {
      out.push_back(x.data[i * x.strides[0] + (steps ? k * x.strides[1] : 0)]);
      if (out.back() < 0 || out.back() >= rows)
        fail("x", "indices from 0 to " + std::to_string(rows - 1), std::to_string(out.back()) + " at " + place + " " + std::to_string(i));
    }
  return out;
}

// Release the GIL for a block. A daemon thread may still compute when the interpreter exits. Taking
// the GIL back would then end the thread by an unwinding that C++ destructors turn into abort(), so
// such a thread waits for the end of the process.
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// Turn a kernel's status into an exception; a stopped call has set its own.
void check_status(int status);

void bind_recurrent(py::module_& m);
void bind_training(py::module_& m);
void bind_ctc(py::module_& m);
void bind_stream(py::module_& m);
void bind_proof(py::module_& m);
void bind_device(py::module_& m);
void bind_jax(py::module_& m);

}  // namespace ost
