// Runs one case so many times on one thread: the program whose instructions tools/instructions counts.
//     count CELL infer|train exact|bfloat16|int8 B H T TIMES
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../../csrc/cpu/pool.h"
#include "../../csrc/dispatch.h"
#include "../../csrc/stack.h"

using namespace ost;

int main(int argc, char** argv) {
  if (argc != 8) return std::fputs("count CELL infer|train exact|bfloat16|int8 B H T TIMES\n", stderr), 2;
  set_thread_count(1);
  choose_kernels("avx2");
  int cell = 0, precision = 0;
  while (cell < kCellCount && std::strcmp(kernels()->traits[cell].name, argv[1]) != 0) ++cell;
  for (const char* name : {"exact", "bfloat16", "int8"}) {
    if (std::strcmp(name, argv[3]) == 0) break;
    ++precision;
  }
  if (cell == kCellCount || precision == kPrecisionCount || kernels()->traits[cell].projected || kernels()->traits[cell].unit_weights)
    return 2;
  const bool train = std::strcmp(argv[2], "train") == 0;
  const Index B = std::atoi(argv[4]), H = std::atoi(argv[5]), T = std::atoi(argv[6]), rows = kernels()->traits[cell].gates * H;
  const auto filled = [](Index n) {
    std::vector<float> v(std::size_t(n), 0.0f);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = 0.001f * float(i % 97) - 0.05f;
    return v;
  };
  const auto w = filled(rows * H), r = filled(rows * H), b = filled(rows), x = filled(T * B * H);
  std::vector<float> y(x.size()), dx(x.size()), dw(w.size()), dr(r.size()), db(b.size());
  for (int i = 0; i < std::atoi(argv[7]); ++i) {
    const StackShape shape{CellId(cell), H, H, H, 1, 1, false};
    const auto packed = std::make_shared<PackedStack<float>>(
        kernels(), shape, Precision(precision), std::vector<RawWeights<float>>{{w.data(), r.data(), b.data(), b.data(), nullptr, nullptr}},
        train);
    StackCall<float> call;
    call.steps = T, call.batch = B;
    call.x = {x.data(), B * H, H}, call.y = {y.data(), B * H, H};
    Tape<float> tape;
    if (stack_forward(*packed, call, train ? &tape : nullptr) != kOk) return 1;
    if (!train) continue;
    tape.packed = packed, tape.call = call;
    StackGradients<float> g;
    g.dy = {x.data(), B * H, H}, g.dx = {dx.data(), B * H, H};
    g.weights.push_back({dw.data(), dr.data(), db.data(), db.data(), nullptr, nullptr});
    if (stack_backward(tape, g, Poll{}) != kOk) return 1;
  }
  return 0;
}
