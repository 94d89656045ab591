"""Damaged weights, ONNX files and side-cars are read or refused by name, and take no more memory than their size."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mutations import damaged, damaged_tree, inputs, zipped
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

from stereo_core.engines.files import SIDECAR_KEYS, add_metadata, sidecar_path, write_sidecar
from stereo_core.errors import ModelError, UserError
from stereo_core.files import sha256_of
from stereo_core.models import create_model
from stereo_core.models.checkpoints import to_tao
from stereo_core.models.files import read_sidecar, sidecar_of
from stereo_core.report.describe import as_text, describe
from stereo_core.training.checkpoints import Progress, read_progress, read_seed

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
SETTINGS = {"hyper_parameters": {"model": {"max_disparity": 64, "valid_iters": 2}}, "epoch": 3, "global_step": 70}


@pytest.fixture(scope="module")
def states() -> list[dict]:
    """What tells a network by its keys and shapes, its tensors otherwise of one number; NVlabs' names and TAO's."""
    torch.manual_seed(0)
    whole = create_model(preset="tiny").state_dict()
    state = {key: t if t.numel() < 64 else t.new_zeros(1).expand(t.shape) for key, t in list(whole.items())[::9]}
    state |= {key: t.new_zeros(1).expand(t.shape) for key, t in whole.items() if key.endswith("pos_embed")}
    state |= {key: whole[key] for key in whole if key.startswith(("cost_agg.conv_patch.1", "corr_stem.1.bn"))}
    return [state, {f"model.{to_tao(key)}": tensor for key, tensor in state.items()}]


def torch_saved(content: object, **options) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def checkpoints(states) -> list[bytes]:
    ours, tao = states
    contents = [{"model": ours} | SETTINGS, {"state_dict": tao, "pytorch-lightning_version": "2.5"} | SETTINGS]
    whole = torch_saved(contents[0])
    name, pickled, others = opened(whole)
    compressed = zipped(name, others, zipfile.ZIP_DEFLATED)(pickled)
    before_zip = torch_saved(contents[0], _use_new_zipfile_serialization=False)
    return [whole, torch_saved(contents[1]), before_zip, compressed]


@pytest.fixture(scope="module")
def module() -> bytes:
    """A whole module of NVlabs' classes, as `torch.save(model)` writes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("core", "core.foundation_stereo"):
            patch.setitem(sys.modules, name, ModuleType(name))
        kind = type("Net", (nn.Module,), {"__module__": "core.foundation_stereo"})
        sys.modules["core.foundation_stereo"].Net = kind
        net = kind()
        net.args = {"max_disp": 192, "valid_iters": 8}
        net.body = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
        return torch_saved(net)


def opened(data: bytes) -> tuple[str, bytes, dict[str, bytes]]:
    """The pickle of a file of torch.save, its name, and the other entries."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("/data.pkl"))
    return name, entries.pop(name), entries


def described(path: Path) -> None:
    try:
        as_text(describe(path))
    except UserError as error:
        assert str(error)


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_checkpoint(checkpoints, tmp_path, counted):
    path = tmp_path / "c.pth"

    @inputs(damaged(checkpoints))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(data)
        described(path)

    attempt()


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("kind", ["ours", "module"])
@pytest.mark.usefixtures("little_memory")
def test_a_damaged_pickle_in_a_whole_zip_file(checkpoints, module, tmp_path, counted, kind, how):
    path = tmp_path / "c.pth"
    files = [opened(data) for data in (checkpoints[:2] if kind == "ours" else [module])]
    cases = (damaged([pickled]).map(zipped(name, others, how)) for name, pickled, others in files)

    @inputs(st.one_of(*cases))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(data)
        described(path)

    attempt()


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_module(module, tmp_path, counted):
    path = tmp_path / "m.pth"

    @inputs(damaged([module]))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(data)
        described(path)

    attempt()


@pytest.mark.usefixtures("little_memory")
def test_damaged_safetensors(states, tmp_path, counted):
    path = tmp_path / "c.safetensors"
    small = {key: tensor.clone() for key, tensor in states[0].items() if tensor.numel() < 64}
    metadata = {"hyper_parameters": json.dumps(SETTINGS["hyper_parameters"])}

    @inputs(damaged([save(small), save(small, metadata)]))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(data)
        described(path)

    attempt()


def state_of_a_run() -> dict:
    """What a training leaves to go on from; its one tensor is small."""
    counts = {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    progress = {"total": counts, "current": counts}
    batches = progress | {"is_last_batch": False}
    loops = {"fit_loop": {"epoch_progress": progress, "epoch_loop.batch_progress": batches}}
    run = {"epoch": 1, "global_step": 70, "loops": loops, "optimizer_states": [{}], "rng": {"seed": 5}}
    return run | {"state_dict": {"model.w": torch.zeros(4)}}


def how_far(path: Path) -> tuple[Progress, int]:
    return read_progress(path), read_seed(path)


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_checkpoint_to_resume(tmp_path, counted):
    path, whole = tmp_path / "c.pth", state_of_a_run()
    name, pickled, others = opened(torch_saved(whole))
    weights = whole.pop("state_dict")
    trees = damaged_tree([whole]).map(lambda tree: torch_saved(tree | weights if isinstance(tree, dict) else tree))
    files = damaged([torch_saved(whole | weights)])

    @inputs(st.one_of(files, damaged([pickled]).map(zipped(name, others)), trees))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(data)
        try:
            how_far(path)
        except UserError as error:
            assert str(path) in str(error)

    attempt()


def test_the_state_of_a_run_is_whole_or_named(tmp_path):
    torch.save(state_of_a_run(), tmp_path / "c.pth")
    assert how_far(tmp_path / "c.pth") == (Progress(epochs=1, batches=3, steps=70), 5)
    for damage in ({"loops": {}}, {"loops": []}, {"rng": []}, {"epoch": "1"}):
        torch.save(state_of_a_run() | damage, tmp_path / "c.pth")
        with pytest.raises(ModelError, match=r"c\.pth: the state of its training run is damaged"):
            how_far(tmp_path / "c.pth")


@pytest.mark.parametrize("read", [describe, read_progress])
@pytest.mark.usefixtures("little_memory")
def test_a_zip_file_that_would_inflate_is_not_inflated(tmp_path, read):
    """torch.load itself would, to whatever its directory says."""
    name, pickled, others = opened(torch_saved({"model": {"w": torch.zeros(4)}}))
    bomb = next(key for key in others if key.endswith("/data/0"))
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, pickled)
        with archive.open(bomb, "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
    with pytest.raises(ModelError, match="compressed"):
        read(path)


def test_a_pickle_that_would_run_something_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / "e.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(ModelError, match="run code"):
        describe(tmp_path / "e.pth")
    assert not (tmp_path / "ran").exists()


# -- ONNX and side-cars -----------------------------------------------------------------------------------------------


def graph() -> bytes:
    """Left red plus right red, and a weight that is quantised, as a file of our contract."""
    images = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 32, 32]) for n in ("left_image", "right_image")
    ]
    disparity = helper.make_tensor_value_info("disparity", TensorProto.FLOAT, [1, 1, 32, 32])
    weights = {"w": np.full((1, 3, 1, 1), 7, np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    nodes = [
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.float32([0.5]))),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"]),
        helper.make_node("Conv", ["left_image", "f", "b"], ["l"]),
        helper.make_node("Conv", ["right_image", "f"], ["r"]),
        helper.make_node("Add", ["l", "r"], ["disparity"]),
    ]
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "sums", images, [disparity], initial)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    add_metadata(model, {"input_height": 32, "input_width": 32, "max_disparity": 64, "valid_iters": 2})
    return model.SerializeToString()


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_onnx_file(tmp_path, counted):
    path = tmp_path / "m.onnx"

    @inputs(damaged([graph()]))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(data)
        described(path)

    attempt()


@pytest.fixture
def engine(tmp_path) -> Path:
    """An ONNX file with a side-car of ours, which makes it an engine."""
    path = tmp_path / "m.engine"
    path.write_bytes(graph())
    sizes = {f"{end}_{side}": 32 for end in ("min", "max", "input") for side in ("height", "width")}
    said = {"kind": "engine", "backend": "onnxruntime", "precision": "int8", "normalisation": "imagenet"}
    said |= {"sha256": sha256_of(path), "min_batch": 1, "opt_batch": 1, "max_batch": 1}
    write_sidecar(path, dict.fromkeys(SIDECAR_KEYS) | sizes | said)
    return path


def side_cars(info: dict) -> st.SearchStrategy[bytes]:
    text = json.dumps(info).encode()
    trees = damaged_tree([info]).map(lambda tree: json.dumps(tree).encode("utf-8", "surrogatepass"))
    return st.one_of(damaged([text]), trees)


def test_a_damaged_side_car(engine, counted):
    info = json.loads(sidecar_path(engine).read_text())

    @inputs(side_cars(info))
    def attempt(text: bytes) -> None:
        counted()
        sidecar_path(engine).write_bytes(text)
        described(engine)

    attempt()


def test_a_damaged_note_beside_a_checkpoint(tmp_path, counted):
    path = tmp_path / "c.pth"
    path.write_bytes(torch_saved({"x": torch.zeros(2)}))
    note = {"kind": "checkpoint", "sha256": "0" * 64, "epoch": 1, "metrics": {"val_loss": 0.5}}

    @inputs(side_cars(note))
    def attempt(text: bytes) -> None:
        counted()
        sidecar_of(path).write_bytes(text)
        assert isinstance(read_sidecar(path), dict)
        described(path)

    attempt()


def test_the_seeds_are_whole(checkpoints, module, engine, tmp_path):
    """What is damaged above can be read undamaged; a seed that is refused from the start would test nothing."""
    for number, data in enumerate(checkpoints[:-1]):  # the last one, compressed, is refused as such
        (path := tmp_path / f"{number}.pth").write_bytes(data)
        assert describe(path)["network"] == "FoundationStereo"
    (tmp_path / "m.onnx").write_bytes(engine.read_bytes())
    assert describe(tmp_path / "m.onnx")["precision"] == "int8" == describe(engine)["precision"]
    (tmp_path / "m.pth").write_bytes(module)
    with pytest.raises(
        ModelError, match="not a checkpoint of FoundationStereo or FastFoundationStereo; its first weights are body"
    ):
        describe(tmp_path / "m.pth")
