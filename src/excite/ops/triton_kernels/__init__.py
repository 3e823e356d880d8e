"""The passes of ``excite.ops.gated_norm`` on GPUs, with Triton.

It has the same functions and arguments as ``excite.ops.plain``, for float32, bfloat16 and float16 maps in either
layout. Sums and arithmetic are float32, and results are bitwise reproducible. Triton, which PyTorch's GPU builds
include, is imported on first use; ``why_not()`` says what is missing. With TRITON_INTERPRET=1, set before Python
starts, the kernels run on the CPU, program by program, which is how they are tested without a GPU.
"""

from excite.ops.triton_kernels.launch import (
    apply,
    available,
    dense,
    grad_input,
    grad_sums,
    moments,
    statistics,
    takes,
    why_not,
)

__all__ = [
    "apply",
    "available",
    "dense",
    "grad_input",
    "grad_sums",
    "moments",
    "statistics",
    "takes",
    "why_not",
]
