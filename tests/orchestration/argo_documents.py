"""Manifests of small pipelines, and the resources' own schemas."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import jsonschema
import yaml
from needs import lacking
from small_ir import container, pipeline

from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.dag import Pipeline
from stereo_core.orchestration.graph import load_pipeline, read_pipeline

SCHEMAS = Path(__file__).parents[3] / "shared/schemas"
REPOSITORY = Repository.of("s3://artifacts/stereo", "http://minio:9000", "minio-keys")


FOLDERS = {folder.name: folder for folder in pipeline_folders()}


@functools.cache
def pipeline_of(name: str) -> Pipeline:
    """A pipeline of this repository, read once: that takes longer than what a test does with it."""
    return load_pipeline(compiled_path(FOLDERS[name]))


def kinds(documents: list[dict], kind: str) -> list[dict]:
    return [document for document in documents if document["kind"] == kind]


def spec_of(documents: list[dict]) -> dict:
    """The Workflow's."""
    return kinds(documents, "Workflow")[0]["spec"]


def documents_of(spec: dict, arguments=None, platform=None, repository=REPOSITORY, **options) -> list[dict]:
    """The manifests of PipelineSpec IR."""
    text = yaml.safe_dump_all([spec, platform] if platform else [spec])
    return manifests(read_pipeline(text, Path("pipeline.yaml")), arguments or {}, repository, **options)


@functools.cache
def _validator(kind: str, version: str) -> jsonschema.Draft202012Validator:
    schema = SCHEMAS / f"argoproj.io_v1alpha1_{kind}{version}.json.gz"
    if not schema.is_file():
        lacking("shared", f"{schema} is not here")
    return jsonschema.Draft202012Validator(json.loads(gzip.decompress(schema.read_bytes())))


def validate(documents: list[dict], version: str = "4.0") -> None:
    """By the full definitions of 3.7 or 4.0."""
    suffix = {"3.7": ".argo-3.7", "4.0": ""}[version]
    for kind in ("Workflow", "CronWorkflow", "WorkflowTemplate"):
        for document in kinds(documents, kind):
            _validator(kind, suffix).validate(document)


IMPORTER = {
    "executorLabel": "exec-get",
    "inputDefinitions": {"parameters": {"uri": {"parameterType": "STRING"}}},
    "outputDefinitions": {
        "artifacts": {"artifact": {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}}
    },
}


def imported_spec(uri: dict) -> dict:
    """An importer before a step that writes its ExecutorInput and, behind it, the imported text."""
    code = "import sys, pathlib; m, i, o = sys.argv[1:]; pathlib.Path(o).write_text(m + '\\n' + open(i + '/f').read())"
    step = container(code, ("out",), ("in",))
    step["args"] = ["{{$}}", *step["args"]]
    spec = pipeline({"use": step}, {"use": {"in": ("get", "artifact")}}, where={"parameterType": "STRING"})
    spec["components"]["comp-get"] = IMPORTER
    spec["deploymentSpec"]["executors"]["exec-get"] = {
        "importer": {"artifactUri": {"runtimeParameter": "uri"}, "metadata": {"kind": "images"}}
    }
    task = {"componentRef": {"name": "comp-get"}, "inputs": {"parameters": {"uri": uri}}}
    spec["root"]["dag"]["tasks"]["get"] = task
    return spec
