"""vLLM's worker of this platform, with what bicot asks of it."""

from __future__ import annotations

from vllm.platforms import current_platform

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class GuidedWorker(PlatformWorker):
    """`rollout.vllm.settings` names it as vLLM's `worker_cls` for the newer model runner, which asks the model for its
    sampler (`second_runner`), and the one of `first_runner` for the first."""

    def connect_stager(self, path: str) -> bool:
        """See `rollout.vllm.weights.stager`; False where this worker's weights cannot be staged."""
        return self.weight_transfer_engine.connect_stager(path)

    def swap_staged_weights(self) -> None:
        """Called while nothing is computed."""
        self.weight_transfer_engine.swap_staged()
        self.model_runner.reset_lora_state()
