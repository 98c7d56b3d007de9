#include "python/bindings.hpp"

namespace mpfast::python {

void register_gram(py::module_&) {}

}  // namespace mpfast::python
