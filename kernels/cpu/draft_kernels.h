// The functions that draft views need from each instruction set.
#pragma once

namespace specdec {

struct DraftKernels {};

}  // namespace specdec
