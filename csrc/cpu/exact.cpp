#include "cpu/exact.hpp"
