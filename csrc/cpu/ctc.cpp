// The kernels of the CTC loss: a file of its own, compiled once per instruction set as kernels.cpp is, with OST_SET.
#include "ctc.h"

namespace ost::OST_SET {

// Declared by dispatch.cpp for every set.
void fill_ctc(KernelTable& table) {
  table.f32.ctc = ctc<float>;
  table.f64.ctc = ctc<double>;
}

}  // namespace ost::OST_SET
