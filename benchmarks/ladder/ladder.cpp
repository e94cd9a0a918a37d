// From the plainest LSTM to the library's own, step by step: each is compared with the first in float64, then timed in turns next to
// the FMA peak. Built and run by run.py.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cells/list.h"
#include "../../csrc/cpu/forward.h"
#include "../../csrc/cpu/train.h"

namespace ost::OST_SET {
double log_of(double x) { return std::log(x); }
double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace ost::OST_SET

using namespace ost;
using namespace ost::OST_SET;
using V = Vec<float>;
constexpr int L = V::kLanes;

namespace {

struct Problem {
  Index T, B, H;  // I = H, a multiple of the lanes; gates i f g o
  std::vector<float> x, w, r, bias, y;
  Problem(Index T, Index B, Index H) : T(T), B(B), H(H), x(T * B * H), w(4 * H * H), r(4 * H * H), bias(4 * H), y(T * B * H) {
    unsigned state = 1;
    const auto draw = [&](float scale) { return scale * (float((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f); };
    for (float& v : x) v = draw(1);
    for (auto* m : {&w, &r, &bias})
      for (float& v : *m) v = draw(1 / std::sqrt(float(H)));
  }
};

// 1. As written in the books, in any precision: the oracle in double, the first step of the ladder in float.
template <class R>
void naive(Problem& p, R* y) {
  const Index H = p.H;
  std::vector<R> h(p.B * H), c(p.B * H), a(4 * H);
  for (Index t = 0; t < p.T; ++t)
    for (Index b = 0; b < p.B; ++b) {
      for (Index j = 0; j < 4 * H; ++j) {
        R s = R(p.bias[j]);
        for (Index k = 0; k < H; ++k) s += R(p.w[j * H + k]) * R(p.x[(t * p.B + b) * H + k]);
        for (Index k = 0; k < H; ++k) s += R(p.r[j * H + k]) * h[b * H + k];
        a[j] = s;
      }
      for (Index u = 0; u < H; ++u) {
        const auto sigmoid = [](R v) { return 1 / (1 + std::exp(-v)); };
        R& cell = c[b * H + u];
        cell = sigmoid(a[H + u]) * cell + sigmoid(a[u]) * std::tanh(a[2 * H + u]);
        y[(t * p.B + b) * H + u] = sigmoid(a[3 * H + u]) * std::tanh(cell);
      }
      for (Index u = 0; u < H; ++u) h[b * H + u] = y[(t * p.B + b) * H + u];
    }
}

// The cell on vectors, from four pre-activations.
OST_HD void cell(V ai, V af, V ag, V ao, float* c, float* h) {
  const V c1 = fma(sigmoid(af), V::load(c), sigmoid(ai) * tanh(ag));
  c1.store(c);
  (sigmoid(ao) * tanh(c1)).store(h);
}

std::vector<float> transposed(const std::vector<float>& m, Index rows, Index columns) {
  std::vector<float> t(m.size());
  for (Index i = 0; i < rows; ++i)
    for (Index k = 0; k < columns; ++k) t[k * rows + i] = m[i * columns + k];
  return t;
}

// 2. Weights transposed once, so that the inner loop runs along the outputs and the compiler vectorises it.
void vectorised(Problem& p, float* y) {
  const Index H = p.H, N = 4 * H;
  static std::vector<float> w, r;
  if (w.size() != p.w.size()) w = transposed(p.w, N, H), r = transposed(p.r, N, H);
  std::vector<float> c(p.B * H), a(N), zero(H);
  for (Index t = 0; t < p.T; ++t)
    for (Index b = 0; b < p.B; ++b) {
      const float *x = &p.x[(t * p.B + b) * H], *h = t ? y + ((t - 1) * p.B + b) * H : zero.data();
      for (Index j = 0; j < N; ++j) a[j] = p.bias[j];
      for (Index k = 0; k < H; ++k)
        for (Index j = 0; j < N; ++j) a[j] += w[k * N + j] * x[k];
      for (Index k = 0; k < H; ++k)
        for (Index j = 0; j < N; ++j) a[j] += r[k * N + j] * h[k];
      for (Index u = 0; u < H; u += L)
        cell(V::load(&a[u]), V::load(&a[H + u]), V::load(&a[2 * H + u]), V::load(&a[3 * H + u]), &c[b * H + u], y + (t * p.B + b) * H + u);
    }
}

// A tile of MR rows x the four gates of one vector of units, from memory that is `step` apart for consecutive k and `gate` for gates.
template <int MR>
OST_HD void accumulate(V (&acc)[MR][4], Index depth, const float* const* in, const float* m, Index step, Index gate) {
  for (Index k = 0; k < depth; ++k, m += step) {
    V v[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) v[g] = V::load(m + g * gate);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const V s(in[i][k]);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) acc[i][g] = fma(s, v[g], acc[i][g]);
    }
  }
}

// One step of MR rows for all units, the cell on the registers. Packed: [vector of units][k][gate][lane].
template <int MR>
__attribute__((noinline)) void registers(const Problem& p, const float* w, const float* r, bool packed, const float* const* x,
                                         const float* const* h, float* const* c, float* const* y) {
  const Index H = p.H;
  for (Index u = 0; u < H; u += L) {
    V acc[MR][4];
    for (int i = 0; i < MR; ++i)
      for (int g = 0; g < 4; ++g) acc[i][g] = V::load(&p.bias[g * H + u]);
    accumulate<MR>(acc, H, x, packed ? w + u * 4 * H : w + u, packed ? 4 * L : 4 * H, packed ? L : H);
    accumulate<MR>(acc, H, h, packed ? r + u * 4 * H : r + u, packed ? 4 * L : 4 * H, packed ? L : H);
    for (int i = 0; i < MR; ++i) cell(acc[i][0], acc[i][1], acc[i][2], acc[i][3], c[i] + u, y[i] + u);
  }
}

void tiles(Problem& p, float* y, const float* w, const float* r, bool packed) {
  constexpr int MR = 4;
  const Index H = p.H;
  std::vector<float> c(p.B * H), zero(H);
  for (Index t = 0; t < p.T; ++t)
    for (Index b = 0; b < p.B; b += MR) {
      const float *x[MR], *h[MR];
      float *cs[MR], *ys[MR];
      for (int i = 0; i < MR; ++i) {
        x[i] = &p.x[(t * p.B + b + i) * H], h[i] = t ? y + ((t - 1) * p.B + b + i) * H : zero.data();
        cs[i] = &c[(b + i) * H], ys[i] = y + (t * p.B + b + i) * H;
      }
      registers<MR>(p, w, r, packed, x, h, cs, ys);
    }
}

// 3. Blocked: 4 rows x 4 vectors stay in registers; the weights are laid out as in step 2, so every k is 16 KB further at H = 1024.
void blocked(Problem& p, float* y) {
  static std::vector<float> w, r;
  if (w.size() != p.w.size()) w = transposed(p.w, 4 * p.H, p.H), r = transposed(p.r, 4 * p.H, p.H);
  tiles(p, y, w.data(), r.data(), false);
}

// 4. Packed: what a tile reads is one run of memory. The cell is computed on the registers.
void packed(Problem& p, float* y) {
  static std::vector<float> w, r;
  const auto pack = [&](const std::vector<float>& m) {
    std::vector<float> out;
    for (Index u = 0; u < p.H; u += L)
      for (Index k = 0; k < p.H; ++k)
        for (int g = 0; g < 4; ++g)
          for (int lane = 0; lane < L; ++lane) out.push_back(m[(g * p.H + u + lane) * p.H + k]);
    return out;
  };
  if (w.size() != p.w.size()) w = pack(p.w), r = pack(p.r);
  tiles(p, y, w.data(), r.data(), true);
}

// 5. The library on one thread: one product for every cell, written to a tile in L1 that the cell reads; the input product by blocks
// of steps. 6. The same on all threads.
void library(Problem& p, float* y, int threads) {
  static std::vector<float> memory;
  static PackedWeights<float> weights;
  using P = Exact<float>;
  if (memory.empty()) {
    memory.resize(Layout<Lstm, P>(p.H, {p.H, p.H}).packed_size(false) + 64);
    const RawWeights<float> raw{p.w.data(), p.r.data(), p.bias.data(), nullptr, nullptr, nullptr};
    Pack<Lstm, P>(raw, p.H, {p.H, p.H}, false, memory.data(), &weights).run();
  }
  set_thread_count(threads);
  ForwardCall<float> call{};
  call.weights = &weights, call.steps = p.T, call.batch = p.B;
  call.x = {p.x.data(), p.B * p.H, p.H}, call.y = {y, p.B * p.H, p.H};
  if (Team<Forward<Lstm, P>>(&call, 1, false).run() != kOk) std::abort();
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const Index B = argc > 1 ? std::atoi(argv[1]) : 16, H = argc > 2 ? std::atoi(argv[2]) : 256, T = argc > 3 ? std::atoi(argv[3]) : 50;
  const int threads = thread_count();
  if (B % 4 || H % L) return std::puts("expected B a multiple of 4 and H of the lanes"), 2;
  Problem p(T, B, H);
  std::vector<double> oracle(p.y.size());
  naive(p, oracle.data());
  struct LadderStep {
    const char* name;
    void (*run)(Problem&, float*);
    std::vector<double> seconds, peaks;
  };
  static int all = threads;
  std::vector<LadderStep> ladder{
      {"1 naive", [](Problem& q, float* y) { naive(q, y); }, {}, {}},
      {"2 vectorised", vectorised, {}, {}},
      {"3 blocked", blocked, {}, {}},
      {"4 packed, cell on registers", packed, {}, {}},
      {"5 library: cell on a tile in L1", [](Problem& q, float* y) { library(q, y, 1); }, {}, {}},
      {"6 library, all threads", [](Problem& q, float* y) { library(q, y, all); }, {}, {}},
  };
  for (LadderStep& step : ladder) {
    step.run(p, p.y.data());
    double worst = 0;
    for (std::size_t i = 0; i < oracle.size(); ++i) worst = std::max(worst, std::abs(oracle[i] - double(p.y[i])));
    if (!(worst < 1e-5)) return std::printf("%s: error %.2g\n", step.name, worst), 1;
  }
  for (int round = 0; round < 7; ++round)
    for (LadderStep& step : ladder) {
      step.peaks.push_back(fma_peak<float>(0.02));
      const double start = now_seconds();
      int runs = 0;
      do step.run(p, p.y.data()), ++runs;
      while (now_seconds() - start < 0.1);
      step.seconds.push_back((now_seconds() - start) / runs);
    }
  const double flops = 2.0 * 4 * double(H) * 2 * double(H) * double(T) * double(B), first = median(ladder[0].seconds);
  std::printf("LSTM inference, T=%ld B=%ld I=H=%ld, %d threads\n", long(T), long(B), long(H), threads);
  for (const LadderStep& r : ladder) {
    const double s = median(r.seconds);
    std::printf("%-34s %7.1fx the first  %5.1f%% of one thread's peak\n", r.name, first / s, 100 * flops / s * 1e-9 / median(r.peaks));
  }
}
