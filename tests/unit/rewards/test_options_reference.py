"""The rewards reference is read from sources and has the options that the classes take. Here, since it imports them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from rewards.registry import REGISTERED
from scripts.site.rewards_reference import options_of


@pytest.mark.parametrize("name", REGISTERED)
def test_the_options_of_a_reward_are_those_that_its_class_takes(name: str):
    module, _, attribute = REGISTERED[name].partition(":")
    maker: Any = getattr(importlib.import_module(module), attribute)
    parameters = [p for p in inspect.signature(maker).parameters.values() if p.name != "device"]
    _, options = options_of(REGISTERED[name])
    expected = [(p.name, None if p.default is inspect.Parameter.empty else repr(p.default)) for p in parameters]
    assert [(option.name, option.default) for option in options] == expected
