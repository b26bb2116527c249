"""Metal compute kernels on a CPU: compiled as C++ against headers of our own, and run thread by thread."""

from m2ml_kernels.metal_host.build import PLAIN as PLAIN
from m2ml_kernels.metal_host.build import Kernel as Kernel
from m2ml_kernels.metal_host.build import Source as Source
from m2ml_kernels.metal_host.build import Variant as Variant
from m2ml_kernels.metal_host.build import compile_kernel as compile_kernel
from m2ml_kernels.metal_host.errors import InvalidLaunch as InvalidLaunch
from m2ml_kernels.metal_host.errors import InvalidMetal as InvalidMetal
from m2ml_kernels.metal_host.errors import KernelFault as KernelFault
from m2ml_kernels.metal_host.errors import KernelTimeout as KernelTimeout
from m2ml_kernels.metal_host.errors import SanitizerMissing as SanitizerMissing
from m2ml_kernels.metal_host.errors import UnsupportedMetal as UnsupportedMetal
from m2ml_kernels.metal_host.execution import Output as Output
from m2ml_kernels.metal_host.execution import Result as Result
from m2ml_kernels.metal_host.execution import Schedule as Schedule
from m2ml_kernels.metal_host.execution import launch as launch
from m2ml_kernels.metal_host.findings import Finding as Finding
from m2ml_kernels.metal_host.mlx_kernel import emulate as emulate
from m2ml_kernels.metal_host.mlx_kernel import emulating as emulating
from m2ml_kernels.metal_host.mlx_kernel import metal_kernel as metal_kernel
