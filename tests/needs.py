"""What tests need and a machine may lack."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str, why: str) -> NoReturn:
    """End the test: skipped, but failed where STEREO_REQUIRE (names with commas) says that it should be there."""
    end = pytest.fail if what in os.environ.get("STEREO_REQUIRE", "").split(",") else pytest.skip
    end(why)
