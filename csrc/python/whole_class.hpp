// Classes whose objects are whole, or not there.
//
// pybind11's X.__new__(X) makes an object that only __init__ gives a value; a method that is called before reads memory
// that nobody has written. Here __new__ takes the arguments of __init__ and calls it. (Python then calls __init__ once
// more, which pybind11 passes over.) A class without a constructor has none under this name either, and none has
// subclasses, which could leave __init__ out.
#pragma once

#include <pybind11/pybind11.h>

namespace mpfast::python {

inline PyObject* new_and_initialised(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  PyObject* self = pybind11::detail::make_new_instance(type);
  if (self != nullptr && type->tp_init(self, args, kwargs) != 0) Py_CLEAR(self);
  return self;
}

// A pybind11::class_, with `extra` as there.
template <class T, class... Extra>
pybind11::class_<T> whole_class(pybind11::module_& m, const char* name, const Extra&... extra) {
  const auto set_up = [](PyHeapTypeObject* heap) { heap->ht_type.tp_new = &new_and_initialised; };
  return {m, name, pybind11::is_final(), pybind11::custom_type_setup(set_up), extra...};
}

}  // namespace mpfast::python
