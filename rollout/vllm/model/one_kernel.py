"""A layer of vLLM that takes one kernel on a CPU in place of several.

On a CPU without compilation vLLM computes a norm with eight operations of PyTorch, though it ships a kernel for it. A
small model's step is made of the overhead of such calls. Elsewhere, and under torch.compile, which fuses them, it is
as vLLM has it. The activation stays vLLM's: its kernel takes three times as long as the two operations of PyTorch.
"""

from __future__ import annotations

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.layernorm import RMSNorm


class OneKernelRMSNorm(RMSNorm):
    """vLLM's `RMSNorm`; with a residual, both arguments are changed in place, as vLLM's kernels do on GPUs."""

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        weight = self.weight.data
        if residual is None:
            out = torch.empty_like(x)
            ops.rms_norm(out, x, weight, self.variance_epsilon)
            return out
        ops.fused_add_rms_norm(x, residual, weight, self.variance_epsilon)
        return x, residual
