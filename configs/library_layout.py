"""Guards for what bicot uses of a library beyond its documented interface.

Such a part may change in any release. Each is looked for at the start, before hours of work depend on it, and the
error names the library, its version and the missing part.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable

from configs.errors import LibraryError


def library_error(package: str, missing: str) -> LibraryError:
    """The error for an installed package that lacks something. missing: what, as the end of a sentence."""
    version = getattr(importlib.import_module(package), "__version__", "of unknown version")
    return LibraryError(
        f"{package} {version} {missing}; bicot uses this part of it, which is no documented interface: install the "
        f"version of {package} that bicot's constraints.txt names"
    )


def require_attributes(package: str, owner: object, names: Iterable[str], called: str | None = None) -> None:
    """Raises LibraryError unless `owner`, a module, class or object of `package`, has all attributes `names`.

    An abstract one counts as missing. called: what the message calls `owner`; None for its own name.
    """
    missing = [name for name in names if not hasattr(owner, name) or _is_abstract(getattr(owner, name))]
    if missing:
        shown = called or getattr(owner, "__qualname__", None) or getattr(owner, "__name__", type(owner).__qualname__)
        raise library_error(package, f"has no {', '.join(missing)} in {shown}")


def _is_abstract(attribute: object) -> bool:
    return bool(getattr(attribute, "__isabstractmethod__", False))


def require_parameters(package: str, function: Callable[..., object], names: Iterable[str]) -> None:
    """Raises LibraryError unless `function` of `package` takes all parameters `names`."""
    taken = inspect.signature(function).parameters
    missing = [name for name in names if name not in taken]
    if missing:
        raise library_error(package, f"has no parameter {', '.join(missing)} in {function.__qualname__}")
