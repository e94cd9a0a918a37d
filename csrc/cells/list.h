// The cells that the library offers: adding one is one line here and one name in CellId.
#pragma once
#include "../core/drivers.h"
#include "elman.h"
#include "general.h"
#include "gru.h"
#include "layer_norm.h"
#include "lstm.h"

namespace ost::OST_SET {

template <Cell C, CellId kId>
struct Named {
  using Cell = C;
  static constexpr CellId id = kId;
};
template <class... N>
struct CellList {};

using Cells = CellList<Named<Elman<Tanh>, CellId::kRnnTanh>, Named<Elman<Relu>, CellId::kRnnRelu>, Named<Lstm, CellId::kLstm>,
                       Named<LstmPeephole, CellId::kLstmPeephole>, Named<Gru, CellId::kGru>, Named<GruResetBefore, CellId::kGruResetBefore>,
                       Named<LstmProjected, CellId::kLstmProjected>, Named<LstmLayerNorm, CellId::kLstmLayerNorm>,
                       Named<ElmanGeneral, CellId::kRnnGeneral>, Named<LstmGeneral, CellId::kLstmGeneral>,
                       Named<GruGeneral, CellId::kGruGeneral>, Named<GruResetBeforeGeneral, CellId::kGruResetBeforeGeneral>>;

// The cells of a list that a driver runs.
template <class D, class Kept, class... Left>
struct Filter {
  using List = Kept;
};
template <bool kKeep, class First, class... Kept>
struct Append {
  using List = CellList<Kept...>;
};
template <class First, class... Kept>
struct Append<true, First, Kept...> {
  using List = CellList<Kept..., First>;
};
template <class D, class... Kept, class First, class... Left>
struct Filter<D, CellList<Kept...>, First, Left...>
    : Filter<D, typename Append<supports<typename First::Cell, D>, First, Kept...>::List, Left...> {};
template <class D, class... N>
auto cells_of(CellList<N...>) -> typename Filter<D, CellList<>, N...>::List;

template <class... N>
constexpr int count_of(CellList<N...>) {
  return sizeof...(N);
}

using DeviceCells = decltype(cells_of<StepDriver>(Cells()));
inline constexpr int kDeviceCellCount = count_of(DeviceCells());

}  // namespace ost::OST_SET
