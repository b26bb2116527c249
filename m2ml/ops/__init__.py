"""The ops that come with m2ml, one file each; a kernel may replace any of them on its backend.

>>> import jax.numpy as jnp
>>> from m2ml.ops import rms_norm
>>> rms_norm(jnp.array([3.0, 4.0]), eps=0.0)
Array([0.84852815, 1.1313709 ], dtype=float32)
"""

from m2ml.op import ops
from m2ml.ops.rms_norm import rms_norm as rms_norm

for _op in (rms_norm,):
    ops.register(_op)
