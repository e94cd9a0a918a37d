// The kernel set that runs, chosen once by the CPU or by name.
#pragma once
#include <string>
#include <vector>

#include "kernel_table.h"

namespace ost {

const std::vector<const KernelTable*>& known_kernels();  // best first, as compiled
std::vector<const KernelTable*> supported_kernels();     // those that this CPU runs
const std::vector<const KernelTable*>& tile_models();    // sets for the tests: the model of AMX, with the vectors of a set that runs
const KernelTable* kernels();                            // the chosen one
bool choose_kernels(const std::string& name);            // false: unknown or not supported
std::string cpu_name();  // with its family and model, where the system tells: names alone do not tell one generation from the next

}  // namespace ost
