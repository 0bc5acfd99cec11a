#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "recengine/error.h"
#include "recengine/tensor.h"

namespace recengine {

// An argument that is already of this dtype and in C order; arguments take it with noconvert().
template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

inline void expect_rank(const char* name, const pybind11::array& array, pybind11::ssize_t rank) {
  if (array.ndim() == rank) return;
  throw InputError(std::string(name) + ": expected rank " + std::to_string(rank) + ", found " +
                   std::to_string(array.ndim()));
}

// Views of arrays that outlive them. `name` is "[op] argument", for the message.
template <typename T>
Span<const T> as_span(const char* name, const Array<T>& array) {
  expect_rank(name, array, 1);
  return {array.data(), array.shape(0)};
}

template <typename T>
Matrix<const T> as_matrix(const char* name, const Array<T>& array) {
  expect_rank(name, array, 2);
  return {array.data(), array.shape(0), array.shape(1)};
}

template <typename T>
Matrix<T> as_output(Array<T>& array) {
  return {array.mutable_data(), array.shape(0), array.shape(1)};
}

}  // namespace recengine
