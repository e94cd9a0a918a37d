// Weights of a stack of recurrent layers: their checks, and packing.
#include <cmath>

#include "recurrent.h"
#include "sizes.h"

namespace ost {

CellId cell_named(const std::string& name) {
  std::string known;
  for (int i = 0; i < kCellCount; ++i) {
    const char* cell = kernels()->traits[i].name;
    if (name == cell) return CellId(i);
    known += (i ? ", " : "") + std::string(cell);
  }
  fail("cell", "one of " + known, "'" + name + "'");
}

namespace {

std::string suffix(const StackShape& s, Index part) {
  if (!s.numbered) return "";
  return "_l" + std::to_string(part / s.directions) + (part % s.directions ? "_reverse" : "");
}

// A scale needs finite weights: a NaN would be lost in the rounding.
template <class T>
void refuse_not_finite(const StackShape& s, const CellTraits& traits, Index part, const RawWeights<T>& raw) {
  const Index rows = traits.gates * s.hidden;
  const auto check = [&](const T* w, const char* name, Index rows, Index n) {
    for (Index i = 0; i < rows * n; ++i)
      if (!std::isfinite(w[i]))
        fail(name + suffix(s, part), "finite weights for int8", std::to_string(w[i]) + " in row " + std::to_string(i / n));
  };
  check(raw.weight_ih, "weight_ih", rows, s.layer_input(part / s.directions));
  check(raw.weight_hh, "weight_hh", rows, s.output);
  if (raw.weight_hr) check(raw.weight_hr, "weight_hr", s.output, s.hidden);
}

}  // namespace

template <class T>
void check_cell(const CellTraits& traits, CellId cell, Precision precision, const std::string& name, std::size_t scalars) {
  if (Index(scalars) != traits.scalars)
    fail("scalars", std::to_string(traits.scalars) + " for the cell " + traits.name, std::to_string(scalars));
  if (!typed<T>(kernels()).cells[int(precision)][int(cell)].forward)
    fail("precision", std::string("exact for the cell ") + traits.name, "'" + name + "'");
}
template void check_cell<float>(const CellTraits&, CellId, Precision, const std::string&, std::size_t);
template void check_cell<double>(const CellTraits&, CellId, Precision, const std::string&, std::size_t);

template <class T>
Precision precision_named(const std::string& name, bool backward) {
  int i = 0;
  while (i < kPrecisionCount && name != kPrecisions[i]) ++i;
  if (i == kPrecisionCount) fail("precision", "one of exact, bfloat16, int8", "'" + name + "'");
  if (i > 0 && sizeof(T) != 4) fail("precision", "exact for a float64 layer", "'" + name + "'");
  if (Precision(i) == Precision::kInt8 && backward) fail("precision", "one that can be trained (int8 is for inference)", "'int8'");
  return Precision(i);
}

template Precision precision_named<float>(const std::string&, bool);
template Precision precision_named<double>(const std::string&, bool);

StackShape shape_of(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, bool reverse, bool numbered,
                    Index projection) {
  const CellId id = cell_named(cell);
  const bool projected = kernels()->traits[int(id)].projected;
  if (!projected && projection != 0) fail("proj_size", "0 for the cell " + cell, std::to_string(projection));
  check_size(input, "input_size", 1), check_size(hidden, "hidden_size", 1), check_size(layers, "num_layers", 1);
  if (layers > 1000000) fail("num_layers", "at most 1000000", std::to_string(layers));
  if (projected) check_size(projection, "proj_size", 1);
  const double width = double(std::max(hidden, projection));
  if (width * input + 2 * double(layers) * width * width > kMostElements)
    fail("hidden_size", "at most 2^46 weights in all layers", std::to_string(hidden));
  return {id, input, hidden, projected ? projection : hidden, layers, bidirectional ? 2 : 1, reverse, numbered};
}

template <class T, class Raw>
Raw raw_arrays(const StackShape& s, const CellTraits& traits, Index part, const py::sequence& arrays, const char* prefix, bool writable,
               std::vector<py::object>& held, const py::object& device) {
  std::vector<std::string> names{"weight_ih", "weight_hh", "bias_ih", "bias_hh"};
  for (int k = 0; k < traits.unit_weights; ++k) names.push_back(traits.units[k].name);
  if (!traits.unit_weights) names.push_back("");  // the place of weights that this cell has none of
  if (traits.projected) names.push_back("weight_hr");
  const auto label = [&](int i) { return prefix + names[i] + suffix(s, part); };
  const Index count = Index(names.size());
  if (Index(py::len(arrays)) != count)
    fail("weights", std::to_string(count) + " arrays a layer and direction", std::to_string(py::len(arrays)));
  const Index rows = traits.gates * s.hidden, input = s.layer_input(part / s.directions);
  const auto get = [&](int i, const std::vector<Axis>& axes, bool needed) -> decltype(Raw::weight_ih) {
    const py::object a = arrays[i];
    held.push_back(a);
    if (a.is_none() && needed) fail(label(i), "an array", "None");
    return optional_view<T>(a, label(i), axes, Strides::kContiguous, writable, device).data;
  };
  const std::string gates = traits.gates == 1 ? "H" : std::to_string(traits.gates) + "*H";
  Raw raw{};
  raw.weight_ih = get(0, {{gates.c_str(), rows}, {"I", input}}, !writable);
  raw.weight_hh = get(1, {{gates.c_str(), rows}, {traits.projected ? "P" : "H", s.output}}, !writable);
  raw.bias_ih = get(2, {{gates.c_str(), rows}}, false);
  raw.bias_hh = get(3, {{gates.c_str(), rows}}, false);
  int row = 0;
  for (int k = 0; k < traits.unit_weights; ++k) {
    const UnitWeights& w = traits.units[k];
    const std::string rows_name = w.rows == 1 ? "H" : std::to_string(w.rows) + "*H";
    const bool needed = !writable && !w.optional;
    auto* data =
        w.flat ? get(4 + k, {{rows_name.c_str(), w.rows * s.hidden}}, needed) : get(4 + k, {{"gates", w.rows}, {"H", s.hidden}}, needed);
    for (int i = 0; i < w.rows; ++i, ++row) raw.units[row] = data ? data + i * s.hidden : nullptr;
  }
  if (traits.projected) raw.weight_hr = get(int(count) - 1, {{"P", s.output}, {"H", s.hidden}}, !writable);
  return raw;
}
#define OST_ARRAYS(T, Raw)                                                                                             \
  template Raw raw_arrays<T, Raw>(const StackShape&, const CellTraits&, Index, const py::sequence&, const char*, bool, \
                                  std::vector<py::object>&, const py::object&);
OST_ARRAYS(float, RawGradients<float>)
OST_ARRAYS(double, RawGradients<double>)
#undef OST_ARRAYS

template <class T>
std::shared_ptr<PackedStack<T>> pack_stack(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional,
                                           const py::sequence& weights, bool backward, bool reverse, const std::string& precision_name,
                                           bool numbered, Index projection, const py::sequence& given_scalars, const py::object& launcher) {
  const bool on_cpu = launcher.is_none();
  const py::object device = on_cpu ? py::object(py::none()) : py::object(launcher.attr("device"));
  const Precision precision = on_cpu ? precision_named<T>(precision_name, backward) : Precision::kExact;
  const StackShape s = shape_of(cell, input, hidden, layers, bidirectional, reverse, numbered, projection);
  const KernelTable* table = kernels();
  const CellTraits& traits = table->traits[int(s.cell)];
  const std::vector<double> scalars = numbers_of(given_scalars, "scalars");
  check_cell<T>(traits, s.cell, precision, precision_name, scalars.size());
  if (Index(py::len(weights)) != layers * s.directions)
    fail("weights", std::to_string(layers * s.directions) + " groups of arrays", std::to_string(py::len(weights)));
  std::vector<RawWeights<T>> raw;
  std::vector<py::object> held;
  for (Index part = 0; part < layers * s.directions; ++part)
    raw.push_back(raw_arrays<const T, RawWeights<T>>(s, traits, part, weights[part], "", false, held, device));
  if (!on_cpu) {
    launcher.attr("pack")(weights, given_scalars);
    return std::make_shared<PackedStack<T>>(table, s, std::make_shared<DeviceBackend<T>>(launcher), backward);
  }
  if (precision == Precision::kInt8) {  // sums of 127 * 128 a link must fit 32 bits
    for (const auto& [name, size] : {std::pair{"input_size", input}, {"hidden_size", hidden}, {"proj_size", projection}})
      if (size > 131072) fail(name, "at most 131072 for int8", std::to_string(size));
    for (Index part = 0; part < layers * s.directions; ++part) refuse_not_finite(s, traits, part, raw[part]);
  }
  GilRelease release;
  return std::make_shared<PackedStack<T>>(table, s, precision, raw, backward, scalars);
}
#define OST_PACK(T)                                                                                                                   \
  template std::shared_ptr<PackedStack<T>> pack_stack(const std::string&, Index, Index, Index, bool, const py::sequence&, bool, bool, \
                                                      const std::string&, bool, Index, const py::sequence&, const py::object&);
OST_PACK(float)
OST_PACK(double)
#undef OST_PACK

}  // namespace ost
