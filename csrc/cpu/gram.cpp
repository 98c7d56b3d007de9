#include "cpu/gram.hpp"
