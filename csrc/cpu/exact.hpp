// All singular values of W, by the fp64 Gram matrix of its short side.
#pragma once

#include "core/types.hpp"
#include "cpu/team.hpp"
