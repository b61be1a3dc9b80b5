"""The reference backend on numpy."""

from alpha.backend_cpu_ref_primitives import NumpyPrimitives


class CpuRef(NumpyPrimitives):
    """The reference backend."""

    name = "cpu_ref"
