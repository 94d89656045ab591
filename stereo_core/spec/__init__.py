"""Specs: typed keys with ranges, loading, overrides and checks."""

from __future__ import annotations

from stereo_core.spec.convert import ConvertSpec, SynthesizeSpec
from stereo_core.spec.experiment import ExperimentSpec, results_dir, spec_class
from stereo_core.spec.loading import load_spec, spec_from_dict

__all__ = [
    "ConvertSpec",
    "ExperimentSpec",
    "SynthesizeSpec",
    "load_spec",
    "results_dir",
    "spec_class",
    "spec_from_dict",
]
