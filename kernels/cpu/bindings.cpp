// What Python sees of the native runtime: raw buffers in, raw buffers out. Everything is checked here or in Python
// before a kernel touches it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dispatch.h"

namespace nb = nanobind;

void bind_draft(nb::module_& module);

NB_MODULE(_native, module) {
  module.def("supported_isas", &specdec::supported_isas, "Instruction sets that this machine can run, best first.");
  bind_draft(module);
}
