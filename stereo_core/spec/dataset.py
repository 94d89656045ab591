"""`dataset`: the pairs, and how they are read and augmented. Sizes are [height, width]; disparities are in px."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stereo_core.spec.fields import (
    DatasetName,
    Float,
    Int,
    Pair,
    Range,
    Section,
    Text,
    any_case,
    key,
    null_is,
    section,
)

SYNTHETIC = "Synthetic"  # dataset_name of scenes that are rendered on demand
SceneStyle = Literal["rich", "planes"]
DisparityFormat = Literal["auto", "pfm", "png_rgb", "png_u16_256", "png_u16_32", "png_u8", "tiff", "npy", "npz"]


class DataSource(Section):
    """One annotation file, or synthetic scenes."""

    data_file: Text = key("", "Annotation file: one line per pair, `left right [disparity [mask]]`")
    dataset_name: DatasetName = key(
        "", "Name of the data set, in upper or lower case; decides how disparity files are read. Empty: GenericDataset"
    )
    disparity_format: DisparityFormat = key(
        "auto", "Format of the disparity files; auto: by dataset_name and file (not in TAO)"
    )
    disparity_scale: Float | None = key(
        None,
        "Stored value of a disparity of 1 px (disparity = stored / scale; Middlebury 2003: 4); null: the format's own "
        "(not in TAO)",
        gt=0,
    )
    image_bits: Literal["auto", 8, 10, 12, 14, 16] = key(
        "auto",
        "Bit depth of the values in 16-bit images; auto: from the largest value, with a warning if below 16 (not in "
        "TAO)",
    )
    data_root: Text = key("", "Folder that relative paths start from; empty: the annotation file's folder (not in TAO)")
    pairs_per_epoch: Int = key(1000, "Scenes per epoch, with dataset_name Synthetic (not in TAO)", ge=1)
    style: SceneStyle = key("rich", "Style of the scenes as for synthesize, with dataset_name Synthetic (not in TAO)")
    height: Int = key(384, "Height of a scene in px, with dataset_name Synthetic (not in TAO)", ge=32)
    width: Int = key(768, "Width of a scene in px, with dataset_name Synthetic (not in TAO)", ge=32)
    scene_disparity: Range = key(
        [2, 192],
        "Lowest and highest disparity in px of a scene's nearest surface (log-uniform), with dataset_name Synthetic "
        "(not in TAO)",
    )

    @property
    def drawn(self) -> bool:
        """Whether its pairs are rendered scenes instead of files."""
        return self.dataset_name == SYNTHETIC


DataSources = Annotated[list[DataSource], null_is([])]


class Augmentation(Section):
    """Random changes of training pairs, in the order of stereo_core/data/augmentation.py."""

    input_mean: Annotated[list[Float], Field(min_length=3, max_length=3)] = key(
        [0.485, 0.456, 0.406], "RGB mean after scaling to [0, 1]"
    )
    input_std: Annotated[list[Annotated[Float, Field(gt=0)]], Field(min_length=3, max_length=3)] = key(
        [0.229, 0.224, 0.225], "RGB standard deviation after scaling to [0, 1]"
    )
    crop_size: Pair = key(
        [518, 518],
        "[height, width] in px of random training crops, padded to multiples of 32 (padding has no ground truth); for "
        "a checkpoint also the size for evaluate.resize and inference.tile",
    )
    min_scale: Float = key(-0.2, "log2 of the smallest random scale of images and disparities", ge=-1, le=1)
    max_scale: Float = key(0.4, "log2 of the largest random scale; above 0 enlarges", ge=-1, le=1)
    do_flip: bool = key(False, "Enable the flips")
    h_flip_prob: Float = key(
        0.5, "Probability of a horizontal flip, which swaps the views; only if do_flip is true", ge=0, le=1, automl=True
    )
    v_flip_prob: Float = key(0.5, "Probability of a vertical flip; only if do_flip is true", ge=0, le=1, automl=True)
    hshift_prob: Float = key(
        0.5,
        "Probability of a shift of the right image, and of all disparities, by up to 10 px",
        ge=0,
        le=1,
        automl=True,
    )
    yjitter_prob: Float = key(
        1.0, "Probability of a vertical offset of up to 2 px between left and right crop", ge=0, le=1, automl=True
    )
    gamma: Annotated[list[Float], Field(min_length=4, max_length=4)] = key(
        [1, 1, 1, 1], "Range of random gamma correction: [lowest gamma, highest gamma, lowest gain, highest gain]"
    )
    color_aug_prob: Float = key(
        0.2, "Probability that left and right image get different colour jitter", ge=0, le=1, automl=True
    )
    color_aug_brightness: Float = key(0.4, "Strength of the brightness jitter: factors of 1 - x to 1 + x", ge=0, le=1)
    color_aug_contrast: Float = key(0.4, "Strength of the contrast jitter: factors of 1 - x to 1 + x", ge=0, le=1)
    color_aug_saturation: Range = key([0.0, 1.4], "Range of the random saturation factor")
    color_aug_hue_range: Range = key(
        [-5 / 180, 5 / 180], "Range of the random hue shift, as a share of the hue circle (0.5: 180 degrees)"
    )
    eraser_aug_prob: Float = key(
        0.5, "Probability of erasing rectangles in the right image (artificial occlusion)", ge=0, le=1, automl=True
    )
    spatial_aug_prob: Float = key(
        1.0,
        "Probability of random scaling; without it, images smaller than the crop are padded",
        ge=0,
        le=1,
        automl=True,
    )
    stretch_prob: Float = key(0.8, "Probability that a scaled pair is also stretched", ge=0, le=1, automl=True)
    max_stretch: Float = key(0.2, "log2 of the largest stretch; x and y are drawn separately", ge=0, le=1)
    crop_min_valid_disp_ratio: Float = key(
        0.0,
        "Smallest share of valid ground truth in a crop; if none of 100 random crops reaches it, the best is taken",
        ge=0,
        le=1,
        automl=True,
    )


class Split(Section):
    """One split: train, val, test or infer."""

    data_sources: DataSources = key([], "Annotation files; several are concatenated")
    batch_size: Int = key(1, "Pairs per batch and device", ge=1)
    workers: Int = key(8, "Data loader processes", ge=0)
    pin_memory: bool = key(True, "Pinned host memory")
    augmentation: Augmentation = section(Augmentation, "Random changes of training pairs")


class QuantCalibration(Section):
    images_dir: Text = key(
        "",
        "Folder or archive (.tar.gz, .zip) of stereo pairs to calibrate quantisation with; empty: "
        "dataset.train_dataset",
    )


class Dataset(Section):
    dataset_name: Annotated[Literal["MonoDataset", "StereoDataset"], any_case("MonoDataset", "StereoDataset")] = key(
        "StereoDataset", "Task; only StereoDataset is supported"
    )
    normalize_depth: bool = key(False, "Only for monocular depth")
    max_depth: Float | None = key(None, "Only for monocular depth, in metres", ge=1)
    min_depth: Float | None = key(None, "Only for monocular depth, in metres", ge=0)
    max_disparity: Int = key(
        416, "Ground truth of this disparity in px or more is ignored in loss and metrics", ge=1, le=416
    )
    baseline: Float = key(
        0.193001, "Baseline in metres, for depth and point clouds; the default counts as not set", ge=0
    )
    focal_x: Float = key(
        1998.842, "Focal length in px, for depth and point clouds; the default counts as not set", ge=0
    )
    on_error: Literal["fail", "skip"] = key(
        "fail",
        "If a pair cannot be read. fail: end the run; skip (training only): use another pair instead, with a warning,"
        " for at most a tenth of an epoch (not in TAO)",
    )
    train_dataset: Split = section(Split, "Pairs for training")
    val_dataset: Split = section(Split, "Pairs for validation during training")
    test_dataset: Split = section(Split, "Pairs for evaluate")
    infer_dataset: Split = section(Split, "Pairs for inference")
    quant_calibration_dataset: QuantCalibration = section(QuantCalibration, "Calibration images for quantize")
