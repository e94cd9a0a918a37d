// A wheel's share of the C++ library, without what it does not need (OSTINATO_SMALL).

#include <cstddef>

// The names of C++ types as source code spells them stand in errors of pybind11 about types that no class is bound to, and in what
// a program prints that ends by an exception of C++. Ours are bound, and errors say what they expect in words of Python: without
// this the library's own, of 115 kB, would be linked in. To -2 callers answer with the name as the compiler spells it.
extern "C" char* __cxa_demangle(const char*, char*, std::size_t*, int* status) {
  if (status) *status = -2;
  return nullptr;
}
