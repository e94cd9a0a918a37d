// Definitions shared by all headers that are compiled for each instruction set. OST_SET is the name
// of the set and of its namespace. Nothing that is compiled here may have a name outside of it, or
// the linker could keep one set's copy for all (the tests look at the symbols). For the same reason
// nothing uses templates of the standard library.
#pragma once
#include "../kernel_table.h"

#ifndef OST_SET
#error "OST_SET names the instruction set that this file is compiled for"
#endif

#if defined(__CUDACC__)
#define OST_HD __host__ __device__ __forceinline__
#define OST_ONCE OST_HD  // a call would need a stack
#else
#define OST_HD inline __attribute__((always_inline))
#define OST_ONCE __attribute__((noinline))  // of a template: one copy, which is called
#endif

#define OST_INLINE __attribute__((always_inline))  // of a lambda

namespace ost::OST_SET {

template <class A>
OST_HD constexpr A smaller(A a, A b) {
  return b < a ? b : a;
}
template <class A>
OST_HD constexpr A larger(A a, A b) {
  return a < b ? b : a;
}
struct Range {
  Index begin, end;
};
OST_HD constexpr Range part_of(Index n, Index i, Index parts) {
  return {n * i / parts, n * (i + 1) / parts};
}  // part i of n elements divided into `parts`
OST_HD constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace ost::OST_SET
