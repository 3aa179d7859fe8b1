"""What a user asks of `rewards.benchmark`, and the benchmarks that come of it; `cluster.evaluate` asks the same."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.command.arguments import ALL as ALL
    from rewards.benchmarks.command.arguments import TABLE as TABLE
    from rewards.benchmarks.command.arguments import make_parser as make_parser
    from rewards.benchmarks.command.arguments import parse as parse
    from rewards.benchmarks.command.choice import Choice as Choice
    from rewards.benchmarks.command.choice import choose as choose
    from rewards.benchmarks.command.judge_server import ServedJudge as ServedJudge
    from rewards.benchmarks.command.judge_server import served_judge as served_judge
    from rewards.benchmarks.command.work import bounded as bounded
    from rewards.benchmarks.command.work import console_of as console_of
    from rewards.benchmarks.command.work import draw_and_score as draw_and_score

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arguments": ["ALL", "TABLE", "make_parser", "parse"],
        "choice": ["Choice", "choose"],
        "judge_server": ["ServedJudge", "served_judge"],
        "work": ["bounded", "console_of", "draw_and_score"],
    },
)
