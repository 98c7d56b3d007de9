#include "python/bindings.hpp"

namespace mpfast::python {

void register_masks(py::module_&) {}

}  // namespace mpfast::python
