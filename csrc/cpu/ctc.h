// Connectionist temporal classification (Graves et al. 2006): the negative log-likelihood of labels that stand in order, with blanks
// between them, in a longer sequence of logits, and its gradient with the softmax fused in.
//
// With labels l_0..l_{L-1} there are L + 1 states for blanks and L for labels, and a(t, s) is the probability of all paths to state s:
//   blank_i(t) = (blank_i + label_{i-1})(t-1) p_t(blank)
//   label_i(t) = (label_i + blank_i + [l_i != l_{i-1}] label_{i-1})(t-1) p_t(l_i)
// The backward recursion gives the probability b(t, s) of all paths from s after t, Z = sum_s a(t, s) b(t, s) that of the labels, and
//   d(-log Z)/dx_t(k) = softmax(x_t)(k) - sum over the states s of k of a(t, s) b(t, s) / Z.
//
// Probabilities are pairs of a mantissa in double and a whole exponent in double of its own, so nothing underflows, as in log space.
// A sum in log space takes three exps and a log for each state, and rounds log a, which grows with t; here a state takes shifts of
// exponents, and the rounding is that of the mantissas.
#pragma once
#include "math.h"
#include "schedule.h"

namespace ost::OST_SET {

double log_of(double x);  // libm's, compiled once

// m 2^e in every lane: m in [1, 2) and e whole, or m = 0 and e = kNone.
struct Scaled {
  using V = Vec<double>;
  V m, e;
  static constexpr double kNone = -1e300;  // below any exponent that a number has
};

struct ScaledRow {
  double *m, *e;
  OST_HD Scaled load(Index i) const { return {Vec<double>::load(m + i), Vec<double>::load(e + i)}; }
  OST_HD void store(Index i, Scaled x) const { x.m.store(m + i), x.e.store(e + i); }
  OST_HD void set(Index i, double mantissa, double exponent) const { m[i] = mantissa, e[i] = exponent; }
};

OST_HD Vec<double> greater(Vec<double> a, Vec<double> b) { return select(a < b, b, a); }

// 2^d of whole numbers d, of which those below -1000 count as -1000: beside 1 such a number is nothing.
OST_HD Vec<double> power_of_2(Vec<double> d) {
  using V = Vec<double>;
  d = select(d < V(-1000.0), V(-1000.0), d);
  const V shifted = d + V(RoundMagic<double>::value);
  V::Mask bits;
  __builtin_memcpy(&bits, &shifted.v, sizeof bits);
  bits = (bits + 1023) << 52;
  V scale;
  __builtin_memcpy(&scale.v, &bits, sizeof bits);
  return scale;
}

// v 2^e with the mantissa in its range; v is 0 or a normal number above 0.
OST_HD Scaled normalized(Vec<double> v, Vec<double> e) {
  using V = Vec<double>;
  typedef std::uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  Bits bits;
  __builtin_memcpy(&bits, &v.v, sizeof bits);
  // A whole number below 2^52 in the low bits of 2^52 is that number added.
  const Bits exponent = (bits >> 52) | 0x4330000000000000ull, mantissa = (bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
  V n, m;
  __builtin_memcpy(&n.v, &exponent, sizeof exponent);
  __builtin_memcpy(&m.v, &mantissa, sizeof mantissa);
  const V::Mask some = V(0.0) < v;
  return {select(some, m, V(0.0)), select(some, e + (n - V(4503599627370496.0 + 1023.0)), V(Scaled::kNone))};
}

OST_HD Scaled where(Vec<double>::Mask test, Scaled x) {
  return {select(test, x.m, Vec<double>(0.0)), select(test, x.e, Vec<double>(x.kNone))};
}

// Sums whose mantissas are below 8 and not brought to [1, 2): `product` does that.
OST_HD Scaled sum(Scaled a, Scaled b) {
  const Vec<double> e = greater(a.e, b.e);
  return {a.m * power_of_2(a.e - e) + b.m * power_of_2(b.e - e), e};
}
OST_HD Scaled sum(Scaled a, Scaled b, Scaled c) {
  const Vec<double> e = greater(greater(a.e, b.e), c.e);
  return {a.m * power_of_2(a.e - e) + b.m * power_of_2(b.e - e) + c.m * power_of_2(c.e - e), e};
}
OST_HD Scaled product(Scaled a, Scaled b) { return normalized(a.m * b.m, a.e + b.e); }

template <class T>
struct CtcJob {
  const CtcCall<T>* call;
  Index most_bytes = 0;
  int status = kOk;
  Share share{};

  static void run(void* self, int, Crew&);
};

// One sequence after the other, in memory that fits the largest.
template <class T>
class Ctc {
 public:
  using D = Vec<double>;
  static constexpr Index kLanes = D::kLanes;

  Ctc(const CtcCall<T>& call, Arena& arena, Index b) : c_(call), b_(b) {
    rows_ = call.rows + call.row_offsets[b];
    steps_ = call.row_offsets[b + 1] - call.row_offsets[b];
    labels_ = call.labels + call.label_offsets[b];
    count_ = call.label_offsets[b + 1] - call.label_offsets[b];
    width_ = ceil_div(count_ + 1, kLanes) * kLanes;
    // The forward pass alone needs two steps, by turns.
    kept_ = call.dlogits ? steps_ + 1 : 2;
    const Index padded = width_ + 2 * kLanes;  // a vector of zeros before and behind the states
    states_ = arena.take<double>(kept_ * padded * 4);
    chances_ = arena.take<double>((call.dlogits ? steps_ : 1) * width_ * 2);
    blanks_ = arena.take<double>(2 * steps_);
    totals_ = arena.take<double>(steps_);
    may_skip_ = arena.take<double>(padded);
    later_ = arena.take<double>(padded * 4);
    parts_ = arena.take<double>(width_);
    taken_ = arena.take<T>(call.classes);
    exps_ = arena.take<T>(call.classes);
  }

  void run() {
    prepare();
    bool finite = true;
    for (Index t = 0; t < steps_ && finite; ++t) {
      finite = read(t);
      if (finite) forward(t);
    }
    if (!finite) return give_up(__builtin_nan(""));
    const ScaledRow blanks = blank(steps_ % kept_), labels = label(steps_ % kept_);
    const Scaled ends = sum(one_of(blanks, count_), one_of(labels, count_ - 1));  // without labels the latter is 0
    const double mantissa = ends.m.v[0], exponent = ends.e.v[0];
    if (!(mantissa > 0)) return give_up(__builtin_inf());
    c_.losses[b_] = -(log_of(mantissa) + exponent * 0.69314718055994530942);
    if (c_.dlogits) backward(mantissa, exponent);
  }

 private:
  // Rows of states; element 0 is the first state.
  ScaledRow row(double* base, Index k) const {
    const Index padded = width_ + 2 * kLanes;
    return {base + k * 2 * padded + kLanes, base + (k * 2 + 1) * padded + kLanes};
  }
  ScaledRow blank(Index k) const { return row(states_, 2 * k); }
  ScaledRow label(Index k) const { return row(states_, 2 * k + 1); }
  ScaledRow chance(Index t) const {
    double* base = chances_ + (c_.dlogits ? t : 0) * 2 * width_;
    return {base, base + width_};
  }
  static Scaled one_of(ScaledRow r, Index i) { return {D(r.m[i]), D(r.e[i])}; }
  Scaled blank_chance(Index t) const { return {D(blanks_[2 * t]), D(blanks_[2 * t + 1])}; }

  void clear(ScaledRow r) const {
    for (Index i = -kLanes; i < width_ + kLanes; ++i) r.set(i, 0, Scaled::kNone);
  }

  void prepare() {
    for (Index i = -kLanes; i < width_ + kLanes; ++i) may_skip_[kLanes + i] = i > 0 && i < count_ && labels_[i] != labels_[i - 1];
    for (Index k = 0; k < kept_; ++k) clear_ends(blank(k)), clear_ends(label(k));  // they are read, too
    clear(blank(0)), clear(label(0));
    blank(0).set(0, 1, 0);  // before the first step the path stands at the first blank
  }
  void clear_ends(ScaledRow r) const {
    for (Index i = 1; i <= kLanes; ++i) r.set(-i, 0, Scaled::kNone), r.set(width_ + i - 1, 0, Scaled::kNone);
  }

  // Sums of exps of a step's logits, and the probabilities of its labels; false where a logit is NaN or infinite, or all are -infinite.
  bool read(Index t) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const T* x = c_.logits + rows_[t] * c_.classes;
    T* e = c_.dlogits ? c_.dlogits + rows_[t] * c_.classes : exps_;
    const Index n = c_.classes;
    V tops(x[0]);
    for (Index k = 0; k < n; k += L) {
      const int m = int(smaller<Index>(L, n - k));
      V v = m == L ? V::load(x + k) : V(x[0]);
      for (int i = 0; m < L && i < m; ++i) v.v[i] = x[k + i];
      tops = select(v < tops, tops, v);  // a NaN in v is kept by this comparison, and by `sum` in any case
    }
    T top = tops.v[0];
    for (int i = 1; i < L; ++i) top = tops.v[i] > top ? tops.v[i] : top;
    V sum(T(0));
    for (Index k = 0; k < n; k += L) {
      const int m = int(smaller<Index>(L, n - k));
      V v = exp(V::load_part(x + k, m) - V(top));
      if (m < L) v = keep_lanes(v, m);
      sum = sum + v;
      v.store_part(e + k, m);
    }
    const double total = double(sum_lanes(sum)), level = double(top) + log_of(total);
    if (!(level - level == 0)) return false;
    totals_[t] = total;
    const ScaledRow p = chance(t);
    for (Index i = 0; i < count_; ++i) p.m[i] = double(x[labels_[i]]) - level;
    for (Index i = count_; i < width_; ++i) p.m[i] = -1e300;
    for (Index i = 0; i < width_; i += kLanes) p.store(i, exp_scaled(D::load(p.m + i)));
    const Scaled b = exp_scaled(D(double(x[c_.blank]) - level));
    blanks_[2 * t] = b.m.v[0], blanks_[2 * t + 1] = b.e.v[0];
    return true;
  }

  // e^z for z of any size; below e^-1e15 it is 0.
  static Scaled exp_scaled(D z) {
    using E = ExpTable<double>;
    const D::Mask some = D(-1e15) < z;
    z = select(some, z, D(0.0));
    const D n = fma(z, D(E::kLog2e), D(RoundMagic<double>::value)) - D(RoundMagic<double>::value);
    const D r = fma(n, D(-E::kLn2Low), fma(n, D(-E::kLn2High), z));
    return {select(some, exp(r), D(0.0)), select(some, n, D(0.0))};
  }

  void forward(Index t) {
    const Index before = t % kept_, now = (t + 1) % kept_;
    const ScaledRow from_blank = blank(before), from_label = label(before), to_blank = blank(now), to_label = label(now), p = chance(t);
    const Scaled at_blank = blank_chance(t);
    for (Index i = 0; i < width_; i += kLanes) {
      const Scaled same = from_blank.load(i), left = from_label.load(i - 1);
      to_blank.store(i, product(sum(same, left), at_blank));
      const D::Mask skips = D(0.0) < D::load(may_skip_ + kLanes + i);
      to_label.store(i, product(sum(from_label.load(i), same, where(skips, left)), p.load(i)));
    }
  }

  // The gradient, from the last step to the first; `later` holds b(t, s) p_t(s) of the step behind.
  void backward(double mantissa, double exponent) {
    const ScaledRow later_blank = row(later_, 0), later_label = row(later_, 1);
    clear(later_blank), clear(later_label);
    later_blank.set(count_, 1, 0);
    const D scale(1 / mantissa), shift(exponent);
    for (Index t = steps_ - 1; t >= 0; --t) {
      const ScaledRow a_blank = blank(t + 1), a_label = label(t + 1), p = chance(t);
      const Scaled at_blank = blank_chance(t);
      D of_blank(0.0);
      for (Index i = 0; i < width_; i += kLanes) {
        const Scaled q = later_label.load(i);
        const D::Mask skips = D(0.0) < D::load(may_skip_ + kLanes + i + 1);
        const Scaled b_blank = sum(later_blank.load(i), q);
        const Scaled b_label = sum(q, later_blank.load(i + 1), where(skips, later_label.load(i + 1)));
        of_blank = of_blank + share_of(a_blank.load(i), b_blank, scale, shift);
        share_of(a_label.load(i), b_label, scale, shift).store(parts_ + i);
        later_blank.store(i, product(b_blank, at_blank));
        later_label.store(i, product(b_label, p.load(i)));
      }
      write(t, sum_lanes(of_blank));
    }
  }
  static D share_of(Scaled a, Scaled b, D scale, D shift) {  // a b / Z, at most 1
    const D e = a.e + b.e - shift;
    return a.m * b.m * scale * power_of_2(select(e < D(1.0), e, D(1.0)));
  }

  void write(Index t, double of_blank) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    fill_zero(taken_, c_.classes);
    taken_[c_.blank] = T(of_blank);
    for (Index i = 0; i < count_; ++i) taken_[labels_[i]] += T(parts_[i]);
    T* d = c_.dlogits + rows_[t] * c_.classes;
    const V inverse(T(1 / totals_[t])), scale(T(c_.scales[b_]));
    for (Index k = 0; k < c_.classes; k += L) {
      const int m = int(smaller<Index>(L, c_.classes - k));
      ((V::load_part(d + k, m) * inverse - V::load_part(taken_ + k, m)) * scale).store_part(d + k, m);
    }
  }

  // The loss is not finite: neither is the gradient, but for an infinite loss that is to count as zero.
  void give_up(double loss) {
    c_.losses[b_] = loss;
    if (!c_.dlogits) return;
    const T d = loss == loss && c_.zero_infinite ? T(0) : T(__builtin_nan(""));
    for (Index t = 0; t < steps_; ++t)
      for (Index k = 0; k < c_.classes; ++k) c_.dlogits[rows_[t] * c_.classes + k] = d;
  }

  const CtcCall<T>& c_;
  const Index *rows_, *labels_;
  Index b_, steps_, count_, width_, kept_;
  double *states_, *chances_, *blanks_, *totals_, *may_skip_, *later_, *parts_;
  T *taken_, *exps_;
};

template <class T>
void CtcJob<T>::run(void* self, int, Crew&) {
  auto& j = *static_cast<CtcJob*>(self);
  const CtcCall<T>& call = *j.call;
  void* block = allocate_block(std::size_t(j.most_bytes + 64));
  if (!block) {
    refuse_bytes(j.most_bytes);
    __atomic_store_n(&j.status, int(kNoMemory), __ATOMIC_RELAXED);
    return;
  }
  for (Range r; j.share.next(call.batch, 1, &r);)
    for (Index b = r.begin; b < r.end; ++b) {
      Arena arena(block);
      Ctc<T>(call, arena, b).run();
    }
  free_block(block);
}

// Threads take sequences one at a time, and each sequence is summed in its own order.
template <class T>
int ctc(const CtcCall<T>& call) {
  CtcJob<T> job{&call};
  double work = 0;
  for (Index b = 0; b < call.batch; ++b) {
    Arena measured;
    Ctc<T>(call, measured, b);
    job.most_bytes = larger(job.most_bytes, measured.used());
    work += double(call.row_offsets[b + 1] - call.row_offsets[b]) *
            double(call.classes + 4 * (call.label_offsets[b + 1] - call.label_offsets[b]));
  }
  run_team(work < 16384 ? 1 : thread_count(), CtcJob<T>::run, &job);
  if (job.status == kNoMemory) refuse_bytes(job.most_bytes);  // the error is told by this thread
  return job.status;
}

}  // namespace ost::OST_SET
