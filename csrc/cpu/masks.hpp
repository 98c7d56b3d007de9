// Masks over one matrix or over a whole model, without an array of scores.
#pragma once

#include "core/types.hpp"
#include "cpu/team.hpp"
