// Backpropagation through time of one layer and direction, for any cell. The batch is cut into `parts` by a rule of B and H
// alone, and time, for each part, into chunks of max(1, 256 / rows) whole steps, anchored at t = 0. A chunk, descending in
// processing order: the cell's backward, then dh = da R; then dx = da W; then, while da is in cache, the chunk's share of
// dW, dR and the biases, from zero, added to the part's sums (with AVX2 the rows of dW and dR in turns, product.h). At the end the parts'
// sums are added in order. So all sums have one order, whatever the number of threads, and threads that take different parts share nothing
// that is written.
#pragma once
#include "forward.h"

namespace ost::OST_SET {

constexpr Index kWeightRows = 256;            // rows of a block; a chain of sums takes no more (product.h: kOuterRows)
constexpr Index kSumBytes = Index(20) << 20;  // what all parts' sums of R's gradient (and as much for W's) may take

// 16 rows fill tiles well (4 rows where there are few); more than 8 parts would only add memory.
inline Index gradient_parts(Index batch, Index bytes) {
  Index parts = batch < 8 ? 1 : batch < 48 ? 2 : smaller<Index>(8, batch / 16);
  while (parts > 1 && parts * bytes > kSumBytes) parts /= 2;
  return parts;
}

// Sums of several parts of the batch, which lie `stride` apart, and are added in order.
struct Parts {
  Index count, stride;
};
template <class T>
OST_HD Vec<T> over_parts(const T* sums, Parts parts) {
  Vec<T> sum = Vec<T>::load(sums);
  for (Index part = 1; part < parts.count; ++part) sum = sum + Vec<T>::load(sums + part * parts.stride);
  return sum;
}
// Columns of sums [depth][stride], a vector of them, are added to up to L rows of a gradient [.., depth], or take the place of what it
// holds; of that depth, `range`. One function for all cells.
template <class T>
__attribute__((noinline)) void add_transposed(const T* sums, Index stride, Parts parts, Range range, T* gradient, Index depth, int rows,
                                              bool overwrite = false) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  for (Index k0 = range.begin; k0 < range.end; k0 += L) {
    const int left = int(smaller<Index>(L, range.end - k0));
    V square[L];
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) square[k] = k < left ? over_parts(sums + (k0 + k) * stride, parts) : V(T(0));
    transpose_rows<Exact<T>>(square);
    for (int i = 0; i < rows; ++i) {
      T* to = gradient + i * depth + k0;
      if (left == L)
        ((overwrite ? V(T(0)) : V::load(to)) + square[i]).store(to);
      else
        ((overwrite ? V(T(0)) : V::load_part(to, left)) + square[i]).store_part(to, left);
    }
  }
}

template <class C, class P>
class Backward {
  using T = typename P::Real;
  using W = typename P::Word;
  using V = Vec<T>;
  static constexpr int L = V::kLanes, kCount = kProductCount<C>, kLast = kPhaseCount<C> - 1, kMatrices = kMatrixCount<C>;
  static constexpr bool kProjected = is_projected<C>(), kEmits = kLast > 0 || kProjected;
  static constexpr int kOps = op_count<C>();
  static constexpr Columns kAll{0, C::kColumns};
  // A single recurrent product over the very columns of the input product shares its da (RNN, LSTM).
  static constexpr bool kSharedDa = kCount == 2 && product_columns<C>(0) == product_columns<C>(1);

  struct Row {  // one active row of the batch at one step
    const T *saved, *h, *c, *h1, *c1, *dy;
    T *da[kMatrices], *dparam, *emitted, *dh, *dc, *demitted;  // da of W_hr: the gradient of h, by all paths
    const T* dcell;                                            // further gradient of c, or null
    const T* deviations[kProductCount<C>];                     // of products that are normed
    T* dfinished;                                              // where there are any: the gradient of the pre-activation, all columns
    Moments<T> moments;                                        // of what was emitted, where a row operation is on it
    T mean, dot;                                               // of the gradient of what came of that, and of its product with it
    T scale_h, scale_c;                                        // for the norm of the gradient
    bool restart, cut;  // it starts from the state of a restart; nothing goes on to the state that it starts from
  };

 public:
  static constexpr bool kTapes = C::kSaved > 0;
  static constexpr bool kCutsAnywhere = false;  // sums are taken by blocks
  using Call = BackwardCall<T>;
  struct Live {  // the positions of a part, ascending, whose rows have steps from t0 on, for any t0 in [low, high)
    const Backward* call;
    Index part, low, high, count, *rows;
  };
  struct Space {  // one thread's; what the chunk produces is shared where a team works on one part
    Row* rows;
    Live live;
    const T** init;
    const W** words;
    T** out;
    W* encoded;
    T *da[kMatrices], *dparams, *emitted;
    const T **operand_rows[kMatrices], **da_rows[kMatrices];
    Index* ids;  // of the rows of a table that x is looked up in, in place of operand_rows[0]
    const W **operand_words[kMatrices], **da_words[kMatrices];
    W *interleaved_operands[kMatrices], *interleaved_da[kMatrices];
    Index* block_ends;                 // row count after each block of 256 rows of the part
    T* sums;                           // of one weight task, where sums are direct
    T* saved;                          // of the chunk, where the tape has the states only
    T* dfinished;                      // of a step
    T *bias_sums, *gain_sums[kCount];  // of the chunk, where products are normed
    typename Forward<C, P>::Space recompute;
    double* flow;  // of this step, or null
  };

  static Schedule schedule(Index steps, Index batch, const Index* inputs, Widths widths, int calls, bool chained, Needs needs) {
    const Layout<C, P> s(inputs[0], widths);
    const Index hidden = s.hidden;
    Index input = 0, widest = 0;
    bool copied[2] = {needs.reordered, needs.reordered || collides(s.output)};
    for (int i = 0; i < calls; ++i) input += inputs[i] / calls, widest = larger(widest, inputs[i]), copied[0] |= collides(inputs[i]);
    const Index parts = gradient_parts(batch, 2 * hidden * C::kGates * hidden * Index(sizeof(T)));
    const Index block = larger<Index>(1, smaller<Index>(steps, kWeightRows / larger<Index>(1, ceil_div(batch, parts))));
    // Every step waits for da R; dx and the gradients of W and R are taken for the chunk.
    const Plan plan = make_plan({steps, batch, calls, chained, needs, 2 * input + step_depth<C>(s), step_depth<C>(s), C::kGates * s.padded,
                                 s.groups, 2 * (kPhaseCount<C> + kProjected) + (kOps > 0), parts, ceil_div(steps, block), kFlops<P>});
    return {plan,
            block,
            steps,
            batch,
            {copied[0] ? widest : 0, copied[1] ? s.output : 0},
            needs.recomputes,
            calls == 1 && parts == 1 && steps <= block && !needs.sums && !needs.lookup};
  }

  Backward(const Call& call, const Schedule& schedule)
      : call_(call),
        schedule_(schedule),
        s_(call.weights->input, call.weights->widths),
        mask_{call.steps, call.batch, call.reverse, call.times},
        recompute_(forward_call(call), schedule, true) {}
  static void* operator new(std::size_t, void* at) { return at; }

  static void layout_space(Arena& arena, Space* spaces, int i, const Schedule& c, Index most_input, Widths widths) {
    const Layout<C, P> s(most_input, widths);
    const Index row_block_rows = ceil_div(c.batch, c.plan.parts), rows = c.block_steps * row_block_rows;
    Space& w = spaces[i];
    const bool shared = c.plan.spread == Spread::kUnitParallel && i > 0;
    if (shared) w = spaces[0];
    w.rows = arena.take<Row>(row_block_rows);
    w.live = {nullptr, 0, 0, 0, 0, arena.take<Index>(row_block_rows)};
    w.init = arena.take<const T*>(rows);
    w.words = arena.take<const W*>(rows);
    w.out = arena.take<T*>(rows);
    Index most = 0;
    for (int q = 0; q < kMatrices; ++q) most = larger(most, row_words<P>(s.width(q)));
    w.encoded = arena.take<W>(rows * most);
    if (c.direct_sums) w.sums = arena.take<T>(task_sums(s));
    if (c.recomputes)
      Forward<C, P>::layout_recompute(arena, w.recompute, rows, most_input, widths, shared ? &spaces[0].recompute : nullptr);
    if (shared) return;
    w.saved = arena.take<T>(c.recomputes ? rows * s.tape_width(false) : 0);
    if constexpr (kOps > 0) {
      w.dfinished = arena.take<T>(row_block_rows * finished_stride(s));
      w.bias_sums = arena.take<T>(C::kColumns * s.padded);
      for (int q = 0; q < kCount; ++q) w.gain_sums[q] = arena.take<T>(deviations<C>(q) * s.padded);
    }
    for (int q = 0; q < kMatrices; ++q) {
      const bool same = q == 1 && kSharedDa;
      w.da[q] = same ? w.da[0] : arena.take<T>(rows * s.row_stride(q));
      w.operand_rows[q] = arena.take<const T*>(rows);
      w.da_rows[q] = same ? w.da_rows[0] : arena.take<const T*>(rows);
      if (s.columns(q) == 0) continue;
      if constexpr (P::kEncodes) {
        const Index interleaved = interleaved_rows(c, row_block_rows);
        w.operand_words[q] = arena.take<const W*>(interleaved);
        w.da_words[q] = same ? w.da_words[0] : arena.take<const W*>(interleaved);
        w.interleaved_operands[q] = arena.take<W>(interleaved * operand_stride(s.depth(q)) * P::kParts);
        w.interleaved_da[q] = same ? w.interleaved_da[0] : arena.take<W>(interleaved * s.row_stride(q));
      } else if (const Index depth = s.projects(q) ? 0 : c.copied[q > 0]; depth > 0) {
        w.operand_words[q] = arena.take<const W*>(rows);
        w.interleaved_operands[q] = arena.take<W>(rows * operand_stride(depth));
      }
    }
    w.ids = arena.take<Index>(rows);
    w.dparams = arena.take<T>(rows * C::kParams * s.padded);
    w.emitted = arena.take<T>(kEmits ? rows * emitted_stride(s) : 0);
    w.block_ends = arena.take<Index>(ceil_div(row_block_rows, kWeightRows) + 1);
  }
  static void describe(const Schedule& schedule, const Index* inputs, Widths widths, int calls, CallPlan* out) {
    Forward<C, P>::describe(schedule, inputs, widths, calls, out);
    out->workspace_bytes = Team<Backward>::workspace(schedule, inputs, widths, calls);
  }
  Backward(const Schedule& schedule, Index input, Widths widths)  // to measure
      : schedule_(schedule), s_(input, widths), recompute_(schedule, input, widths) {}

  static Index sums_size(Index batch, Index input, Widths widths, Index* block_steps) {
    const Schedule c = schedule(kWeightRows, batch, &input, widths, 1, false, {.sums = true});
    Arena arena;
    Backward(c, input, widths).layout_sums(arena);
    *block_steps = c.block_steps;
    return arena.used() / Index(sizeof(T));
  }
  void layout_sums(Arena& arena) {
    for (int q = 0; q < kMatrices; ++q) {
      weight_sums_[q] = arena.take<T>(schedule_.direct_sums ? 0 : parts() * depth(q) * s_.width(q));
      if (q == kCount) break;  // W_hr has no bias
      bias_sums_[q] = q == 1 && kSharedDa ? bias_sums_[0] : arena.take<T>(parts() * s_.width(q));
      if (is_normed<C>(q)) gain_sums_[q] = arena.take<T>(parts() * s_.width(q));
    }
    param_sums_ = arena.take<T>(parts() * C::kParams * s_.padded);
    restart_sums_ = arena.take<T>(parts() * C::kStates * s_.state_stride());
  }
  void layout_memory(Arena& arena) {
    zeros_ = arena.take<T>(zero_count());
    if (call_.sums) {
      Arena lent(call_.sums);
      layout_sums(lent);
    } else {
      layout_sums(arena);
    }
    dh_ = arena.take<T>(schedule_.batch * s_.padded_output);
    dc_ = arena.take<T>(C::kStates > 1 ? schedule_.batch * s_.padded : 0);
    c0_ = arena.take<T>(C::kStates > 1 ? schedule_.batch * s_.padded : 0);
    demitted_ = arena.take<T>(kEmits ? schedule_.batch * s_.padded : 0);
    restart_c_ = arena.take<T>(C::kStates > 1 ? s_.padded : 0);
    first_blocks_ = arena.take<Index>(parts());
    flow_ = arena.take<double>(call_.control.flow ? parts() * schedule_.steps * C::kStates : 0);
    if (schedule_.recomputes) recompute_.layout_memory(arena);
  }
  void begin() {
    if (schedule_.recomputes) recompute_.begin();
    fill_zero(zeros_, zero_count());
    for (Index part = 0; part < parts(); ++part) first_blocks_[part] = blocks_of(part).begin;
    if (!call_.resume) fill_zero(restart_sums_, parts() * C::kStates * s_.state_stride());
    if (call_.control.flow) fill_zero(flow_, parts() * call_.steps * C::kStates);
    if (C::kStates > 1) {
      fill_zero(restart_c_, s_.padded);
      if (call_.restart_c) __builtin_memcpy(restart_c_, call_.restart_c, std::size_t(s_.hidden) * sizeof(T));
    }
    for (Index b = 0; b < call_.batch; ++b) {
      begin_row(dh_, s_.padded_output, call_.dhn, s_.output, b);
      if constexpr (C::kStates > 1) {
        begin_row(dc_, s_.padded, call_.dcn, s_.hidden, b);
        begin_row(c0_, s_.padded, call_.c0, s_.hidden, b);
      }
    }
    for (Index b = 0; b < call_.batch && !call_.resume; ++b)  // with later steps the cut has been there
      if (mask_.end(b) == kRestart) {
        cut_row(dh_ + b * s_.padded_output, 0, true, 0, {0, s_.padded_output});
        if constexpr (C::kStates > 1) cut_row(dc_ + b * s_.padded, 1, true, 0, {0, s_.padded});
      }
  }

  // The blocks of a part in which any of its rows has a step; one at least clears the sums.
  Range blocks_of(Index part) const {
    const Range rows = part_of(call_.batch, part, parts());
    const Index all = schedule_.blocks(), chunks = ceil_div(mask_.longest(rows.begin, rows.end), schedule_.block_steps);
    const Index count = smaller(all, larger<Index>(chunks, call_.resume ? 0 : 1));
    return call_.reverse ? Range{0, count} : Range{all - count, all};
  }

  // The rows of one part through one chunk of steps, taken from the end of the sequence as it was processed.
  void run_block(Space& w, Index part, Index block, Barrier* barrier, int index, int count) {
    const Index last = schedule_.blocks() - 1, chunk = call_.reverse ? block : last - block;
    const Index t0 = chunk * schedule_.block_steps, t1 = smaller(call_.steps, t0 + schedule_.block_steps);
    const Range rows = part_of(call_.batch, part, parts()), groups = part_of(s_.groups, index, count);
    const Sync sync{barrier, count};
    const bool first_block = block == first_blocks_[part] && !call_.resume;
    if (first_block) clear_sums(part, index, count);
    find_live(w.live, part, rows, t0);
    if (index == 0) list_rows(w, rows, t0, t1);
    if (schedule_.recomputes) recompute_.recompute(w.recompute, rows.begin, rows.end, t0, t1, w.saved, groups, barrier, index, count);
    if constexpr (kOps > 0) clear_finished(w, groups);
    through_time(w, rows, part, t0, t1, groups, index, sync);  // after it the list is there for all
    if constexpr (kOps > 0) add_finished(w, part, groups);
    if (call_.dx.data) input_gradient(w, rows, t0, t1, index, count);
    const Index n = w.block_ends[ceil_div(rows.end - rows.begin, kWeightRows) - 1];
    if (first_block && n == 0 && !schedule_.direct_sums) clear_weight_sums(part, index, count);  // else the first block stores them
    bool interleaved = false;
    for (int q = 0; q < kMatrices; ++q)
      if (copied(q)) interleave_rows(w, q, n, index, count), interleaved = true;
    if (interleaved) sync();
    if (schedule_.direct_sums) {
      if (index == 0) ran_in_ = &w;
    } else {
      for_weight_tasks(index, count, [&](int q, Index g, Range depth) {
        weight_task(w, rows, part, q, g, depth, weight_sums(q, part, s_.offset_of(q, g)), sums_stride(q, g), first_block);
      });
    }
  }

  // Adds the parts' sums of a share of the groups to the caller's gradients, in the caller's layout. Where the whole batch was one chunk,
  // its sums are made here, group by group, and never lie in memory as a whole: a third of what a step at B = 1 would need.
  bool finishes() const { return true; }
  void finish(Space& mine, int index, int count) {
    if (call_.dx.data && !call_.dx_add && mask_.times.lengths) clear_rows(call_.dx, mask_, s_.input, part_of(call_.steps, index, count));
    if (call_.steps == 0 || call_.more) return;  // no block has cleared the sums; or they are not complete
    if (index == 0) add_rest();
    if (schedule_.direct_sums) {
      if (ran_in_->block_ends[ceil_div(call_.batch, kWeightRows) - 1] == 0) {
        if (call_.overwrite && index == 0) clear_gradients();
        return;
      }
      for_weight_tasks(index, count, [&](int q, Index g, Range depth) {
        const Index stride = sums_stride(q, g);
        weight_task(*ran_in_, {0, call_.batch}, 0, q, g, depth, mine.sums, stride, true);
        add_weight(q, g, depth, mine.sums, stride);
        if (depth.begin > 0 || (q == 1 && kSharedDa) || q == kCount) return;
        add_bias(q, g);
        add_gains(q, g);
        if (q == 0 && kSharedDa) add_bias(1, g);
        if (q == 0) add_params(g);
      });
      return;
    }
    const Range groups = part_of(s_.groups, index, count);
    for (Index g = groups.begin; g < groups.end; ++g) {
      for (int q = 0; q < kCount; ++q) {
        add_weight(q, g, {0, depth(q)}, weight_sums(q, 0, s_.offset_of(q, g)), sums_stride(q, g));
        add_bias(q, g);
        add_gains(q, g);
      }
      add_params(g);
    }
    if constexpr (kProjected) {
      const Range others = part_of(s_.groups_of(kCount), index, count);
      for (Index g = others.begin; g < others.end; ++g)
        add_weight(kCount, g, {0, s_.depth(kCount)}, weight_sums(kCount, 0, s_.offset_of(kCount, g)), sums_stride(kCount, g));
    }
  }
  void end() {
    for (Index b = 0; b < call_.batch; ++b) {
      if (call_.dh0) __builtin_memcpy(call_.dh0 + b * s_.output, dh_ + b * s_.padded_output, std::size_t(s_.output) * sizeof(T));
      if (C::kStates > 1 && call_.dc0) __builtin_memcpy(call_.dc0 + b * s_.hidden, dc_ + b * s_.padded, std::size_t(s_.hidden) * sizeof(T));
    }
  }

 private:
  struct Sync {
    Barrier* barrier;
    int count;
    OST_HD void operator()() const {
      if (count > 1) barrier_wait(barrier, count);
    }
  };

  Index parts() const { return schedule_.plan.parts; }
  Index zero_count() const { return larger(s_.state_stride(), s_.input) + kMaxVectors * L; }
  // Rows of what is emitted: one vector more than needed where W_hr's gradient goes down their columns (see `collides`).
  static Index emitted_stride(const Layout<C, P>& s) { return s.padded + (kProjected ? L : 0); }
  static Index finished_stride(const Layout<C, P>& s) { return C::kColumns * s.padded + L; }
  Index tape_width() const { return s_.tape_width(call_.projected); }
  // Elements of the largest share of a weight gradient.
  static Index task_sums(const Layout<C, P>& s) {
    Index most = 0;
    for (int q = 0; q < kMatrices; ++q) most = larger(most, s.depth(q) * s.columns(q) * s.group_vectors(q) * L);
    return most;
  }
  // A row of a padded array as the caller's row, or zeros.
  void begin_row(T* to, Index padded, const T* from, Index width, Index b) const {
    T* row = to + b * padded;
    if (from) __builtin_memcpy(row, from + b * width, std::size_t(width) * sizeof(T));
    from ? fill_zero(row + width, padded - width) : fill_zero(row, padded);
  }
  static Index interleaved_rows(const Schedule& c, Index row_block_rows) {  // each block of 256 rows of the part may end in an odd one
    return words<P>(c.block_steps * row_block_rows) + ceil_div(row_block_rows, kWeightRows);
  }
  // The weight gradients go down columns of the operands: rows a multiple of 2 KB apart fall into a few sets of the cache, so such
  // rows are copied first, one vector further apart. With vectors of 32 bytes, which read a line by more tiles, 512 bytes are
  // enough to collide (Zen 3, training: 1.10 times as fast for LSTM 256 with the copy, 1.04 for LSTM 128).
  static constexpr Index kCollision = kAvx2 ? 512 : 2048;
  static bool collides(Index depth) { return depth * Index(sizeof(T)) % kCollision == 0; }
  static Index operand_stride(Index depth) { return depth + L; }
  bool copied(int q) const { return s_.columns(q) > 0 && copies(q); }
  bool copies(int q) const { return P::kEncodes || (!s_.projects(q) && !looked_up(q) && schedule_.copied[q > 0] > 0); }
  bool looked_up(int q) const { return q == 0 && call_.lookup.ids.data; }
  // Columns of the weights of product q, as its gradient counts them.
  Index depth(int q) const { return looked_up(q) ? call_.lookup.rows : s_.depth(q); }
  Multiplier by() const { return call_.weights->multiplier; }
  const W* transposed(int q) const { return static_cast<const W*>(call_.weights->transposed[q]); }

  template <class F>
  OST_HD void for_columns(int index, int count, F&& f) {  // those of a thread's groups, in each matrix
    for (int q = 0; q < kMatrices; ++q) {
      const Range groups = part_of(s_.groups_of(q), index, count);
      const Index begin = s_.offset_of(q, groups.begin), end = smaller(s_.width(q), s_.offset_of(q, groups.end));
      if (begin < end) f(q, begin, end - begin);
    }
  }
  void clear_sums(Index part, int index, int count) {
    for_columns(index, count, [&](int q, Index begin, Index n) {
      if (q < kCount) fill_zero(bias_sums_[q] + part * s_.width(q) + begin, n);
      if (q < kCount && is_normed<C>(q)) fill_zero(gain_sums_[q] + part * s_.width(q) + begin, n);
    });
    if (index == 0) fill_zero(param_sums_ + part * C::kParams * s_.padded, C::kParams * s_.padded);
  }
  void clear_weight_sums(Index part, int index, int count) {
    for_columns(index, count, [&](int q, Index begin, Index n) { fill_zero(weight_sums(q, part, begin), depth(q) * n); });
  }
  // Sums of dW or dR lie as [part][group][depth][columns of the group]: what a task adds to is one run of memory.
  T* weight_sums(int q, Index part, Index offset) { return weight_sums_[q] + depth(q) * (part * s_.width(q) + offset); }
  Index sums_stride(int q, Index g) const { return s_.columns(q) * s_.units_of(q, g) * L; }

  Index chunk_row(Index t, Index t0, Range rows, Index i) const { return (t - t0) * (rows.end - rows.begin) + i - rows.begin; }
  // The states that a step of row b starts from.
  const T* hidden_before(Index predecessor, Index b) const {
    if (predecessor >= 0) return at(call_.y, predecessor, b);
    const T* h = predecessor == kRestart ? call_.restart_h : call_.h0 ? call_.h0 + b * s_.output : nullptr;
    return h ? h : zeros_;
  }
  const T* cell_before(Index predecessor, Index b, Index i) const {
    if (predecessor >= 0) return call_.cells + mask_.on_tape(predecessor, i, b) * s_.padded;
    return predecessor == kRestart ? restart_c_ : c0_ + b * s_.padded;
  }

  // Beside one long row the others are not looked at again in every step.
  void find_live(Live& live, Index part, Range rows, Index t0) const {
    if (live.call == this && live.part == part && live.low <= t0 && t0 < live.high) return;
    live.call = this, live.part = part, live.low = 0, live.high = call_.steps, live.count = 0;
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Index stop = mask_.longest(i, i + 1);
      if (stop > t0)
        live.rows[live.count++] = i, live.high = smaller(live.high, stop);
      else
        live.low = larger(live.low, stop);
    }
  }

  static bool takes_emitted(int q) { return q == kCount || C::kPhases[q - 1].operand == Operand::kEmitted; }

  // The active rows of the chunk, in one fixed order (blocks of 256 rows of the part, t, b), for the weight gradients.
  void list_rows(Space& w, Range rows, Index t0, Index t1) {
    Index n = 0, block = 0, begin = 0;
    for (Index i0 = rows.begin; i0 < rows.end; i0 += kWeightRows) {
      Index end = begin;
      while (end < w.live.count && w.live.rows[end] < i0 + kWeightRows) ++end;
      for (Index t = t0; t < t1; ++t)
        for (Index k = begin; k < end; ++k) {
          const Index i = w.live.rows[k], b = mask_.row_of(i);
          if (!mask_.active(t, b)) continue;
          const Index row = chunk_row(t, t0, rows, i);
          for (int q = 0; q < kMatrices; ++q) {
            w.operand_rows[q][n] = looked_up(q)       ? nullptr
                                   : q == 0           ? at(call_.x, t, b)
                                   : takes_emitted(q) ? w.emitted + row * emitted_stride(s_)
                                                      : hidden_before(mask_.predecessor(t, b), b);
            w.da_rows[q][n] = w.da[q] + row * s_.row_stride(q);
          }
          if (looked_up(0)) w.ids[n] = *at(call_.lookup.ids, t, b);
          ++n;
        }
      w.block_ends[block++] = n, begin = end;
    }
  }

  void through_time(Space& w, Range rows, Index part, Index t0, Index t1, Range groups, int index, Sync sync) {
    for (Index k = 0; k < t1 - t0; ++k) {
      const Index t = call_.reverse ? t0 + k : t1 - 1 - k;
      Index n = 0;
      for (Index j = 0; j < w.live.count; ++j) {
        const Index i = w.live.rows[j], b = mask_.row_of(i), tape = mask_.on_tape(t, i, b);
        if (!mask_.active(t, b)) {
          if (mask_.repeats(t, b) != kSkipped && call_.dy.data) repeated(t, b, groups, index, sync.count);
          continue;
        }
        Row& row = w.rows[n++];
        const Index r = chunk_row(t, t0, rows, i), predecessor = mask_.predecessor(t, b);
        row.saved = schedule_.recomputes ? w.saved + r * tape_width() : call_.saved + tape * tape_width();
        if constexpr (kOps > 0) {
          row.dfinished = w.dfinished + (n - 1) * finished_stride(s_);
          for (int q = 0; q < kCount; ++q) row.deviations[q] = row.saved + s_.deviations_at(q);
          if (looked_up(0))
            row.deviations[0] =
                call_.projected + *at(call_.lookup.ids, t, b) * Forward<C, P>::projected_width(s_) + C::kColumns * s_.padded;
        }
        row.h = hidden_before(predecessor, b);
        row.h1 = at(call_.y, t, b);
        if (C::kStates > 1) {
          row.c = cell_before(predecessor, b, i);
          row.c1 = call_.cells + tape * s_.padded;
          row.dc = dc_ + b * s_.padded;
          row.dcell = call_.control.dcells.data ? at(call_.control.dcells, t, b) : nullptr;
        }
        row.restart = predecessor == kRestart;
        const Index* cut_starts = call_.control.cut_starts;
        row.cut = call_.control.cuts && call_.control.cuts[cut_starts ? cut_starts[b] + t : t * call_.batch + b];
        row.dy = call_.dy.data ? at(call_.dy, t, b) : nullptr;
        if (mask_.times.order && k + 1 < t1 - t0) {  // for the step after this
          const Index next = call_.reverse ? t + 1 : t - 1;
          if (row.dy) fetch_row(at(call_.dy, next, b), s_.output);
          if (mask_.active(next, b)) fetch_row(hidden_before(mask_.predecessor(next, b), b), s_.output);
        }
        for (int q = 0; q < kMatrices; ++q) row.da[q] = w.da[q] + r * s_.row_stride(q);
        row.dparam = w.dparams + r * C::kParams * s_.padded;
        row.emitted = w.emitted + r * emitted_stride(s_);
        row.dh = dh_ + b * s_.padded_output;
        row.demitted = demitted_ + b * s_.padded;
      }
      if (controlled_ && call_.control.clip_norm > 0) scale_rows(w.rows, n);
      w.flow = call_.control.flow ? flow_ + (part * call_.steps + t) * C::kStates : nullptr;
      if constexpr (kProjected) unproject(w, n, index, sync);
      phases<kLast>(w, n, groups, index, sync);
      if (mask_.times.predecessors || call_.control.cuts) cut_rows(w, n, part, index, sync);
    }
  }

  void cut_rows(Space& w, Index n, Index part, int index, Sync sync) {
    const Range outputs = share_of(s_.output_vectors, index, sync.count), units = share_of(s_.vectors, index, sync.count);
    for (Index i = 0; i < n; ++i) {
      const Row& row = w.rows[i];
      if (!row.restart && !row.cut) continue;
      cut_row(row.dh, 0, row.restart, part, outputs);
      if constexpr (C::kStates > 1) cut_row(row.dc, 1, row.restart, part, units);
    }
    sync();
  }
  // A thread's elements of a row of so many vectors, shared as the products that end in it are.
  static Range share_of(Index vectors, int index, int count) {
    const Range groups = part_of(plain_groups(vectors), index, count);
    return {groups.begin * kMaxVectors * L, smaller(vectors * L, groups.end * kMaxVectors * L)};
  }

  // The gradient of an output that repeats that of an earlier step goes to the state, which is carried over.
  void repeated(Index t, Index b, Range groups, int index, int count) {
    const T* dy = at(call_.dy, t, b);
    Range mine{groups.begin * Layout<C, P>::U * L, groups.end * Layout<C, P>::U * L};
    if constexpr (kProjected) mine = share_of(s_.output_vectors, index, count);
    for (Index u = mine.begin; u < smaller(s_.output, mine.end); ++u) dh_[b * s_.padded_output + u] += dy[u];
  }

  // What the step hands on goes to the state of a restart, or nowhere.
  void cut_row(T* d, int state, bool restart, Index part, Range units) {
    T* sums = restart_sums_ + (part * C::kStates + state) * s_.state_stride();
    for (Index u = units.begin; u < units.end; ++u) {
      if (restart) sums[u] += d[u];
      d[u] = 0;
    }
  }

  // The gradient at (t, b): h by all paths, c by what came through time; clipped by value, not by norm.
  OST_HD V arriving(const Row& row, int state, Index first, Index left) const {
    V d = V::load((state == 0 ? row.dh : row.dc) + first);
    if (state == 0 && row.dy) d = d + load_left(row.dy + first, left);
    if (controlled_) {
      if (state == 1 && row.dcell) d = d + load_left(row.dcell + first, left);
      if (const T clip = call_.control.clip_value; clip > 0) d = clamp(d, -clip, clip);
    }
    return d;
  }
  OST_HD V scaled(const Row& row, int state, V d) const {
    if (controlled_ && call_.control.clip_norm > 0) return d * V(state == 0 ? row.scale_h : row.scale_c);
    return d;
  }

  // Norms are taken by rows: no thread may share a row (`schedule` sees to it).
  void scale_rows(Row* rows, Index n) const {
    for (Index i = 0; i < n; ++i) {
      double sums[2] = {};
      for (int k = 0; k < C::kStates; ++k) {
        const Index width = k == 0 ? s_.output : s_.hidden;
        for (Index first = 0; first < width; first += L) {
          const V d = arriving(rows[i], k, first, width - first);
          sums[k] += double(sum_lanes(d * d));
        }
      }
      const double limit = double(call_.control.clip_norm);
      rows[i].scale_h = sums[0] > limit * limit ? T(limit / __builtin_sqrt(sums[0])) : T(1);
      rows[i].scale_c = sums[1] > limit * limit ? T(limit / __builtin_sqrt(sums[1])) : T(1);
    }
  }

  // Before the cells of a step: the gradient of h, by all paths, and through W_hr that of what the cells emitted.
  void unproject(Space& w, Index n, int index, Sync sync) {
    constexpr int q = kCount;
    const Range mine = share_of(s_.output_vectors, index, sync.count);
    for (Index i = 0; i < n; ++i) {
      const Row& row = w.rows[i];
      for (Index first = mine.begin; first < mine.end; first += L) {
        const Index left = s_.output - first;
        const V d = keep_lanes(scaled(row, 0, arriving(row, 0, first, left)), left);
        d.store(row.da[q] + first);
        if (controlled_ && w.flow) w.flow[0] += double(sum_lanes(d * d));
      }
    }
    sync();
    for (Index i = 0; i < n; ++i) {
      w.words[i] = P::encode(w.rows[i].da[q], s_.width(q), w.encoded + i * row_words<P>(s_.width(q)));
      w.init[i] = zeros_;
      w.out[i] = w.rows[i].demitted;
    }
    const Range units = part_of(plain_groups(s_.vectors), index, sync.count);
    rows_product<P>(by(), n, words<P>(s_.width(q)), w.words, transposed(q), s_.vectors, units.begin, units.end, w.init, w.out);
    sync();
  }

  template <int F>
  OST_HD void phases(Space& w, Index n, Range groups, int index, Sync sync) {
    phase<F>(w, n, groups, index, sync);
    if constexpr (F > 0) phases<F - 1>(w, n, groups, index, sync);
  }

  template <int F>
  OST_HD void phase(Space& w, Index n, Range groups, int index, Sync sync) {
    constexpr Phase phase = C::kPhases[F];
    for (Index i = 0; i < n; ++i) {
      if constexpr (phase.before != RowOp::kNone) take_moments(w.rows[i]);
      if constexpr (F < kLast)
        if constexpr (C::kPhases[F + 1].before != RowOp::kNone) take_gradient_moments(w.rows[i]);
      for (Index g = groups.begin; g < groups.end; ++g) {
        const int units = s_.units(g);
        for (int u = 0; u < units; ++u) cell<F>(w, w.rows[i], g, units, u);
      }
    }
    sync();
    if constexpr (is_normed<C>(F + 1) || (F == 0 && kOps > 0)) {  // W x may have columns of every phase
      for (Index i = 0; i < n; ++i) unnorm<F, 0>(w, w.rows[i], groups);
      if constexpr (F == 0) sum_finished(w, n, groups);
      sync();
    }
    if constexpr (phase.product.count() > 0) {
      constexpr int q = F + 1;
      for (Index i = 0; i < n; ++i) {
        w.words[i] = P::encode(w.rows[i].da[q], s_.width(q), w.encoded + i * row_words<P>(s_.width(q)));
        w.out[i] = phase.operand == Operand::kHidden ? w.rows[i].dh : w.rows[i].demitted;
        w.init[i] = phase.operand == Operand::kHidden && !kProjected ? w.rows[i].dh : zeros_;  // dh holds the direct gradient
      }
      const Index vectors = phase.operand == Operand::kHidden ? s_.output_vectors : s_.vectors;
      const Range outputs = part_of(plain_groups(vectors), index, sync.count);
      rows_product<P>(by(), n, words<P>(s_.width(q)), w.words, transposed(q), vectors, outputs.begin, outputs.end, w.init, w.out);
      sync();
    }
  }

  // One vector of units through a phase, backward.
  template <int F>
  OST_HD void cell(const Space& w, const Row& row, Index g, int units, int u) {
    const Index first = (g * Layout<C, P>::U + u) * L, left = s_.hidden - first;
    BackwardIn<C, V> in;
    BackwardOut<C, V> out;
    take<F>(row, g, units, u, in, out);
    C::template backward<F>(in, out);
    if constexpr (C::kPhases[F].before != RowOp::kNone) keep_lanes(out.dcarried, left).store(row.demitted + first);
    if constexpr (F == 0)
      if (controlled_ && w.flow) {
        if constexpr (!kProjected) w.flow[0] += double(sum_lanes(keep_lanes(in.dstate[0] * in.dstate[0], left)));
        if constexpr (C::kStates > 1) w.flow[1] += double(sum_lanes(keep_lanes(out.dcell * out.dcell, left)));
      }
    if (left < L) clear_padding<F>(out, left);
    store<F>(row, g, units, u, out);
  }

  // What a phase reads, from the tape and from the phases after it, which have run.
  template <int F>
  OST_HD void take(const Row& row, Index g, int units, int u, BackwardIn<C, V>& in, BackwardOut<C, V>& out) {
    const Index first = (g * Layout<C, P>::U + u) * L, left = s_.hidden - first;
    const T* saved = row.saved + s_.offset(g, C::kSaved);
#pragma GCC unroll 8
    for (int k = 0; k < C::kSaved; ++k) in.saved[k] = V::load(saved + (k * units + u) * L);
    if constexpr (!kProjected) {
      in.previous[0] = load_left(row.h + first, left);
      in.next[0] = load_left(row.h1 + first, left);
      in.dstate[0] = scaled(row, 0, arriving(row, 0, first, left));
    } else {
      in.previous[0] = in.next[0] = in.dstate[0] = V(T(0));
    }
    out.dprevious[0] = V(T(0));
    if constexpr (C::kStates > 1) {
      in.previous[1] = V::load(row.c + first);
      in.next[1] = V::load(row.c1 + first);
      in.dstate[1] = scaled(row, 1, arriving(row, 1, first, left));
      out.dprevious[1] = V(T(0));
    }
#pragma GCC unroll 8
    for (int k = 0; k < C::kParams; ++k) {
      in.param[k] = V::load(call_.weights->params + k * s_.padded + first);
      if constexpr (kLast > 0) out.dparam[k] = F == kLast ? V(T(0)) : V::load(row.dparam + k * s_.padded + first);
    }
    if constexpr (scalar_count<C>() > 0) in.scalar = call_.weights->scalars;
    constexpr bool kCarried = C::kPhases[F].before != RowOp::kNone, kNext = follows_operation(F);
    if constexpr (kCarried || kNext) in.carried = (C::emitted(in.saved, in.previous, in.next) - V(row.moments.mean)) * V(row.moments.scale);
    if constexpr (kNext) {
      const V d = V::load(row.demitted + first);
      in.demitted = V(row.moments.scale) * (d - V(row.mean) - in.carried * V(row.dot));
    } else if constexpr (F < kLast || kProjected) {
      in.demitted = V::load(row.demitted + first);
      keep_lanes(C::emitted(in.saved, in.previous, in.next), left).store(row.emitted + first);
    }
  }

  // Zeros in the lanes behind the last unit, of what later sums read.
  template <int F>
  OST_HD static void clear_padding(BackwardOut<C, V>& out, Index left) {
#pragma GCC unroll 8
    for (int column = C::kPhases[F].own.begin; column < C::kPhases[F].own.end; ++column) out.da[column] = keep_lanes(out.da[column], left);
    if constexpr (F == 0) {
#pragma GCC unroll 8
      for (int k = 0; k < C::kStates; ++k) out.dprevious[k] = keep_lanes(out.dprevious[k], left);
    }
    if constexpr (F == 0 || kLast > 0)
#pragma GCC unroll 8
      for (int k = 0; k < C::kParams; ++k) out.dparam[k] = keep_lanes(out.dparam[k], left);
  }

  // What a phase found, where the products and the phase before it read it.
  template <int F>
  OST_HD void store(const Row& row, Index g, int units, int u, const BackwardOut<C, V>& out) {
    constexpr Columns own = C::kPhases[F].own;
    const Index first = (g * Layout<C, P>::U + u) * L;
    if constexpr (kOps > 0)
#pragma GCC unroll 8
      for (int column = own.begin; column < own.end; ++column)
        out.da[column].store(row.dfinished + s_.offset(g, C::kColumns) + (column * units + u) * L);
#pragma GCC unroll 4
    for (int q = 0; q < (kSharedDa ? 1 : kCount); ++q) {
      const Columns columns = product_columns<C>(q);
      if (is_normed<C>(q)) continue;
      T* da = row.da[q] + s_.offset(g, columns.count());
#pragma GCC unroll 8
      for (int column = own.begin; column < own.end; ++column)
        if (columns.has(column)) out.da[column].store(da + ((column - columns.begin) * units + u) * L);
    }
    if constexpr (F == 0) {  // the last to run, and the only one that sets dprevious
      if constexpr (!kProjected) out.dprevious[0].store(row.dh + first);
      if constexpr (C::kStates > 1) out.dprevious[1].store(row.dc + first);
    }
    if constexpr (F == 0 || kLast > 0)
#pragma GCC unroll 8
      for (int k = 0; k < C::kParams; ++k) out.dparam[k].store(row.dparam + k * s_.padded + first);
  }

  // Whether the phase after F takes what F emits by a row operation.
  static constexpr bool follows_operation(int phase) { return phase < kLast && C::kPhases[phase + 1].before != RowOp::kNone; }

  // What was emitted, from what is there.
  OST_HD V emitted_recomputed(const Row& row, Index first) const {
    constexpr int U = Layout<C, P>::U;
    const Index g = first / (U * L), left = s_.hidden - first;
    const int units = s_.units(g), u = int(first / L - g * U);
    const T* kept = row.saved + s_.offset(g, C::kSaved);
    V saved[C::kSaved + 1], previous[C::kStates], next[C::kStates];
#pragma GCC unroll 8
    for (int k = 0; k < C::kSaved; ++k) saved[k] = V::load(kept + (k * units + u) * L);
    previous[0] = next[0] = V(T(0));
    if constexpr (!kProjected) previous[0] = load_left(row.h + first, left), next[0] = load_left(row.h1 + first, left);
    if constexpr (C::kStates > 1) previous[1] = V::load(row.c + first), next[1] = V::load(row.c1 + first);
    return C::emitted(saved, previous, next);
  }
  OST_HD void take_moments(Row& row) const {
    row.moments = moments_of_units(s_, [&](Index first) OST_INLINE { return emitted_recomputed(row, first); });
  }
  // Sums of the gradient of what a row operation made; by them the gradient of what it was given follows unit by unit. Pad lanes
  // hold zeros.
  OST_HD void take_gradient_moments(Row& row) const {
    Chains<T> sums, dots;
    for (Index v = 0; v < s_.vectors; v += kNormChains)
#pragma GCC unroll 4
      for (int k = 0; k < kNormChains; ++k) {
        if (v + k >= s_.vectors) break;
        const Index first = (v + k) * L;
        const V d = V::load(row.demitted + first);
        const V carried = keep_lanes((emitted_recomputed(row, first) - V(row.moments.mean)) * V(row.moments.scale), s_.hidden - first);
        sums.sums[k] = sums.sums[k] + d;
        dots.sums[k] = fma(d, carried, dots.sums[k]);
      }
    row.mean = sums.total() / T(s_.hidden);
    row.dot = dots.total() / T(s_.hidden);
  }

  // From the gradient of the pre-activation to that of products: through the gains of operation J and those after it.
  template <int F, int J>
  OST_HD void unnorm(Space& w, Row& row, Range groups) {
    if constexpr (J < kOps) {
      if constexpr (constexpr int q = product_op<C>(J).product; q == F + 1 || (F == 0 && q == 0)) unnorm_columns<J>(w, row, groups);
      unnorm<F, J + 1>(w, row, groups);
    } else {
      if constexpr (is_normed<C>(F + 1)) hand_on<F + 1>(row, groups);
      if constexpr (F == 0 && is_normed<C>(0)) hand_on<0>(row, groups);
    }
  }
  // Sums over the whole row, and then the columns of some groups. Pad lanes of the gradient and of the deviations hold zeros.
  template <int J>
  OST_HD void unnorm_columns(Space& w, Row& row, Range groups) {
    constexpr int q = product_op<C>(J).product;
    const ProductOp op = product_op<C>(J);
    const Columns columns = product_columns<C>(q);
    const T *gains = call_.weights->gains[q], *deviations = row.deviations[q], *finished = row.dfinished;
    Chains<T> sums, dots, squares;
    for_places(s_, op.columns, {0, s_.groups}, [&](VectorPlace at, Index) OST_INLINE {
      const int chain = (at.column - op.columns.begin) % kNormChains;
      const V d = V::load(deviations + at.in(s_, columns));
      const V dnormed = V::load(finished + at.in(s_, kAll)) * V::load(gains + at.in(s_, columns));
      sums.sums[chain] = sums.sums[chain] + dnormed;
      dots.sums[chain] = fma(dnormed, d, dots.sums[chain]);
      squares.sums[chain] = fma(d, d, squares.sums[chain]);
    });
    const Index n = op.columns.count() * s_.hidden;
    const T inverse = inverse_deviation(squares.total(), n);
    const V scale(inverse), mean(sums.total() / T(n)), slope(dots.total() / T(n) * (inverse * inverse));
    for_places(s_, op.columns, groups, [&](VectorPlace at, Index left) OST_INLINE {
      const Index place = at.in(s_, columns);
      const V d = V::load(deviations + place), da = V::load(finished + at.in(s_, kAll));
      V dproduct = (fma(da, V::load(gains + place), -mean) - d * slope) * scale;
      if (left < L) dproduct = keep_lanes(dproduct, left);
      dproduct.store(row.da[q] + place);
      T* sum = w.gain_sums[q] + place;
      fma(da, d * scale, V::load(sum)).store(sum);
    });
  }
  // Columns of product q that no operation takes.
  template <int q>
  OST_HD void hand_on(Row& row, Range groups) {
    const Columns columns = product_columns<C>(q);
    if constexpr (normed_columns<C>(q) < product_columns<C>(q).count())
      for_places(s_, columns, groups, [&](VectorPlace at, Index) {
        if (op_of<C>(q, at.column) < 0) V::load(row.dfinished + at.in(s_, kAll)).store(row.da[q] + at.in(s_, columns));
      });
  }

  // Sums of the pre-activation's gradient over a chunk of steps (for the biases), and of the gains': rows in the order in which they were
  // taken.
  Range columns_of(int columns, Range groups) const {
    return {s_.offset(groups.begin, columns), smaller(columns * s_.padded, s_.offset(groups.end, columns))};
  }
  void clear_finished(Space& w, Range groups) {
    const Range mine = columns_of(C::kColumns, groups);
    fill_zero(w.bias_sums + mine.begin, larger<Index>(0, mine.end - mine.begin));
    for (int q = 0; q < kCount; ++q) {
      const Range gains = columns_of(deviations<C>(q), groups);
      fill_zero(w.gain_sums[q] + gains.begin, larger<Index>(0, gains.end - gains.begin));
    }
  }
  void sum_finished(Space& w, Index n, Range groups) {
    const Range mine = columns_of(C::kColumns, groups);
    for (Index k = mine.begin; k < mine.end; k += L) {
      V sum = V::load(w.bias_sums + k);
      for (Index i = 0; i < n; ++i) sum = sum + V::load(w.rows[i].dfinished + k);
      sum.store(w.bias_sums + k);
    }
  }
  void add_finished(Space& w, Index part, Range groups) {
    const auto add = [&](const T* from, T* to) { (V::load(to) + V::load(from)).store(to); };
    for (int q = 0; q < kCount; ++q)
      for_places(s_, product_columns<C>(q), groups, [&](VectorPlace at, Index) {
        const Index place = at.in(s_, product_columns<C>(q));
        add(w.bias_sums + at.in(s_, kAll), bias_sums_[q] + part * s_.width(q) + place);
        if (is_normed<C>(q)) add(w.gain_sums[q] + place, gain_sums_[q] + part * s_.width(q) + place);
      });
  }

  void input_gradient(Space& w, Range rows, Index t0, Index t1, int index, int count) {
    Index n = 0;
    const Index width = w.live.count;
    const Range mine = part_of((t1 - t0) * width, index, count);
    for (Index i = mine.begin; i < mine.end; ++i) {
      const Index t = t0 + i / width, row = w.live.rows[i % width], b = mask_.row_of(row);
      T* dx = at(call_.dx, t, b);
      if (mask_.active(t, b)) {
        w.words[n] =
            P::encode(w.da[0] + chunk_row(t, t0, rows, row) * s_.row_stride(0), s_.width(0), w.encoded + n * row_words<P>(s_.width(0)));
        w.out[n++] = dx;
      } else if (!call_.dx_add && mask_.repeats(t, b) != kSkipped) {  // the layer below may read it before this one is through
        fill_zero(dx, s_.input);
      }
    }
    rows_product_exact<P>(by(), n, words<P>(s_.width(0)), w.words, transposed(0), s_.input, zeros_, w.out, call_.dx_add);
  }

  // The operands (and da) of product q as words of kPack rows each, for the weight gradients.
  void interleave_rows(Space& w, int q, Index n, int index, int count) {
    const Index stride = operand_stride(s_.depth(q)) * P::kParts;
    Index to = 0;
    for (Index r = 0, block = 0; r < n; r = w.block_ends[block++])
      for (Index i = r; i < w.block_ends[block]; i += P::kPack, ++to) {
        if (to % count != index) continue;
        w.operand_words[q][to] = w.interleaved_operands[q] + to * stride;
        if constexpr (P::kEncodes) w.da_words[q][to] = w.interleaved_da[q] + to * s_.row_stride(q);
        const T *operands[P::kPack], *da[P::kPack];
        for (int k = 0; k < P::kPack; ++k) {
          const bool there = i + k < w.block_ends[block];
          operands[k] = there ? w.operand_rows[q][i + k] : nullptr;
          da[k] = there ? w.da_rows[q][i + k] : nullptr;
        }
        if (!looked_up(q)) P::interleave_operands(operands, s_.depth(q), w.interleaved_operands[q] + to * stride);
        if constexpr (P::kEncodes)
          if (!(q == 1 && kSharedDa)) P::interleave_rows(da, s_.width(q), w.interleaved_da[q] + to * s_.row_stride(q));
      }
  }

  // Weight tasks: each thread owns groups of columns of the sums; where there are few groups, the operand is cut too.
  template <class F>
  void for_weight_tasks(int index, int count, F&& f) {
    const Index cuts = s_.groups * kCount >= 2 * count ? 1 : count, groups = s_.most_groups();
    const Index tasks = kMatrices * groups * cuts;
    for (Index task = index; task < tasks; task += count) {
      const int q = int(std::uint64_t(task) % kMatrices);
      const Index g = task / kMatrices % groups;
      const Range cut = part_of(depth(q), task / kMatrices / groups, cuts);
      if (g < s_.groups_of(q) && s_.columns(q) > 0 && (cut.begin < cut.end || cut.begin == 0)) f(q, g, cut);
    }
  }

  // The chunk's share of dW (q = 0) or dR for one group of columns and a range of the operand; with its beginning go the biases.
  void weight_task(Space& w, Range rows, Index part, int q, Index g, Range depth, T* sums, Index stride, bool first_block) {
    const int vectors = s_.columns(q) * s_.units_of(q, g);
    const Index first = s_.offset_of(q, g), total = w.block_ends[ceil_div(rows.end - rows.begin, kWeightRows) - 1];
    for (Index r = 0, block = 0, to = 0; r < total; r = w.block_ends[block++]) {
      const Index n = w.block_ends[block] - r;
      const W *const *operands, *const *da;
      if constexpr (P::kEncodes)
        operands = w.operand_words[q], da = w.da_words[q];
      else
        operands = copied(q) ? w.operand_words[q] : w.operand_rows[q], da = w.da_rows[q];
      if (looked_up(q))
        sum_by_row(w, r, n, first, vectors, depth, sums, stride, first_block && r == 0);
      else
        outer_product<P>(by(), words<P>(n), operands + to, depth, da + to, first, vectors, sums, stride, first_block && r == 0);
      to += words<P>(n);
      if (depth.begin > 0 || (q == 1 && kSharedDa) || q == kCount) continue;
      for (int v = 0; v < vectors && kOps == 0; ++v) {  // else they are there
        V sum(T(0));
        for (Index k = 0; k < n; ++k) sum = sum + V::load(w.da_rows[q][r + k] + first + v * L);
        T* to_sum = bias_sums_[q] + part * s_.width(q) + first + v * L;
        (V::load(to_sum) + sum).store(to_sum);
      }
      if constexpr (C::kParams > 0)
        if (q == 0) param_sums(w, part, g, r, n);
    }
  }

  // The outer product where x is a row of a table: its operand is 1 at the row's number, so rows of da are added up by it.
  void sum_by_row(const Space& w, Index r, Index n, Index first, int vectors, Range rows, T* sums, Index stride, bool clear) {
    for (Index k = rows.begin; clear && k < rows.end; ++k) fill_zero(sums + k * stride, vectors * L);
    for (Index i = r; i < r + n; ++i) {
      if (w.ids[i] < rows.begin || w.ids[i] >= rows.end) continue;
      T* to = sums + w.ids[i] * stride;
      for (int v = 0; v < vectors; ++v) (V::load(to + v * L) + V::load(w.da_rows[0][i] + first + v * L)).store(to + v * L);
    }
  }

  void param_sums(Space& w, Index part, Index g, Index r, Index n) {
    T* sums = param_sums_ + part * C::kParams * s_.padded;
    for (int k = 0; k < C::kParams; ++k)
      for (int u = 0; u < s_.units(g); ++u) {
        const Index first = k * s_.padded + (g * Layout<C, P>::U + u) * L;
        V sum(T(0));
        for (Index i = 0; i < n; ++i) {
          const Index row = (w.da_rows[0][r + i] - w.da[0]) / s_.row_stride(0);
          sum = sum + V::load(w.dparams + row * C::kParams * s_.padded + first);
        }
        (V::load(sums + first) + sum).store(sums + first);
      }
  }

  // sums [depth][stride], of each part, from the first column of the group on: transposed into the rows of the caller's gradient.
  void add_weight(int q, Index g, Range columns, const T* sums, Index stride) {
    const RawGradients<T>& gradients = call_.gradients;
    T* weight = q == 0 ? gradients.weight_ih : q == kCount ? gradients.weight_hr : gradients.weight_hh;
    if (!weight) return;
    const Index first = s_.offset_of(q, g), whole = depth(q);
    for_vectors<C, P>(s_, q, g, [&](Index position, Index row, int lanes) {
      add_transposed(sums + position - first, stride, {parts(), whole * s_.width(q)}, columns, weight + row * whole, whole, lanes,
                     call_.overwrite);
    });
  }
  // What a sum is added to.
  OST_HD T before(const T* gradient) const { return call_.overwrite ? T(0) : *gradient; }
  // No row has taken part.
  void clear_gradients() const {
    const RawGradients<T>& to = call_.gradients;
    const Index rows = C::kGates * s_.hidden;
    const auto clear = [](T* gradient, Index n) {
      if (gradient) fill_zero(gradient, n);
    };
    clear(to.weight_ih, rows * depth(0)), clear(to.weight_hh, rows * s_.output), clear(to.bias_ih, rows), clear(to.bias_hh, rows);
    if (kProjected) clear(to.weight_hr, s_.output * s_.hidden);
    for (int k = 0; k < kGains<C> + C::kParams; ++k) clear(to.units[k], s_.hidden);
  }
  void add_bias(int q, Index g) {
    T* bias = q == 0 ? call_.gradients.bias_ih : call_.gradients.bias_hh;
    if (!bias) return;
    for_vectors<C, P>(s_, q, g, [&](Index position, Index row, int lanes) {
      T sums[L];
      over_parts(bias_sums_[q] + position, {parts(), s_.width(q)}).store(sums);
      for (int lane = 0; lane < lanes; ++lane) bias[row + lane] = before(bias + row + lane) + sums[lane];
    });
  }
  // What is not spread over threads: the gradient of the restarts' state, and the norms by step.
  void add_rest() {
    T* to[2] = {call_.drestart_h, call_.drestart_c};
    for (int k = 0; k < C::kStates; ++k)
      for (Index u = 0; u < (k == 0 ? s_.output : s_.hidden) && to[k]; ++u)
        for (Index part = 0; part < parts(); ++part) to[k][u] += restart_sums_[(part * C::kStates + k) * s_.state_stride() + u];
    for (Index i = 0; i < call_.steps * C::kStates && call_.control.flow; ++i)
      for (Index part = 0; part < parts(); ++part) call_.control.flow[i] += flow_[part * call_.steps * C::kStates + i];
  }
  void add_gains(int q, Index g) {
    if (is_normed<C>(q))
      for_gains(s_, q, g, [&](Index position, int row, Index unit, int lanes) {
        T* to = row < 0 ? nullptr : call_.gradients.units[row];
        T sums[L];
        over_parts(gain_sums_[q] + position, {parts(), s_.width(q)}).store(sums);
        for (int lane = 0; lane < lanes && to; ++lane) to[unit + lane] = before(to + unit + lane) + sums[lane];
      });
  }
  void add_params(Index g) {
    for (int k = 0; k < C::kParams; ++k) {
      T* to = call_.gradients.units[kGains<C> + k];
      if (!to) continue;
      for (Index u = g * Layout<C, P>::U * L; u < smaller(s_.hidden, (g + 1) * Layout<C, P>::U * L); ++u) {
        T sum = before(to + u);
        for (Index part = 0; part < parts(); ++part) sum += param_sums_[(part * C::kParams + k) * s_.padded + u];
        to[u] = sum;
      }
    }
  }

  // The forward pass of this call, where its tape is recomputed; it writes neither y nor cells.
  static ForwardCall<T> forward_call(const Call& c) {
    ForwardCall<T> f{};
    f.weights = c.weights, f.steps = c.steps, f.batch = c.batch, f.reverse = c.reverse, f.times = c.times, f.x = c.x;
    f.y = {const_cast<T*>(c.y.data), c.y.t, c.y.b, c.y.starts, c.y.ends};
    f.lookup = c.lookup, f.projected = c.projected;
    f.h0 = c.h0, f.c0 = c.c0, f.restart_h = c.restart_h, f.restart_c = c.restart_c, f.cells = const_cast<T*>(c.cells);
    return f;
  }

  Call call_{};
  const Schedule& schedule_;
  Layout<C, P> s_;
  StepMask mask_{};
  Forward<C, P> recompute_;
  T *zeros_, *weight_sums_[kMatrices], *bias_sums_[kMatrices], *gain_sums_[kCount], *param_sums_;
  T *dh_, *dc_, *c0_, *demitted_, *restart_c_, *restart_sums_;
  double* flow_;
  Index* first_blocks_;  // of each part
  bool controlled_ = call_.control.clip_value > 0 || call_.control.clip_norm > 0 || call_.control.dcells.data || call_.control.flow;
  Space* ran_in_ = nullptr;  // the one chunk, where sums are direct
};

}  // namespace ost::OST_SET
