"""Kernels of ops on MLX: its own fused functions where they meet the contract, and sources for what it lacks."""

from m2ml_mlx.kernels import cuda, fast, metal

KERNELS = (*fast.KERNELS, *metal.KERNELS, *cuda.KERNELS)
