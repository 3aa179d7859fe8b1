"""What outlives a process: checkpoints, the run directory, the ledger of groups and the Redis registry."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.state.background_checkpoints import BackgroundCheckpoints as BackgroundCheckpoints
    from cluster.state.checkpoints import Checkpoints as Checkpoints
    from cluster.state.registry import Registry as Registry
    from cluster.state.run_directory import RunDirectory as RunDirectory
    from cluster.state.run_state import RunState as RunState

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "background_checkpoints": ["BackgroundCheckpoints"],
        "checkpoints": ["Checkpoints"],
        "registry": ["Registry"],
        "run_directory": ["RunDirectory"],
        "run_state": ["RunState"],
    },
)
