#include "python/bindings.hpp"

namespace mpfast::python {

void register_lanczos(py::module_&) {}

}  // namespace mpfast::python
