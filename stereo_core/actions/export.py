"""export: convert a checkpoint to one ONNX file, which is checked against PyTorch before it gets its final name.

If the input is already an ONNX file (from TAO, NGC or ours), it is copied unchanged, so that later steps and pipelines
need not distinguish the two cases.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stereo_core import __version__
from stereo_core.data.datasets import build_dataset
from stereo_core.engines.base import normalise
from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, add_metadata, file_kind, precision_of, read_onnx
from stereo_core.engines.fit import fit
from stereo_core.engines.verify import difference, reference_disparity, synthetic_pair
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import atomic_path
from stereo_core.models import from_spec, network_facts
from stereo_core.models.files import digest
from stereo_core.models.foundation_stereo.model import StereoNetwork
from stereo_core.run.outcome import Outcome
from stereo_core.training.distribution import check_gpus
from stereo_core.values import counted, size_text

LOG = logging.getLogger(__name__)

_AXES = {0: "batch_size", 2: "height", 3: "width"}
MOST_BYTES = 2**31 - 2**20  # a protobuf message, and so a single ONNX file, is limited to 2 GiB


class ExportGraph(torch.nn.Module):
    """The network as exported: normalised images (B, 3, H, W) -> disparity (B, 1, H, W) px."""

    def __init__(self, model: StereoNetwork):
        super().__init__()
        self.model = model

    def forward(self, left_image: torch.Tensor, right_image: torch.Tensor) -> torch.Tensor:
        disparity: torch.Tensor = self.model.core(left_image, right_image)
        return disparity


def run(spec: Any, status: Any) -> Outcome:
    """Write `export.onnx_file`.

    Raises:
        UserError: the file is no checkpoint, or the network is too large for one file. (Loading the spec has already
            checked sizes and opset.)
        RuntimeError: ONNX Runtime's disparity differs from PyTorch's (`export.check`); no file is written.
    """
    section = spec.export
    kind = file_kind(section.checkpoint)
    if kind in ("engine", "tensorrt"):
        raise ModelError(
            f"{section.checkpoint}: this is an engine, not a checkpoint; set export.checkpoint to a checkpoint"
        )
    out = Path(section.onnx_file)
    if out.exists() and out.samefile(section.checkpoint):
        raise SpecError(
            f"export.onnx_file: {out} is also the name of the checkpoint; choose another name for the ONNX file"
        )
    if kind == "onnx":
        return _copy_onnx(Path(section.checkpoint), out, section.check, status)
    device = _device(section)
    status.running(f"Loading checkpoint: {section.checkpoint}")
    model = from_spec(spec, section.checkpoint).eval().to(device)
    _check_weights(model)
    # The file is float32 for every batch; the engine build lowers the precision.
    model.config = replace(model.config, mixed_precision=False, valid_iters=_iterations(section, model.config))
    model.open_size(section.dynamic_hw)
    graph = ExportGraph(model).eval()
    info = _info(model.config, section)
    with atomic_path(out) as temporary:
        status.running(f"Tracing on {device}")
        _trace(graph, temporary, section, device)
        info, nodes = _finish(temporary, info, model.config, digest(section.checkpoint))
        kpi = _compare(graph, temporary, spec, info["precision"], device, status) if section.check else {}
    checked = f"{kpi['check_mean_abs_difference_px']:.2g} px from PyTorch" if section.check else "not checked"
    return _outcome(out, info, nodes, kpi, checked)


def _outcome(out: Path, info: dict[str, Any], nodes: int, kpi: dict[str, Any], checked: str) -> Outcome:
    size = out.stat().st_size
    return Outcome(
        message=f"Wrote ONNX file {out}: {counted(nodes, 'node')}, {size / 1e6:.1f} MB, {checked}.",
        kpi=kpi | {"onnx_nodes": nodes, "onnx_bytes": size},
        artifacts={"onnx": out},
        metadata={"onnx": {key: value for key, value in info.items() if key != "kind" and value is not None}},
    )


def _copy_onnx(path: Path, out: Path, check: bool, status: Any) -> Outcome:
    """Copy a stereo ONNX file, including external weights; with `check` it runs once on a synthetic pair."""
    import onnx

    info = read_onnx(path)
    LOG.info("%s is already an ONNX file: it is copied unchanged and keeps its size, opset and iterations", path)
    status.running(f"Copying {path}")
    model = onnx.load(path)
    with atomic_path(out) as temporary:
        onnx.save(model, temporary)
        if check:
            pair = synthetic_pair(info["input_height"] or 320, info["input_width"] or 736, info["min_batch"])
            if not np.isfinite(reference_disparity(temporary, *pair)).all():
                raise RuntimeError(
                    f"{path}: the disparity of a synthetic pair is not finite; no file was written. "
                    "Use another ONNX file"
                )
    return _outcome(out, info, len(model.graph.node), {}, "copied" + (", runs" if check else ", not checked"))


def _iterations(section: Any, config: Any) -> int:
    """The spec's number if it sets one, else that of evaluate and inference: the checkpoint's (see `from_spec`)."""
    others, own = int(config.valid_iters), int(section.valid_iters)
    if "valid_iters" not in section.model_fields_set:
        stored = counted(others, "iteration")
        LOG.info("export.valid_iters is not set: the file gets %s, as stored in the checkpoint", stored)
        return others
    if own != others:
        LOG.warning(
            "export.valid_iters is %d, but evaluate and inference make %s with this checkpoint, so that the engine's "
            "disparity differs from theirs; leave export.valid_iters out to export %d",
            own,
            counted(others, "iteration"),
            others,
        )
    return own


def _device(section: Any) -> torch.device:
    if section.on_cpu:
        return torch.device("cpu")
    check_gpus("export.gpu_id", [section.gpu_id], torch.cuda.device_count())
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", section.gpu_id)


def _check_weights(model: StereoNetwork) -> None:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > MOST_BYTES:
        raise ModelError(
            f"encoder {model.config.encoder}: {size / 2**30:.1f} GiB of weights do not fit in one ONNX file (2 GiB); "
            "export vitl or a smaller encoder"
        )


def _info(config: Any, section: Any) -> dict[str, Any]:
    static = section.batch_size if section.batch_size > 0 else None
    height, width = (None, None) if section.dynamic_hw else (section.input_height, section.input_width)
    return {
        "kind": "onnx",
        "input_height": section.input_height,
        "input_width": section.input_width,
        "min_height": height,
        "max_height": height,
        "min_width": width,
        "max_width": width,
        "min_batch": static or 1,
        "opt_batch": static or 1,
        "max_batch": static,
        "normalisation": "imagenet",
        **network_facts(config),
    }


def _trace(graph: ExportGraph, out: Path, section: Any, device: torch.device) -> None:
    """Trace with batch N, or 1 if the batch is dynamic; PyTorch's tracing warnings are suppressed.

    PyTorch has two exporters; the TorchScript one is better here: it writes every requested opset from 16 to 20. The
    other writes 18 for 16 and 17, takes ten times as long and makes a file a sixth larger, with a sixth fewer nodes.
    """
    shape = (max(1, section.batch_size), 3, section.input_height, section.input_width)
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.randn(shape, generator=generator).to(device) for _ in range(2))
    is_open = {0: section.batch_size < 0, 2: section.dynamic_hw, 3: section.dynamic_hw}
    axes = {axis: name for axis, name in _AXES.items() if is_open[axis]}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            images,
            out,
            dynamo=False,
            opset_version=section.opset_version,
            input_names=[LEFT, RIGHT],
            output_names=[DISPARITY],
            dynamic_axes=dict.fromkeys((LEFT, RIGHT, DISPARITY), axes),
            # On a GPU the exporter would fold its own constants, which are in CPU memory, with weights on the GPU.
            do_constant_folding=device.type == "cpu",
            verbose=section.verbose,
        )


def _finish(path: Path, info: dict[str, Any], config: Any, checkpoint_sha256: str) -> tuple[dict[str, Any], int]:
    """Simplify the graph; add the output's shape, which the exporter loses, and the metadata.

    Returns:
        `info` with the precision, and the number of nodes.
    """
    import onnx

    model = onnx.load(path)
    merge_equal_nodes(model.graph)
    _, channel, *size = model.graph.output[0].type.tensor_type.shape.dim
    channel.dim_value = 1
    for dim, image_dim in zip(size, model.graph.input[0].type.tensor_type.shape.dim[2:], strict=True):
        dim.CopyFrom(image_dim)
    info = info | {"precision": precision_of(model.graph)}
    settings = json.dumps(asdict(config), default=str)
    producer = f"stereo-pipelines {__version__} export"
    add_metadata(model, info, producer=producer, model=settings, checkpoint_sha256=checkpoint_sha256)
    onnx.save(model, path)
    onnx.checker.check_model(path)
    return info, len(model.graph.node)


def merge_equal_nodes(graph: Any) -> None:
    """Remove Identity nodes, and nodes that repeat an earlier one: the unrolled iterations repeat shape arithmetic and
    constants. Works in place on a graph without subgraphs and random numbers."""
    outputs = {value.name for value in graph.output}
    first: dict[tuple[Any, ...], Any] = {}
    instead: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        key = (node.domain, node.op_type, *node.input, *attributes, len(node.output))
        if outputs.intersection(node.output):
            kept.append(node)
        elif node.op_type == "Identity":
            instead[node.output[0]] = node.input[0]
        elif key in first:
            instead |= zip(node.output, first[key].output, strict=True)
        else:
            first[key] = node
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _compare(
    graph: ExportGraph, onnx: Path, spec: Any, precision: str, device: torch.device, status: Any
) -> dict[str, float]:
    """Run the file and the network on one batch: two pairs if the batch is dynamic, and also at a second size if height
    and width are dynamic, because tracing used neither. Return the largest differences."""
    section = spec.export
    sizes = [(section.input_height, section.input_width)]
    if section.dynamic_hw:
        sizes.append((_other(section.input_height), _other(section.input_width)))
    found = []
    for height, width in sizes:
        left, right, source = _pair(spec, height, width, section.batch_size if section.batch_size > 0 else 2)
        status.running(f"Comparing the ONNX file with PyTorch at {size_text((height, width))} px on {source}")
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected = graph(*(torch.from_numpy(x).to(device) for x in (left, right)))[:, 0].float().cpu().numpy()
        actual, differs = reference_disparity(onnx, left, right), "the ONNX file's disparity differs from PyTorch's"
        found.append(difference(actual, expected, precision, differs, "no file was written"))
    return {f"check_{key}": max(entry[key] for entry in found) for key in found[0]}


def _other(side: int) -> int:
    """Another multiple of 32 that gives the ViT another input size: half, or twice if half is too small."""
    return -(-side // 64) * 32 if side >= 128 else 2 * side


def _pair(spec: Any, height: int, width: int, batch: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Different normalised pairs (B, 3, H, W), the first a real one if the spec names data; and a text on its
    origin."""
    left, right = synthetic_pair(height, width, batch)
    for split in ("infer", "test"):
        if not getattr(spec.dataset, f"{split}_dataset").data_sources:
            continue
        item = build_dataset(spec, split)[0]
        for images, side in ((left, "left"), (right, "right")):
            image = item[side].permute(1, 2, 0).numpy()[None]
            images[:1] = normalise(fit(image.shape[1:3], (height, width), "pad").place(image))
        return left, right, item["path"]
    return left, right, "a synthetic pair"
