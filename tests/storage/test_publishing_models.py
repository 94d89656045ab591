"""publish_model to a real S3 server: the model is whole there, and the note decides which one counts."""

from __future__ import annotations

import json

import pytest
import torch

from stereo_core import storage
from stereo_core.files import sha256_of
from stereo_core.models import create_model
from stereo_core.models.checkpoints import save_checkpoint
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


def test_the_last_good_model_in_a_bucket(store, tmp_path, capfd):
    torch.manual_seed(0)
    model, uri = tmp_path / "night.pth", "s3://artifacts/models/night"
    save_checkpoint(create_model(preset="tiny"), model)

    def publish(epe: float) -> int:
        storage.forget()  # each is a run of its own
        metrics = tmp_path / "metrics.json"
        metrics.write_text(json.dumps({"epe": epe}))
        spec = {"model_path": str(model), "metrics_path": str(metrics), "uri": uri, "existing": "compare"}
        return perform(
            "publish_model", spec_from_dict("publish_model", spec | {"results_dir": str(tmp_path / "results")})
        )

    def note() -> dict:
        storage.forget()
        return json.loads(storage.read(f"{uri}/published.json"))

    assert publish(1.0) == 0
    first = note()
    assert storage.stored_digest(f"{uri}/{first['version']}/night.pth") == sha256_of(model)
    assert publish(1.5) == 1 and "nothing was published" in capfd.readouterr().err
    assert note() == first
    assert publish(0.5) == 0 and note()["metrics"] == {"epe": 0.5}
    names = {name.split("/")[0] for name in storage.children(uri, recursive=True)}
    assert names == {"published.json", first["version"], note()["version"]}
