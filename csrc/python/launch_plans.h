// The plans of csrc/cuda as Python dictionaries: what would run for a problem on a GPU that need not be there.
#pragma once

#include <pybind11/pybind11.h>

void add_launch_plans(pybind11::module_& module);
