"""The ops that come with m2ml, one file each; a kernel may replace any of them on its backend.

>>> import jax.numpy as jnp
>>> from m2ml.ops import rms_norm
>>> rms_norm(jnp.array([3.0, 4.0]), eps=0.0)
Array([0.84852815, 1.1313709 ], dtype=float32)
"""

from m2ml.op import Op, ops
from m2ml.ops.adamw_update import adamw as adamw
from m2ml.ops.adamw_update import adamw_update as adamw_update
from m2ml.ops.add_rms_norm import add_rms_norm as add_rms_norm
from m2ml.ops.attention import attention as attention
from m2ml.ops.batch_norm_act import batch_norm_act as batch_norm_act
from m2ml.ops.conv_bias_act import conv_bias_act as conv_bias_act
from m2ml.ops.dequantize import dequantize as dequantize
from m2ml.ops.geglu import geglu as geglu
from m2ml.ops.layer_norm import layer_norm as layer_norm
from m2ml.ops.linear_bias_act import linear_bias_act as linear_bias_act
from m2ml.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from m2ml.ops.quantize import Quantized as Quantized
from m2ml.ops.quantize import quantize as quantize
from m2ml.ops.quantized_matmul import quantized_matmul as quantized_matmul
from m2ml.ops.rms_norm import rms_norm as rms_norm
from m2ml.ops.rope import rope as rope
from m2ml.ops.rope_frequencies import RopeFrequencies as RopeFrequencies
from m2ml.ops.rope_frequencies import rope_frequencies as rope_frequencies
from m2ml.ops.sample_token import sample_token as sample_token
from m2ml.ops.softmax_cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from m2ml.ops.swiglu import swiglu as swiglu

for _op in [value for value in globals().values() if isinstance(value, Op)]:
    ops.register(_op)
