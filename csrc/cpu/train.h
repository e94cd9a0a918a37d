// The training step outside the recurrences: softmax cross entropy, embedding, sums of squares, optimisers, dropout, and the vector
// functions by themselves.
#pragma once
#include "../core/philox.h"
#include "../core/update.h"
#include "math.h"
#include "schedule.h"

namespace ost::OST_SET {

template <class T, class F>
OST_HD void map(Index n, const T* x, T* y, F&& f) {
  constexpr int L = Vec<T>::kLanes;
  Index i = 0;
  for (; i + L <= n; i += L) f(Vec<T>::load(x + i)).store(y + i);
  if (i < n) f(Vec<T>::load_part(x + i, int(n - i))).store_part(y + i, int(n - i));
}
template <class T>
void map_tanh(Index n, const T* x, T* y) {
  map(n, x, y, [](Vec<T> v) { return tanh(v); });
}
template <class T>
void map_sigmoid(Index n, const T* x, T* y) {
  map(n, x, y, [](Vec<T> v) { return sigmoid(v); });
}
template <class T>
void map_exp(Index n, const T* x, T* y) {
  map(n, x, y, [](Vec<T> v) { return exp(v); });
}

double log_of(double x);  // libm's, compiled once

// loss_i = (1 - s) (lse - l[target]) + s mean_j (lse - l[j]),  lse = log sum exp l,  with label smoothing s.
// dlogits = weight (softmax - (1 - s) onehot - s / V).
template <class T>
struct SoftmaxJob {
  Index n, classes;
  const T* logits;
  const Index* target;
  double smoothing, weight;
  T* dlogits;
  double* losses;  // a row each, summed in order afterwards

  Share share{};

  static void run(void* self, int, Crew&) {
    auto& j = *static_cast<SoftmaxJob*>(self);
    for (Range rows; j.share.next(j.n, kRows, &rows);)
      for (Index i = rows.begin; i < rows.end; ++i) j.row(i);
  }
  static constexpr Index kRows = 32;
  void row(Index i) const {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const T* l = logits + i * classes;
    T* d = dlogits ? dlogits + i * classes : nullptr;
    losses[i] = 0;
    if (target[i] < 0) {
      if (d) fill_zero(d, classes);
      return;
    }
    T top = l[0];  // of what is not NaN, unless l[0] is: the sum is NaN in any case
    V tops(top);
    Index tail = 0;
    for (; tail + L <= classes; tail += L) {
      const V v = V::load(l + tail);
      tops = select(tops < v, v, tops);
    }
    for (int lane = 0; lane < L; ++lane) top = top < tops.v[lane] ? tops.v[lane] : top;
    for (; tail < classes; ++tail) top = top < l[tail] ? l[tail] : top;
    V sum(T(0));
    double plain = 0;
    for (Index k = 0; k < classes; k += L) {
      const int m = int(smaller<Index>(L, classes - k));
      V e = exp(V::load_part(l + k, m) - V(top));
      if (m < L) {
        T lanes[L];
        e.store(lanes);
        e = V::load_part(lanes, m);
      }
      sum = sum + e;
      if (d) e.store_part(d + k, m);
    }
    const double total = double(sum_lanes(sum)), lse = double(top) + log_of(total);
    if (smoothing != 0)
      for (Index k = 0; k < classes; ++k) plain += double(l[k]);
    losses[i] = (1 - smoothing) * (lse - double(l[target[i]])) + (smoothing != 0 ? smoothing * (lse - plain / double(classes)) : 0);
    if (!d) return;
    const V scale(T(weight / total)), base(T(smoothing * weight / double(classes)));
    for (Index k = 0; k < classes; k += L) {
      const int m = int(smaller<Index>(L, classes - k));
      (V::load_part(d + k, m) * scale - base).store_part(d + k, m);
    }
    d[target[i]] -= T((1 - smoothing) * weight);
  }
};

template <class T>
double softmax_cross_entropy(Index n, Index classes, const T* logits, const Index* target, double smoothing, double weight, T* dlogits,
                             double* losses) {
  SoftmaxJob<T> job{n, classes, logits, target, smoothing, weight, dlogits, losses};
  run_team(n * classes < 16384 ? 1 : thread_count(), SoftmaxJob<T>::run, &job);
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += losses[i];
  return sum;
}

template <class T>
void embedding_gather(Index n, Index width, const Index* ids, const T* table, T* out) {
  for (Index i = 0; i < n; ++i) __builtin_memcpy(out + i * width, table + ids[i] * width, std::size_t(width) * sizeof(T));
}
template <class T>
OST_HD void add_to(Index n, const T* from, T* to) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  Index i = 0;
  for (; i + L <= n; i += L) (V::load(to + i) + V::load(from + i)).store(to + i);
  for (; i < n; ++i) to[i] += from[i];
}
template <class T>
void embedding_scatter(Index n, Index width, const Index* ids, const T* dy, T* dtable) {
  for (Index i = 0; i < n; ++i) add_to(width, dy + i * width, dtable + ids[i] * width);
}

template <class T>
double square_sum(Index n, const T* x) {
  EightDoubles sums;
  for (Vec<double>& v : sums.v) v = Vec<double>(0.0);
  Index i = 0;
  for (; i + 8 <= n; i += 8) {
    const EightDoubles some = EightDoubles::load(x + i);
    for (int k = 0; k < EightDoubles::kVectors; ++k) sums.v[k] = sums.v[k] + some.v[k] * some.v[k];
  }
  double s[8];
  for (int k = 0; k < EightDoubles::kVectors; ++k) sums.v[k].store(s + k * Vec<double>::kLanes);
  for (; i < n; ++i) s[0] += double(x[i]) * double(x[i]);
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

template <class T, class Rule>
struct UpdateJob {
  const Update<T>& u;
  const Rule rule;
  Share share{};

  static constexpr Index kWords = 16384;
  static void run(void* self, int, Crew&) {
    auto& j = *static_cast<UpdateJob*>(self);
    for (Range r; j.share.next(j.u.n, kWords, &r);) j.apply(r);
  }
  void apply(Range r) const {
    if (u.previous || u.factor != T(1))
      move<true>(r);
    else
      move<false>(r);
  }
  // Copies, since what is stored might be the numbers of the update or of the rule for all that the compiler knows.
  template <bool kAlso>
  void move(Range r) const {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const Update<T> own = u;
    const Rule by = rule;
    Index i = r.begin;
    for (; i + L <= r.end; i += L) step<kAlso, V>(own, by, i, [](T* a) { return V::load(a); }, [](V v, T* a) { v.store(a); });
    for (; i < r.end; ++i) step<kAlso, T>(own, by, i, [](T* a) { return *a; }, [](T v, T* a) { *a = v; });
  }
  template <bool kAlso, class V, class Load, class Store>
  OST_HD static void step(const Update<T>& u, const Rule& rule, Index i, Load&& load, Store&& store) {
    V p = load(u.p + i), g = load(u.g + i), buffers[2]{V(T(0)), V(T(0))};
    for (int k = 0; k < Rule::kBuffers; ++k) buffers[k] = load(u.buffers[k] + i);
    if (kAlso && u.previous) store(p, u.previous + i);
    if (kAlso && u.factor != T(1)) g = g * V(u.factor), store(g, u.g + i);
    rule.apply(p, g, buffers[0], buffers[1]);
    for (int k = 0; k < Rule::kBuffers; ++k) store(buffers[k], u.buffers[k] + i);
    store(p, u.p + i);
  }
};

template <class T, class Rule>
void run_update(const Update<T>& update, const Rule& rule) {
  UpdateJob<T, Rule> job{update, rule};
  run_team(update.n < 65536 ? 1 : thread_count(), UpdateJob<T, Rule>::run, &job);
}
template <class T>
void adam(const Update<T>& update, const AdamStep& step) {
  run_update(update, AdamRule<T>(step));
}
template <class T>
void sgd(const Update<T>& update, const SgdStep& step) {
  if (step.momentum != 0)
    run_update(update, MomentumRule<T>(step));
  else
    run_update(update, SgdRule<T>(step));
}
template <class T>
void rmsprop(const Update<T>& update, const RmspropStep& step) {
  run_update(update, RmspropRule<T>(step));
}

// A counter a lane, so that Philox makes four times as many words as a vector has lanes.
struct WordLanes {
  Words v;
  friend OST_HD WordLanes operator^(WordLanes a, WordLanes b) { return {a.v ^ b.v}; }
  friend OST_HD WordLanes operator^(WordLanes a, std::uint32_t b) { return {a.v ^ b}; }
  friend OST_HD void multiply_words(WordLanes a, std::uint32_t b, WordLanes* high, WordLanes* low) {
    const Words factor = Words{} + b;
    const LongWords even = multiply_even(a.v, factor), odd = multiply_even((Words)((LongWords)a.v >> 32), factor);
    high->v = (Words)(even >> 32 | (odd & 0xffffffff00000000u));
    low->v = (Words)((even & 0xffffffffu) | odd << 32);
  }
};

// What is dropped is a matter of chance, so a branch on it is foretold wrongly as often as not: bits are masked instead.
template <class T>
void dropout(Index n, const T* x, T* y, double rate, const RandomRow& random) {
  using V = Vec<T>;
  constexpr int kQuads = kVectorBytes / 4, kBlock = 4 * kQuads;
  const std::uint32_t limit = dropout_limit(rate);
  const V scale(T(1 / (1 - rate)));
  // Quads in such an order that those of one vector follow one another once the words are transposed.
  WordLanes quad;
  for (int i = 0; i < kQuads; ++i) quad.v[i] = std::uint32_t(i % 4 * (kQuads / 4) + i / 4);
  const WordLanes second{Words{} + random.second}, third{Words{} + random.third}, fourth{Words{} + random.fourth};
  for (Index first = 0; first < n; first += kBlock) {
    const auto drawn = philox<WordLanes>(random.key, {{{quad.v + std::uint32_t(first / 4)}, second, third, fourth}});
    Words words[4];
    for (int k = 0; k < 4; ++k) words[k] = drawn.w[k].v;
    transpose_fours(words);
    std::int32_t kept[kBlock];  // all ones or zeros
    for (int k = 0; k < 4; ++k) {
      const Ints keeps = (Ints)dropout_keeps(words[k], limit);
      __builtin_memcpy(kept + k * kQuads, &keeps, sizeof keeps);
    }
    for (int i = 0; i < kBlock && first + i < n; i += V::kLanes) {
      const int left = int(smaller<Index>(V::kLanes, n - first - i));
      const V given = left < V::kLanes ? V::load_part(x + first + i, left) : V::load(x + first + i);
      typename V::Mask mask;
      load_mask(kept + i, &mask);
      const V out = select(mask, given * scale, V(T(0)));
      left < V::kLanes ? out.store_part(y + first + i, left) : out.store(y + first + i);
    }
  }
}

double now_seconds();  // steady clock, compiled once

// One thread's peak on independent chains of fma: what the benchmarks divide by.
template <class T>
double fma_peak(double seconds) {
  using V = Vec<T>;
  constexpr int kChains = kRegisters == 32 ? 20 : 12;
  V acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = V(T(i));
  V a(T(0.999)), b(T(0.001));
  double flops = 0;
  const double start = now_seconds();
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int k = 0; k < 20000; ++k) {
#pragma GCC unroll 20
      for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
    }
    flops += 2.0 * 20000 * kChains * V::kLanes;
    elapsed = now_seconds() - start;
  }
  V sum(T(0));
  for (int i = 0; i < kChains; ++i) sum = sum + acc[i];
  volatile T sink = sum_lanes(sum);
  (void)sink;
  return flops / elapsed * 1e-9;
}

// What one thread reads a second from a block of so many bytes, again and again: from L1, L2, ... as the block fits.
template <class T>
double read_bandwidth(Index bytes, double seconds) {
  using V = Vec<T>;
  constexpr int kChains = 8, kStep = kChains * V::kLanes;
  Arena arena;
  const Index n = larger<Index>(1, bytes / Index(sizeof(T)) / kStep) * kStep;
  T* block = arena.make<T>(n);
  if (!block) return 0;
  for (Index i = 0; i < n; ++i) block[i] = T(i % 7);
  V acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = V(T(0));
  double read = 0, elapsed = 0;
  const double start = now_seconds();
  while (elapsed < seconds) {
    for (int k = 0; k < 4; ++k) {
      for (Index i = 0; i < n; i += kStep) {
#pragma GCC unroll 8
        for (int j = 0; j < kChains; ++j) acc[j] = acc[j] + V::load(block + i + j * V::kLanes);
      }
    }
    read += 4.0 * double(n) * sizeof(T);
    elapsed = now_seconds() - start;
  }
  for (int i = 1; i < kChains; ++i) acc[0] = acc[0] + acc[i];
  volatile T sink = sum_lanes(acc[0]);
  (void)sink;
  return read / elapsed * 1e-9;
}

}  // namespace ost::OST_SET
