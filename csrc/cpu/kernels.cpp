// One kernel set: this file is compiled once per instruction set and dtype, with OST_SET, OST_REAL and the compiler's flags.
#include "../cells/list.h"
#include "linear.h"
#include "train.h"

namespace ost::OST_SET {

template <class C, class T>
int forward(const ForwardCall<T>& call) {
  return Forward<C, T>(call).run();
}
template <class C, class T>
int backward(const BackwardCall<T>& call) {
  return Backward<C, T>(call).run();
}
template <class C, class T>
Index packed_size(Index input, Index hidden, bool backward) {
  return Layout<C, T>(input, hidden).packed_size(backward);
}

template <class T>
Index linear_packed_size(Index input, Index output, bool backward) {
  return Linear<T>(input, output).packed_size(backward);
}
template <class T>
void linear_pack(const T* weight, const T* bias, Index input, Index output, bool backward, T* memory) {
  Linear<T>(input, output).pack(weight, bias, backward, memory);
}
template <class T>
int linear_forward(const T* memory, Index n, Index input, Index output, const T* x, Index x_stride, T* y) {
  return Linear<T>(input, output).forward(memory, n, x, x_stride, y);
}
template <class T>
int linear_backward(const T* memory, Index n, Index input, Index output, const T* x, Index x_stride, const T* dy, T* dx, T* dweight,
                    T* dbias) {
  return Linear<T>(input, output).backward(memory, n, x, x_stride, dy, dx, dweight, dbias);
}

// What the fast driver does not run yet; the plain path of core/plain.h does.
template <class C>
constexpr bool fits_driver() {
  bool fits = kProductCount<C> <= kMaxProducts;
  for (const Phase& phase : C::kPhases) fits &= phase.before == RowOp::kNone;
  if constexpr (requires { C::kProjected; }) fits &= !C::kProjected;
  if constexpr (requires { C::kNoise; }) fits &= !C::kNoise;
  return fits;
}

template <class T, class... N>
void fill_cells(TypedKernels<T>& table, CellList<N...>) {
  static_assert((Cell<typename N::Cell> && ...) && (fits_driver<typename N::Cell>() && ...) && sizeof...(N) == kCellCount);
  ((table.cells[int(N::id)] = {packed_size<typename N::Cell, T>, pack<typename N::Cell, T>, forward<typename N::Cell, T>,
                               backward<typename N::Cell, T>}),
   ...);
}

// Declared by dispatch.cpp for every set and dtype.
void fill(TypedKernels<OST_REAL>& table) {
  using T = OST_REAL;
  table.lanes = Vec<T>::kLanes;
  fill_cells(table, Cells());
  table.linear = {linear_packed_size<T>, linear_pack<T>, linear_forward<T>, linear_backward<T>};
  table.train = {softmax_cross_entropy<T>, embedding_gather<T>, embedding_scatter<T>, square_sum<T>, adam<T>, map_tanh<T>,
                 map_sigmoid<T>,           map_exp<T>};
  table.fma_peak = fma_peak<T>;
}

}  // namespace ost::OST_SET
