"""What a user may say: typed keys with ranges, loading and overrides."""

from __future__ import annotations

from stereo_core.spec.convert import ConvertSpec, SynthesizeSpec
from stereo_core.spec.experiment import SPECS, ExperimentSpec, results_dir
from stereo_core.spec.loading import load_spec, spec_from_dict

__all__ = ["SPECS", "ConvertSpec", "ExperimentSpec", "SynthesizeSpec", "load_spec", "results_dir", "spec_from_dict"]
