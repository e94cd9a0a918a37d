// One kernel set: this file is compiled once per instruction set and kind of numbers, with OST_SET, OST_KIND and the
// compiler's flags. OST_KIND is exact_float, exact_double or low (bfloat16 and bytes).
#include "../cells/list.h"
#include "backward.h"
#include "linear.h"
#include "train.h"

namespace ost::OST_SET {

template <class C, class P, class T = typename P::Real>
int forward(const ForwardCall<T>* calls, int count, bool chained) {
  return Team<Forward<C, P>>(calls, count, chained).run();
}
template <class C, class P, class T = typename P::Real>
int backward(const BackwardCall<T>* calls, int count, bool chained) {
  return Team<Backward<C, P>>(calls, count, chained).run();
}
template <class C, class P>
Index packed_size(Index input, Widths widths, bool backward) {
  return Layout<C, P>(input, widths).packed_size(backward);
}
template <class C, class P, class T = typename P::Real>
int pack(const RawWeights<T>& raw, Index input, Widths widths, bool backward, T* memory, PackedWeights<T>* out) {
  return Pack<C, P>(raw, input, widths, backward, memory, out).run();
}
template <class C, class P>
Index sums_size(Index batch, Index input, Widths widths, Index* block_steps) {
  return Backward<C, P>::sums_size(batch, input, widths, block_steps);
}
template <class C, class P, class T = typename P::Real>
void saved(const T* row, Index hidden, int k, T* out) {
  const Layout<C, P> s(1, {hidden, hidden});
  constexpr int L = Vec<T>::kLanes;
  for (Index i = 0; i < hidden; ++i) {
    const Index g = i / (Layout<C, P>::U * L), in_group = i - g * Layout<C, P>::U * L;
    out[i] = row[s.offset(g, C::kSaved) + k * s.units(g) * L + in_group];
  }
}
template <class C, class P>
void plan(Index steps, Index batch, const Index* inputs, Widths widths, int calls, bool chained, bool backward, CallPlan* out) {
  if constexpr (P::kHead == 0)
    if (backward) return Team<Backward<C, P>>::describe(steps, batch, inputs, widths, calls, chained, out);
  Team<Forward<C, P>>::describe(steps, batch, inputs, widths, calls, chained, out);
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

template <class C, class P>
CellKernels<typename P::Real> cell_kernels() {
  static_assert(Cell<C> && supports<C, CpuDriver>);
  using F = Forward<C, P>;
  CellKernels<typename P::Real> k{packed_size<C, P>, pack<C, P>, F::projected_size, F::project_table, forward<C, P>,
                                  nullptr,           nullptr,    saved<C, P>,       plan<C, P>};
  if constexpr (P::kHead == 0) k.backward = backward<C, P>, k.sums_size = sums_size<C, P>;
  return k;
}
// Cells whose functions a call chooses have no kernels for shorter words: null.
template <class C, class P>
void fill_cell(CellKernels<typename P::Real>& kernels) {
  if constexpr (scalar_count<C>() == 0 || !P::kEncodes) kernels = cell_kernels<C, P>();
}
template <class P, class... N>
void fill_cells(CellKernels<typename P::Real>* cells, CellList<N...>) {
  static_assert(sizeof...(N) == kCellCount);
  (fill_cell<typename N::Cell, P>(cells[int(N::id)]), ...);
}

template <class T>
void fill_exact(TypedKernels<T>& table) {
  table.lanes = Vec<T>::kLanes;
  fill_cells<Exact<T>>(table.cells[int(Precision::kExact)], Cells());
  table.linear = {linear_packed_size<T>, linear_pack<T>, linear_forward<T>, linear_backward<T>};
  table.train = {softmax_cross_entropy<T>,
                 embedding_gather<T>,
                 embedding_scatter<T>,
                 square_sum<T>,
                 adam<T>,
                 sgd<T>,
                 rmsprop<T>,
                 dropout<T>,
                 map_tanh<T>,
                 map_sigmoid<T>,
                 map_exp<T>};
  table.fma_peak = fma_peak<T>;
  table.read_bandwidth = read_bandwidth<T>;
}

// Declared by dispatch.cpp for every set.
#define exact_float 1
#define exact_double 2
#define low 3
#if OST_KIND == exact_float
void fill(TypedKernels<float>& table) { fill_exact(table); }
#elif OST_KIND == exact_double
void fill(TypedKernels<double>& table) { fill_exact(table); }
#else
void fill_low(KernelTable& table) {
#if defined(__AVX512BF16__)
  table.bfloat16 = "VDPBF16PS";
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  table.bfloat16 = "BFDOT";
#else
  table.bfloat16 = "widened to float32";
#endif
#if defined(__AVX512VNNI__)
  table.int8 = "VPDPBUSD";
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  table.int8 = "USDOT";
#elif defined(__ARM_FEATURE_DOTPROD)
  table.int8 = "SDOT";
#else
  table.int8 = "widened to 16 bits";
#endif
  fill_cells<BFloat>(table.f32.cells[int(Precision::kBfloat16)], Cells());
  fill_cells<Int8>(table.f32.cells[int(Precision::kInt8)], Cells());
}

#if defined(OST_TILES) || defined(OST_TILE_MODEL)
// A set with tiles is this one, but for weights that say so: the drivers multiply by what these are packed for.
template <class C, class P, Multiplier by, class T = typename P::Real>
int pack_for(const RawWeights<T>& raw, Index input, Widths widths, bool backward, T* memory, PackedWeights<T>* out) {
  const int status = pack<C, P>(raw, input, widths, backward, memory, out);
  out->multiplier = by;
  return status;
}
template <class C, class P>
void plan_for_tiles(Index steps, Index batch, const Index* inputs, Widths widths, int calls, bool chained, bool backward, CallPlan* out) {
  plan<C, P>(steps, batch, inputs, widths, calls, chained, backward, out);
  const Index rows = out->row_block_rows;
  if (tiles_take<P>(rows)) out->tile_rows = int(ceil_div(rows, larger<Index>(1, ceil_div(rows, kTileRows))));
}
template <class C, class P, Multiplier by>
void fill_cell_for(CellKernels<typename P::Real>& kernels) {
  if constexpr (scalar_count<C>() == 0) kernels.pack = pack_for<C, P, by>, kernels.plan = plan_for_tiles<C, P>;
}
template <class P, Multiplier by, class... N>
void fill_cells_for(CellKernels<typename P::Real>* cells, CellList<N...>) {
  (fill_cell_for<typename N::Cell, P, by>(cells[int(N::id)]), ...);
}
template <Multiplier by>
void fill_for(KernelTable& table) {
  fill_low(table);
  table.bfloat16 = by == Multiplier::kTiles ? "TDPBF16PS" : "a model of TDPBF16PS";
  table.int8 = by == Multiplier::kTiles ? "TDPBUSD, VPDPBUSD for few rows" : "a model of TDPBUSD, vectors for few rows";
  fill_cells_for<BFloat, by>(table.f32.cells[int(Precision::kBfloat16)], Cells());
  fill_cells_for<Int8, by>(table.f32.cells[int(Precision::kInt8)], Cells());
}
#endif
#if defined(OST_TILES)
void fill_tiles(KernelTable& table) { fill_for<Multiplier::kTiles>(table); }
#endif
#if defined(OST_TILE_MODEL)
void fill_tile_model(KernelTable& table) { fill_for<Multiplier::kTileModel>(table); }
#endif
#endif

}  // namespace ost::OST_SET
