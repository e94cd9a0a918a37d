// Which kernels of a device there are for a layer, and the sizes of what they hold: the planner (ostinato/_plan.py) chooses among
// them, and the buffers of a launch are made by them. On the host only.
#pragma once
#include "calls.h"

namespace ost::OST_SET {

// Numbers that the planner's model and its reasons need.
inline py::dict device_constants() {
  py::dict out;
  out["loop_rows"] = py::make_tuple(1, 2, 4, kLoopRows), out["group_rows"] = kGroupRows, out["warps"] = kThreads / 32;
  out["slice_tile"] = py::make_tuple(kStepRows, kStepOuts);
  py::dict capacity;  // hidden units that a "loop" kernel is compiled for, by bytes of a word
  capacity[py::int_(4)] = py::make_tuple(kLoopCapacity<float, float>[0], kLoopCapacity<float, float>[1]);
  capacity[py::int_(2)] = py::make_tuple(kLoopCapacity<float, Bfloat>[0], kLoopCapacity<float, Bfloat>[1]);
  out["register_capacity"] = capacity;
  out["stream_rows"] = py::make_tuple(8, 16, 32), out["stream_outputs"] = kStreamOut;
  out["tile"] = py::make_tuple(kTileM, kTileN);
  return out;
}

// One "persistent" kernel for a layer of so many units.
template <class C, class K>
py::dict persistent_facts(int units, int parts, Index hidden, bool upstream) {
  py::dict out;
  py::list outs, depths, weights, scales;
  const Index blocks = K::blocks_of(hidden);
  bool fits = true;
  for_phases<C>([&]<int F>() {
    using Phase = typename K::template Phase<F>;
    using E = typename Phase::E;
    const Index tiles = E::kTiles, depth = 2 * E::depth(Phase::sent(hidden)) * (1 + upstream);
    outs.append(tiles), depths.append(depth);
    weights.append(blocks * parts * tiles * depth * kThreads * Index(sizeof(FragmentA)));
    scales.append(parts > 1 ? blocks * tiles * 16 : 0);
    fits = fits && depth <= Phase::kDepth;
  });
  out["units"] = units, out["peers"] = K::kPeers, out["parts"] = parts, out["blocks"] = blocks;
  out["out_tiles"] = py::tuple(outs), out["depth"] = py::tuple(depths);
  out["weight_bytes"] = py::tuple(weights), out["scale_counts"] = py::tuple(scales);
  out["tile_bytes"] = K::template Phase<0>::E::kPairWords * Index(sizeof(std::uint32_t)) / 2;
  out["step_bytes"] = K::slot_words(hidden) * kPhaseCount<C> * Index(sizeof(std::uint32_t));
  out["fits"] = fits;
  return out;
}

// Bytes of the exchange buffer of a launch: a header, and for each step what all groups and problems send; backward two slots more.
inline Index exchange_bytes(const Index step_bytes, const Index span, const Index groups, const Index co_launched) {
  return Index(sizeof(std::uint32_t)) * kHeaderWords + co_launched * groups * (span + 2) * step_bytes;
}

template <class C, class W>
void add_persistent(py::list* out, Index hidden, bool backward, bool pipelined, bool upstream) {
  for (const int peers : {1, 2, 4})
    for (const int units : {8, 16}) {
      Plan plan{};
      plan.units = units, plan.peers = peers, plan.co_launched = 1, plan.layer_pipelined = pipelined;
      const auto add = [&]<class K>(K*) { out->append(persistent_facts<C, K>(units, ExchangeWords<W>::kParts, hidden, upstream)); };
      backward ? with_persistent_backward<C, float, W>(plan, add) : with_persistent<C, float, W>(plan, add);
    }
}

// The kernels for a cell whose phases' products feed so many columns of a unit each; or, of pipelined layers, all columns of it.
template <class... N>
py::list persistent_kernels(const std::vector<int>& columns, Index hidden, int word, bool backward, bool upstream, CellList<N...>) {
  py::list out;
  bool found = false;
  const auto one = [&]<class C>(C*) {
    std::vector<int> own;
    for (int f = 0; f < kPhaseCount<C>; ++f) own.push_back(C::kPhases[f].product.count());
    if (!supports<C, PersistentDriver>) return;
    const bool pipelined = columns != own;
    if (found || (pipelined && (kPhaseCount<C> > 1 || columns != std::vector<int>{C::kColumns}))) return;
    found = true;
    word == 2 ? add_persistent<C, Bfloat>(&out, hidden, backward, pipelined, upstream)
              : add_persistent<C, float>(&out, hidden, backward, pipelined, upstream);
  };
  (one(static_cast<typename N::Cell*>(nullptr)), ...);
  return out;
}

// The kernels of clusters for a cell whose recurrent product feeds so many columns of a unit.
template <class C, class W>
py::list cluster_facts(bool backward) {
  py::list out;
  const auto add = [&]<class K>(K*) {
    py::dict one;
    const Index outputs = K::kPeers * K::Fragments::kOuts;  // of all blocks
    one["blocks"] = K::kPeers, one["warps"] = K::kBlockThreads / 32, one["rows"] = kClusterRows, one["capacity"] = K::kCapacity;
    one["parts"] = K::kParts, one["scale_count"] = K::kParts > 1 ? outputs : 0;
    one["weight_bytes"] = K::kParts * outputs / 16 * K::Fragments::kPacked * kThreads * Index(sizeof(FragmentA));
    out.append(one);
  };
  for (const int blocks : {2, 4, 8, 16})
    backward ? with_cluster_backward<C, float, W>(blocks, add) : with_cluster<C, float, W>(blocks, add);
  return out;
}
template <class... N>
py::list cluster_kernels(int columns, int word, bool backward, CellList<N...>) {
  py::list out;
  const auto one = [&]<class C>(C*) {
    if constexpr (kClusters<C>)
      if (py::len(out) == 0 && C::kPhases[0].product.count() == columns)
        out = word == 2 ? cluster_facts<C, Bfloat>(backward) : cluster_facts<C, float>(backward);
  };
  (one(static_cast<typename N::Cell*>(nullptr)), ...);
  return out;
}
inline Index status_bytes() { return kHeaderWords * Index(sizeof(std::uint32_t)); }

// Bytes of the fragments of weights that blocks stream, by product (0 for that of the input) and transposed.
template <class... N>
py::tuple stream_bytes(CellId cell, Index hidden, CellList<N...>) {
  py::list panels;
  Index transposed = 0;
  const Index deep = ceil_div(hidden, 16), fragment = 32 * Index(sizeof(FragmentA));
  const auto one = [&]<class C>(C*) {
    if (!supports<C, StreamDriver>) return;
    for (int q = 0; q < kProductCount<C>; ++q) {
      const Index columns = product_columns<C>(q).count();
      panels.append(q ? ceil_div(hidden, kStreamOut / columns) * deep * fragment : 0);
    }
    transposed = deep * ceil_div(hidden * product_columns<C>(1).count(), 16) * fragment;
  };
  ((cell == N::id ? one(static_cast<typename N::Cell*>(nullptr)) : void()), ...);
  return py::make_tuple(panels, transposed);
}

// Return by the number of a cell the columns of a pre-activation, those of each product, and whether the
// products share their gradients.
template <class... N>
py::dict columns_of(CellList<N...>) {
  py::dict out;
  const auto one = [&]<class C, int... Q>(C*, CellId id, std::integer_sequence<int, Q...>) {
    py::list products;
    (products.append(product_columns<C>(Q).count()), ...);
    out[py::int_(int(id))] = py::make_tuple(C::kColumns, products, kSharedDa<C>);
  };
  (one(static_cast<typename N::Cell*>(nullptr), N::id, std::make_integer_sequence<int, kProductCount<typename N::Cell>>()), ...);
  return out;
}

// Slices of the product of a step of a backward pass, in which blocks share it; 0: it is tiles of matrix instructions.
inline Index slices_of(int word, Index batch, Index depth, Index width) {
  return (word == 2 ? has_slices<Bfloat>(batch) : has_slices<float>(batch)) ? step_slices(batch, depth, width) : 0;
}

// Launches of a step, forward and backward, without those that resets, cuts and bounds on norms add.
template <class C>
py::tuple step_launches() {
  int forward = is_projected<C>(), backward = 3 * is_projected<C>();
  for_phases<C>([&]<int F>() {
    int norms = norms_emitted<C>(F), product = matrix_columns<C>(F + 1) > 0;
    for_operations<C, F + 1>([&]<int>() { ++norms; });
    forward += norms + is_normed<C>(F + 1) + 1;
    backward += norms + 2 * product + 1;
  });
  return py::make_tuple(forward, backward);
}

// What Python must know of a cell to make the arrays of its passes.
template <class C>
py::dict device_facts() {
  py::dict out;
  py::list normed;
  for (int q = 0; q < kProductCount<C>; ++q) normed.append(is_normed<C>(q));
  out["normed"] = normed, out["norms"] = kNorms<C>, out["unit_rows"] = unit_rows<C>(), out["projected"] = is_projected<C>();
  out["emits"] = kPhaseCount<C> > 1 || is_projected<C>(), out["emitted_operand"] = has_emitted_operand<C>();
  out["streams"] = supports<C, StreamDriver>, out["step_launches"] = step_launches<C>();
  return out;
}
template <class... N>
py::dict facts_of(CellList<N...>) {
  py::dict out;
  ((out[py::int_(int(N::id))] = device_facts<typename N::Cell>()), ...);
  return out;
}

// Matrices of the weights of a layer: (depth, units, columns) of each, as they are packed.
template <class... N>
py::list matrix_shapes(CellId cell, Index input, Index hidden, Index output, CellList<N...>) {
  py::list out;
  const auto one = [&]<class C, int... Q>(C*, std::integer_sequence<int, Q...>) {
    Problem<float> p{};
    p.input = input, p.hidden = hidden, p.output = output;
    (out.append(py::make_tuple(matrix_depth<C, Q>(p), matrix_units<C, Q>(p), matrix_columns<C>(Q))), ...);
  };
  ((cell == N::id ? one(static_cast<typename N::Cell*>(nullptr), std::make_integer_sequence<int, kMatrixCount<typename N::Cell>>())
                  : void()),
   ...);
  return out;
}

// Return the bytes of the weights that the kernel of all steps loads, forward and backward.
template <class C, class W, class V>
py::tuple loop_bytes(int capacity, bool split) {
  Index forward = 0, backward = 0;
  if constexpr (kLoops<C>) {
    run_loop<float, W, false>(capacity, split, [&]<class Word, int K>() { forward = LoopKernel<C, float, Word, K>::E::kPackedBytes; });
    run_loop<float, V, true>(capacity, split,
                             [&]<class Word, int K>() { backward = BackwardLoopKernel<C, float, Word, K>::E::kPackedBytes; });
  }
  return py::make_tuple(forward, backward);
}
template <class... N>
py::tuple loop_bytes_of(CellId cell, const std::string& precision, int capacity, bool split, CellList<N...>) {
  py::tuple out;
  ((cell == N::id ? void(out = precision == "exact"      ? loop_bytes<typename N::Cell, float, float>(capacity, split)
                               : precision == "bfloat16" ? loop_bytes<typename N::Cell, Bfloat, Bfloat>(capacity, split)
                                                         : loop_bytes<typename N::Cell, Half, Bfloat>(capacity, split))
                  : void()),
   ...);
  return out;
}

}  // namespace ost::OST_SET
