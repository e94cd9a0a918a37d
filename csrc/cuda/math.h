// The functions that cells call, on single numbers: the compiler's own, without fast-math.
#pragma once
#include <cmath>

#include "../core/common.h"

namespace ost::OST_SET {

OST_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
OST_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
OST_HD float tanh(float x) { return ::tanhf(x); }
OST_HD double tanh(double x) { return ::tanh(x); }
OST_HD float exp(float x) { return ::expf(x); }
OST_HD double exp(double x) { return ::exp(x); }
OST_HD float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
OST_HD double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
OST_HD float select(bool test, float yes, float no) { return test ? yes : no; }
OST_HD double select(bool test, double yes, double no) { return test ? yes : no; }

}  // namespace ost::OST_SET
