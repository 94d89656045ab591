"""One file a verb. Each has `run(spec, status) -> Outcome` and imports heavy libraries only inside its own file."""

from __future__ import annotations

ACTIONS = (
    "convert",
    "synthesize",
    "fetch_dataset",
    "train",
    "automl",
    "doctor",
    "evaluate",
    "inference",
    "export",
    "quantize",
    "gen_trt_engine",
    "report",
    "publish_model",
    "final_status",
)
