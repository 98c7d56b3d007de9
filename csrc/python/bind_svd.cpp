#include "python/bindings.hpp"

namespace mpfast::python {

void register_svd(py::module_&) {}

}  // namespace mpfast::python
