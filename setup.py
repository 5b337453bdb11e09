"""Builds the compiled kernels; everything else is in pyproject.toml.

Where there is no C++ compiler the package installs without them, and says so.
"""

import pybind11
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "shoal.kernels._native",
            ["shoal/kernels/native.cpp", "shoal/kernels/maxsim.cpp"],
            depends=["shoal/kernels/maxsim.h", "shoal/kernels/maxsim_lanes.h"],
            include_dirs=[pybind11.get_include()],
            language="c++",
            # Without contraction, or an instruction set with fused multiply-add moves bits.
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
