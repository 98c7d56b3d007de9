// Lets Ctrl-C cancel a call that runs with the GIL released.
#pragma once

#include <pybind11/pybind11.h>

namespace mpfast::python {

inline void check_signals() {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

}  // namespace mpfast::python
