#include "cpu/masks.hpp"
