#include "python/bindings.hpp"

namespace mpfast::python {

void register_exact(py::module_&) {}

}  // namespace mpfast::python
