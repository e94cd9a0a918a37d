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
py::tuple run(const PlainProblem& p, const std::vector<double>& dy, const std::vector<double>& dstates) {
  Plain<C> plain(p);
  plain.forward();
  std::vector<double> states;
  for (int k = 1; k < C::kStates; ++k)
    for (Index i = 0; i < p.batch * p.hidden; ++i) states.push_back(plain.state(k, i / p.hidden, i % p.hidden));
  const PlainGradients g = plain.backward(dy, dstates);
  py::dict d;
  d["weight_ih"] = array(g.weights.weight_ih), d["weight_hh"] = array(g.weights.weight_hh), d["bias_ih"] = array(g.weights.bias_ih);
  d["bias_hh"] = array(g.weights.bias_hh), d["units"] = array(g.weights.units), d["projection"] = array(g.weights.projection);
  d["x"] = array(g.x), d["h0"] = array(g.h0), d["states"] = array(g.states);
  return py::make_tuple(array(plain.y), array(states), d);
}

using Runner = py::tuple (*)(const PlainProblem&, const std::vector<double>&, const std::vector<double>&);
struct Entry {
  const char* name;
  int gates, units, states;
  const char* (*state_name)(int);
  bool recurrent, projected, block_diagonal;
  int scalars;
  Runner run;
};

template <class C>
constexpr Entry entry(const char* name) {
  return {name,
          C::kGates,
          unit_rows<C>(),
          C::kStates,
          state_name<C>,
          C::kPhases[0].product.count() > 0,
          is_projected<C>(),
          is_block_diagonal<C>(),
          scalar_count<C>(),
          run<C>};
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
                          entry<MinGru>("min_gru"),
                          entry<SLstm>("slstm")};

}  // namespace

void bind_proof(py::module_& m) {
  m.def("plain_cells", [] {
    py::dict out;
    for (const Entry& e : kEntries) {
      py::list states;
      for (int k = 0; k < e.states; ++k) states.append(e.state_name(k));
      py::dict cell;
      cell["gates"] = e.gates, cell["units"] = e.units, cell["states"] = states, cell["recurrent"] = e.recurrent;
      cell["projected"] = e.projected, cell["block_diagonal"] = e.block_diagonal;
      out[e.name] = cell;
    }
    return out;
  });
  // Arrays of one problem by name (weight_ih, ..., x, h0, states, noise, scalars), contiguous float64; returns y, the states beside h
  // and gradients, all flat.
  m.def("plain_run", [](const std::string& cell, Index steps, Index batch, Index input, Index hidden, Index projected, Index heads,
                        const py::dict& arrays, const Contiguous& dy, const Contiguous& dstates) {
    if (heads < 1 || hidden % heads) fail("heads", "a divisor of " + std::to_string(hidden), std::to_string(heads));
    PlainProblem p{steps,
                   batch,
                   input,
                   hidden,
                   projected,
                   heads,
                   {values(arrays, "weight_ih"), values(arrays, "weight_hh"), values(arrays, "bias_ih"), values(arrays, "bias_hh"),
                    values(arrays, "units"), values(arrays, "projection")},
                   values(arrays, "x"),
                   values(arrays, "h0"),
                   values(arrays, "states"),
                   values(arrays, "noise"),
                   values(arrays, "scalars")};
    for (const Entry& e : kEntries)
      if (cell == e.name && Index(p.scalars.size()) != e.scalars)
        fail("scalars", std::to_string(e.scalars), std::to_string(p.scalars.size()));
      else if (cell == e.name)
        return e.run(p, {dy.data(), dy.data() + dy.size()}, {dstates.data(), dstates.data() + dstates.size()});
    fail("cell", "the name of a plain cell", "'" + cell + "'");
  });
}

}  // namespace ost
