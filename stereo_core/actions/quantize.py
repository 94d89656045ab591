"""quantize: convert a checkpoint or an ONNX file to int8 or float8; report size and accuracy before and after."""

from __future__ import annotations

import csv
import importlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stereo_core.actions import evaluate
from stereo_core.data.images import read_views
from stereo_core.engines import build_engine
from stereo_core.engines.base import SMALLEST, BuildSettings, normalise
from stereo_core.engines.files import file_kind, read_onnx
from stereo_core.engines.fit import fit
from stereo_core.errors import DataError, ModelError, RefusedResult, SpecError
from stereo_core.files import atomic_path
from stereo_core.models import from_spec
from stereo_core.progress import bars
from stereo_core.quantization import BACKENDS, Backend, check_installed
from stereo_core.quantization.pairs import samples_of
from stereo_core.quantization.rules import Summary
from stereo_core.report.figures import amount
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.spec import results_dir
from stereo_core.values import counted, size_text

LOG = logging.getLogger(__name__)

METRICS = ("epe", "d1")
ANY_SIZE = (SMALLEST, None, 2**15)
"""Smallest, traced and largest side in px; ONNX Runtime reserves no memory for unused sizes."""
COLUMNS = ("layer", "type", "weights", "weights_format", "activations_format")


def run(spec: Any, status: StatusLog) -> Outcome:
    """Write the quantised file and layers.csv (one line per layer) to the results folder.

    With `dataset.val_dataset.data_sources` the model is evaluated before and after, each with its own folder of
    `evaluate` results. An ONNX file is evaluated with ONNX Runtime.

    Raises:
        UserError: a missing library, a file of the wrong kind, or unusable rules or calibration pairs.
        RefusedResult: the error grew by more than `quantize.max_epe_increase`; no quantised file is written.
    """
    section, folder = spec.quantize, results_dir(spec, "quantize")
    backend, source = BACKENDS[section.backend], Path(section.model_path)
    check_installed(section.backend)
    _check_kind(source, backend, section.backend)
    out = folder / backend.file
    if out.exists() and out.samefile(source):
        raise SpecError(
            f"quantize.model_path: {source} would be overwritten by the result; choose another quantize.results_dir"
        )
    out.unlink(missing_ok=True)  # an older result must not look like this run's
    with atomic_path(out) as temporary:
        status.running(f"Quantising {source} with {section.backend}")
        summary, bytes_before = _quantised(spec, source, temporary, backend, status)
        LOG.info(summary.text)
        sizes = {"bytes_before": bytes_before, "bytes_after": temporary.stat().st_size}
        status.running(f"{summary.text}.", kpi=summary.kpi | sizes)
        _write_layers(folder / "layers.csv", summary)
        accuracy = _accuracy(spec, source, temporary, folder, status)
        _check_loss(accuracy, section.max_epe_increase, folder)
    loss = ""
    if accuracy:
        loss = f"; EPE {amount('epe', accuracy['epe_before'])} before, {amount('epe', accuracy['epe'])} after"
    return Outcome(
        f"Wrote quantised model {out}: {summary.text}; {bytes_before / 1e6:.1f} MB before, "
        f"{sizes['bytes_after'] / 1e6:.1f} MB after{loss}.",
        kpi=accuracy | sizes | summary.kpi,
        artifacts={"quantized": out},
        metadata={"quantized": {"kind": backend.takes, "quantization": section.backend}},
    )


def _check_kind(source: Path, backend: Backend, name: str) -> None:
    kind = file_kind(source)
    if kind == backend.takes:
        return
    mend = {
        "onnx": "export it with `depth_net export` first, or choose quantize.backend torchao or modelopt.pytorch",
        "checkpoint": "name the checkpoint it was exported from, or choose quantize.backend modelopt.onnx",
    }[backend.takes]
    words = {"onnx": "an ONNX file", "checkpoint": "a checkpoint"}
    found = words.get(kind, f"a file of kind {kind}")
    raise ModelError(f"{source}: this is {found}, but {name} quantises {words[backend.takes]}; {mend}")


def _quantised(spec: Any, source: Path, out: Path, backend: Backend, status: StatusLog) -> tuple[Summary, int]:
    """Write the quantised file; return a summary, and the bytes of the float weights (or ONNX file)."""
    quantize = importlib.import_module(f"stereo_core.quantization.{backend.module}").quantize
    if backend.takes == "onnx":
        info = read_onnx(source)
        if info["precision"] != "fp32":
            raise ModelError(
                f"{source}: the file is already quantised ({info['precision']}); name the float32 ONNX file"
            )
        if None in (info["input_height"], info["input_width"]):
            raise ModelError(
                f"{source}: height and width are dynamic, but the file does not store the traced size; export the "
                "checkpoint with `depth_net export`, or use an ONNX file of one size"
            )
        pairs = list(_normalised_pairs(list(_pairs(spec, status)), info))
        return quantize(source, out, spec.quantize, pairs), source.stat().st_size
    model = from_spec(spec, source).eval()
    if hasattr(model, "quantization"):
        raise ModelError(f"{source}: the checkpoint is already quantised; name the one that it was made from")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    device = _device(spec.quantize)
    images = _image_pairs(spec, device, status) if backend.static else ()
    return quantize(model.to(device), out, spec.quantize, images), size


def _device(section: Any) -> torch.device:
    if section.device == "cuda" and not torch.cuda.is_available() and "device" not in section.model_fields_set:
        LOG.info("quantize.device is not set and this machine has no GPU: quantising on the CPU")
        return torch.device("cpu")
    device = torch.device(section.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = counted(torch.cuda.device_count(), "GPU")
        raise SpecError(f"quantize.device: {section.device}: this machine has {there}; set it to cpu")
    return device


def _image_pairs(spec: Any, device: torch.device, status: StatusLog) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Calibration pairs, (1, 3, H, W) RGB 0..255, not cropped: evaluation uses whole images too."""
    for images in _pairs(spec, status):
        left, right = (torch.from_numpy(x.transpose(2, 0, 1).astype(np.float32))[None].to(device) for x in images)
        yield left, right


def _normalised_pairs(
    pairs: list[tuple[np.ndarray, np.ndarray]], info: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Calibration pairs prepared as for an engine of the ONNX file: padded, normalised, (1, 3, H, W)."""
    shapes = [left.shape[:2] for left, _ in pairs]
    # The calibration takes one size: where the file leaves it open, the one that holds every image whole.
    open_size = [-(-max(sides) // SMALLEST) * SMALLEST for sides in zip(*shapes, strict=True)]
    size = (info["max_height"] or open_size[0], info["max_width"] or open_size[1])
    larger = next((place for shape in shapes if (place := fit(shape, size, "pad")).scaled != shape), None)
    if larger is not None:
        LOG.warning(
            "calibration images of %s px exceed the ONNX file's %s px and are scaled down: it is calibrated on "
            "other details and disparities than those of full images; calibrate on images of its size, or export "
            "it in theirs",
            *(size_text(larger.image), size_text(size)),
        )
    for images in pairs:
        place = fit(images[0].shape[:2], size, "pad")
        left, right = (normalise(place.place(image[None].astype(np.float32))) for image in images)
        yield left, right


def _pairs(spec: Any, status: StatusLog) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Left and right calibration images, uint8 (H, W, 3)."""
    with samples_of(spec.dataset) as samples, bars() as progress:
        status.running(f"Calibrating on {counted(len(samples), 'pair')}")
        for sample in progress.track(samples, description="calibrating"):
            left, right = read_views(sample.left, sample.right)
            if left.shape != right.shape:
                raise DataError(
                    f"{sample.where}: {sample.left} and {sample.right} differ in size, so they are no rectified pair; "
                    "correct the list or the images"
                )
            yield left, right


def _write_layers(path: Path, summary: Summary) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(summary.rows)


def _accuracy(spec: Any, source: Path, result: Path, folder: Path, status: StatusLog) -> dict[str, float]:
    """epe_before, d1_before, epe, d1 and epe_increase on the validation data; empty if there is none."""
    if not spec.dataset.val_dataset.data_sources:
        LOG.warning("dataset.val_dataset.data_sources is empty, so the loss of accuracy is not measured")
        return {}
    before, after = (_evaluated(spec, *model, folder, status) for model in ((source, "before"), (result, "after")))
    kpi = {f"{name}_before": before[name] for name in METRICS} | {name: after[name] for name in METRICS}
    return kpi | {"epe_increase": after["epe"] - before["epe"]}


def _evaluated(spec: Any, model: Path, when: str, folder: Path, status: StatusLog) -> dict[str, float]:
    """The metrics of `evaluate` on the validation data, with results in the folder `when`."""
    status.running(f"Measuring the accuracy {when} quantisation")
    spec = spec.model_copy(deep=True)
    spec.dataset.test_dataset = spec.dataset.val_dataset
    spec.evaluate.results_dir = str(folder / when)
    (folder / when).mkdir(exist_ok=True)
    if file_kind(model) != "onnx":
        spec.evaluate.checkpoint, spec.evaluate.trt_engine = str(model), ""
        return evaluate.run(spec, status).kpi
    with tempfile.TemporaryDirectory(prefix="quantize") as engines:
        engine = Path(engines) / f"{when}.ort.onnx"
        build_engine(model, engine, _settings(read_onnx(model)))
        spec.evaluate.checkpoint, spec.evaluate.trt_engine = "", str(engine)
        if spec.evaluate.resize == "none":
            spec.evaluate.resize = "pad"
        return evaluate.run(spec, status).kpi


def _settings(info: dict[str, Any]) -> BuildSettings:
    """Build settings of the engine that evaluates an ONNX file, with the full range of dynamic sizes."""
    heights, widths = ((None, None, None) if info[f"max_{side}"] else ANY_SIZE for side in ("height", "width"))
    return BuildSettings("onnxruntime", info["precision"], heights=heights, widths=widths, verify=False)


def _check_loss(accuracy: dict[str, float], most: float | None, folder: Path) -> None:
    if most is not None and not accuracy["epe_increase"] <= most:  # also true for NaN
        raise RefusedResult(
            f"quantisation raised the EPE from {accuracy['epe_before']:.4f} to {accuracy['epe']:.4f} px, by more than "
            f"quantize.max_epe_increase {most} px; no quantised file was written. The measurements are in {folder}: "
            "before, after and layers.csv. Leave more layers in float (quantize.layers, quantize.skip_names), or "
            "calibrate on more pairs"
        )
