"""The options of `python -m rewards.benchmark`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rewards.benchmarks.registry import BENCHMARKS
from rollout.drawing_options import add_drawing_arguments, whole

TABLE, ALL = "table", "all"

EXAMPLES = """\
examples:
  python -m rewards.benchmark shapes --model tiny-janus --limit 24
  python -m rewards.benchmark geneval --model deepseek-ai/Janus-Pro-1B --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark geneval --images pictures --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark wise --model deepseek-ai/Janus-Pro-1B --data WISE --judge-url https://api.openai.com/v1
  python -m rewards.benchmark wise_verified --model CHECKPOINT --data WISE --serve-judge Qwen/Qwen3.5-35B-A3B
  python -m rewards.benchmark all --model tiny-janus --data checkouts --scorer geneval.detector=mask2former.pth
  python -m rewards.benchmark dpg --config configs/janus_pro_7b_cluster.yaml --data ELLA --scorer mplug=mplug_vqa
  python -m rewards.benchmark geneval --self-check --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark table benchmarks/geneval/results/geneval.json --html geneval.html

A second call with the same output folder goes on where the first one ended; with nothing left to draw or to score, the
official rules run again on what is kept.
`all` runs every benchmark whose files and settings are given, and says what the others lack. Of several benchmarks
--data is the folder of their repositories, and --scorer NAME.SETTING=VALUE is one benchmark's own. All of them are
drawn first, and then scored.
With --config the rollout workers of a run's config draw, and the replicas of data.benchmarks.NAME score, on Ray: on a
cluster, or a Ray of this machine's own. What is given here goes before what the config says.
Exit codes: 0 complete results, 1 pictures are missing or could not be judged, or a benchmark of several failed, or a
check differs, 2 wrong input, 130 interrupted."""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Draw a benchmark's prompts with a model, and score them as the benchmark's authors do.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}, several with commas between, or `all`; or `table`, which shows results",
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="of `table`: files of results")
    parser.add_argument("--html", type=Path, metavar="FILE", help="of `table`: a page with the pictures, worst first")
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--model", metavar="DIR_OR_HUB_ID", help="a Janus checkpoint that draws")
    pictures.add_argument(
        "--images", type=Path, metavar="DIR", help="pictures that are drawn already, as official files"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="your copy of the benchmark's official repository")
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="draw nothing: compare the hashes of what is read, and the scorer's view of a reference picture",
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="prompts, of each category in turn; default: all")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks"), help="default: %(default)s")
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server, up to and with /v1")
    judge.add_argument(
        "--serve-judge",
        metavar="DIR_OR_HUB_ID",
        help="have vLLM serve this model on this machine, while pictures are judged",
    )
    parser.add_argument(
        "--judge-args", metavar="TEXT", help="of --serve-judge: more options of vLLM's server, as one word"
    )
    parser.add_argument("--judge-model", metavar="MODEL", help="the judge's name there; default: the official judge's")
    parser.add_argument(
        "--judge-key-env", metavar="VARIABLE", help="environment variable that holds the server's API key"
    )
    parser.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="weights and settings of the scorer, as the benchmark's page lists them; repeatable",
    )
    parser.add_argument("--config", metavar="FILE", help="a run's config: its rollout workers draw, on Ray")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change one field of --config; repeatable"
    )
    add_drawing_arguments(parser)
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, namespace: argparse.Namespace | None = None
) -> argparse.Namespace:
    """Parsed options; exits with 2 for wrong ones. namespace: what counts where an option is not given."""
    arguments = parser.parse_args(argv, namespace)
    if arguments.name == TABLE:
        if not arguments.results:
            parser.error("table: name files of results")
        return arguments
    for name in names_of(arguments):
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark '{name}'; use one of {', '.join(BENCHMARKS)}, or {ALL}")
    if arguments.results or arguments.html:
        parser.error("RESULT and --html belong to `table`")
    if arguments.set and not arguments.config:
        parser.error("--set changes a field of --config; name the config, too")
    if arguments.config and arguments.self_check:
        parser.error("--self-check looks at this machine; leave --config out")
    if not (arguments.model or arguments.images or arguments.self_check or arguments.config):
        parser.error("give --model, or --images with pictures that are drawn already")
    for setting in arguments.scorer:
        if "=" not in setting:
            parser.error(f"--scorer {setting}: give it as SETTING=VALUE")
    return arguments


def names_of(arguments: argparse.Namespace) -> list[str]:
    """The benchmarks that are asked for."""
    return list(BENCHMARKS) if arguments.name == ALL else arguments.name.split(",")
