"""Names of the resources that `manifests/base` creates in a namespace."""

from __future__ import annotations

NAME = "stereo"
ACCOUNT = "stereo-argo"  # service account with the permissions of Argo's executor
USER = 10001  # user ID of the pods
STORAGE = "stereo-storage"  # ConfigMap with the object storage's address and region
CREDENTIALS = "stereo-s3"  # secret with the object storage's credentials
CREDENTIAL_KEYS = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}  # its keys -> variables
STORAGE_KEYS = {name: name for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
VARIABLES = "stereo-env"  # optional secret with further environment variables of the steps
VARIABLE_KEYS = {name: name for name in ("AWS_SESSION_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_URI")}
