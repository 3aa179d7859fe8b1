"""What bicot uses of a library beyond its interface is looked for, and its lack told with the version."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest

from configs.errors import LibraryError
from configs.library_layout import require_attributes, require_parameters


def test_what_is_there_is_taken():
    require_attributes("numpy", numpy.ndarray, ["shape", "dtype"])
    require_parameters("numpy", numpy.stack, ["axis"])


def test_missing_attributes_are_named_with_library_version_and_owner():
    with pytest.raises(
        LibraryError, match=rf"^numpy {numpy.__version__} has no _shape, gone in ndarray; .*constraints"
    ):
        require_attributes("numpy", numpy.ndarray, ["_shape", "dtype", "gone"])
    with pytest.raises(LibraryError, match="has no here in its odd object"):
        require_attributes("numpy", SimpleNamespace(), ["here"], "its odd object")


def test_missing_parameters_are_named():
    with pytest.raises(LibraryError, match=rf"numpy {numpy.__version__} has no parameter along in stack"):
        require_parameters("numpy", numpy.stack, ["axis", "along"])
