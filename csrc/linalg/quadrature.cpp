#include "linalg/quadrature.hpp"
