// y = x W^T + b over n rows, and its gradients, on the products of the recurrences. Rows are spread over threads; dW is
// summed over fixed blocks of at most 256 rows, so its bits do not depend on the threads either.
#pragma once
#include "backward.h"

namespace ost::OST_SET {

template <class T>
class Linear {
  static constexpr int L = Vec<T>::kLanes;

 public:
  Linear(Index input, Index output) : input_(input), output_(output), in_vectors_(ceil_div(input, L)), out_vectors_(ceil_div(output, L)) {}

  // Panels of W (depth I), bias, and for the backward pass panels of W^T (depth O).
  Index packed_size(bool backward) const { return (input_ + 1) * out_vectors_ * L + (backward ? output_ * in_vectors_ * L : 0); }

  void pack(const T* weight, const T* bias, bool backward, T* memory) const {
    pack_panels(memory, input_, out_vectors_, [&](Index k, Index o) { return o < output_ ? weight[o * input_ + k] : T(0); });
    T* b = memory + input_ * out_vectors_ * L;
    for (Index o = 0; o < out_vectors_ * L; ++o) b[o] = bias && o < output_ ? bias[o] : T(0);
    if (backward)
      pack_panels(b + out_vectors_ * L, output_, in_vectors_, [&](Index k, Index i) { return i < input_ ? weight[k * input_ + i] : T(0); });
  }

  int forward(const T* memory, Index n, const T* x, Index x_stride, T* y) {
    memory_ = memory, n_ = n, x_ = x, x_stride_ = x_stride, y_ = y;
    run([](void* self, int, Crew&) { static_cast<Linear*>(self)->forward_work(); });
    return kOk;
  }

  int backward(const T* memory, Index n, const T* x, Index x_stride, const T* dy, T* dx, T* dweight, T* dbias) {
    memory_ = memory, n_ = n, x_ = x, x_stride_ = x_stride, dy_ = dy, dx_ = dx, dweight_ = dweight, dbias_ = dbias;
    layout_backward();
    if (!arena_.allocate()) return kNoMemory;
    layout_backward();
    fill_zero(zeros_, in_vectors_ * L);
    if (n == 0) fill_zero(sums_, input_ * out_vectors_ * L);  // else the first chunk is stored
    fill_zero(bias_sums_, out_vectors_ * L);
    run([](void* self, int, Crew&) { static_cast<Linear*>(self)->input_gradient(); });
    if (dweight_ || dbias_) run([](void* self, int, Crew&) { static_cast<Linear*>(self)->weight_gradient(); });
    return kOk;
  }

 private:
  template <class F>
  static void pack_panels(T* to, Index depth, Index vectors, F&& element) {
    for (Index g = 0; g < plain_groups(vectors); ++g) {
      const Index width = plain_vectors(vectors, g) * L, first = g * kMaxVectors * L;
      for (Index k = 0; k < depth; ++k)
        for (Index i = 0; i < width; ++i) to[depth * first + k * width + i] = element(k, first + i);
    }
  }

  void layout_backward() {
    zeros_ = arena_.take<T>(in_vectors_ * L);
    padded_dy_ = arena_.take<T>(n_ * stride());
    sums_ = arena_.take<T>(input_ * out_vectors_ * L);
    bias_sums_ = arena_.take<T>(out_vectors_ * L);
    x_rows_ = arena_.take<const T*>(n_);
    dy_rows_ = arena_.take<const T*>(n_);
  }
  void run(void (*job)(void*, int, Crew&)) {
    share_ = {};
    // Below about 2 MFLOP waking a worker costs more than it brings.
    run_team(double(n_) * double(input_) * double(output_) < 1e6 ? 1 : thread_count(), job, this);
  }
  Index stride() const { return (out_vectors_ + 1) * L; }

  static constexpr Index kRows = 64;  // rows that a thread takes at once
  void forward_work() {
    for (Range rows; share_.next(n_, kRows, &rows);) {
      const T* in[kRows];
      T* out[kRows];
      const Index n = rows.end - rows.begin;
      for (Index i = 0; i < n; ++i) in[i] = x_ + (rows.begin + i) * x_stride_, out[i] = y_ + (rows.begin + i) * output_;
      rows_product_exact<Exact<T>>(Multiplier::kVectors, n, input_, in, memory_, output_, memory_ + input_ * out_vectors_ * L, out, false);
    }
  }

  void input_gradient() {  // and what the gradient of the weights is taken from
    for (Range rows; share_.next(n_, kRows, &rows);) {
      const T* in[kRows];
      T* out[kRows];
      const Index n = rows.end - rows.begin;
      for (Index i = 0; i < n; ++i) {
        const Index row = rows.begin + i;
        T* padded = padded_dy_ + row * stride();
        __builtin_memcpy(padded, dy_ + row * output_, std::size_t(output_) * sizeof(T));
        fill_zero(padded + output_, out_vectors_ * L - output_);
        x_rows_[row] = x_ + row * x_stride_;
        dy_rows_[row] = in[i] = padded;
        if (dx_) out[i] = dx_ + row * input_;
      }
      if (dx_)
        rows_product_exact<Exact<T>>(Multiplier::kVectors, n, output_, in, memory_ + (input_ + 1) * out_vectors_ * L, input_, zeros_, out,
                                     false);
    }
  }
  // A task is a group of vectors of outputs and a quarter of the inputs: a layer of few outputs has work for all threads.
  void weight_gradient() {
    constexpr Index kOutCuts = 4;
    for (Range task; share_.next(kOutCuts * plain_groups(out_vectors_), 1, &task);) {
      const Index g = task.begin / kOutCuts, v = g * kMaxVectors;
      const Range inputs = part_of(input_, task.begin % kOutCuts, kOutCuts);
      const int vectors = plain_vectors(out_vectors_, g);
      const bool bias = dbias_ && task.begin % kOutCuts == 0;
      for (Index r = 0; r < n_; r += kWeightRows) {
        const Index n = smaller(kWeightRows, n_ - r);
        if (dweight_)
          outer_product<Exact<T>>(Multiplier::kVectors, n, x_rows_ + r, inputs, dy_rows_ + r, v * L, vectors, sums_ + v * L,
                                  out_vectors_ * L, r == 0);
        for (int j = 0; j < vectors && bias; ++j) {
          Vec<T> sum(T(0));
          for (Index k = 0; k < n; ++k) sum = sum + Vec<T>::load(dy_rows_[r + k] + (v + j) * L);
          T* to = bias_sums_ + (v + j) * L;
          (Vec<T>::load(to) + sum).store(to);
        }
      }
      for (Index o = v * L; o < smaller(output_, (v + vectors) * L); o += L) {
        const int lanes = int(smaller<Index>(L, output_ - o));
        if (dweight_) add_transposed(sums_ + o, out_vectors_ * L, {1, 0}, inputs, dweight_ + o * input_, input_, lanes);
        for (int lane = 0; lane < lanes && bias; ++lane) dbias_[o + lane] += bias_sums_[o + lane];
      }
    }
  }

  Index input_, output_, in_vectors_, out_vectors_;
  const T* memory_ = nullptr;
  Index n_ = 0, x_stride_ = 0;
  const T *x_ = nullptr, *dy_ = nullptr;
  T *y_ = nullptr, *dx_ = nullptr, *dweight_ = nullptr, *dbias_ = nullptr;
  T *zeros_ = nullptr, *padded_dy_ = nullptr, *sums_ = nullptr, *bias_sums_ = nullptr;
  const T **x_rows_ = nullptr, **dy_rows_ = nullptr;
  Arena arena_;
  Share share_;
};

}  // namespace ost::OST_SET
