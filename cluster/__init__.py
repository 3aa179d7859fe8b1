"""Cluster: the only package that knows Ray and Redis; it joins rollout, rewards and learner into a run."""

import importlib.util
import pathlib

# `python -m` looks into the current folder first, and the names of bicot's packages are common ones. An exception would
# show as a traceback through whichever import came first, so this ends the command with its one line.
for _name in ("configs", "learner", "rewards", "rollout"):
    _spec = importlib.util.find_spec(_name)
    _found = pathlib.Path(_spec.origin) if _spec is not None and _spec.origin is not None else None
    if _found is not None and _found != pathlib.Path(__file__).parents[1] / _name / "__init__.py":
        raise SystemExit(
            f"error: {_found} hides bicot's own package '{_name}'; rename it, or start the command in another folder"
        )
