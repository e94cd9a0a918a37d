// The border between the code compiled once (bindings, stack, dispatch) and the kernels compiled once per instruction
// set: plain structs and one table of function pointers a set. No inline function may stand here, since the linker
// would keep one copy of it, perhaps the AVX-512 one, for every set.
#pragma once
#include <cstdint>

namespace ost {

using Index = std::int64_t;  // every size and stride

enum class CellId : int {
  kRnnTanh,
  kRnnRelu,
  kLstm,
  kLstmPeephole,
  kGru,
  kGruResetBefore,
  kLstmProjected,
  kLstmLayerNorm,
  kRnnGeneral,
  kLstmGeneral,
  kGruGeneral,
  kGruResetBeforeGeneral
};
constexpr int kCellCount = 12;
constexpr int kMaxProducts = 3;  // the input product and at most two others: recurrent ones, or the projection of h

// H, the units of a cell, and P, how wide its h is: H, except where h is projected.
struct Widths {
  Index hidden, output;
};

// Weights of one number a unit, under the name that users know them by: [rows,H], or flat, [rows*H], as a bias is.
struct UnitWeights {
  const char* name;
  int rows;
  bool flat = false;
  bool optional = false;  // null: zeros
};
constexpr int kMostUnitWeights = 4, kMostUnitRows = 12;  // of a cell
constexpr int kMostScalars = 12;                         // numbers of a call that a cell reads

// What may run a cell: core/drivers.h says which takes which.
enum class DriverId : int { kPlain, kCpu, kStep, kStream, kLoop, kPersistent, kCluster };
constexpr int kDriverCount = 7;

// What bindings and stack must know of a cell; filled from the cell's struct.
struct CellTraits {
  const char* name;
  int gates;          // rows of weight_ih are gates * H
  int states;         // 1: h, 2: h and c
  int params;         // numbers a unit that the pointwise functions read (peepholes)
  int saved;          // vectors a unit that they keep on the tape, without the cell state
  int deviations[2];  // vectors a unit that are kept of W x, and of recurrent products, where these are normed
  UnitWeights units[kMostUnitWeights];
  int unit_weights;                 // how many of them
  bool projected;                   // h is P wide, and there is a weight_hr
  int scalars;                      // numbers of the whole call that the pointwise functions read
  const char* lacks[kDriverCount];  // what each driver lacks for it; null: nothing
};

// Weights as the user holds them (PyTorch's names and shapes); a bias may be null.
template <class T>
struct RawWeights {
  const T* weight_ih;             // [gates*H, I]
  const T* weight_hh;             // [gates*H, P]
  const T* bias_ih;               // [gates*H]
  const T* bias_hh;               // [gates*H]
  const T* weight_hr;             // [P, H], of a projected cell
  const T* units[kMostUnitRows];  // [H] each: the rows of the cell's UnitWeights, in their order
};

// Gradients are added to these; any may be null.
template <class T>
struct RawGradients {
  T* weight_ih;
  T* weight_hh;
  T* bias_ih;
  T* bias_hh;
  T* weight_hr;
  T* units[kMostUnitRows];
};

// What multiplies bfloat16 and bytes: vectors, the tiles of the CPU (AMX), or the model of them that the tests run.
enum class Multiplier : int { kVectors, kTiles, kTileModel };

// Packed panels of one layer and direction; all in one 64-byte aligned block owned by the caller.
template <class T>
struct PackedWeights {
  Index input;
  Widths widths;
  const void* panels[kMaxProducts];      // forward: operand x weight, in words of the precision
  const void* transposed[kMaxProducts];  // backward: da x weight; null when packed for inference only
  const T* bias;                         // by group and column, as the pre-activation
  const T* params;                       // [params][padded H]
  const T* gains[kMaxProducts];          // of products that are normed, in the order of their columns
  Multiplier multiplier;
  T scalars[kMostScalars];  // what the pointwise functions read beside
};

// [T,B,*] rows with unit stride on the last axis; strides in elements, any sign. With `starts` and `ends` [B] row b is the rows
// [starts[b], ends[b]) of a flat array instead, and there is nothing past its end.
template <class T>
struct Rows {
  T* data;
  Index t, b;
  const Index* starts = nullptr;
  const Index* ends = nullptr;
};

// Which row of a table (an embedding) each (t, b) reads as its input: what depends on the input alone is then made once for each
// of the table's N rows. Backward, product 0 has the row's number for its operand, so the gradient of its weights has N columns.
struct Lookup {
  Rows<const Index> ids{};  // [T,B,1]; data null: x is read instead
  Index rows = 0;           // N
};

// Returns non-zero to stop a long call (a pending Ctrl-C). Called on the calling thread only.
struct Poll {
  int (*ask)(void*);
  void* context;
};

// What a step starts from, if not from the state after another step; and what is no step at all.
enum Predecessor : std::int32_t {
  kInitial = -1,  // h0, c0
  kRestart = -2,  // the state of a restart
  kSkipped = -3,  // the row does not take part; its output is zero
  kHeld = -4,     // the same, but its output repeats h0. kHeld - 1 - t: it repeats that of step t
};

// In which steps the rows of a batch take part. Without `predecessors` row b runs t = 0 .. lengths[b] - 1.
struct Times {
  const Index* lengths;              // [B] number of steps that each row takes part in; null: all
  const std::int32_t* predecessors;  // [T+1,B] what each step starts from; row T: what the row ends with. Null: see above
  const Index* order;                // [B] the row at each position: any range of positions has about the same to do; null if lengths is
  const Index* stops = nullptr;      // [B] steps that each row has, of which it may skip some: none takes part later; null: all T
  const Index* offsets = nullptr;    // [B] not null: `predecessors` is flat, and row b's stops[b] + 1 entries begin at offsets[b]
  const Index* tape = nullptr;       // [B] not null: the tape is flat, and row b's begins at tape[b]; else [T,B], in the order of positions
};

template <class T>
struct ForwardCall {
  const PackedWeights<T>* weights;
  Index steps, batch;
  bool reverse;
  Times times;
  Rows<const T> x;                 // [T,B,I]
  Rows<T> y;                       // [T,B,P]
  const T *h0, *c0;                // [B,P] and [B,H], null means zeros
  const T *restart_h, *restart_c;  // [P] and [H], null means zeros
  T *hn, *cn;                      // [B,P] and [B,H], null means not wanted
  T* saved;                        // tape [T][position][PackedStack::tape_width]; null in inference
  T* cells;                        // tape [T][position][padded H] of c, for cells with two states; null in inference
  Poll poll;
  Lookup lookup;
  const T* projected;  // with a lookup: what `project` made of the table
};

// What may be done to the gradient on its way back through time, and what is learnt on the way. All may be null or 0: nothing.
// "The gradient at (t, b)" is the pair that the cell's backward pass reads: dL/dh_t by all paths, and what step t + 1 hands to c_t.
template <class T>
struct StepControl {
  T clip_value;                       // each element of the gradient at (t, b) to [-clip_value, clip_value]
  T clip_norm;                        // then dh and dc at (t, b), each over its width, to this Euclidean norm
  const std::uint8_t* cuts;           // [T,B]: nothing goes from this step to the state that it started from
  Rows<const T> dcells;               // [T,B,H] further gradient of c_t
  double* flow;                       // [T,states] sums over b and H of (dL/dh_t)^2 and (dL/dc_t)^2, by all paths; added to
  const Index* cut_starts = nullptr;  // [B] not null: cuts are flat, and those of row b begin there
};

// Contract: dx, dh0, dc0 are overwritten; the RawGradients (unless `overwrite`) and drestart are added to, after the last step, or
// untouched on a stop.
template <class T>
struct BackwardCall {
  const PackedWeights<T>* weights;
  Index steps, batch;
  bool reverse;
  Times times;
  Rows<const T> x, y;
  const T *h0, *c0;
  const T *restart_h, *restart_c;
  const T *saved, *cells;      // saved null: recomputed from the states
  Rows<const T> dy;            // data null means zeros
  const T *dhn, *dcn;          // as h0 and c0, null means zeros
  T *drestart_h, *drestart_c;  // as restart_h and restart_c, null means not wanted
  StepControl<T> control;
  Rows<T> dx;    // data null means not wanted
  bool dx_add;   // add to dx instead: the second direction of a layer
  T *dh0, *dc0;  // as h0 and c0, null means not wanted
  RawGradients<T> gradients;
  // A sequence in several calls, the last steps first: sums that outlive a call, so that they are added up as in one. Null: one call.
  T* sums;         // of `sums_size` elements
  bool resume;     // they hold those of later steps
  bool more;       // earlier steps are still to come: nothing is added to the gradients yet
  bool overwrite;  // the gradients go in the place of what `gradients` hold, as if that were zero
  Poll poll;
  Lookup lookup;       // then gradients.weight_ih is [gates*H, N], of the table times the weights, and dx is not wanted
  const T* projected;  // as forward
};

enum Status : int { kOk = 0, kStopped = 1, kNoMemory = 2 };

// How a group of calls is run, for explain(): filled by `plan`.
struct CallPlan {
  const char* spread;  // "alone", "lanes", "units"
  int threads;
  Index row_blocks;             // all of them
  Index row_block_rows;         // batch rows of the largest
  Index block_steps;            // steps between two looks around
  bool concurrent;              // directions or layers at the same time
  int tile_rows, tile_vectors;  // of the recurrent product
  Index tape_bytes;             // of one call, kept from forward to backward
  Index workspace_bytes;        // of one pass, given back at its end
  double model_seconds;         // by the cost model
};

// The calls of a group share steps, batch and the rows' lengths: the directions of a layer, or (chained) layers of which each reads what
// the one before writes. gradient kernels are null in precisions for inference only.
template <class T>
struct CellKernels {
  Index (*packed_size)(Index input, Widths widths, bool backward);  // elements
  int (*pack)(const RawWeights<T>&, Index input, Widths widths, bool backward, T* memory, PackedWeights<T>* out);
  Index (*projected_size)(Index rows, Widths widths);  // elements
  // W x + bias of every row of a table [rows,I], normed where the cell norms W x.
  int (*project)(const PackedWeights<T>&, Index rows, const T* x, T* projected);
  int (*forward)(const ForwardCall<T>* calls, int count, bool chained);
  int (*backward)(const BackwardCall<T>* calls, int count, bool chained);  // chained: from the top layer down
  Index (*sums_size)(Index batch, Index input, Widths widths,
                     Index* block_steps);                    // and the steps that calls of one sequence must be cut at
  void (*saved)(const T* row, Index hidden, int k, T* out);  // what the tape keeps of one (t, b): its k-th vector, [H]
  void (*plan)(Index steps, Index batch, const Index* inputs, Widths widths, int calls, bool chained, bool backward, CallPlan* out);
};

// y = x weight^T + bias over n rows: what Linear needs, on the same product as the recurrences.
template <class T>
struct LinearKernels {
  Index (*packed_size)(Index input, Index output, bool backward);
  void (*pack)(const T* weight, const T* bias, Index input, Index output, bool backward, T* memory);
  int (*forward)(const T* memory, Index n, Index input, Index output, const T* x, Index x_stride, T* y);
  // dx overwritten (null: not wanted); dweight, dbias added to (null: not wanted).
  int (*backward)(const T* memory, Index n, Index input, Index output, const T* x, Index x_stride, const T* dy, T* dx, T* dweight,
                  T* dbias);
};

struct AdamStep {
  double rate, beta1, beta2, eps, weight_decay, correction1, correction2;
  bool decoupled;  // AdamW: decay acts on the weights, not through the gradient
};
struct SgdStep {
  double rate, weight_decay, momentum;  // without momentum there is no buffer
  bool nesterov;
};
struct RmspropStep {
  double rate, weight_decay, alpha, eps;
};

// Parameters [n] that an optimiser moves, in one pass over all arrays. It steps along the gradients times `factor`, and leaves them so.
template <class T>
struct Update {
  Index n;
  T *p, *g;
  T* buffers[2];  // as many as the rule has
  T factor;
  T* previous;  // null, or filled with what p was
};

// Sequences of the CTC loss: sequence b has the rows rows[row_offsets[b]..row_offsets[b + 1]) of logits [n,V] as its steps, and the
// labels between label_offsets[b] and [b + 1].
template <class T>
struct CtcCall {
  Index batch, classes, blank;
  const T* logits;
  const Index *rows, *row_offsets, *labels, *label_offsets;
  const double* scales;  // [B]: d(loss)/d(loss of a sequence)
  bool zero_infinite;    // whether the gradient of an infinite loss is 0, else NaN
  T* dlogits;            // [n,V] like logits, of which the rows of the sequences are overwritten; may be null
  double* losses;        // [B]
};

// Where the random words of a row of numbers come from: those of its numbers 4 quad .. 4 quad + 3 are Philox's for the counter
// (quad, second, third, fourth).
struct RandomRow {
  std::uint64_t key;
  std::uint32_t second, third, fourth;
};

// The training step outside the recurrences. All sums run in an order that does not depend on threads.
template <class T>
struct TrainKernels {
  // logits [n,V]; target[i] < 0 leaves row i out. weight: d(loss)/d(row loss). dlogits may be null. Returns the sum of row losses.
  double (*softmax_cross_entropy)(Index n, Index classes, const T* logits, const Index* target, double smoothing, double weight, T* dlogits,
                                  double* losses);  // losses: room for n
  void (*embedding_gather)(Index n, Index width, const Index* ids, const T* table, T* out);
  void (*embedding_scatter)(Index n, Index width, const Index* ids, const T* dy, T* dtable);
  double (*square_sum)(Index n, const T* x);
  void (*adam)(const Update<T>&, const AdamStep&);
  void (*sgd)(const Update<T>&, const SgdStep&);
  void (*rmsprop)(const Update<T>&, const RmspropStep&);
  void (*dropout)(Index n, const T* x, T* y, double rate, const RandomRow&);  // y = x / (1 - rate) where kept, else 0; n <= 2^34
  void (*tanh)(Index n, const T* x, T* y);  // the vector functions of the cells, for layers and for the ULP tests
  void (*sigmoid)(Index n, const T* x, T* y);
  void (*exp)(Index n, const T* x, T* y);
};

enum class Precision : int { kExact, kBfloat16, kInt8 };
constexpr int kPrecisionCount = 3;

template <class T>
struct TypedKernels {
  int lanes;
  CellKernels<T> cells[kPrecisionCount][kCellCount];
  LinearKernels<T> linear;
  TrainKernels<T> train;
  int (*ctc)(const CtcCall<T>&);                          // a Status
  double (*fma_peak)(double seconds);                     // GFLOP/s of one thread on independent FMA chains
  double (*read_bandwidth)(Index bytes, double seconds);  // GB/s of one thread over a block of that size, again and again
};

struct KernelTable {
  const char* name;
  const char* bfloat16;  // how products of bfloat16 and of bytes are made: the instruction, or "widened"
  const char* int8;
  CellTraits traits[kCellCount];
  TypedKernels<float> f32;
  TypedKernels<double> f64;
};

template <class T>
const TypedKernels<T>& typed(const KernelTable* table) {
  if constexpr (sizeof(T) == 4)
    return table->f32;
  else
    return table->f64;
}

}  // namespace ost
