// Where things lie: the packed weights, the rows of pre-activations, tape and gradients of one cell. Private to a kernel set.
//
// Hidden units come in vectors of `lanes`, vectors in groups of kUnits (fewer in the last). A row of `a` is
//     [group][column][vector of the group][lane]
// so that the columns of a group are one run of memory, and so is any range of columns. Rows of da are the same, one
// buffer a product, with the columns that the product feeds. Pad lanes have zero weights; what they hold is never read into a
// result: the backward pass sets their da to zero, since 0 * infinity in the forward pass may have left NaN there.
#pragma once
#include "../core/cell.h"
#include "product.h"
#include "schedule.h"

namespace ost::OST_SET {

// Group enough vectors of units that the narrowest product still fills the accumulators.
template <class C>
constexpr int units_per_group() {
  int narrowest = kMaxVectors;
  for (int q = 0; q < kProductCount<C>; ++q) {
    const int n = product_columns<C>(q).count();
    if (n > 0 && n < narrowest) narrowest = n;
  }
  return narrowest == 1 ? 4 : narrowest == 2 ? 2 : 1;
}

template <class C, class P>
struct Layout {
  using T = typename P::Real;
  static constexpr int L = Vec<T>::kLanes, U = units_per_group<C>();
  static_assert(sizeof(typename P::Word) == sizeof(T));
  static_assert(C::kColumns * U <= kMostVectors);
  static constexpr bool kProjected = is_projected<C>();
  Index input, hidden, vectors, padded, groups;
  Index output, output_vectors, padded_output;  // of h: the units' own, unless it is projected

  OST_HD Layout(Index input, Widths widths)
      : input(input),
        hidden(widths.hidden),
        vectors(ceil_div(hidden, L)),
        padded(vectors * L),
        groups(ceil_div(vectors, U)),
        output(kProjected ? widths.output : hidden),
        output_vectors(kProjected ? ceil_div(output, L) : vectors),
        padded_output(output_vectors * L) {}
  OST_HD int units(Index g) const { return int(smaller<Index>(U, vectors - g * U)); }
  OST_HD static Index offset(Index g, int columns) { return g * U * L * columns; }  // of group g in a row of so many columns
  // A row that holds any state, and the zeros that stand for one.
  OST_HD Index state_stride() const { return kProjected ? larger(padded, padded_output) : padded; }

  // Matrix q: W, the recurrent ones by phase, W_hr. Those of the gates have columns of units, W_hr the elements of h.
  OST_HD static constexpr bool projects(int q) { return kProjected && q == kProductCount<C>; }
  OST_HD Index depth(int q) const {  // elements of the operand
    if (q == 0) return input;
    if constexpr (!kProjected) return hidden;
    return projects(q) || C::kPhases[q - 1].operand == Operand::kEmitted ? hidden : output;
  }
  OST_HD Index rows(int q) const { return panel_rows<P>(depth(q)); }  // of a panel, head and words
  OST_HD static int columns(int q) { return projects(q) ? 1 : product_columns<C>(q).count(); }
  OST_HD static int group_vectors(int q) { return projects(q) ? kMaxVectors : U; }
  OST_HD Index vectors_of(int q) const { return projects(q) ? output_vectors : vectors; }
  OST_HD Index groups_of(int q) const { return projects(q) ? ceil_div(output_vectors, kMaxVectors) : groups; }
  OST_HD int units_of(int q, Index g) const { return int(smaller<Index>(group_vectors(q), vectors_of(q) - g * group_vectors(q))); }
  OST_HD static Index offset_of(int q, Index g) { return g * group_vectors(q) * L * columns(q); }
  OST_HD Index width(int q) const { return columns(q) * vectors_of(q) * L; }
  OST_HD Index most_groups() const {
    Index most = groups;
    if constexpr (kProjected) most = larger(most, groups_of(kProductCount<C>));
    return most;
  }
  OST_HD Index row_stride(int q) const {
    return width(q) + L;
  }  // da rows: one vector more, so that rows 4 KB apart do not share cache sets
  OST_HD Index transposed_vectors(int q) const { return ceil_div(depth(q), L); }

  // A row of the tape: what the pointwise functions save, then the deviations of products that are normed, those of W x last, for they are
  // not there where W x was normed ahead, as rows of a table.
  OST_HD Index deviations_at(int q) const {
    int vectors = C::kSaved + (q == 0 ? recurrent_deviations<C>() : 0);
    for (int k = 1; k < q; ++k) vectors += deviations<C>(k);
    return vectors * padded;
  }
  OST_HD Index tape_width(bool ahead) const { return deviations_at(0) + (ahead ? 0 : deviations<C>(0) * padded); }

  Index packed_size(bool backward) const {
    Index n = (C::kColumns + C::kParams + deviations<C>(0) + recurrent_deviations<C>()) * padded;
    for (int q = 0; q < kMatrixCount<C>; ++q) n += rows(q) * width(q) + (backward ? words<P>(width(q)) * transposed_vectors(q) * L : 0);
    return n;
  }
};

// The depth of what every step waits for, as that of one product of all gates: R h, and W_hr m, which has fewer columns.
template <class C, class P>
OST_HD Index step_depth(const Layout<C, P>& s) {
  return s.output + (is_projected<C>() ? ceil_div(s.output, C::kGates) : 0);
}

// Calls f(position of the vector in a row of matrix q, first row of the weight that feeds it, lanes in use) for every vector of group g.
template <class C, class P, class F>
OST_HD void for_vectors(const Layout<C, P>& s, int q, Index g, F&& f) {
  if (s.projects(q)) {
    for (int u = 0; u < s.units_of(q, g); ++u) {
      const Index first = (g * kMaxVectors + u) * s.L;
      f(first, first, int(smaller<Index>(s.L, s.output - first)));
    }
    return;
  }
  const Columns columns = product_columns<C>(q);
  const int n = s.units(g);
  for (int column = columns.begin; column < columns.end; ++column)
    for (int u = 0; u < n; ++u) {
      const Index first = (g * s.U + u) * s.L;
      const Index row = gate_of<C>(product_blocks<C>(q), column) * s.hidden + first;
      f(s.offset(g, columns.count()) + ((column - columns.begin) * n + u) * s.L, row, int(smaller<Index>(s.L, s.hidden - first)));
    }
}

// Calls f(position in a row of product q, row of the unit weights that is its gain or -1, first unit, lanes in use) for every vector
// of group g.
template <class C, class P, class F>
void for_gains(const Layout<C, P>& s, int q, Index g, F&& f) {
  const Columns columns = product_columns<C>(q);
  for (int column = columns.begin; column < columns.end; ++column)
    for (int u = 0; u < s.units(g); ++u) {
      const Index unit = (g * s.U + u) * s.L;
      const int j = op_of<C>(q, column), row = j < 0 ? -1 : gains_before<C>(j) + column - product_op<C>(j).columns.begin;
      f(s.offset(g, columns.count()) + ((column - columns.begin) * s.units(g) + u) * s.L, row, unit,
        int(smaller<Index>(s.L, s.hidden - unit)));
    }
}

// Up to L rows of `depth` elements become one vector of a panel whose words lie `stride` apart, behind its head;
// `scratch` holds one encoded row a lane. One function for all cells.
template <class P, class T = typename P::Real, class W = typename P::Word>
__attribute__((noinline)) void pack_vector(const T* raw, int lanes, Index depth, W* to, Index stride, W* scratch) {
  constexpr int L = Vec<T>::kLanes;
  const Index count = words<P>(depth), encoded = row_words<P>(depth);
  const W* from[L];
  for (int lane = 0; lane < lanes; ++lane, raw += depth) {
    if constexpr (P::kHead > 0)
      from[lane] = P::encode_weights(raw, depth, scratch + lane * encoded, to + lane, to + stride + lane);
    else if constexpr (P::kEncodes)
      from[lane] = P::encode_weights(raw, depth, scratch + lane * encoded);
    else
      from[lane] = raw;
  }
  for (int h = 0; h < P::kHead; ++h)
    for (int lane = lanes; lane < L; ++lane) to[h * stride + lane] = 0;
  to += P::kHead * stride;
  typename P::Weights square[L];
  for (Index k0 = 0; k0 < count; k0 += L) {
    const Index left = smaller<Index>(L, count - k0);
#pragma GCC unroll 16
    for (int lane = 0; lane < L; ++lane) square[lane] = lane < lanes ? P::load_encoded(from[lane] + k0, left) : P::splat(0);
    transpose_rows<P>(square);
    for (Index k = 0; k < left; ++k) __builtin_memcpy(to + (k0 + k) * stride, &square[k], L * sizeof(W));
  }
}

// Panels of one group of matrix q.
template <class C, class P, class T = typename P::Real, class W = typename P::Word>
void pack_forward(const Layout<C, P>& s, int q, Index g, const T* weight, W* panels, W* scratch) {
  constexpr int L = Vec<T>::kLanes;
  const Index depth = s.depth(q), first = s.offset_of(q, g);
  const Cut& cut = kCuts.of[s.columns(q) * s.units_of(q, g)];
  W* group = panels + s.rows(q) * first;
  for_vectors<C, P>(s, q, g, [&](Index position, Index row, int lanes) {
    const int v = int((position - first) / L);
    int p = 0;
    while (v >= cut.piece[p].begin + cut.piece[p].count) ++p;
    const Piece piece = cut.piece[p];
    W* to = group + s.rows(q) * piece.begin * L + (v - piece.begin) * L;
    pack_vector<P>(weight + row * depth, lanes, depth, to, piece.count * L, scratch);
  });
}

template <class C, class P, class T = typename P::Real, class W = typename P::Word>
void pack_transposed(const Layout<C, P>& s, int q, Index g, const T* weight, W* panels) {
  constexpr int L = Vec<T>::kLanes;
  const Index depth = s.depth(q), rows = words<P>(s.width(q));
  for_vectors<C, P>(s, q, g, [&](Index position, Index row, int lanes) {
    for (Index o = 0; o < plain_groups(s.transposed_vectors(q)); ++o) {
      const int n = plain_vectors(s.transposed_vectors(q), o);
      const Index first = o * kMaxVectors * L, there = smaller<Index>(n * L, depth - first);
      W* to = panels + rows * first + position / P::kPack * n * L;
      for (int lane = 0; lane < L; lane += P::kPack, to += n * L) {
        const T* from[P::kPack];
        for (int k = 0; k < P::kPack; ++k) from[k] = lane + k < lanes ? weight + (row + lane + k) * depth + first : nullptr;
        P::interleave_rows(from, there, to);
        for (Index k = there; k < n * L; ++k) to[k] = 0;
      }
    }
  });
}

// Packing is part of every training step: groups of panels are spread over threads.
template <class C, class P>
class Pack {
  using T = typename P::Real;
  using W = typename P::Word;
  static constexpr int L = Vec<T>::kLanes, kCount = kMatrixCount<C>;

 public:
  Pack(const RawWeights<T>& raw, Index input, Widths widths, bool backward, T* memory, PackedWeights<T>* out)
      : raw_(raw), s_(input, widths), backward_(backward), out_(*out) {
    out_ = {};
    out_.input = input;
    out_.widths = widths;
    for (int q = 0; q < kCount; ++q) {
      out_.panels[q] = memory;
      memory += s_.rows(q) * s_.width(q);
      if (!backward) continue;
      out_.transposed[q] = memory;
      memory += words<P>(s_.width(q)) * s_.transposed_vectors(q) * L;
    }
    out_.bias = memory;
    out_.params = memory + C::kColumns * s_.padded;
    memory += (C::kColumns + C::kParams) * s_.padded;
    for (int q = 0; q < kProductCount<C>; ++q)
      if (is_normed<C>(q)) out_.gains[q] = memory, memory += s_.width(q);
  }

  int run() {
    const Index size = s_.packed_size(backward_);
    const int threads = size < 65536 ? 1 : thread_count();  // below, waking a worker costs more than it brings
    Arena arena;
    scratch_words_ = P::kEncodes ? L * row_words<P>(larger(s_.input, larger(s_.hidden, s_.output))) : 0;
    scratch_ = arena.make<W>(threads * scratch_words_);
    if (!scratch_) return kNoMemory;
    biases(const_cast<T*>(out_.bias));
    gains();
    run_team(threads, [](void* self, int index, Crew&) { static_cast<Pack*>(self)->work(index); }, this);
    return kOk;
  }

 private:
  void work(int index) {
    const Index groups = s_.most_groups(), tasks = kCount * groups * (backward_ ? 2 : 1);
    for (Index task; (task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED)) < tasks;) {
      const int q = int(task % kCount);
      const Index g = task / kCount % groups;
      if (g >= s_.groups_of(q)) continue;
      const T* weight = q == 0 ? raw_.weight_ih : s_.projects(q) ? raw_.weight_hr : raw_.weight_hh;
      W* scratch = scratch_ + index * scratch_words_;
      if (task < kCount * groups)
        pack_forward<C, P>(s_, q, g, weight, static_cast<W*>(const_cast<void*>(out_.panels[q])), scratch);
      else if constexpr (P::kHead == 0)
        pack_transposed<C, P>(s_, q, g, weight, static_cast<W*>(const_cast<void*>(out_.transposed[q])));
    }
  }

  // b_ih lands on the input columns, b_hh on the recurrent ones, summed where they overlap.
  void biases(T* bias) {
    for (Index i = 0; i < C::kColumns * s_.padded; ++i) bias[i] = 0;
    for (int q = 0; q < kProductCount<C>; ++q) {
      const T* from = q == 0 ? raw_.bias_ih : raw_.bias_hh;
      if (!from) continue;
      const Columns columns = product_columns<C>(q);
      for (Index g = 0; g < s_.groups; ++g)
        for_vectors<C, P>(s_, q, g, [&](Index position, Index row, int lanes) {
          const Index in_group = position - s_.offset(g, columns.count());
          T* to = bias + s_.offset(g, C::kColumns) + columns.begin * s_.units(g) * L + in_group;
          for (int lane = 0; lane < lanes; ++lane) to[lane] += from[row + lane];
        });
    }
    T* params = bias + C::kColumns * s_.padded;
    for (int p = 0; p < C::kParams; ++p)
      for (Index u = 0; u < s_.padded; ++u)
        params[p * s_.padded + u] = u < s_.hidden && raw_.units[kGains<C> + p] ? raw_.units[kGains<C> + p][u] : T(0);
  }

  // Columns that no operation takes have no gain.
  void gains() {
    for (int q = 0; q < kProductCount<C>; ++q)
      for (Index g = 0; g < s_.groups && is_normed<C>(q); ++g)
        for_gains(s_, q, g, [&](Index position, int row, Index unit, int lanes) {
          T* to = const_cast<T*>(out_.gains[q]) + position;
          for (int lane = 0; lane < L; ++lane) to[lane] = lane < lanes && row >= 0 ? raw_.units[row][unit + lane] : T(0);
        });
  }

  const RawWeights<T>& raw_;
  Layout<C, P> s_;
  bool backward_;
  PackedWeights<T>& out_;
  W* scratch_ = nullptr;
  Index scratch_words_ = 0, next_ = 0;
};

}  // namespace ost::OST_SET
