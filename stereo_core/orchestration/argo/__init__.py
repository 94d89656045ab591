"""A compiled pipeline -> manifests for Argo Workflows, without Kubeflow."""

from stereo_core.orchestration.argo.workflow import Repository, manifests

__all__ = ["Repository", "manifests"]
