// The forward pass of one layer and direction, for any cell: input projection by blocks of steps, then the recurrence,
// product and cell tile by tile.
#pragma once
#include "layout.h"
#include "math.h"
#include "norm.h"
#include "step_mask.h"
#include "team.h"

namespace ost::OST_SET {

constexpr Index kBlockRows = 128;  // rows of projected input ahead of the recurrence: they stay in L2 beside the panels

template <class T>
OST_HD T* at(const Rows<T>& rows, Index t, Index b) {
  return rows.data + (rows.starts ? (rows.starts[b] + t) * rows.t : t * rows.t + b * rows.b);
}

// The rows of a block lie apart where rows were balanced: the hardware does not see where the next one is.
template <class T>
OST_HD void fetch_row(const T* row, Index n) {
  constexpr Index L = Vec<T>::kLanes;
  for (Index k = 0; k < smaller<Index>(n, 8 * L); k += L) __builtin_prefetch(row + k);
}

template <class T>
OST_HD Vec<T> load_left(const T* p, Index left) {
  return left >= Vec<T>::kLanes ? Vec<T>::load(p) : Vec<T>::load_part(p, int(left));
}
template <class T>
OST_HD void store_left(Vec<T> v, T* p, Index left) {
  left >= Vec<T>::kLanes ? v.store(p) : v.store_part(p, int(left));
}

// Zeros where rows take no part and repeat nothing, in the order of memory: row by row within the steps it cost 4 to 8% of a pass at H
// = 64.
template <class T>
void clear_rows(const Rows<T>& rows, const StepMask& mask, Index width, Range steps) {
  for (Index b = 0; rows.starts && b < mask.batch; ++b)
    for (Index t = steps.begin; t < smaller(steps.end, rows.ends[b] - rows.starts[b]); ++t)
      if (!mask.active(t, b) && mask.repeats(t, b) == kSkipped) fill_zero(at(rows, t, b), width);
  if (rows.starts) return;
  for (Index t = steps.begin; t < steps.end; ++t)
    for (Index b = 0; b < mask.batch; ++b) {
      if (mask.active(t, b) || mask.repeats(t, b) != kSkipped) continue;
      fill_zero(at(rows, t, b), width);
    }
}

template <class C, class P>
class Forward {
  using T = typename P::Real;
  using W = typename P::Word;
  using V = Vec<T>;
  static constexpr int L = V::kLanes, kLast = kPhaseCount<C> - 1;
  static constexpr bool kScratchSaved = kPhaseCount<C> > 1;  // later phases read what earlier ones saved
  static constexpr bool kProjected = is_projected<C>(), kEmits = kScratchSaved || kProjected;
  static constexpr int kOps = op_count<C>(), kNormedProducts = normed_products<C>();
  static constexpr bool kNormedInput = is_normed<C>(0), kNormedPhases = kNormedProducts > kNormedInput;

  struct Row {  // one active row of the batch at one step
    const T *gx, *h, *c;
    T *y, *c1, *saved, *emitted;
    T* product;                    // R h, where it is normed
    T* tape;                       // of the step; null in inference
    Moments<T> moments[kOps + 1];  // by operation on the product; then of what was emitted
  };

 public:
  static constexpr bool kCutsAnywhere = true;  // a block of steps, between any two
  using Call = ForwardCall<T>;
  struct Space {  // one thread's memory
    T* gx;
    Row* rows;
    const W** words;
    T** out;
    T *saved, *emitted;
    W* encoded;
    T *product, **deviations;  // of normed products: a row each; where those of W x go, or null
  };

  static Schedule schedule(Index steps, Index batch, const Index* inputs, Widths widths, int calls, bool chained, Needs needs) {
    const Layout<C, P> s(inputs[0], widths);
    Index input = 0;
    for (int i = 0; i < calls; ++i) input += inputs[i] / calls;
    const Index wave = larger<Index>(1, ceil_div(steps, kWaveBlocks));  // steps of a block, where layers run at the same time
    const Plan plan = make_plan({steps, batch, calls, chained, needs, input, step_depth<C>(s), C::kGates * s.padded, s.groups,
                                 kPhaseCount<C> + kProjected + kNormedPhases, 0, ceil_div(steps, wave), kFlops<P>});
    const Index rows = ceil_div(batch, plan.parts), most = larger<Index>(1, smaller<Index>(steps, kBlockRows / larger<Index>(1, rows)));
    return {plan, plan.concurrent && chained ? smaller(most, wave) : most, steps, batch, {}, false, false};
  }

  Forward(const Call& call, const Schedule& schedule, bool recomputes = false)
      : call_(call),
        schedule_(schedule),
        s_(call.weights->input, call.weights->widths),
        mask_{call.steps, call.batch, call.reverse, call.times},
        saves_(recomputes || call.saved) {}
  static void* operator new(std::size_t, void* at) { return at; }

  static void layout_space(Arena& arena, Space* spaces, int i, const Schedule& c, Index most_input, Widths widths) {
    const Layout<C, P> s(most_input, widths);
    const bool shared = c.plan.spread == Spread::kUnitParallel && i > 0;
    const Index row_block_rows = ceil_div(c.batch, c.plan.parts), rows = c.block_steps * row_block_rows;
    Space& w = spaces[i];
    w.gx = shared ? spaces[0].gx : arena.take<T>(rows * C::kColumns * s.padded);
    w.rows = arena.take<Row>(row_block_rows);
    w.words = arena.take<const W*>(rows);
    w.out = arena.take<T*>(rows);
    if (kScratchSaved) w.saved = shared ? spaces[0].saved : arena.take<T>(row_block_rows * C::kSaved * s.padded);
    if (kEmits) w.emitted = shared ? spaces[0].emitted : arena.take<T>(row_block_rows * s.padded);
    const Index deepest = larger(s.hidden, s.output);
    w.encoded = arena.take<W>(larger(rows * row_words<P>(most_input), row_block_rows * row_words<P>(deepest)));
    take_normed(arena, w, s, rows, row_block_rows, shared ? &spaces[0] : nullptr);
  }
  static void take_normed(Arena& arena, Space& w, const Layout<C, P>& s, Index ahead, Index rows, const Space* shared) {
    if constexpr (kNormedInput) w.deviations = arena.take<T*>(ahead);
    if constexpr (kNormedPhases) w.product = shared ? shared->product : arena.take<T>(rows * product_stride(s));
  }
  // What explain() says beyond the schedule.
  static void describe(const Schedule& schedule, const Index* inputs, Widths widths, int calls, CallPlan* out) {
    const Layout<C, P> s(inputs[0], widths);
    const Cut& cut = kCuts.of[C::kPhases[0].product.count() * s.units(0)];
    const Index rows = out->row_block_rows;
    out->tile_rows = int(ceil_div(rows, larger<Index>(1, ceil_div(rows, tile_rows<P>(cut.rows)))));
    out->tile_vectors = 0;  // the most
    for (int p = 0, n; p < cut.pieces; p += n) {
      n = cut.panels_from(p, Multiply<P>::panels_side_by_side(out->tile_rows));
      out->tile_vectors = larger(out->tile_vectors, n * cut.piece[p].count);
    }
    const Index n = schedule.steps * schedule.batch;
    out->tape_bytes = n * (s.tape_width(false) + (C::kStates > 1 ? s.padded : 0)) * Index(sizeof(T));
    out->workspace_bytes = Team<Forward>::workspace(schedule, inputs, widths, calls);
  }
  Forward(const Schedule& schedule, Index input, Widths widths) : schedule_(schedule), s_(input, widths) {}  // to measure

  // The tape of rows [b0, b1) in the steps [t0, t1), recomputed from the states after every step: no step waits for another, so the
  // recurrent products too are taken for all of them at once. The bits are those of the pass, since a row's are whatever rows run with it.
  static void layout_recompute(Arena& arena, Space& w, Index rows, Index input, Widths widths, const Space* shared) {
    const Layout<C, P> s(input, widths);
    w.gx = shared ? shared->gx : arena.take<T>(rows * C::kColumns * s.padded);
    w.emitted = shared ? shared->emitted : arena.take<T>(kEmits ? rows * s.padded : 0);
    w.rows = arena.take<Row>(rows);
    w.words = arena.take<const W*>(rows);
    w.out = arena.take<T*>(rows);
    w.encoded = arena.take<W>(rows * row_words<P>(larger(input, larger(s.hidden, s.output))));
    w.saved = arena.take<T>(2 * s.padded);  // takes the states, which are known
    take_normed(arena, w, s, rows, rows, shared);
  }
  void recompute(Space& w, Index b0, Index b1, Index t0, Index t1, T* saved, Range groups, Barrier* barrier, int index, int count) {
    const Index s0 = call_.reverse ? call_.steps - t1 : t0, s1 = s0 + t1 - t0;
    const auto tape = [&](Index t, Index i, Index) { return saved + ((t - t0) * (b1 - b0) + i - b0) * tape_width(); };
    if (!call_.projected) project(w, b0, b1, s0, s1, groups, tape, barrier, index, count);
    Index n = 0;
    for (Index s = s0; s < s1; ++s)
      for (Index i = b0; i < b1; ++i) {
        const Index t = mask_.time(s), b = mask_.row_of(i);
        if (!mask_.active(t, b)) continue;
        const Index predecessor = mask_.predecessor(t, b);
        Row& row = w.rows[n];
        row.gx = projected(w, t, b, (s - s0) * (b1 - b0) + i - b0);
        row.h = hidden_after(predecessor, b);
        if (C::kStates > 1) row.c = cell_after(predecessor, b, i);
        row.y = w.saved, row.c1 = w.saved + s_.padded;
        row.saved = row.tape = tape(t, i, b);
        row.emitted = kEmits ? w.emitted + n * s_.padded : nullptr;
        if constexpr (kNormedPhases) row.product = w.product + n * product_stride(s_);
        ++n;
      }
    phases<0>(w, n, groups, barrier, count);
  }

  // a = bias + W x of every row of a table [rows, I], once, for calls that look their input up in it.
  static Index projected_size(Index rows, Widths widths) { return rows * projected_width(Layout<C, P>(1, widths)); }
  // A row of it: a, and behind it the deviations of W x where that is normed.
  static Index projected_width(const Layout<C, P>& s) { return (C::kColumns + deviations<C>(0)) * s.padded; }
  static int project_table(const PackedWeights<T>& weights, Index rows, const T* x, T* projected) {
    constexpr Index kRows = 32;  // that a thread takes at once
    struct Job {
      Forward driver;
      Index rows, word_count;
      const T* x;
      T* projected;
      W* encoded;
      Share share{};
      static void run(void* self, int index, Crew&) {
        Job& j = *static_cast<Job*>(self);
        const Layout<C, P>& s = j.driver.s_;
        W* const mine = j.encoded + index * kRows * j.word_count;
        for (Range r; j.share.next(j.rows, kRows, &r);) {
          const W* words_of[kRows];
          T *to[kRows], *kept[kRows];
          for (Index i = r.begin; i < r.end; ++i) {
            words_of[i - r.begin] = operand(j.x + i * s.input, s.input, mine + (i - r.begin) * j.word_count);
            to[i - r.begin] = j.projected + i * projected_width(s);
            kept[i - r.begin] = to[i - r.begin] + C::kColumns * s.padded;
          }
          j.driver.project_rows(r.end - r.begin, words_of, to, {0, s.groups});
          if constexpr (kNormedInput) j.driver.norm_rows({0, r.end - r.begin}, to, kept);
        }
      }
    };
    const Schedule none{};
    Call call{};
    call.weights = &weights;
    const int threads = double(rows) * double(weights.input) * double(weights.widths.hidden) < 1e5 ? 1 : thread_count();
    const Index word_count = P::kEncodes ? row_words<P>(weights.input) : 0;
    Arena arena;
    W* encoded = arena.make<W>(threads * kRows * word_count);
    if (!encoded) return kNoMemory;
    Job job{Forward(call, none), rows, word_count, x, projected, encoded};
    run_team(threads, Job::run, &job);
    return kOk;
  }

  void layout_memory(Arena& arena) {
    zeros_ = arena.take<T>(zero_count());
    cells_ = C::kStates > 1 ? arena.take<T>(schedule_.batch * s_.padded) : nullptr;
    restart_c_ = C::kStates > 1 ? arena.take<T>(s_.padded) : nullptr;
  }
  void begin() {
    fill_zero(zeros_, zero_count());
    if constexpr (C::kStates > 1) {
      const Index h = s_.hidden;
      for (Index b = 0; b < call_.batch; ++b) {
        T* c = cells_ + b * s_.padded;
        if (call_.c0) __builtin_memcpy(c, call_.c0 + b * h, std::size_t(h) * sizeof(T));
        call_.c0 ? fill_zero(c + h, s_.padded - h) : fill_zero(c, s_.padded);
      }
      fill_zero(restart_c_, s_.padded);
      if (call_.restart_c) __builtin_memcpy(restart_c_, call_.restart_c, std::size_t(h) * sizeof(T));
    }
  }

  void run_block(Space& w, Index part, Index block, Barrier* barrier, int index, int count) {
    run_steps(w, part, steps_of(block), barrier, index, count);
  }
  Range steps_of(Index block) const { return {block * schedule_.block_steps, smaller(call_.steps, (block + 1) * schedule_.block_steps)}; }
  // Take the rows of one row block through some steps of a block. With units split the team meets at the barrier after every phase.
  void run_steps(Space& w, Index part, Range steps, Barrier* barrier, int index, int count) {
    const Range rows = part_of(call_.batch, part, schedule_.plan.parts), groups = part_of(s_.groups, index, count);
    const Index s0 = steps.begin, s1 = steps.end;
    const auto tape = [&](Index t, Index i, Index b) {
      return call_.saved ? call_.saved + mask_.on_tape(t, i, b) * tape_width() : nullptr;
    };
    if (!call_.projected) project(w, rows.begin, rows.end, s0, s1, groups, tape, barrier, index, count);
    for (Index s = s0; s < s1; ++s) step(w, rows.begin, rows.end, s, s0, groups, barrier, index, count);
  }

  // Return the blocks of steps in which any row of a row block has a step.
  Range blocks_of(Index part) const {
    const Range rows = part_of(call_.batch, part, schedule_.plan.parts);
    const Index longest = mask_.longest(rows.begin, rows.end), all = schedule_.blocks(), each = schedule_.block_steps;
    return call_.reverse ? Range{longest ? (call_.steps - longest) / each : all, all} : Range{0, ceil_div(longest, each)};
  }

  bool finishes() const { return mask_.times.lengths; }
  void finish(Space&, int index, int count) { clear_rows(call_.y, mask_, s_.output, part_of(call_.steps, index, count)); }
  void end() {  // the final states
    for (Index i = 0; i < call_.batch; ++i) {
      const Index h = s_.hidden, p = s_.output, b = mask_.row_of(i), end = mask_.end(b);
      if (call_.hn) __builtin_memcpy(call_.hn + b * p, hidden_after(end, b), std::size_t(p) * sizeof(T));
      if (call_.cn && C::kStates > 1) __builtin_memcpy(call_.cn + b * h, cell_after(end, b, i), std::size_t(h) * sizeof(T));
    }
  }

 private:
  Index zero_count() const { return kProjected || kNormedPhases ? larger<Index>(s_.state_stride(), kMaxVectors * L) : s_.padded; }
  Index tape_width() const { return s_.tape_width(call_.projected); }
  // One vector more than needed, as rows of da.
  static Index product_stride(const Layout<C, P>& s) { return s.row_stride(1); }
  // The states of row b after a step, or initial, or of a restart.
  const T* hidden_after(Index step, Index b) const {
    if (step >= 0) return at(call_.y, step, b);
    const T* h = step == kRestart ? call_.restart_h : call_.h0 ? call_.h0 + b * s_.output : nullptr;
    return h ? h : zeros_;
  }
  const T* cell_after(Index step, Index b, Index i) const {
    if (step == kRestart) return restart_c_;
    return step == kInitial || !call_.cells ? cells_ + b * s_.padded : call_.cells + mask_.on_tape(step, i, b) * s_.padded;
  }

  // a = bias + W x for the active rows of the block, into w.gx [step][row][columns]. `tape`: where the row of (t, i, b) is kept, or null.
  template <class F>
  void project(Space& w, Index b0, Index b1, Index s0, Index s1, Range groups, F&& tape, Barrier* barrier, int index, int count) {
    const Index row = C::kColumns * s_.padded;
    Index n = 0;
    for (Index s = s0; s < s1; ++s)
      for (Index i = b0; i < b1; ++i) {
        const Index t = mask_.time(s), b = mask_.row_of(i);
        if (!mask_.active(t, b)) continue;
        const T* x = at(call_.x, t, b);
        if (mask_.times.order) fetch_row(x, s_.input);
        w.words[n] = operand(x, s_.input, w.encoded + n * row_words<P>(s_.input));
        if constexpr (kNormedInput) {
          T* kept = tape(t, i, b);
          w.deviations[n] = kept ? kept + s_.deviations_at(0) : nullptr;
        }
        w.out[n++] = w.gx + ((s - s0) * (b1 - b0) + i - b0) * row;
      }
    project_rows(n, w.words, w.out, groups);
    if constexpr (kNormedInput) {  // whole rows: threads share them
      if (count > 1) barrier_wait(barrier, count);
      norm_rows(part_of(n, index, count), w.out, w.deviations);
      if (count > 1) barrier_wait(barrier, count);
    }
  }

  // Columns that only the recurrent product feeds start from their bias.
  OST_HD static void start_from_bias(const T* bias, T* to, int units) {
#pragma GCC unroll 8
    for (int column = 0; column < C::kColumns; ++column)
      if (!C::kInput.has(column))
        for (int u = 0; u < units; ++u) V::load(bias + (column * units + u) * L).store(to + (column * units + u) * L);
  }

  static constexpr Columns kAll{0, C::kColumns};
  // Rows of a in which W x stands, without its bias: normed, times the gain, plus the bias. Where `kept` is not null the deviations go
  // there.
  void norm_rows(Range rows, T* const* a, T* const* kept) {
    for (Index i = rows.begin; i < rows.end; ++i) norm_input<0>(a[i], kept[i]);
  }
  template <int J>
  OST_HD void norm_input(T* a, T* kept) {
    if constexpr (J < kOps) {
      if constexpr (product_op<C>(J).product == 0) {
        const Moments<T> m = moments_of<C, J>(s_, kAll, static_cast<const T*>(a));
        norm_columns(product_op<C>(J).columns, a, kept, V(m.mean), V(m.scale));
      }
      norm_input<J + 1>(a, kept);
    } else if constexpr (normed_columns<C>(0) < C::kInput.count()) {  // those that no operation takes have their bias to come
      for_places(s_, C::kInput, {0, s_.groups}, [&](VectorPlace at, Index) {
        if (op_of<C>(0, at.column) >= 0) return;
        T* to = a + at.in(s_, kAll);
        (V::load(to) + V::load(call_.weights->bias + at.in(s_, kAll))).store(to);
      });
    }
  }
  OST_HD void norm_columns(Columns columns, T* a, T* kept, V mean, V scale) {
    const T *gains = call_.weights->gains[0], *bias = call_.weights->bias;
    for_places(s_, columns, {0, s_.groups}, [&](VectorPlace place, Index left) OST_INLINE {
      const Index at = place.in(s_, kAll), of_product = place.in(s_, C::kInput);
      V d = V::load(a + at) - mean;
      if (left < L) d = keep_lanes(d, left);
      if (kept) d.store(kept + of_product);
      fma(d * scale, V::load(gains + of_product), V::load(bias + at)).store(a + at);
    });
  }

  // The projected input of (t, b): row `row` of the block, or the row of the table that it reads.
  const T* projected(const Space& w, Index t, Index b, Index row) const {
    return call_.projected ? call_.projected + *at(call_.lookup.ids, t, b) * projected_width(s_) : w.gx + row * C::kColumns * s_.padded;
  }

  void project_rows(Index n, const W* const* words_of, T* const* to, Range groups) {
    constexpr Columns columns = C::kInput;
    const Multiply<P> multiply = multiplied(n);
    for (Index g = groups.begin; g < groups.end; ++g) {
      const int units = s_.units(g);
      const Cut& cut = kCuts.of[columns.count() * units];
      const W* panel = panels(0) + s_.rows(0) * s_.offset(g, columns.count());
      const T* bias = call_.weights->bias + s_.offset(g, C::kColumns);
      for_row_tiles(n, multiply.most_rows(cut.rows), [&](Index r, int m) OST_INLINE {
        const Index first = columns.begin * units * L;
        const T* init[kMostRows];
        T* out[kMostRows];
        for (int i = 0; i < m; ++i) {
          init[i] = kNormedInput ? kNoBias : bias + first;
          out[i] = to[r + i] + s_.offset(g, C::kColumns) + first;
        }
        multiply.group(cut, m, words<P>(s_.input), words_of + r, panel, init, out);
        if constexpr (columns.count() < C::kColumns)
          for (int i = 0; i < m; ++i) start_from_bias(bias, to[r + i] + s_.offset(g, C::kColumns), units);
      });
    }
  }

  void step(Space& w, Index b0, Index b1, Index s, Index s0, Range groups, Barrier* barrier, int index, int count) {
    const Index t = mask_.time(s);
    Index n = 0;
    for (Index i = b0; i < b1; ++i) {
      const Index b = mask_.row_of(i);
      T* y = at(call_.y, t, b);
      if (!mask_.active(t, b)) {
        const Range mine = elements_of(groups, index, count);
        const Index first = mine.begin, end = mine.end;
        if (const Index from = mask_.repeats(t, b); from != kSkipped)
          __builtin_memcpy(y + first, hidden_after(from, b) + first, std::size_t(end - first) * sizeof(T));
        continue;
      }
      const Index predecessor = mask_.predecessor(t, b);
      Row& row = w.rows[n];
      row.gx = projected(w, t, b, (s - s0) * (b1 - b0) + i - b0);
      row.y = y;
      row.h = hidden_after(predecessor, b);
      if (C::kStates > 1) {
        row.c = cell_after(predecessor, b, i);
        row.c1 = call_.cells ? call_.cells + mask_.on_tape(t, i, b) * s_.padded : cells_ + b * s_.padded;
      }
      row.tape = call_.saved ? call_.saved + mask_.on_tape(t, i, b) * tape_width() : nullptr;
      row.saved = row.tape ? row.tape : kScratchSaved ? w.saved + n * C::kSaved * s_.padded : nullptr;
      if constexpr (kNormedPhases) row.product = w.product + n * product_stride(s_);
      row.emitted = kEmits ? w.emitted + n * s_.padded : nullptr;
      ++n;
    }
    phases<0>(w, n, groups, barrier, count);
    if constexpr (kProjected) {
      project_hidden(w, n, part_of(s_.groups_of(kProductCount<C>), index, count));
      if (count > 1) barrier_wait(barrier, count);
    }
  }
  // A thread's elements of h.
  Range elements_of(Range groups, int index, int count) const {
    if constexpr (kProjected) {
      return part_of(s_.output, index, count);
    } else {
      const Index first = groups.begin * Layout<C, P>::U * L;
      return {first, larger(first, smaller(s_.hidden, groups.end * Layout<C, P>::U * L))};
    }
  }

  // h = W_hr m into the rows of y, for a share of the groups of its elements; m is what the cells emitted.
  void project_hidden(Space& w, Index n, Range groups) {
    constexpr int q = kProductCount<C>;
    for (Index i = 0; i < n; ++i) w.words[i] = operand(w.rows[i].emitted, s_.hidden, w.encoded + i * row_words<P>(s_.hidden));
    const Multiply<P> multiply = multiplied(n);
    alignas(64) T tile[kMostRows][kMaxVectors * L];
    const T* init[kMostRows];
    T* out[kMostRows];
    for (int i = 0; i < kMostRows; ++i) {
      init[i] = zeros_;
      out[i] = tile[i];
    }
    for (Index g = groups.begin; g < groups.end; ++g) {
      const int vectors = s_.units_of(q, g);
      const Index first = s_.offset_of(q, g);
      const W* panel = panels(q) + s_.rows(q) * first;
      for_row_tiles(n, multiply.most_rows(max_rows(vectors)), [&](Index r, int m) OST_INLINE {
        multiply.product(vectors, m, words<P>(s_.hidden), w.words + r, panel, init, out, 0);
        for (int i = 0; i < m; ++i)
          for (int v = 0; v < vectors; ++v) {
            T* y = w.rows[r + i].y + first + v * L;
            store_left(V::load(tile[i] + v * L), y, s_.output - first - v * L);
          }
      });
    }
  }

  Multiply<P> multiplied(Index rows) const { return {call_.weights->multiplier, rows}; }
  const W* panels(int q) const { return static_cast<const W*>(call_.weights->panels[q]); }
  static OST_HD const W* operand(const T* row, Index depth, W* scratch) { return P::encode(row, depth, scratch); }

  template <int F>
  OST_HD void phases(Space& w, Index n, Range groups, Barrier* barrier, int count) {
    if constexpr (is_normed<C>(F + 1)) {  // the whole product must be there before any of it can be normed
      encode<F>(w, n);
      product_rows<F>(w, n, groups);
      if (count > 1) barrier_wait(barrier, count);
      normed_phase<F>(w, n, groups);
    } else {
      phase<F>(w, n, groups);
    }
    if (count > 1) barrier_wait(barrier, count);
    if constexpr (F < kLast) phases<F + 1>(w, n, groups, barrier, count);
  }

  template <int F>
  OST_HD void encode(Space& w, Index n) {
    constexpr Phase phase = C::kPhases[F];
    for (Index i = 0; i < n; ++i)
      w.words[i] = operand(phase.operand == Operand::kHidden ? w.rows[i].h : w.rows[i].emitted, s_.depth(F + 1),
                           w.encoded + i * row_words<P>(s_.depth(F + 1)));
  }

  // The recurrent product of a phase by itself, into row.product.
  template <int F>
  OST_HD void product_rows(Space& w, Index n, Range groups) {
    constexpr int q = F + 1, columns = product_columns<C>(q).count();
    const Multiply<P> multiply = multiplied(n);
    const T* init[kMostRows];
    for (int i = 0; i < kMostRows; ++i) init[i] = kNoBias;
    for (Index g = groups.begin; g < groups.end; ++g) {
      const Cut& cut = kCuts.of[columns * s_.units(g)];
      const Index first = s_.offset(g, columns);
      for_row_tiles(n, multiply.most_rows(cut.rows), [&](Index r, int m) OST_INLINE {
        T* out[kMostRows];
        for (int i = 0; i < m; ++i) out[i] = w.rows[r + i].product + first;
        multiply.group(cut, m, words<P>(s_.depth(q)), w.words + r, panels(q) + s_.rows(q) * first, init, out);
      });
    }
  }

  // Then its moments, row by row, and the cells. Threads that share units take the moments of all rows each.
  template <int F>
  OST_HD void normed_phase(Space& w, Index n, Range groups) {
    constexpr Columns columns = product_columns<C>(F + 1);
    for (Index i = 0; i < n; ++i) {
      Row& row = w.rows[i];
      take_moments<F, 0>(row);
      take_emitted_moments<F>(row);
      for (Index g = groups.begin; g < groups.end; ++g) {
        const int units = s_.units(g);
        T* product = row.product + s_.offset(g, columns.count()) - columns.begin * units * L;
        for (int u = 0; u < units; ++u) cell<F, false>(row, product, g, units, u);
      }
    }
  }
  template <int F, int J>
  OST_HD void take_moments(Row& row) {
    if constexpr (J < kOps) {
      if constexpr (product_op<C>(J).product == F + 1)
        row.moments[J] = moments_of<C, J>(s_, product_columns<C>(F + 1), static_cast<const T*>(row.product));
      take_moments<F, J + 1>(row);
    }
  }
  template <int F>
  OST_HD void take_emitted_moments(Row& row) {
    if constexpr (C::kPhases[F].before != RowOp::kNone)
      row.moments[kOps] = moments_of_units(s_, [&](Index first) { return V::load(row.emitted + first); });
  }

  template <int F>
  OST_HD void phase(Space& w, Index n, Range groups) {
    constexpr Phase phase = C::kPhases[F];
    constexpr int columns = phase.product.count();
    if constexpr (columns > 0) encode<F>(w, n);
    for (Index i = 0; i < n; ++i) take_emitted_moments<F>(w.rows[i]);
    const Multiply<P> multiply = multiplied(n);
    for (Index g = groups.begin; g < groups.end; ++g) {
      const int units = s_.units(g);
      const Cut& cut = kCuts.of[columns * units];
      const W* panel = panels(F + 1) + s_.rows(F + 1) * s_.offset(g, columns);
      for_row_tiles(n, multiply.most_rows(cut.rows), [&](Index r, int m) OST_INLINE {
        alignas(64) T tile[kMostRows][C::kColumns * Layout<C, P>::U * L];
        const Row* rows = w.rows + r;
        const T* init[kMostRows];
        T* out[kMostRows];
        const Index first = phase.product.begin * units * L;
        for (int i = 0; i < m; ++i) init[i] = rows[i].gx + s_.offset(g, C::kColumns) + first, out[i] = tile[i] + first;
        if constexpr (columns > 0) multiply.group(cut, m, words<P>(s_.depth(F + 1)), w.words + r, panel, init, out);
        for (int i = 0; i < m; ++i)
          for (int u = 0; u < units; ++u) cell<F, kHiddenApart<F>>(rows[i], tile[i], g, units, u);
        if constexpr (kHiddenApart<F>)
          for (int i = 0; i < m; ++i)
            for (int u = 0; u < units; ++u) hidden(rows[i], tile[i], g, units, u);
      });
    }
  }

  // An LSTM's tanh(c') waits for its gates, and the registers of a CPU hold the operations of about one cell in flight. The gates of all
  // rows of a tile, and then h' of all, wait for nothing: inference is 1.03 to 1.08 times as fast at H = 256 to 64 on Zen 3.
  template <int F>
  static constexpr bool kHiddenApart = F == kLast && !kProjected && SaysItsHidden<C>;

  // What h' needs stands in the place of the columns that it was computed from.
  OST_HD void hidden(const Row& row, const T* tile, Index g, int units, int u) {
    const Index first = (g * Layout<C, P>::U + u) * L;
    V saved[C::kSaved + 1], next[C::kStates];
#pragma GCC unroll 8
    for (int k = C::kHiddenReads.begin; k < C::kHiddenReads.end; ++k) saved[k] = V::load(tile + (k * units + u) * L);
    if constexpr (C::kStates > 1) next[1] = V::load(row.c1 + first);
    store_left(C::hidden(saved, next), row.y + first, s_.hidden - first);
  }

  template <int F, bool kLeavesHidden>
  OST_HD void cell(const Row& row, T* tile, Index g, int units, int u) {
    constexpr Phase phase = C::kPhases[F];
    const Index first = (g * Layout<C, P>::U + u) * L, left = s_.hidden - first;
    const auto in_group = [&](int column) { return (column * units + u) * L; };
    ForwardIn<C, V> in;
    ForwardOut<C, V> out;
#pragma GCC unroll 8
    for (int column = phase.own.begin; column < phase.own.end; ++column)
      in.a[column] = V::load((phase.product.has(column) ? tile : row.gx + s_.offset(g, C::kColumns)) + in_group(column));
    if constexpr (is_normed<C>(F + 1)) add_normed<F>(row, g, units, u, left, in.a);
    if constexpr (phase.before != RowOp::kNone) {
      in.emitted = V::load(row.emitted + first);
      in.carried = (in.emitted - V(row.moments[kOps].mean)) * V(row.moments[kOps].scale);
    }
    in.state[0] = kProjected ? V(T(0)) : load_left(row.h + first, left);
    if constexpr (C::kStates > 1) in.state[1] = V::load(row.c + first);
#pragma GCC unroll 8
    for (int k = 0; k < C::kParams; ++k) in.param[k] = V::load(call_.weights->params + k * s_.padded + first);
    if constexpr (scalar_count<C>() > 0) in.scalar = call_.weights->scalars;
    T* saved = row.saved ? row.saved + s_.offset(g, C::kSaved) : nullptr;
    if constexpr (kLast > 0)  // what this phase does not save, it hands on
#pragma GCC unroll 8
      for (int k = 0; k < C::kSaved; ++k) out.saved[k] = in.saved[k] = F > 0 ? V::load(saved + in_group(k)) : V(T(0));
    C::template forward<F>(in, out);
    if (F < kLast || saves_)
#pragma GCC unroll 8
      for (int k = 0; k < C::kSaved; ++k) out.saved[k].store(saved + in_group(k));
    if constexpr (kLeavesHidden)
#pragma GCC unroll 8
      for (int k = C::kHiddenReads.begin; k < C::kHiddenReads.end; ++k) out.saved[k].store(tile + in_group(k));
    if constexpr (F < kLast || kProjected) out.emitted.store(row.emitted + first);
    if constexpr (F == kLast) {
      if constexpr (!kProjected && !kLeavesHidden) store_left(out.state[0], row.y + first, left);
      if constexpr (C::kStates > 1) out.state[1].store(row.c1 + first);
    }
  }

  // What the product made, in `a`, becomes the pre-activation: normed, times the gain, and what W x and the biases gave.
  template <int F>
  OST_HD void add_normed(const Row& row, Index g, int units, int u, Index left, V* a) {
    constexpr int q = F + 1;
    constexpr Columns columns = product_columns<C>(q);
    const T* gx = row.gx + s_.offset(g, C::kColumns);
    const Index group = s_.offset(g, columns.count());
#pragma GCC unroll 8
    for (int column = columns.begin; column < columns.end; ++column) {
      const Index place = group + ((column - columns.begin) * units + u) * L;
      const V given = V::load(gx + (column * units + u) * L);
      const int j = op_of<C>(q, column);
      if (j < 0) {
        a[column] = given + a[column];
        continue;
      }
      V d = a[column] - V(row.moments[j].mean);
      if (left < L) d = keep_lanes(d, left);
      if (row.tape) d.store(row.tape + s_.deviations_at(q) + place);
      a[column] = fma(d * V(row.moments[j].scale), V::load(call_.weights->gains[q] + place), given);
    }
  }

  alignas(64) static constexpr T kNoBias[kMostVectors * L] = {};
  Call call_{};
  const Schedule& schedule_;
  Layout<C, P> s_;
  StepMask mask_{};
  bool saves_ = false;
  T *zeros_, *cells_, *restart_c_;
};

}  // namespace ost::OST_SET
