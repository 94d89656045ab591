"""The keys that are accepted and have no effect here, and why: the one place that says so.

A key that is neither read by the code nor named here would be ignored in silence; tests/spec/test_effects.py looks for
such keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from stereo_core.spec.fields import Section
from stereo_core.spec.experiment import ExperimentSpec, section_name

WITHOUT_EFFECT: dict[str, str] = {
    "encryption_key": "encrypted checkpoints are not read or written",
    "model_name": "only TAO's launcher reads it",
}
"""Pattern of dotted paths -> reason."""


def without_effect(verb: str, spec: Section) -> Iterator[tuple[str, str]]:
    """Keys that a user of this verb set away from their default in vain, with the reason."""
    return iter(())
