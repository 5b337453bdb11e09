// What native.cpp needs of maxsim.cpp.
#pragma once

#include <pybind11/pybind11.h>

void bind_maxsim(pybind11::module_& module);
