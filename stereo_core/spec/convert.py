"""The flat specs: `convert`, `synthesize`, `fetch_dataset`, `info`, `report`, `publish_model` and `final_status`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.dataset import DataSources, SceneStyle
from stereo_core.spec.fields import Float, Int, Mapping, Section, Text, Texts, key
from stereo_core.storage import SCHEMES, is_uri


def _place(uri: str) -> str:
    if "://" in uri and not is_uri(uri):
        raise ValueError(
            f"{uri}: this kind of URI is not supported; use a folder, or a URI that begins with {', '.join(SCHEMES)}"
        )
    return uri


Place = Annotated[Text, AfterValidator(_place)]
"""A folder, or a prefix in object storage."""


class ConvertSpec(Section):
    """Folders of images -> annotation files. Patterns are literal substrings of the path below data_root."""

    results_dir: Text = key("", "Folder to write train.txt and val.txt, or test.txt, to", mandatory=True)
    data_root: Text = key("", "Folder to search for images (required)")
    image_dir_pattern: Texts = key([], "Substrings that a left image's path must contain, all of them")
    right_dir_pattern: Texts = key(
        [], "Replacements for the entries of image_dir_pattern that give the right image's path"
    )
    depth_dir_pattern: Texts = key(
        [], "Replacements for the entries of image_dir_pattern that give the disparity's path"
    )
    nocc_dir_pattern: Texts = key(
        [], "Replacements for the entries of image_dir_pattern that give the occlusion mask's path"
    )
    image_extension: Text = key("jpg", "Suffix of left images, with or without the dot; empty: any")
    depth_extension: Text = key(
        "png", "Suffix of disparity files; empty: the left image's, or that of the only file with the same stem"
    )
    nocc_extension: Text = key("png", "Suffix of occlusion masks; empty: same as depth_extension")
    nocc_mask_dir_name: Text = key("", "Folder of occlusion masks")
    split_ratio: Float = key(
        0.0, "Share of the pairs in train.txt, the rest in val.txt; 0 or 1: all pairs in test.txt", ge=0, le=1
    )
    seed: Int = key(1234, "Seed of the split (not in TAO)", ge=0)
    split_by_scene: bool = key(False, "Keep each scene (first folder below data_root) in one split (not in TAO)")
    strict: bool = key(False, "Fail if a pair's file is missing; otherwise skip the pair and count it (not in TAO)")
    relative_paths: bool = key(False, "Write paths relative to data_root (not in TAO)")


class SynthesizeSpec(Section):
    """A small synthetic data set with exact disparity and occlusion masks."""

    results_dir: Text = key("", "Folder to write the data set to", mandatory=True)
    num_scenes: Int = key(16, "Number of scenes", ge=1)
    height: Int = key(128, "Height in px", ge=32)
    width: Int = key(160, "Width in px", ge=32)
    max_disparity: Int = key(48, "Largest disparity in px", ge=1)
    seed: Int = key(1234, "Random seed", ge=0)
    style: SceneStyle = key(
        "rich",
        "Style of the scenes. rich: rooms, roads and walls with objects of many shapes and textures; planes: a few "
        "simple shapes (not in TAO)",
    )
    appearance: Float = key(
        0.0,
        "With style=rich: how much the two cameras differ in exposure, focus, noise and rectification. Above 0 the "
        "warped right image no longer equals the left image (not in TAO)",
        ge=0,
        le=1,
    )


class FetchSpec(Section):
    """A data set in object storage. mode=pack and mode=reference also take a local folder."""

    results_dir: Text = key("", "Folder to write the data set to", mandatory=True)
    uri: Text = key("", "URI prefix of the data set: s3://bucket/folder", mandatory=True)
    mode: Literal["copy", "pack", "reference"] = key(
        "copy",
        "copy: fetch every file; pack: pack the files into a few tar shards, which are read in place; reference: "
        "record only where the files are, each is fetched when it is read",
    )
    shard_mib: Int = key(256, "Largest size of a tar shard in MiB, with mode=pack", ge=1)


class InfoSpec(Section):
    """Statistics of data sets."""

    results_dir: Text = key("", "Folder for info.json, report.html and disparities.png", mandatory=True)
    data_sources: DataSources = key([], "Annotation files; statistics are given for each and in total")


class ReportSpec(Section):
    """Several evaluations side by side."""

    results_dir: Text = key("", "Folder for report.html", mandatory=True)
    title: Text = key("Comparison", "Title of the page")
    results: Texts = key([], "results.json of each evaluation, or its folder; the others are compared with the first")
    names: Texts = key([], "A name for each evaluation; empty: the folders' names")


class PublishSpec(Section):
    """A model, its metrics and a model card, published to a folder or a bucket."""

    results_dir: Text = key("", "Folder for status.json and a copy of the published files", mandatory=True)
    model_path: Text = key(
        "", f"Model to publish: an engine, an ONNX file or a checkpoint, {OR_STARTER}", mandatory=True
    )
    metrics_path: Text = key("", "results.json of the model's evaluation; empty: publish no metrics")
    uri: Place = key("", "Where to publish: a folder, or s3://bucket/prefix", mandatory=True)
    title: Text = key("", "Title of the model card; empty: the file name")
    existing: Literal["refuse", "replace", "compare"] = key(
        "refuse",
        "If another model is already published there. refuse: fail; replace: replace it; compare: replace it unless "
        "the new epe is higher by more than max_epe_increase",
    )
    max_epe_increase: Float = key(0.0, "Largest allowed increase of epe in px, with existing=compare", ge=0)


class FinalStatusSpec(Section):
    """The final status of a pipeline, for its exit handler."""

    results_dir: Text = key("", "Folder for summary.md and final_status.json", mandatory=True)
    status: Mapping = key(
        {}, "Final status of the pipeline run as KFP passes it (PipelineTaskFinalStatus): state, error, ..."
    )
    title: Text = key("Pipeline", "Title of the summary")
