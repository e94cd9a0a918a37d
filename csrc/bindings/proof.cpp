// The plain path by cell name, for the fit proof of the tests.

#include "arrays.h"

#include "../core/plain.h"  // before the cells: they call its functions of plain doubles

#include "../cells/list.h"
#include "../cells/proof.h"
#include "../cells/refused.h"

namespace ost {
namespace {
using namespace plain;

using Contiguous = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::vector<double> values(const py::dict& d, const char* name) {
  if (!d.contains(name)) return {};
  const auto a = Contiguous(d[name]);
  return {a.data(), a.data() + a.size()};
}
py::array_t<double> array(const std::vector<double>& v) { return py::array_t<double>(py::ssize_t(v.size()), v.data()); }

template <class C>
py::tuple run(const PlainProblem& p, const std::vector<double>& dy, const std::vector<double>& dc) {
  Plain<C> plain(p);
  plain.forward();
  std::vector<double> cn;
  for (Index i = 0; C::kStates > 1 && i < p.batch * p.hidden; ++i) cn.push_back(plain.state(i / p.hidden, i % p.hidden));
  const PlainGradients g = plain.backward(dy, C::kStates > 1 ? dc : std::vector<double>(p.batch * p.hidden));
  py::dict d;
  d["weight_ih"] = array(g.weights.weight_ih), d["weight_hh"] = array(g.weights.weight_hh), d["bias_ih"] = array(g.weights.bias_ih);
  d["bias_hh"] = array(g.weights.bias_hh), d["units"] = array(g.weights.units), d["projection"] = array(g.weights.projection);
  d["x"] = array(g.x), d["h0"] = array(g.h0), d["c0"] = array(g.c0);
  return py::make_tuple(array(plain.y), array(cn), d);
}

using Runner = py::tuple (*)(const PlainProblem&, const std::vector<double>&, const std::vector<double>&);
struct Entry {
  const char* name;
  int gates, units, states;
  bool recurrent, projected;
  int scalars;
  Runner run;
};

template <class C>
constexpr Entry entry(const char* name) {
  return {name, C::kGates, unit_rows<C>(), C::kStates, C::kPhases[0].product.count() > 0, is_projected<C>(), scalar_count<C>(), run<C>};
}

const Entry kEntries[] = {entry<Elman<Tanh>>("rnn_tanh"),
                          entry<Elman<Relu>>("rnn_relu"),
                          entry<Lstm>("lstm"),
                          entry<LstmPeephole>("lstm_peephole"),
                          entry<Gru>("gru"),
                          entry<GruResetBefore>("gru_reset_before"),
                          entry<LstmProjected>("lstm_projected"),
                          entry<LstmLayerNorm>("lstm_layer_norm"),
                          entry<ElmanGeneral>("rnn_general"),
                          entry<LstmGeneral>("lstm_general"),
                          entry<GruGeneral>("gru_general"),
                          entry<GruResetBeforeGeneral>("gru_reset_before_general"),
                          entry<LstmGateNorm>("lstm_gate_norm"),
                          entry<Zoneout<Gru>>("zoneout_gru"),
                          entry<Zoneout<Lstm>>("zoneout_lstm"),
                          entry<MinGru>("min_gru")};

}  // namespace

void bind_proof(py::module_& m) {
  m.def("plain_cells", [] {
    py::dict out;
    for (const Entry& e : kEntries) out[e.name] = py::make_tuple(e.gates, e.units, e.states, e.recurrent, e.projected);
    return out;
  });
  // Arrays of one problem by name (weight_ih, ..., x, h0, c0, noise, scalars), contiguous float64; returns y, c_n and gradients, all flat.
  m.def("plain_run", [](const std::string& cell, Index steps, Index batch, Index input, Index hidden, Index projected,
                        const py::dict& arrays, const Contiguous& dy, const Contiguous& dc) {
    PlainProblem p{steps,
                   batch,
                   input,
                   hidden,
                   projected,
                   {values(arrays, "weight_ih"), values(arrays, "weight_hh"), values(arrays, "bias_ih"), values(arrays, "bias_hh"),
                    values(arrays, "units"), values(arrays, "projection")},
                   values(arrays, "x"),
                   values(arrays, "h0"),
                   values(arrays, "c0"),
                   values(arrays, "noise"),
                   values(arrays, "scalars")};
    for (const Entry& e : kEntries)
      if (cell == e.name && Index(p.scalars.size()) != e.scalars)
        fail("scalars", std::to_string(e.scalars), std::to_string(p.scalars.size()));
      else if (cell == e.name)
        return e.run(p, {dy.data(), dy.data() + dy.size()}, {dc.data(), dc.data() + dc.size()});
    fail("cell", "the name of a plain cell", "'" + cell + "'");
  });
}

}  // namespace ost
