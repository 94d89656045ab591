"""Names of what `manifests/base` puts into a namespace, for those that refer to it."""

from __future__ import annotations

NAME = "stereo"
ACCOUNT = "stereo-argo"  # may do what Argo's executor does in a pod
USER = 10001  # as whom pods run
STORAGE = "stereo-storage"  # ConfigMap: the object storage's address and region
CREDENTIALS = "stereo-s3"  # secret: those for it
CREDENTIAL_KEYS = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}  # its keys -> variables
STORAGE_KEYS = {name: name for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
VARIABLES = "stereo-env"  # secret, if there is one: further variables of the steps by their own names
VARIABLE_KEYS = {name: name for name in ("AWS_SESSION_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_URI")}
