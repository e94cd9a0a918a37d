// NumPy arrays on their way into the native code. All checks of rank, extent, dtype, byte order,
// alignment and stride are here, and every message names the argument, what was expected and what
// came.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

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

template <class T>
View<std::remove_const_t<T>> view(py::handle object, const std::string& name, const std::vector<Axis>& axes,
                                  Strides need = Strides::kUnitLast, bool writable = false) {
  using E = std::remove_const_t<T>;
  const std::string wanted = py::str(py::dtype::of<E>());
  if (!py::isinstance<py::array>(object) && py::hasattr(object, "__cuda_array_interface__"))
    throw py::type_error(name + ": expected a numpy.ndarray of " + wanted + ", as the weights are on the CPU, got an array of a GPU; use " +
                         name + ".get(), or move the layer");
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + ": expected a numpy.ndarray of " + wanted + ", got " +
                         std::string(py::str(py::type::of(object).attr("__name__"))) + "; use np.asarray(" + name + ", dtype=np." + wanted +
                         ")");
  auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  if (!dtype.equal(py::dtype::of<E>())) {
    const std::string got = py::str(dtype);
    if (dtype.kind() == 'f' && dtype.itemsize() == sizeof(E) && dtype.byteorder() != '=')
      throw py::type_error(name + ": expected native byte order, got dtype " + got + "; use " + name + ".astype(np." + wanted + ")");
    throw py::type_error(name + ": expected dtype " + wanted + ", got " + got + "; use " + name + ".astype(np." + wanted + ")");
  }
  View<E> v;
  bool fits = array.ndim() == py::ssize_t(axes.size());
  for (py::ssize_t i = 0; i < array.ndim(); ++i) v.shape.push_back(array.shape(i));
  for (std::size_t i = 0; fits && i < axes.size(); ++i) fits = axes[i].size < 0 || axes[i].size == v.shape[i];
  if (!fits) fail(name, "shape " + text_of(axes), text_of(v.shape));
  v.data = static_cast<E*>(const_cast<void*>(array.data()));
  bool aligned = reinterpret_cast<std::uintptr_t>(v.data) % sizeof(E) == 0;
  std::vector<Index> bytes;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    bytes.push_back(array.strides(i));
    aligned &= array.strides(i) % py::ssize_t(sizeof(E)) == 0 || v.shape[i] <= 1;
    v.strides.push_back(array.strides(i) / py::ssize_t(sizeof(E)));
  }
  if (v.size() == 0) aligned = true;
  if (!aligned)
    fail(name, "memory and strides aligned to the item size of " + std::to_string(sizeof(E)) + " bytes",
         "a misaligned array with strides " + text_of(bytes) + "; use " + name + ".copy()");
  Index run = 1;
  for (std::size_t i = v.shape.size(); i-- > 0;) {
    const bool checked = need == Strides::kContiguous || i + 1 == v.shape.size();
    if (checked && v.shape[i] > 1 && v.strides[i] != run && v.size() > 0)
      fail(name, need == Strides::kContiguous ? "a C-contiguous array" : "unit stride on the last axis",
           "strides " + text_of(bytes) + " bytes; use np.ascontiguousarray(" + name + ")");
    run *= v.shape[i];
  }
  if (writable && !array.writeable()) fail(name, "a writable array", "a read-only one");
  return v;
}

template <class T>
View<std::remove_const_t<T>> optional_view(const py::object& object, const std::string& name, const std::vector<Axis>& axes,
                                           Strides need = Strides::kContiguous, bool writable = false) {
  return object.is_none() ? View<std::remove_const_t<T>>{} : view<T>(object, name, axes, need, writable);
}

// The range of bytes that a view touches, to refuse overlapping outputs.
template <class T>
std::pair<std::uintptr_t, std::uintptr_t> extent(const View<T>& v) {
  Index low = 0, high = 0;
  if (v.size() == 0) return {0, 0};
  for (std::size_t i = 0; i < v.shape.size(); ++i) (v.strides[i] < 0 ? low : high) += (v.shape[i] - 1) * v.strides[i];
  const auto base = reinterpret_cast<std::uintptr_t>(v.data);
  return {base + std::uintptr_t(low * Index(sizeof(T))), base + std::uintptr_t((high + 1) * Index(sizeof(T)))};
}
template <class T>
void refuse_overlap(const View<T>& out, const View<T>& in, const char* out_name, const char* in_name) {
  const auto a = extent(out), b = extent(in);
  if (a.first < b.second && b.first < a.second)
    fail(out_name, std::string("memory of its own"), std::string("an array whose memory range overlaps that of ") + in_name);
}

template <class T>
py::array_t<T> new_array(std::vector<Index> shape) {
  return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

template <class T>
const TypedKernels<T>& typed(const KernelTable* table) {
  if constexpr (sizeof(T) == 4)
    return table->f32;
  else
    return table->f64;
}

// Check for a pending Ctrl-C, at most every 20 ms: taking the GIL back costs up to its switch
// interval of 5 ms.
class SignalPoll {
 public:
  Poll poll();

 private:
  static int ask(void* self);
  double last_ = 0;
};

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
void bind_stream(py::module_& m);
void bind_proof(py::module_& m);
void bind_device(py::module_& m);

}  // namespace ost
