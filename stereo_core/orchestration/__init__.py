"""The compiled pipeline, run elsewhere than on Kubeflow."""
