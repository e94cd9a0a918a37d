// Which driver runs which cell. A driver lists what it takes beyond one phase of a product and pointwise functions; a
// cell that asks for more does not compile for it (`supports`), and `explain` says what is missing.
#pragma once
#include "cell.h"

namespace ost::OST_SET {

enum Feature : unsigned {
  kSecondPhase = 1,     // a product of what the phase before emitted
  kRowOperation = 2,    // layer norm of what the phase before emitted
  kProjection = 4,      // h = W_hr m, of a width of its own
  kRandom = 8,          // one random number a unit and step
  kNoProduct = 16,      // a phase without a recurrent product
  kNormedProduct = 32,  // layer norm of W x, or of a recurrent product
  kCallScalars = 64,    // numbers of the whole call
  kMoreStates = 128,    // states beside h and c
  kHeads = 256,         // a block-diagonal R
};

template <class C>
constexpr unsigned features_of() {
  unsigned features = 0;
  for (const Phase& phase : C::kPhases) {
    if (phase.operand == Operand::kEmitted && !phase.product.empty()) features |= kSecondPhase;
    if (phase.before != RowOp::kNone) features |= kRowOperation;
    if (phase.product.empty() && phase.before == RowOp::kNone) features |= kNoProduct;
  }
  if (op_count<C>() > 0) features |= kNormedProduct;
  if (is_projected<C>()) features |= kProjection;
  if (takes_noise<C>()) features |= kRandom;
  if (scalar_count<C>() > 0) features |= kCallScalars;
  if (C::kStates > 2) features |= kMoreStates;
  if (is_block_diagonal<C>()) features |= kHeads;
  return features;
}

// In the order of DriverId.
struct PlainDriver {  // core/plain.h
  static constexpr unsigned kTakes =
      kSecondPhase | kRowOperation | kNormedProduct | kProjection | kRandom | kNoProduct | kCallScalars | kMoreStates | kHeads;
};
struct CpuDriver {  // cpu/forward.h, cpu/backward.h
  static constexpr unsigned kTakes = kSecondPhase | kRowOperation | kNormedProduct | kProjection | kCallScalars;
};
struct StepDriver {  // cuda/forward.h, cuda/backward.h, cuda/norm.h and cuda/projection.h: launches for every step
  static constexpr unsigned kTakes = kSecondPhase | kRowOperation | kNormedProduct | kProjection | kCallScalars;
};
struct StreamDriver {  // cuda/stream.h: a launch for every step of few rows, whose blocks read the weights once
  static constexpr unsigned kTakes = kSecondPhase | kCallScalars;
};
struct LoopDriver {  // cuda/loop.h: one multiprocessor takes some rows through all steps
  static constexpr unsigned kTakes = 0;
};
struct PersistentDriver {  // cuda/persistent.h: multiprocessors share the recurrent weights
  static constexpr unsigned kTakes = kSecondPhase;
};
struct ClusterDriver {  // cuda/cluster.h: the blocks of a cluster share the weights
  static constexpr unsigned kTakes = 0;
};

template <class C, class D>
inline constexpr bool supports = (features_of<C>() & ~D::kTakes) == 0 && kMatrixCount<C> <= kMaxProducts;

// What a driver lacks for a cell, in words; null if it runs it.
template <class C, class D>
constexpr const char* lacks() {
  if (supports<C, D>) return nullptr;
  const unsigned missing = features_of<C>() & ~D::kTakes;
  return missing & kSecondPhase                       ? "a second product in a step"
         : missing & (kRowOperation | kNormedProduct) ? "layer norm within a step"
         : missing & kProjection                      ? "a projection of h"
         : missing & kRandom                          ? "random numbers within a step"
         : missing & kNoProduct                       ? "a step without a recurrent product"
         : missing & kMoreStates                      ? "states beside h and c"
         : missing & kHeads                           ? "a block-diagonal R"
         : missing & kCallScalars                     ? "functions that a call chooses"
                                                      : "so many products in a step";
}

}  // namespace ost::OST_SET
