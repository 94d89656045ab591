"""Build the bytes of an engine from an ONNX file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stereo_core.engines.base import BuildSettings
from stereo_core.engines.tensorrt.interface import interface_of_info, interface_of_network, refuse_difference
from stereo_core.engines.tensorrt.library import Library
from stereo_core.engines.tensorrt.messages import logger, progress
from stereo_core.engines.tensorrt.targets import Capability, Gpu
from stereo_core.errors import ModelError
from stereo_core.files import atomic_path

LOG = logging.getLogger(__name__)

GIB = 2**30


def serialized_engine(
    trt: Any,
    library: Library,
    onnx: Path,
    info: dict[str, Any],
    settings: BuildSettings,
    targets: Sequence[Capability],
    gpu: Gpu | str,
    stop: threading.Event,
) -> Any:
    """The bytes of an engine for `targets`, built on `gpu` if the library needs one; see Backend.build.

    Raises:
        ModelError: the parser rejects the file, its inputs and outputs differ from its side-car, or a GPU has no matrix
            products of the graph's type.
        SpecError: a pin matches no layer.
        RuntimeError: the builder failed, or `stop` was set.
    """
    log = logger(trt, settings.verbose)
    builder = trt.Builder(log)
    # Accepted without effect by versions in which every network is strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # the weights live only as long as the parser
    _parse(parser, onnx, info, settings)
    profile = profile_of(builder, network, info)
    refuse_difference(onnx, interface_of_network(trt, network, profile), interface_of_info(info))
    config = _config(trt, library, builder, settings, targets, gpu)
    config.add_optimization_profile(profile)
    cache = settings.timing_cache if library.timing_cache else None
    fits = cache is not None and attach_timing_cache(config, cache)
    with progress(trt, stop) as monitor:
        config.progress_monitor = monitor
        serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _build_error(library, log.take_errors())
    if fits and cache is not None:
        with atomic_path(cache) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    return serialized


def _config(
    trt: Any,
    library: Library,
    builder: Any,
    settings: BuildSettings,
    targets: Sequence[Capability],
    gpu: Gpu | str,
) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if library.ahead_of_time:
        config.num_compute_capabilities = len(targets)
        for index, (major, minor) in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index)
    limit = workspace_bytes(settings.workspace_gib, None if isinstance(gpu, str) else gpu.memory)
    if limit is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    return config


def _parse(parser: Any, onnx: Path, info: dict[str, Any], settings: BuildSettings) -> None:
    content = onnx.read_bytes()
    if info["precision"] in ("fp16", "bf16"):
        import onnx as onnx_library

        from stereo_core.engines.precision import lower_precision

        lowered = lower_precision(onnx_library.load(onnx), info["precision"], settings.layers_precision)
        content = lowered.SerializeToString()
    if not parser.parse(content, str(onnx)) or parser.num_errors:
        raise ModelError(
            f"{onnx}: TensorRT's parser rejects the file; use another gen_trt_engine.backend: {_parser_errors(parser)}"
        )


def _parser_errors(parser: Any) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)


def profile_of(builder: Any, network: Any, info: dict[str, Any]) -> Any:
    """The optimisation profile: the side-car's shapes for the network's dynamic inputs."""
    profile = builder.create_optimization_profile()
    wanted = interface_of_info(info)
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *wanted[tensor.name])
    return profile


def workspace_bytes(gib: int | None, device_memory: int | None) -> int | None:
    """The builder's workspace limit in bytes; None: no limit. It is capped at the GPU's memory with a warning."""
    if gib is None:
        return None
    if device_memory is not None and gib * GIB > device_memory:
        LOG.warning(
            "gen_trt_engine.tensorrt.workspace_size: %d GiB exceeds the GPU's memory; using %.1f GiB instead",
            gib,
            device_memory / GIB,
        )
        return device_memory
    return gib * GIB


def attach_timing_cache(config: Any, path: Path) -> bool:
    """Give the builder the timing cache in `path`, or an empty one if there is no such file.

    Returns:
        False, after a warning, if the file is damaged or from another GPU or version: it is neither used nor changed.
    """
    content = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return True
    LOG.warning(
        "gen_trt_engine.timing_cache: %s is damaged or from another GPU or version; it is ignored and not changed",
        path,
    )
    return False


def _build_error(library: Library, errors: str) -> Exception:
    """The exception for the errors that the builder logged."""
    if "FP32 GEMM is not supported" in errors:
        return ModelError(
            f"{library.title} has no float32 matrix products for compute capability 7.5 (Turing); build them in fp16: "
            "gen_trt_engine.tensorrt.data_type=fp16 'gen_trt_engine.tensorrt.layers_precision=[\"*MatMul*:fp16\"]'. "
            f"Its message: {errors}"
        )
    return RuntimeError(f"{library.title} could not build the engine: {errors or 'no reason given'}")
