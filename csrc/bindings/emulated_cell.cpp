// The emulated kernels of one cell, number OST_CELL.
#include "../cuda/emulate.h"

namespace ost::OST_SET {

OST_EMULATED(, OST_CELL);

}  // namespace ost::OST_SET
