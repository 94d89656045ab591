"""The network in the package: it finds disparities it was never shown, and learns a new style from a dozen scenes."""

from __future__ import annotations

from pathlib import Path

from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict


def listed(folder: Path, **scenes) -> dict:
    """Synthetic scenes as files; an entry of data_sources."""
    assert perform("synthesize", spec_from_dict("synthesize", {"results_dir": str(folder), **scenes})) == 0
    kinds = ("left/rgb", "right/rgb", "left/disparity")
    data = [f"scene_{number:04d}/dataset/data" for number in range(scenes["num_scenes"])]
    lines = [" ".join(f"{one}/{kind}/0000.png" for kind in kinds) for one in data]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return {"data_file": str(folder / "list.txt"), "dataset_name": "FSD"}


def evaluated(folder: Path, source: dict, checkpoint: str) -> float:
    """Its EPE in px, model.preset and model.max_disparity being left to the checkpoint."""
    dataset = {"max_disparity": 192, "test_dataset": {"data_sources": [source], "workers": 0}}
    tree = {"dataset": dataset, "evaluate": {"checkpoint": checkpoint, "results_dir": str(folder)}}
    outcomes = []
    assert perform("evaluate", spec_from_dict("evaluate", tree), on_outcome=outcomes.append) == 0
    return outcomes[0].kpi["epe"]


def test_it_finds_the_disparities_of_scenes_it_never_saw(tmp_path):
    source = listed(tmp_path / "scenes", num_scenes=2, height=192, width=384, max_disparity=48, seed=70)
    epe = evaluated(tmp_path / "out", source, "starter")
    assert epe < 4  # random weights are some 40 px off
