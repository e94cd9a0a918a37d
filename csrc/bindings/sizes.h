// Checks of sizes and sequences that come without an array.
#pragma once
#include "arrays.h"

namespace ost {

// Refuse an array without an axis, which pybind11 takes for a sequence.
void check_sequence(const py::sequence& given, const char* name);

// A size of which products and bytes can be computed in 64 bits: at most 2^40, and with others at most 2^46 elements in all, of
// which kernels pad both axes and keep up to 2^16 bytes for each.
Index check_size(Index n, const char* name, Index least = 0);
void check_product(Index a, const char* name_a, Index b, const char* name_b);
constexpr double kMostElements = double(Index(1) << 46);

}  // namespace ost
