"""Turns a compiled pipeline into manifests for Argo Workflows, without Kubeflow."""

from stereo_core.orchestration.argo.repository import Repository
from stereo_core.orchestration.argo.workflow import manifests

__all__ = ["Repository", "manifests"]
