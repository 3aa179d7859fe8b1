"""Plans of the shapes world in shorthand, for tests: "striped red star top left ; blue circle bottom right"."""

from __future__ import annotations

from rollout.shapes.world import CELLS, Plan, PlannedObject


def plan_of(shorthand: str) -> Plan:
    """One object a clause: texture (solid goes without saying), color, shape, cell."""
    plan = []
    for clause in shorthand.split(" ; "):
        *texture, color, shape, row, column = clause.split()
        plan.append(PlannedObject(*(texture or ["solid"]), color, shape, CELLS.index(f"{row} {column}")))
    return tuple(plan)
