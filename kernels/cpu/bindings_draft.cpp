// Python bindings of the draft views.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_draft(nb::module_&) {}
