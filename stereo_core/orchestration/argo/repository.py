"""The artifact repository: the bucket in which a Workflow stores its artifacts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from stereo_core.errors import UserError
from stereo_core.orchestration.argo.models import as_document, m


@dataclass(frozen=True)
class Repository:
    """The bucket in which a Workflow stores its artifacts.

    Args:
        bucket: Its name.
        prefix: Prefix of all keys of this library; may be empty.
        endpoint: host[:port] of the S3 server.
        insecure: Use http instead of https.
        secret: Name of the secret with the credentials; empty: use those of the pod's service account.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = "s3.amazonaws.com"
    insecure: bool = False
    secret: str = ""

    @classmethod
    def of(cls, uri: str, endpoint: str = "", secret: str = "") -> Repository:
        """From `s3://BUCKET[/PREFIX]` and `[http[s]://]HOST[:PORT]`.

        Raises:
            UserError: another scheme, or no bucket.
        """
        bucket, key = bucket_and_key(uri, "--artifact-repository", wanted="s3://BUCKET[/PREFIX]")
        server = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        if server.username or server.password:
            raise UserError(
                "--endpoint: the address contains credentials, which would be in the manifests; use --secret"
            )
        if server.scheme not in ("http", "https") or server.path.strip("/"):
            raise UserError(f"--endpoint {endpoint}: expected [http[s]://]HOST[:PORT]")
        return cls(bucket, key, server.netloc or cls.endpoint, server.scheme == "http", secret)

    def location(self, bucket: str, key: str) -> m.S3Artifact:
        """The location of an artifact on this server, with the secret for access."""
        return m.S3Artifact(bucket=bucket, key=key, **self._access())

    @property
    def key_format(self) -> str:
        """The prefix of the keys of a pod's artifacts."""
        return "/".join(filter(None, (self.prefix, "{{workflow.name}}", "{{pod.name}}")))

    def config_map(self, name: str) -> dict[str, Any]:
        """The ConfigMap that Argo's artifactRepositoryRef refers to."""
        s3 = {"bucket": self.bucket, "keyFormat": self.key_format} | as_document(m.S3Artifact(**self._access()))
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"repository": json.dumps({"s3": s3}, indent=2) + "\n"},
        }

    def _access(self) -> dict[str, Any]:
        access = {"endpoint": self.endpoint, "insecure": self.insecure or None}
        if not self.secret:
            return access | {"use_sdk_creds": True}
        return access | {
            "access_key_secret": m.SecretKeySelector(name=self.secret, key="accesskey"),
            "secret_key_secret": m.SecretKeySelector(name=self.secret, key="secretkey"),
        }


def bucket_and_key(uri: str, where: str, wanted: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?:s3|minio|aws)://([^/{}]+)/?(.*?)/*", uri)
    if not found or (not found[2] and wanted.endswith("KEY")):
        raise UserError(f"{where}: {uri} is not a location in a bucket; expected {wanted}")
    return found[1], found[2]
