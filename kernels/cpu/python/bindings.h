// What the files of bindings share.
#pragma once

#include <nanobind/nanobind.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "model.h"

inline void check(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument(message);
}

inline void check_index(const specdec::Model& model, int index) {
  check(index >= 0 && index < model.shape().matrix_count(), "no matrix of that number");
}

template <class Array>
bool has_shape(const Array& array, std::initializer_list<int64_t> shape) {
  size_t axis = 0;
  for (const int64_t length : shape)
    if (array.shape(axis++) != static_cast<size_t>(length)) return false;
  return true;
}

void bind_draft(nanobind::module_& module);
void bind_fff(nanobind::module_& module);
void bind_quantised(nanobind::module_& module, nanobind::class_<specdec::Model>& model);
void bind_search(nanobind::module_& module);
void bind_shape(nanobind::module_& module);
