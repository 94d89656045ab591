"""inference: disparity maps, and what follows from them, for pairs with or without ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stereo_core.actions.predict.predictor import known, load_predictor, predictions, write_results
from stereo_core.data.calibration import Calibration, read_calibration
from stereo_core.data.codecs import write_disparity_png16, write_pfm
from stereo_core.data.depth import depth_from_disparity, write_depth_png, write_point_cloud
from stereo_core.data.images import write_png
from stereo_core.data.loaders import StereoLoaders
from stereo_core.errors import SpecError
from stereo_core.files import UniqueNames
from stereo_core.models.flags import kept
from stereo_core.report.pictures import colour_disparity, disparity_range
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.spec import results_dir


@kept()
def run(spec, status: StatusLog) -> Outcome:
    """Write the files that `inference.save_*` ask for, named by the left image's `rel` (INTERFACES "Files").

    disparity_png16/<rel>.png: px * 256, 0 = invalid. disparity_pfm/<rel>.pfm: px. predicted_depth/<name>.png: disparity
    in turbo from 0 to the largest of the image. depth/<rel>.png: millimetres. cloud/<rel>.ply: metres, left camera.
    results.json: `images`, latency and throughput, for engines GPU memory, and `settings`.

    Raises:
        SpecError: depth or point clouds are asked for and nothing gives the camera.
        FloatingPointError: a prediction is not finite.
    """
    settings = spec.inference
    folder = results_dir(spec, "inference")
    camera = camera_of(spec) if settings.save_depth or settings.save_point_cloud else None
    data = StereoLoaders(spec)
    data.setup("predict")
    status.running(
        f"Loading {'engine' if settings.trt_engine else 'checkpoint'}: {settings.trt_engine or settings.checkpoint}"
    )
    predictor = load_predictor(spec, "inference", spec.inference.gpu_ids[0])
    loader = data.predict_dataloader()
    rels, flat_names, count = UniqueNames(), UniqueNames(), 0
    for sample, disparity_HW in predictions(predictor, loader, len(loader)):
        left_HW3 = sample["left"].permute(1, 2, 0).numpy().round().astype(np.uint8)
        flat_name = flat_names(sample["rel"].replace("/", "_"))
        _write(settings, folder, rels(sample["rel"]), flat_name, left_HW3, disparity_HW, camera)
        count += 1
    figures = predictor.figures()
    write_results(folder, figures | {"images": count, "settings": predictor.settings})
    return Outcome(
        f"Inference finished successfully: {count} pairs in {folder}",
        kpi=known(figures),
        artifacts={"disparity": folder},
    )


def camera_of(spec) -> Calibration:
    """The camera from `inference.calibration`, else from `dataset.baseline` and `dataset.focal_x` where both are set.

    Raises:
        SpecError: neither is given; the schema's defaults of baseline and focal_x belong to no camera of the user's.
        DataError: the calibration file can not be used.
    """
    if spec.inference.calibration:
        return read_calibration(spec.inference.calibration)
    if {"baseline", "focal_x"} <= spec.dataset.model_fields_set:
        return Calibration(spec.dataset.focal_x, spec.dataset.baseline)
    raise SpecError(
        "inference.save_depth, inference.save_point_cloud: need a camera; set inference.calibration to a calib.txt or "
        "K.txt, or set both dataset.baseline (metres) and dataset.focal_x (px) to your camera's; the defaults count as "
        "unset"
    )


def _write(
    settings,
    folder: Path,
    rel: str,
    flat_name: str,
    left_HW3: np.ndarray,
    disparity_HW: np.ndarray,
    camera: Calibration | None,
) -> None:
    """The files of one pair."""
    if settings.save_png16:
        write_disparity_png16(folder / "disparity_png16" / f"{rel}.png", disparity_HW)
    if settings.save_raw_pfm:
        write_pfm(folder / "disparity_pfm" / f"{rel}.pfm", disparity_HW)
    if settings.save_color:
        picture = colour_disparity(disparity_HW, disparity_range(disparity_HW))
        write_png(folder / "predicted_depth" / f"{flat_name}.png", picture)
    if camera is None:
        return
    depth_HW = depth_from_disparity(disparity_HW, camera.focal, camera.baseline, camera.doffs)
    if settings.save_depth:
        write_depth_png(folder / "depth" / f"{rel}.png", depth_HW)
    if settings.save_point_cloud:
        height, width = depth_HW.shape
        centre = (camera.cx, camera.cy) if settings.calibration else ((width - 1) / 2, (height - 1) / 2)
        write_point_cloud(folder / "cloud" / f"{rel}.ply", depth_HW, left_HW3, camera.focal, centre)
