// What the files of bindings share.
#pragma once

#include <nanobind/nanobind.h>

#include "model.h"

void bind_draft(nanobind::module_& module);
void bind_fff(nanobind::module_& module);
void bind_quantised(nanobind::module_& module, nanobind::class_<specdec::Model>& model);
void bind_search(nanobind::module_& module);
void bind_shape(nanobind::module_& module);
