"""What the user reads of an error that comes from an actor: the cause and the node, in one line."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.pools.remote_errors import told
from configs.errors import ModelError

# Both as Ray 2.60 words them.
NOT_MADE = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::A.__init__()\x1b[39m (pid=22142, "
    "ip=10.77.0.12, actor_id=1afe, repr=<__main__.A object at 0x7f70>)\n           ^^^^^^^^\n"
    "  File \"a.py\", line 6, in __init__\nImportError: No module named 'rollout'\n"
)
CRASHED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tpid: 23339\n\tip: 10.77.0.11\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
    "End of file. Some common causes include: (1) the process was killed by the OOM killer"
)
TRACEBACK = "\x1b[36mray::A.f()\x1b[39m (pid=22143, ip=10.77.0.13, actor_id=6de6)\n  File ...\nValueError: x\ny"


def died(message: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = message
    error.args = (message,)
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (died(NOT_MADE), "ImportError: No module named 'rollout' (on node 10.77.0.12)"),
        (
            died(CRASHED),
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "End of file. (on node 10.77.0.11)",
        ),
        (RayTaskError("f", TRACEBACK, ValueError("x\ny")), "ValueError: x (on node 10.77.0.13)"),
        (RayTaskError("f", TRACEBACK, ModelError("no folder")), "no folder (on node 10.77.0.13)"),
        (ModelError("no folder"), "no folder"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_told_in_one_line_with_its_cause_and_its_node(error: BaseException, line: str) -> None:
    assert told(error) == line
