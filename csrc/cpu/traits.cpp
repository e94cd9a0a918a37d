// What the structs of the cells say of themselves, for bindings and stack. Compiled once.
#include "../cells/list.h"

namespace ost::OST_SET {

template <class C>
constexpr CellTraits traits_of(const char* name) {
  CellTraits traits{name,
                    C::kGates,
                    C::kStates,
                    C::kParams,
                    C::kSaved,
                    {deviations<C>(0), recurrent_deviations<C>()},
                    {},
                    0,
                    is_projected<C>(),
                    scalar_count<C>(),
                    {lacks<C, PlainDriver>(), lacks<C, CpuDriver>(), lacks<C, StepDriver>(), lacks<C, StreamDriver>(),
                     lacks<C, LoopDriver>(), lacks<C, PersistentDriver>(), lacks<C, ClusterDriver>()}};
  if constexpr (requires { C::kUnitWeights; }) {
    static_assert(sizeof(C::kUnitWeights) <= sizeof(traits.units));
    for (const UnitWeights& w : C::kUnitWeights) traits.units[traits.unit_weights++] = w;
  }
  return traits;
}

constexpr const char* kNames[] = {"rnn_tanh",    "rnn_relu",         "lstm",           "lstm_peephole",
                                  "gru",         "gru_reset_before", "lstm_projected", "lstm_layer_norm",
                                  "rnn_general", "lstm_general",     "gru_general",    "gru_reset_before_general"};

static_assert(sizeof(kNames) == kCellCount * sizeof(char*));  // in the order of CellId

template <class... N>
void fill_all(CellTraits* traits, CellList<N...>) {
  ((traits[int(N::id)] = traits_of<typename N::Cell>(kNames[int(N::id)])), ...);
}

void fill_traits(CellTraits* traits);
void fill_traits(CellTraits* traits) { fill_all(traits, Cells()); }

}  // namespace ost::OST_SET
