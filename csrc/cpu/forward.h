// The forward pass of one layer and direction, for any cell: input projection by blocks of steps, then the recurrence,
// product and cell tile by tile.
#pragma once
#include "layout.h"
#include "math.h"
#include "schedule.h"

namespace ost::OST_SET {

constexpr Index kBlockRows = 128;  // rows of projected input ahead of the recurrence: they stay in L2 beside the panels
constexpr Index kChunkRows = 20;   // batch rows that travel through time together: 4 x 5 or 5 x 4

// Where a row of the batch stands in time. A row of length n runs t = 0 .. n-1, or n-1 .. 0 in reverse.
struct Clock {
  Index steps;
  bool reverse;
  const Index* lengths;
  OST_HD Index time(Index s) const { return reverse ? steps - 1 - s : s; }
  OST_HD Index length(Index b) const { return lengths ? lengths[b] : steps; }
  OST_HD bool active(Index t, Index b) const { return !lengths || t < lengths[b]; }
  OST_HD bool first(Index t, Index b) const { return reverse ? t == length(b) - 1 : t == 0; }
  OST_HD Index before(Index t) const { return reverse ? t + 1 : t - 1; }
  OST_HD Index last(Index b) const { return reverse ? 0 : length(b) - 1; }  // of a row with length > 0
};

template <class T>
OST_HD T* at(const Rows<T>& rows, Index t, Index b) {
  return rows.data + t * rows.t + b * rows.b;
}

template <class T>
OST_HD Vec<T> load_left(const T* p, Index left) {
  return left >= Vec<T>::kLanes ? Vec<T>::load(p) : Vec<T>::load_part(p, int(left));
}
template <class T>
OST_HD void store_left(Vec<T> v, T* p, Index left) {
  left >= Vec<T>::kLanes ? v.store(p) : v.store_part(p, int(left));
}

template <class C, class T>
class Forward {
  using V = Vec<T>;
  static constexpr int L = V::kLanes, kLast = kPhaseCount<C> - 1;
  static constexpr bool kScratchSaved = kPhaseCount<C> > 1;  // later phases read what earlier ones saved

  struct Row {  // one active row of the batch at one step
    const T *gx, *h, *c;
    T *y, *c1, *saved, *emitted;
  };
  struct Workspace {  // one thread's
    T* gx;
    Row* rows;
    const T** in;
    T** out;
    T *saved, *emitted;
  };

 public:
  explicit Forward(const ForwardCall<T>& call)
      : call_(call),
        s_(call.weights->input, call.weights->hidden),
        clock_{call.steps, call.reverse, call.lengths},
        plan_(make_plan(call.steps, call.batch, s_.input + s_.hidden, C::kGates * s_.padded, s_.groups, kPhaseCount<C>)) {
    shared_ = plan_.axis == Axis::kUnits;
    chunks_ = shared_ ? 1 : larger<Index>(1, plan_.threads * ceil_div(call.batch, plan_.threads * kChunkRows));
    chunk_rows_ = ceil_div(call.batch, chunks_);
    block_steps_ = larger<Index>(1, smaller<Index>(call.steps, kBlockRows / larger<Index>(1, chunk_rows_)));
    blocks_ = ceil_div(call.steps, block_steps_);
  }

  int run() {
    if (call_.batch == 0) return kOk;
    Arena spaces, arena;
    spaces_ = spaces.make<Workspace>(plan_.threads);
    if (!spaces_) return kNoMemory;
    layout_memory(arena);
    if (!arena.allocate()) return kNoMemory;
    layout_memory(arena);
    fill_zero(zeros_, s_.padded);
    load_cells();
    for (Index i = 0; i < chunks_; ++i) progress_[i] = 0;
    run_team(plan_.threads, [](void* self, int index, int count) { static_cast<Forward*>(self)->work(index, count); }, this);
    if (stopped()) return kStopped;
    final_states();
    return kOk;
  }

 private:
  void layout_memory(Arena& arena) {
    zeros_ = arena.take<T>(s_.padded);
    cells_ = C::kStates > 1 ? arena.take<T>(call_.batch * s_.padded) : nullptr;
    progress_ = arena.take<Index>(chunks_);
    const Index rows = block_steps_ * chunk_rows_;
    for (int i = 0; i < plan_.threads; ++i) {
      Workspace& w = spaces_[i];
      w.gx = shared_ && i > 0 ? spaces_[0].gx : arena.take<T>(rows * C::kColumns * s_.padded);
      w.rows = arena.take<Row>(chunk_rows_);
      w.in = arena.take<const T*>(rows);
      w.out = arena.take<T*>(rows);
      if (kScratchSaved) {
        w.saved = shared_ && i > 0 ? spaces_[0].saved : arena.take<T>(chunk_rows_ * C::kSaved * s_.padded);
        w.emitted = shared_ && i > 0 ? spaces_[0].emitted : arena.take<T>(chunk_rows_ * s_.padded);
      }
    }
  }
  void load_cells() {
    if constexpr (C::kStates > 1)
      for (Index b = 0; b < call_.batch; ++b)
        for (Index u = 0; u < s_.padded; ++u) cells_[b * s_.padded + u] = call_.c0 && u < s_.hidden ? call_.c0[b * s_.hidden + u] : T(0);
  }

  bool stopped() const { return __atomic_load_n(&stop_, __ATOMIC_RELAXED) != 0; }
  void poll(int index) {
    if (index == 0 && call_.poll.ask && call_.poll.ask(call_.poll.context)) __atomic_store_n(&stop_, 1, __ATOMIC_RELAXED);
  }

  void work(int index, int count) {
    Workspace& w = spaces_[index];
    if (shared_) {
      for (Index block = 0; block < blocks_; ++block) {
        poll(index);
        barrier_wait(&barrier_, count);
        if (stopped()) return;
        run_block(w, 0, call_.batch, block, part_of(s_.groups, index, count), count);
      }
      return;
    }
    // Each chunk of rows goes through its blocks of steps in order; a thread takes whichever free chunk is furthest behind,
    // so that one that the system has put aside holds up its own chunk only. progress: 2 * blocks done, odd while taken.
    for (;;) {
      poll(index);
      if (stopped()) return;
      Index best = -1, behind = 2 * blocks_;
      bool done = true;
      for (Index i = 0; i < chunks_; ++i) {
        const Index c = (i + index) % chunks_;
        const Index at = __atomic_load_n(&progress_[c], __ATOMIC_ACQUIRE);
        done &= at >= 2 * blocks_;
        if (at % 2 == 0 && at < behind) best = c, behind = at;
      }
      if (done) return;
      if (best < 0) {                  // all that is left is taken at this moment
        if (chunks_ <= count) return;  // each by a thread that will finish it
        give_way();
        continue;
      }
      Index expected = behind;
      if (!__atomic_compare_exchange_n(&progress_[best], &expected, behind + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) continue;
      const Range rows = part_of(call_.batch, best, chunks_);
      run_block(w, rows.begin, rows.end, behind / 2, {0, s_.groups}, 1);
      __atomic_store_n(&progress_[best], behind + 2, __ATOMIC_RELEASE);
    }
  }

  void sync(int count) { barrier_wait(&barrier_, count); }

  void run_block(Workspace& w, Index b0, Index b1, Index block, Range groups, int count) {
    const Index s0 = block * block_steps_, s1 = smaller(call_.steps, s0 + block_steps_);
    project(w, b0, b1, s0, s1, groups);
    for (Index s = s0; s < s1; ++s) step(w, b0, b1, s, s0, groups, count);
  }

  // a = bias + W x for the active rows of the block, into w.gx [step][row][columns].
  void project(Workspace& w, Index b0, Index b1, Index s0, Index s1, Range groups) {
    const Index row = C::kColumns * s_.padded;
    Index n = 0;
    for (Index s = s0; s < s1; ++s)
      for (Index b = b0; b < b1; ++b) {
        const Index t = clock_.time(s);
        if (!clock_.active(t, b)) continue;
        w.in[n] = at(call_.x, t, b);
        w.out[n++] = w.gx + ((s - s0) * (b1 - b0) + b - b0) * row;
      }
    constexpr Columns columns = C::kInput;
    for (Index g = groups.begin; g < groups.end; ++g) {
      const int units = s_.units(g), vectors = columns.count() * units, pieces = piece_count(vectors);
      const T* panel = call_.weights->panels[0] + s_.input * s_.offset(g, columns.count());
      const T* bias = call_.weights->bias + s_.offset(g, C::kColumns);
      for_row_tiles(n, max_rows(piece(vectors, pieces - 1).count), [&](Index r, int m) {
        for (int p = 0; p < pieces; ++p) {
          const Piece cut = piece(vectors, p);
          const Index first = (columns.begin * units + cut.begin) * L;
          const T* init[kMaxRows];
          T* out[kMaxRows];
          for (int i = 0; i < m; ++i) init[i] = bias + first, out[i] = w.out[r + i] + s_.offset(g, C::kColumns) + first;
          kProducts<T>.product[cut.count - 1][m - 1](s_.input, w.in + r, panel + s_.input * cut.begin * L, init, out);
        }
        for (int i = 0; i < m; ++i)  // columns that only the recurrent product feeds start from their bias
          for (int column = 0; column < C::kColumns; ++column)
            if (!columns.has(column))
              for (int u = 0; u < units; ++u)
                V::load(bias + (column * units + u) * L).store(w.out[r + i] + s_.offset(g, C::kColumns) + (column * units + u) * L);
      });
    }
  }

  void step(Workspace& w, Index b0, Index b1, Index s, Index s0, Range groups, int count) {
    const Index t = clock_.time(s);
    Index n = 0;
    for (Index b = b0; b < b1; ++b) {
      T* y = at(call_.y, t, b);
      if (!clock_.active(t, b)) {
        if (groups.begin == 0) fill_zero(y, s_.hidden);
        continue;
      }
      const bool first = clock_.first(t, b);
      const Index before = clock_.before(t);
      Row& row = w.rows[n];
      row.gx = w.gx + ((s - s0) * (b1 - b0) + b - b0) * C::kColumns * s_.padded;
      row.y = y;
      row.h = !first ? at(call_.y, before, b) : call_.h0 ? call_.h0 + b * s_.hidden : zeros_;
      if (C::kStates > 1) {
        T* c = cells_ + b * s_.padded;
        row.c = first || !call_.cells ? c : call_.cells + (before * call_.batch + b) * s_.padded;
        row.c1 = call_.cells ? call_.cells + (t * call_.batch + b) * s_.padded : c;
      }
      row.saved = call_.saved     ? call_.saved + (t * call_.batch + b) * C::kSaved * s_.padded
                  : kScratchSaved ? w.saved + n * C::kSaved * s_.padded
                                  : nullptr;
      row.emitted = kScratchSaved ? w.emitted + n * s_.padded : nullptr;
      ++n;
    }
    phases<0>(w, n, groups, count);
  }

  template <int P>
  OST_HD void phases(Workspace& w, Index n, Range groups, int count) {
    phase<P>(w, n, groups, count);
    if constexpr (P < kLast) phases<P + 1>(w, n, groups, count);
  }

  template <int P>
  OST_HD void phase(Workspace& w, Index n, Range groups, int count) {
    constexpr Phase phase = C::kPhases[P];
    constexpr int columns = phase.product.count();
    for (Index g = groups.begin; g < groups.end; ++g) {
      const int units = s_.units(g), vectors = columns * units, pieces = piece_count(vectors);
      const T* panel = call_.weights->panels[P + 1] + s_.hidden * s_.offset(g, columns);
      for_row_tiles(n, pieces ? max_rows(piece(vectors, pieces - 1).count) : kMaxRows, [&](Index r, int m) {
        alignas(64) T tile[kMaxRows][C::kColumns * Layout<C, T>::U * L];
        const Row* rows = w.rows + r;
        const T *in[kMaxRows], *init[kMaxRows];
        T* out[kMaxRows];
        for (int i = 0; i < m; ++i) in[i] = phase.operand == Operand::kHidden ? rows[i].h : rows[i].emitted;
        for (int p = 0; p < pieces; ++p) {
          const Piece cut = piece(vectors, p);
          const Index first = (phase.product.begin * units + cut.begin) * L;
          for (int i = 0; i < m; ++i) init[i] = rows[i].gx + s_.offset(g, C::kColumns) + first, out[i] = tile[i] + first;
          kProducts<T>.product[cut.count - 1][m - 1](s_.hidden, in, panel + s_.hidden * cut.begin * L, init, out);
        }
        for (int i = 0; i < m; ++i)
          for (int u = 0; u < units; ++u) cell<P>(rows[i], tile[i], g, units, u);
      });
    }
    if (shared_) sync(count);
  }

  template <int P>
  OST_HD void cell(const Row& row, const T* tile, Index g, int units, int u) {
    constexpr Phase phase = C::kPhases[P];
    const Index first = (g * Layout<C, T>::U + u) * L, left = s_.hidden - first;
    const auto in_group = [&](int column) { return (column * units + u) * L; };
    ForwardIn<C, V> in;
    ForwardOut<C, V> out;
    for (int column = phase.own.begin; column < phase.own.end; ++column)
      in.a[column] = V::load((phase.product.has(column) ? tile : row.gx + s_.offset(g, C::kColumns)) + in_group(column));
    in.state[0] = load_left(row.h + first, left);
    if constexpr (C::kStates > 1) in.state[1] = V::load(row.c + first);
    for (int k = 0; k < C::kParams; ++k) in.param[k] = V::load(call_.weights->params + k * s_.padded + first);
    T* saved = row.saved ? row.saved + s_.offset(g, C::kSaved) : nullptr;
    if constexpr (kLast > 0)  // what this phase does not save, it hands on
      for (int k = 0; k < C::kSaved; ++k) out.saved[k] = in.saved[k] = P > 0 ? V::load(saved + in_group(k)) : V(T(0));
    C::template forward<P>(in, out);
    if (P == kLast ? call_.saved != nullptr : true)
      for (int k = 0; k < C::kSaved; ++k) out.saved[k].store(saved + in_group(k));
    if constexpr (P < kLast) {
      out.emitted.store(row.emitted + first);
    } else {
      store_left(out.state[0], row.y + first, left);
      if constexpr (C::kStates > 1) out.state[1].store(row.c1 + first);
    }
  }

  void final_states() {
    for (Index b = 0; b < call_.batch; ++b) {
      const Index h = s_.hidden;
      const bool empty = clock_.length(b) == 0;
      if (call_.hn) {
        const T* from = empty ? (call_.h0 ? call_.h0 + b * h : zeros_) : at(call_.y, clock_.last(b), b);
        __builtin_memcpy(call_.hn + b * h, from, std::size_t(h) * sizeof(T));
      }
      if (call_.cn && C::kStates > 1) {
        const T* from = empty || !call_.cells ? cells_ + b * s_.padded : call_.cells + (clock_.last(b) * call_.batch + b) * s_.padded;
        __builtin_memcpy(call_.cn + b * h, from, std::size_t(h) * sizeof(T));
      }
    }
  }

  const ForwardCall<T>& call_;
  Layout<C, T> s_;
  Clock clock_;
  Plan plan_;
  bool shared_;
  Index chunks_, chunk_rows_, block_steps_, blocks_;
  Workspace* spaces_;
  T *zeros_, *cells_;
  Index* progress_;
  Barrier barrier_;
  int stop_ = 0;
};

}  // namespace ost::OST_SET
