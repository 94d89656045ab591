"""Runs compiled pipelines without Kubeflow: on this machine and on Argo. Also compiles and submits them."""
