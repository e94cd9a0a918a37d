// The cells that the library offers: adding one is one line here and one name in CellId.
#pragma once
#include "elman.h"
#include "gru.h"
#include "lstm.h"

namespace ost::OST_SET {

template <class C, CellId kId>
struct Named {
  using Cell = C;
  static constexpr CellId id = kId;
};
template <class... N>
struct CellList {};

using Cells =
    CellList<Named<Elman<Tanh>, CellId::kRnnTanh>, Named<Elman<Relu>, CellId::kRnnRelu>, Named<Lstm, CellId::kLstm>,
             Named<LstmPeephole, CellId::kLstmPeephole>, Named<Gru, CellId::kGru>, Named<GruResetBefore, CellId::kGruResetBefore>>;

}  // namespace ost::OST_SET
