// Backpropagation through time of one layer and direction, for any cell. Time is cut into chunks of max(1, 256 / B) whole
// steps, anchored at t = 0. In a chunk, descending in processing order: the cell's backward, then dh = da R; then dx = da W;
// then, while da is in cache, the chunk's share of dW, dR and the biases, from zero, added to the call's accumulators. So
// the sums have one order, whatever the number of threads.
#pragma once
#include "forward.h"

namespace ost::OST_SET {

constexpr Index kWeightRows = 256;  // rows summed in one chain of a weight gradient

template <class C, class T>
class Backward {
  using V = Vec<T>;
  static constexpr int L = V::kLanes, kCount = kProductCount<C>, kLast = kPhaseCount<C> - 1;
  // A single recurrent product over the very columns of the input product shares its da (RNN, LSTM).
  static constexpr bool kSharedDa = kCount == 2 && product_columns<C>(0) == product_columns<C>(1);

  struct Row {  // one active row of the batch at one step
    const T *saved, *h, *c, *h1, *c1, *dy;
    T *da[kCount], *dparam, *emitted, *dh, *dc, *demitted;
  };
  struct Workspace {  // one thread's
    Row* rows;
    const T **in, **init;
    T** out;
  };

 public:
  explicit Backward(const BackwardCall<T>& call)
      : call_(call),
        s_(call.weights->input, call.weights->hidden),
        clock_{call.steps, call.reverse, call.lengths},
        plan_(make_plan(call.steps, call.batch, 2 * (s_.input + s_.hidden), C::kGates * s_.padded, s_.groups, 2 * kPhaseCount<C>)) {
    shared_ = plan_.axis == Axis::kUnits;
    row_chunks_ = shared_ ? 1 : plan_.threads * ceil_div(call.batch, plan_.threads * kChunkRows);
    chunk_steps_ = larger<Index>(1, smaller<Index>(call.steps, kWeightRows / larger<Index>(1, call.batch)));
    chunks_ = ceil_div(call.steps, chunk_steps_);
    // Weight-gradient tasks: a group of a product, cut along the operand too where there are few groups.
    parts_ = s_.groups * kCount >= 2 * plan_.threads ? 1 : plan_.threads;
  }

  int run() {
    if (call_.batch == 0) return kOk;
    Arena spaces, arena;
    spaces_ = spaces.make<Workspace>(plan_.threads);
    if (!spaces_) return kNoMemory;
    layout_memory(arena);
    if (!arena.allocate()) return kNoMemory;
    layout_memory(arena);
    fill_zero(zeros_, zero_count());
    for (int q = 0; q < kCount; ++q) fill_zero(weight_sums_[q], s_.depth(q) * s_.width(q)), fill_zero(bias_sums_[q], s_.width(q));
    fill_zero(param_sums_, C::kParams * s_.padded);
    load_states();
    run_team(plan_.threads, [](void* self, int index, int count) { static_cast<Backward*>(self)->work(index, count); }, this);
    if (stop_) return kStopped;
    store_states();
    return kOk;
  }

 private:
  Index zero_count() const { return larger(s_.padded, s_.input) + kMaxVectors * L; }
  void layout_memory(Arena& arena) {
    const Index rows = chunk_steps_ * call_.batch;
    zeros_ = arena.take<T>(zero_count());
    for (int q = 0; q < kCount; ++q) {
      da_[q] = q == 1 && kSharedDa ? da_[0] : arena.take<T>(rows * s_.row_stride(q));
      weight_sums_[q] = arena.take<T>(s_.depth(q) * s_.width(q));
      bias_sums_[q] = q == 1 && kSharedDa ? bias_sums_[0] : arena.take<T>(s_.width(q));
      operand_rows_[q] = arena.take<const T*>(rows);
      da_rows_[q] = arena.take<const T*>(rows);
    }
    dparams_ = arena.take<T>(rows * C::kParams * s_.padded);
    param_sums_ = arena.take<T>(C::kParams * s_.padded);
    dh_ = arena.take<T>(call_.batch * s_.padded);
    dc_ = arena.take<T>(C::kStates > 1 ? call_.batch * s_.padded : 0);
    c0_ = arena.take<T>(C::kStates > 1 ? call_.batch * s_.padded : 0);
    demitted_ = arena.take<T>(kLast > 0 ? call_.batch * s_.padded : 0);
    emitted_ = arena.take<T>(kLast > 0 ? rows * s_.padded : 0);
    block_ends_ = arena.take<Index>(ceil_div(call_.batch, kWeightRows) + 1);
    for (int i = 0; i < plan_.threads; ++i) {
      Workspace& w = spaces_[i];
      w.rows = arena.take<Row>(call_.batch);
      w.in = arena.take<const T*>(rows);
      w.init = arena.take<const T*>(rows);
      w.out = arena.take<T*>(rows);
    }
  }
  void load_states() {
    for (Index b = 0; b < call_.batch; ++b)
      for (Index u = 0; u < s_.padded; ++u) {
        const bool in = u < s_.hidden;
        dh_[b * s_.padded + u] = in && call_.dhn ? call_.dhn[b * s_.hidden + u] : T(0);
        if (C::kStates == 1) continue;
        dc_[b * s_.padded + u] = in && call_.dcn ? call_.dcn[b * s_.hidden + u] : T(0);
        c0_[b * s_.padded + u] = in && call_.c0 ? call_.c0[b * s_.hidden + u] : T(0);
      }
  }
  void store_states() {
    for (Index b = 0; b < call_.batch; ++b)
      for (Index u = 0; u < s_.hidden; ++u) {
        if (call_.dh0) call_.dh0[b * s_.hidden + u] = dh_[b * s_.padded + u];
        if (C::kStates > 1 && call_.dc0) call_.dc0[b * s_.hidden + u] = dc_[b * s_.padded + u];
      }
  }

  void work(int index, int count) {
    Workspace& w = spaces_[index];
    // Chunks are anchored at t = 0 and taken from the end of the sequence as it was processed.
    for (Index i = 0; i < chunks_; ++i) {
      const Index chunk = call_.reverse ? i : chunks_ - 1 - i;
      const Index t0 = chunk * chunk_steps_, t1 = smaller(call_.steps, t0 + chunk_steps_);
      if (index == 0) {
        if (call_.poll.ask && call_.poll.ask(call_.poll.context)) stop_ = 1;
        list_rows(t0, t1);
        next_task_ = 0;
      }
      barrier_wait(&barrier_, count);
      if (stop_) return;
      if (shared_)
        through_time(w, 0, call_.batch, t0, t1, part_of(s_.groups, index, count), index, count);
      else
        for (Index c; (c = __atomic_fetch_add(&next_rows_, 1, __ATOMIC_RELAXED)) < row_chunks_;) {
          const Range rows = part_of(call_.batch, c, row_chunks_);
          through_time(w, rows.begin, rows.end, t0, t1, {0, s_.groups}, 0, 1);
        }
      barrier_wait(&barrier_, count);
      if (index == 0) next_rows_ = 0;
      const Index tasks = kCount * s_.groups * parts_;
      for (Index task; (task = __atomic_fetch_add(&next_task_, 1, __ATOMIC_RELAXED)) < tasks;) weight_task(task);
      barrier_wait(&barrier_, count);
    }
    // Groups own their rows of the weights, so threads never meet here.
    const Range groups = part_of(s_.groups, index, count);
    for (Index g = groups.begin; g < groups.end; ++g) add_gradients(g);
  }

  Index chunk_row(Index t, Index t0, Index b) const { return (t - t0) * call_.batch + b; }
  const T* hidden_before(Index t, Index b) const {
    return !clock_.first(t, b) ? at(call_.y, clock_.before(t), b) : call_.h0 ? call_.h0 + b * s_.hidden : zeros_;
  }

  // The active rows of the chunk, in one fixed order (blocks of 256 rows of the batch, t, b), for the weight gradients.
  void list_rows(Index t0, Index t1) {
    Index n = 0, block = 0;
    for (Index b0 = 0; b0 < call_.batch; b0 += kWeightRows) {
      for (Index t = t0; t < t1; ++t)
        for (Index b = b0; b < smaller(call_.batch, b0 + kWeightRows); ++b) {
          if (!clock_.active(t, b)) continue;
          const Index row = chunk_row(t, t0, b);
          for (int q = 0; q < kCount; ++q) {
            operand_rows_[q][n] = q == 0                                          ? at(call_.x, t, b)
                                  : C::kPhases[q - 1].operand == Operand::kHidden ? hidden_before(t, b)
                                                                                  : emitted_ + row * s_.padded;
            da_rows_[q][n] = da_[q] + row * s_.row_stride(q);
          }
          ++n;
        }
      block_ends_[block++] = n;
    }
  }

  void sync(int count) { barrier_wait(&barrier_, count); }

  void through_time(Workspace& w, Index b0, Index b1, Index t0, Index t1, Range groups, int index, int count) {
    for (Index i = 0; i < t1 - t0; ++i) {
      const Index t = call_.reverse ? t0 + i : t1 - 1 - i;
      Index n = 0;
      for (Index b = b0; b < b1; ++b) {
        if (!clock_.active(t, b)) continue;
        Row& row = w.rows[n++];
        const Index r = chunk_row(t, t0, b), tb = t * call_.batch + b;
        row.saved = call_.saved + tb * C::kSaved * s_.padded;
        row.h = hidden_before(t, b);
        row.h1 = at(call_.y, t, b);
        if (C::kStates > 1) {
          row.c = clock_.first(t, b) ? c0_ + b * s_.padded : call_.cells + (clock_.before(t) * call_.batch + b) * s_.padded;
          row.c1 = call_.cells + tb * s_.padded;
          row.dc = dc_ + b * s_.padded;
        }
        row.dy = call_.dy.data ? at(call_.dy, t, b) : nullptr;
        for (int q = 0; q < kCount; ++q) row.da[q] = da_[q] + r * s_.row_stride(q);
        row.dparam = dparams_ + r * C::kParams * s_.padded;
        row.emitted = emitted_ + r * s_.padded;
        row.dh = dh_ + b * s_.padded;
        row.demitted = demitted_ + b * s_.padded;
      }
      phases<kLast>(w, n, groups, index, count);
    }
    if (call_.dx.data) input_gradient(w, b0, b1, t0, t1, index, count);
  }

  template <int P>
  OST_HD void phases(Workspace& w, Index n, Range groups, int index, int count) {
    phase<P>(w, n, groups, index, count);
    if constexpr (P > 0) phases<P - 1>(w, n, groups, index, count);
  }

  template <int P>
  OST_HD void phase(Workspace& w, Index n, Range groups, int index, int count) {
    constexpr Phase phase = C::kPhases[P];
    for (Index i = 0; i < n; ++i)
      for (Index g = groups.begin; g < groups.end; ++g) {
        const int units = s_.units(g);
        for (int u = 0; u < units; ++u) cell<P>(w.rows[i], g, units, u);
      }
    if (shared_) sync(count);
    if constexpr (phase.product.count() > 0) {
      constexpr int q = P + 1;
      for (Index i = 0; i < n; ++i) {
        w.in[i] = w.rows[i].da[q];
        w.out[i] = phase.operand == Operand::kHidden ? w.rows[i].dh : w.rows[i].demitted;
        w.init[i] = phase.operand == Operand::kHidden ? w.rows[i].dh : zeros_;  // dh holds the direct gradient
      }
      const Range outputs = part_of(plain_groups(s_.vectors), index, count);
      rows_product(n, s_.width(q), w.in, call_.weights->transposed[q], s_.vectors, outputs.begin, outputs.end, w.init, w.out);
      if (shared_) sync(count);
    }
  }

  template <int P>
  OST_HD void cell(const Row& row, Index g, int units, int u) {
    constexpr Phase phase = C::kPhases[P];
    const Index first = (g * Layout<C, T>::U + u) * L, left = s_.hidden - first;
    BackwardIn<C, V> in;
    BackwardOut<C, V> out;
    const T* saved = row.saved + s_.offset(g, C::kSaved);
    for (int k = 0; k < C::kSaved; ++k) in.saved[k] = V::load(saved + (k * units + u) * L);
    in.previous[0] = load_left(row.h + first, left);
    in.next[0] = load_left(row.h1 + first, left);
    in.dstate[0] = V::load(row.dh + first);
    if (row.dy) in.dstate[0] = in.dstate[0] + load_left(row.dy + first, left);
    out.dprevious[0] = V(T(0));
    if constexpr (C::kStates > 1) {
      in.previous[1] = V::load(row.c + first);
      in.next[1] = V::load(row.c1 + first);
      in.dstate[1] = V::load(row.dc + first);
      out.dprevious[1] = V(T(0));
    }
    for (int k = 0; k < C::kParams; ++k) in.param[k] = V::load(call_.weights->params + k * s_.padded + first);
    if constexpr (P < kLast) {
      in.demitted = V::load(row.demitted + first);
      keep_lanes(C::emitted(in.saved, in.previous), left).store(row.emitted + first);
    }
    C::template backward<P>(in, out);
    if (left < L) {
      for (int column = phase.own.begin; column < phase.own.end; ++column) out.da[column] = keep_lanes(out.da[column], left);
      if constexpr (P == 0) {
        for (int k = 0; k < C::kStates; ++k) out.dprevious[k] = keep_lanes(out.dprevious[k], left);
        for (int k = 0; k < C::kParams; ++k) out.dparam[k] = keep_lanes(out.dparam[k], left);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < (kSharedDa ? 1 : kCount); ++q) {
      const Columns columns = product_columns<C>(q);
      T* da = row.da[q] + s_.offset(g, columns.count());
      for (int column = phase.own.begin; column < phase.own.end; ++column)
        if (columns.has(column)) out.da[column].store(da + ((column - columns.begin) * units + u) * L);
    }
    if constexpr (P == 0) {  // the last to run, and the only one that sets dprevious
      out.dprevious[0].store(row.dh + first);
      if constexpr (C::kStates > 1) out.dprevious[1].store(row.dc + first);
      for (int k = 0; k < C::kParams; ++k) out.dparam[k].store(row.dparam + k * s_.padded + first);
    }
  }

  void input_gradient(Workspace& w, Index b0, Index b1, Index t0, Index t1, int index, int count) {
    Index n = 0;
    const Range mine = part_of((t1 - t0) * (b1 - b0), index, count);
    for (Index i = mine.begin; i < mine.end; ++i) {
      const Index t = t0 + i / (b1 - b0), b = b0 + i % (b1 - b0);
      T* dx = at(call_.dx, t, b);
      if (clock_.active(t, b)) {
        w.in[n] = da_[0] + chunk_row(t, t0, b) * s_.row_stride(0);
        w.out[n++] = dx;
      } else if (!call_.dx_add) {
        fill_zero(dx, s_.input);
      }
    }
    rows_product_exact(n, s_.width(0), w.in, call_.weights->transposed[0], s_.input, zeros_, w.out, call_.dx_add);
  }

  // The chunk's share of dW (q = 0) or dR for one group of columns and one part of the operand; with part 0 go the biases.
  void weight_task(Index task) {
    const int q = int(task % kCount);
    const Index g = task / kCount % s_.groups, part = task / kCount / s_.groups;
    const int columns = product_columns<C>(q).count();
    const int vectors = columns * s_.units(g);
    if (vectors == 0) return;
    const Index first = s_.offset(g, columns), stride = s_.width(q);
    const Range depth = part_of(s_.depth(q), part, parts_);
    for (Index r = 0, block = 0; r < block_ends_[ceil_div(call_.batch, kWeightRows) - 1]; r = block_ends_[block++]) {
      const Index n = block_ends_[block] - r;
      outer_product(n, operand_rows_[q] + r, depth, da_rows_[q] + r, first / L, vectors, weight_sums_[q], stride);
      if (part != 0 || (q == 1 && kSharedDa)) continue;
      for (int v = 0; v < vectors; ++v) {
        V sum(T(0));
        for (Index k = 0; k < n; ++k) sum = sum + V::load(da_rows_[q][r + k] + first + v * L);
        T* to = bias_sums_[q] + first + v * L;
        (V::load(to) + sum).store(to);
      }
      if constexpr (C::kParams > 0)
        if (q == 0) param_sums(g, r, n);
    }
  }

  void param_sums(Index g, Index r, Index n) {
    for (int k = 0; k < C::kParams; ++k)
      for (int u = 0; u < s_.units(g); ++u) {
        const Index first = k * s_.padded + (g * Layout<C, T>::U + u) * L;
        V sum(T(0));
        for (Index i = 0; i < n; ++i) {
          const Index row = (da_rows_[0][r + i] - da_[0]) / s_.row_stride(0);
          sum = sum + V::load(dparams_ + row * C::kParams * s_.padded + first);
        }
        (V::load(param_sums_ + first) + sum).store(param_sums_ + first);
      }
  }

  // Adds the sums of one group to the caller's gradients, in the caller's layout.
  void add_gradients(Index g) {
    for (int q = 0; q < kCount; ++q) {
      T* weight = q == 0 ? call_.gradients.weight_ih : call_.gradients.weight_hh;
      T* bias = q == 0 ? call_.gradients.bias_ih : call_.gradients.bias_hh;
      const Index depth = s_.depth(q), width = s_.width(q);
      for_vectors<C, T>(s_, q, g, [&](Index position, Index row, int lanes) {
        if (weight)
          for (Index k0 = 0; k0 < depth; k0 += 16)  // a square of 16 at a time: the transposition stays in L1
            for (int lane = 0; lane < lanes; ++lane)
              for (Index k = k0; k < smaller(depth, k0 + 16); ++k)
                weight[(row + lane) * depth + k] += weight_sums_[q][k * width + position + lane];
        if (bias)
          for (int lane = 0; lane < lanes; ++lane) bias[row + lane] += bias_sums_[q][position + lane];
      });
    }
    if (call_.gradients.params)
      for (int k = 0; k < C::kParams; ++k)
        for (Index u = g * Layout<C, T>::U * L; u < smaller(s_.hidden, (g + 1) * Layout<C, T>::U * L); ++u)
          call_.gradients.params[k * s_.hidden + u] += param_sums_[k * s_.padded + u];
  }

  const BackwardCall<T>& call_;
  Layout<C, T> s_;
  Clock clock_;
  Plan plan_;
  bool shared_;
  Index row_chunks_, chunk_steps_, chunks_, parts_;
  Workspace* spaces_;
  T *zeros_, *da_[kCount], *weight_sums_[kCount], *bias_sums_[kCount], *dparams_, *param_sums_;
  T *dh_, *dc_, *c0_, *demitted_, *emitted_;
  const T **operand_rows_[kCount], **da_rows_[kCount];
  Index* block_ends_;  // row count after each block of 256 rows of the batch
  Barrier barrier_;
  Index next_rows_ = 0, next_task_ = 0;
  int stop_ = 0;
};

}  // namespace ost::OST_SET
