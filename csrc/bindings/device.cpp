// Facts about the GPU's kernels that Python needs, whether or not there is a GPU.
#include "../cuda/geometry.h"
#include "sizes.h"

namespace ost {

void bind_device(py::module_& m) {
  m.def("device_columns", [] { return emulated::columns_of(emulated::DeviceCells()); });
  m.def("device_facts", [] { return emulated::facts_of(emulated::DeviceCells()); });
  m.def(
      "matrix_shapes",
      [](int cell, Index input, Index hidden, Index output) {
        check_size(input, "input"), check_size(hidden, "hidden"), check_size(output, "output");
        return emulated::matrix_shapes(CellId(cell), input, hidden, output, emulated::DeviceCells());
      },
      py::arg("cell"), py::arg("input"), py::arg("hidden"), py::arg("output"));
  m.def(
      "loop_bytes",
      [](int cell, const std::string& precision, int capacity, bool split) {
        return emulated::loop_bytes_of(CellId(cell), precision, capacity, split, emulated::DeviceCells());
      },
      py::arg("cell"), py::arg("precision"), py::arg("capacity"), py::arg("split"));
  m.def(
      "step_slices",
      [](int word, Index batch, Index depth, Index width) {
        check_product(batch, "batch", depth, "depth"), check_size(width, "width");
        return emulated::slices_of(word, batch, depth, width);
      },
      py::arg("word"), py::arg("batch"), py::arg("depth"), py::arg("width"));
  m.def(
      "gradient_parts",
      [](Index steps, Index batch) {
        check_product(steps, "steps", batch, "batch");
        return emulated::gradient_parts(steps, batch);
      },
      py::arg("steps"), py::arg("batch"));
  m.def("device_constants", &emulated::device_constants);
  m.def(
      "persistent_kernels",
      [](const py::sequence& columns, Index hidden, int word, bool backward, bool upstream) {
        check_sequence(columns, "columns"), check_product(hidden, "hidden", hidden, "hidden");
        std::vector<int> own;
        for (const py::handle n : columns) own.push_back(n.cast<int>());
        return emulated::persistent_kernels(own, hidden, word, backward, upstream, emulated::DeviceCells());
      },
      py::arg("columns"), py::arg("hidden"), py::arg("word"), py::arg("backward"), py::arg("upstream"));
  m.def(
      "cluster_kernels",
      [](int columns, int word, bool backward) { return emulated::cluster_kernels(columns, word, backward, emulated::DeviceCells()); },
      py::arg("columns"), py::arg("word"), py::arg("backward"));
  m.def("status_bytes", &emulated::status_bytes);
  m.def(
      "exchange_bytes",
      [](Index step_bytes, Index span, Index groups, Index co_launched) {
        check_product(groups, "groups", co_launched, "co_launched");
        check_product(groups * co_launched, "groups", check_size(span, "span") + 2, "span");
        check_product(groups * (span + 2) * co_launched, "span", step_bytes, "step_bytes");
        return emulated::exchange_bytes(step_bytes, span, groups, co_launched);
      },
      py::arg("step_bytes"), py::arg("span"), py::arg("groups"), py::arg("co_launched"));
  m.def(
      "stream_bytes",
      [](int cell, Index hidden) {
        check_product(hidden, "hidden", hidden, "hidden");
        return emulated::stream_bytes(CellId(cell), hidden, emulated::DeviceCells());
      },
      py::arg("cell"), py::arg("hidden"));
  // The fields of the structs that kernels are given, by the name of the struct in Python.
  m.def("device_fields", [] {
    py::dict out;
    out["RowsFields"] = emulated::field_names<emulated::RowsArgs>();
    out["WeightFields"] = emulated::field_names<emulated::WeightArgs>();
    out["SharedFields"] = emulated::field_names<emulated::SharedArgs>();
    out["LayerFields"] = emulated::field_names<emulated::LayerArgs>();
    out["GradientFields"] = emulated::field_names<emulated::GradientArgs>();
    out["PlanFields"] = emulated::field_names<emulated::PlanArgs>();
    out["PassFields"] = emulated::field_names<emulated::PassArgs>();
    out["PackFields"] = emulated::field_names<emulated::PackArgs>();
    out["PackSharedFields"] = emulated::field_names<emulated::PackSharedArgs>();
    out["TimesFields"] = emulated::field_names<emulated::TimesArgs>();
    out["DropFields"] = emulated::field_names<emulated::DropArgs>();
    out["DropFlatFields"] = emulated::field_names<emulated::DropFlatArgs>();
    out["ScatterFields"] = emulated::field_names<emulated::ScatterArgs>();
    out["MatmulFields"] = emulated::field_names<emulated::MatmulArgs>();
    out["CopyRowsFields"] = emulated::field_names<emulated::CopyRowsArgs>();
    out["AdamFields"] = emulated::field_names<emulated::AdamArgs>();
    return out;
  });
}

}  // namespace ost
