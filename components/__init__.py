"""The component library: `from stereo_components import convert, train, evaluate`; each is a KFP component."""

from .automl.component import automl
from .convert.component import convert
from .evaluate.component import evaluate
from .export.component import export
from .fetch_dataset.component import fetch_dataset
from .final_status.component import final_status
from .gen_trt_engine.component import gen_trt_engine
from .image import described
from .inference.component import inference
from .info.component import info
from .publish_model.component import publish_model
from .quantize.component import quantize
from .report.component import report
from .synthesize.component import synthesize
from .train.component import train
from .train_distributed.component import train_distributed
from .trt_evaluate.component import trt_evaluate
from .trt_inference.component import trt_inference

__all__ = [
    "automl",
    "convert",
    "evaluate",
    "export",
    "fetch_dataset",
    "final_status",
    "gen_trt_engine",
    "inference",
    "info",
    "publish_model",
    "quantize",
    "report",
    "synthesize",
    "train",
    "train_distributed",
    "trt_evaluate",
    "trt_inference",
]

for _name in __all__:
    described(globals()[_name])
