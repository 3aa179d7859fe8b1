"""A package that is not installed, though it is."""

from __future__ import annotations

import builtins
from typing import Any

import pytest


def hide_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """From now on, importing `package` fails as it does where it is not installed."""
    real_import = builtins.__import__

    def without_package(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named '{package}'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_package)
