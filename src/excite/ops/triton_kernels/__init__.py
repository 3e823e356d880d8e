"""The passes of ``excite.ops.gated_norm`` on GPUs, by Triton.

Same functions and arguments as ``excite.ops.plain``, for float32, bfloat16 and float16 maps in either layout; sums and
arithmetic are float32, and the same bits come out every time. Triton, which PyTorch's builds for GPUs bring along, is
imported on first use; ``why_not()`` says what is missing. With TRITON_INTERPRET=1, set before Python starts, the
kernels run on the CPU, program by program, which is how they are tested where there is no GPU.
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
