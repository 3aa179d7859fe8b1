"""Data-parallel training with DeepSpeed's ZeRO: the process group, the engine, and the optimizer's state on disk."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from learner.zero.engine import DeepSpeedEngine as DeepSpeedEngine
    from learner.zero.host_copies import HostCopies as HostCopies
    from learner.zero.optimizer_settings import OptimizerSettings as OptimizerSettings
    from learner.zero.process_group import all_succeed as all_succeed
    from learner.zero.process_group import close_distributed as close_distributed
    from learner.zero.process_group import init_distributed as init_distributed
    from learner.zero.sharded_module import ShardedModule as ShardedModule

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "engine": ["DeepSpeedEngine"],
        "host_copies": ["HostCopies"],
        "optimizer_settings": ["OptimizerSettings"],
        "process_group": ["all_succeed", "close_distributed", "init_distributed"],
        "sharded_module": ["ShardedModule"],
    },
)
