// Which instruction sets this build has and this machine can run, best first.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace specdec {

// Names of the instruction sets that this machine can run, best first; "scalar" is always the last.
std::vector<std::string> supported_isas();

// The table of that name, or of the best one for an empty name.
// Throws std::invalid_argument, listing what this machine can run, for any other name.
const KernelTable& kernels_for(const std::string& name);

// Whether a single row of plain lines is faster where it asks for weights ahead of their use: on Intel's processors. On
// AMD's the hardware's own prefetching is (docs/notes/cpu.md).
bool asks_alone();

}  // namespace specdec
