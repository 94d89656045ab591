"""The flat specs: of `convert`, `synthesize`, `fetch_dataset`, `info`, `report`, `publish_model` and `final_status`."""

from __future__ import annotations

from typing import Literal

from stereo_core.spec.dataset import DataSources, SceneStyle
from stereo_core.spec.fields import Float, Int, Mapping, Section, Text, Texts, key


class ConvertSpec(Section):
    """Folders of images -> annotation files. Patterns are plain substrings of the path below data_root."""

    results_dir: Text = key("", "Folder for train.txt and val.txt, or test.txt", mandatory=True)
    data_root: Text = key("", "Folder to walk; needed")
    image_dir_pattern: Texts = key([], "Substrings that all occur in a left image's path")
    right_dir_pattern: Texts = key([], "What replaces them in the right image's path")
    depth_dir_pattern: Texts = key([], "What replaces them in the disparity's path")
    nocc_dir_pattern: Texts = key([], "What replaces them in the occlusion mask's path")
    image_extension: Text = key("jpg", "Suffix of left images, with or without the dot; empty: any")
    depth_extension: Text = key("png", "Suffix of disparities; empty: the image's, or the file's own")
    nocc_extension: Text = key("png", "Suffix of occlusion masks; empty: as depth_extension")
    nocc_mask_dir_name: Text = key("", "Folder of occlusion masks")
    split_ratio: Float = key(0.0, "Share of train.txt; 0 or 1: everything in test.txt", ge=0, le=1)
    seed: Int = key(1234, "Seed of the split (ours)", ge=0)
    split_by_scene: bool = key(False, "Keep a scene, the first folder below data_root, on one side (ours)")
    strict: bool = key(False, "Fail when a derived file is missing; else skip and count (ours)")
    relative_paths: bool = key(False, "Write paths relative to data_root (ours)")


class SynthesizeSpec(Section):
    """A small data set with exact disparity and occlusion, from a seed."""

    results_dir: Text = key("", "Folder to write the data set to", mandatory=True)
    num_scenes: Int = key(16, "Scenes", ge=1)
    height: Int = key(128, "Height in px", ge=32)
    width: Int = key(160, "Width in px", ge=32)
    max_disparity: Int = key(48, "Largest disparity in px", ge=1)
    seed: Int = key(1234, "Random seed", ge=0)
    style: SceneStyle = key(
        "rich",
        "rich: rooms, roads and walls with objects of many outlines and textures; planes: a few plain shapes (ours)",
    )
    appearance: Float = key(
        0.0,
        "How much the two cameras differ in exposure, focus, noise and rectification, with style=rich; above 0 the "
        "warped right image no longer equals the left one (ours)",
        ge=0,
        le=1,
    )


class FetchSpec(Section):
    """A data set in object storage; to pack it or to note where it is, in a folder too."""

    results_dir: Text = key("", "Folder to put the data set into", mandatory=True)
    uri: Text = key("", "Prefix of the data set: s3://bucket/folder", mandatory=True)
    mode: Literal["copy", "pack", "reference"] = key(
        "copy",
        "copy: fetch every object; pack: into a few tar shards, to be read in place; reference: note where they are, "
        "each is fetched when it is read",
    )
    shard_mib: Int = key(256, "MiB of a shard, with mode=pack", ge=1)


class InfoSpec(Section):
    """Statistics of data sets."""

    results_dir: Text = key("", "Folder for info.json, report.html and disparities.png", mandatory=True)
    data_sources: DataSources = key([], "Annotation files, each counted on its own and all in total")


class ReportSpec(Section):
    """Several evaluations side by side."""

    results_dir: Text = key("", "Folder for report.html", mandatory=True)
    title: Text = key("Comparison", "Title of the page")
    results: Texts = key([], "results.json of each evaluation, or its folder; the first is the reference")
    names: Texts = key([], "A name for each; empty: the folders' names")


class PublishSpec(Section):
    """A model, its figures and a model card, put where others take it from."""

    results_dir: Text = key("", "Folder for status.json and a copy of what is published", mandatory=True)
    model_path: Text = key("", "Checkpoint, ONNX file or engine", mandatory=True)
    metrics_path: Text = key("", "results.json of its evaluation")
    uri: Text = key("", "Where to: a folder, or s3://bucket/prefix", mandatory=True)
    title: Text = key("", "Title of the model card; empty: the file's name")
    existing: Literal["refuse", "replace", "compare"] = key(
        "refuse",
        "What to do about another model that is published there: refuse to publish; replace it; compare: replace it "
        "unless epe has risen by more than max_epe_increase",
    )
    max_epe_increase: Float = key(0.0, "px by which epe may have risen, with existing=compare", ge=0)


class FinalStatusSpec(Section):
    """What became of a pipeline, for its exit handler."""

    results_dir: Text = key("", "Folder for summary.md and final_status.json", mandatory=True)
    status: Mapping = key({}, "KFP's PipelineTaskFinalStatus: state, error, ...")
    title: Text = key("Pipeline", "Title of the summary")
