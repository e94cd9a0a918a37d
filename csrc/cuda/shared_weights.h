// The recurrent weights of a layer that blocks hold together, packed in the order in which each of
// them loads its part.
#pragma once
#include "exchange.h"
#include "mma.h"

namespace ost::OST_SET {

constexpr float kFloatMax = 3.402823466e38f;

// weight(out, in) of a layer, from panels, or backward from transposed panels. One index goes over
// units, the other one over columns [begin, end) of each unit. After the `inputs` of the recurrent
// product come those of the product that connects the layer with its upstream layer.
template <class W>
struct SharedWeights {
  const W *own, *upstream;  // null means zeros
  Index hidden, inputs;
  Columns columns, own_columns, upstream_columns;
  bool transposed;
  OST_HD float operator()(Index out, Index in) const {
    const bool second = in >= inputs;
    const Index i = second ? in - inputs : in, k = transposed ? out : i, u = (transposed ? i : out) / columns.count();
    const int column = columns.begin + int((transposed ? i : out) % columns.count());
    const Columns of = second ? upstream_columns : own_columns;
    const W* from = second ? upstream : own;
    if (!from || u >= hidden || k >= hidden || !of.has(column)) return 0;
    const Index n = of.count(), at = column - of.begin;
    return as_number(from[transposed ? (u * n + at) * hidden + k : (k * hidden + u) * n + at]);
  }
};

// Pack the weights of all blocks as fragments, [block][part][tile of outputs][tile of inputs of a
// warp][thread]. Each output has a power of two as its scale, [block][output], so that both parts
// of a float are within the range of Half. Peers have the same outputs, and different inputs.
template <class F, class E, class Word, int kParts, int kTiles, int kPeers>
struct PersistentPackKernel {
  F from;
  FragmentA* to;
  float* scales;        // null: no scales
  Index depth, blocks;  // tiles of a warp
  static constexpr int kOuts = kTiles * 16, kSlices = kThreads / kOuts;
  struct Space {
    float top[kSlices][kOuts], scale[kOuts];
  };
  Grid grid() const { return {blocks}; }
  OST_HD float weight(Index block, int out, Index in) const { return out < E::kOuts ? from(block / kPeers * E::kOuts + out, in) : 0; }
  OST_HD void operator()(const Block& block, Space& space) const {
    block.for_each_thread_sync([&](int thread) {
      const int out = thread % kOuts, slice = thread / kOuts;
      if (slice >= kSlices || !scales) return;
      float top = 0;
      for (Index in = slice; in < depth * 16 * E::kWarps * kPeers; in += kSlices) {
        const float w = weight(block.x, out, in), size = w < 0 ? -w : w;
        if (size <= kFloatMax && size > top) top = size;
      }
      space.top[slice][out] = top;
    });
    block.for_each_thread_sync([&](int thread) {
      if (thread >= kOuts) return;
      float top = 0;
      for (int slice = 0; slice < kSlices && scales; ++slice) top = larger(top, space.top[slice][thread]);
      space.scale[thread] = scales ? power_below(top) : 1;
      if (scales) scales[block.x * kOuts + thread] = 1 / space.scale[thread];
    });
    const Index count = kParts * kTiles * depth;
    block.for_each_thread_sync([&](int thread) {
      for (Index i = 0; i < count; ++i) {
        const int part = int(i / (kTiles * depth)), n = int(i / depth % kTiles);
        FragmentA a;
        for (int w = 0; w < 4; ++w) {
          const int out = E::output(thread, n, w);
          const Index in = E::input(thread, block.x % kPeers, i % depth, w);
          Word low[kParts], high[kParts];
          split_float<Word, kParts>(weight(block.x, out, in) * space.scale[out], low);
          split_float<Word, kParts>(weight(block.x, out, in + 1) * space.scale[out], high);
          a.word[w] = part == 0 ? pair_of<Word>(low[0], high[0]) : pair_of<Word>(low[kParts - 1], high[kParts - 1]);
        }
        to[(block.x * count + i) * kThreads + thread] = a;
      }
    });
  }
  // Return a power of two that brings a number to [1, 2), as far as floats have such powers.
  OST_HD static float power_below(float top) {
    float scale = 1;
    if (top == 0) return scale;
    for (; top * scale >= 2 && scale > 1e-37f;) scale /= 2;
    for (; top * scale < 1 && scale < 1e37f;) scale *= 2;
    return scale;
  }
};

}  // namespace ost::OST_SET
