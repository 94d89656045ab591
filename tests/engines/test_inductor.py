"""Engines of the inductor backend: what is decided before anything is compiled, and a small network from end to end."""

from __future__ import annotations

import json
import shutil
import zipfile

import cv2
import numpy as np
import pytest
import torch

from stereo_core.actions import evaluate, export, gen_trt_engine
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.engines import BuildSettings, build_engine, choose_backend, load_engine
from stereo_core.engines.files import file_kind, sidecar_path
from stereo_core.engines.inductor.program import Call, Program, execute, scheduled
from stereo_core.errors import ModelError, SpecError, UserError
from stereo_core.files import sha256_of
from stereo_core.models import create_model, save_checkpoint
from stereo_core.report.describe import describe
from stereo_core.spec import spec_from_dict

HEIGHT, WIDTH = 64, 96


class Status:
    def running(self, *_, **__):
        pass


def a_call(part, read, made, side=False):
    return Call(part, tuple((value, 0, 1) for value in read), made, side)


# Two streams: `b` and `d` run beside `a` and `c`; `e` needs both.
CALLS = (
    a_call("a", (0,), (1,)),
    a_call("b", (1,), (2,), side=True),
    a_call("c", (1,), (3,)),
    a_call("d", (2, 3), (4,), side=True),
    a_call("e", (3, 4), (5,)),
    a_call("e", (5, 5), (6,)),
)


def test_a_call_waits_once_for_what_the_other_stream_made():
    assert [call.waits for call in scheduled(CALLS, 6).calls] == [(), (0,), (), (2,), (3,), ()]


def test_memory_is_taken_back_only_after_its_own_stream_waited_for_the_reader():
    """Value 1 is read last by `c`, but that `b`, in the other stream, is over is known only when `e` waits for `d`."""
    assert [call.dropped for call in scheduled(CALLS, 6).calls] == [(), (), (), (2,), (1, 3), (5,)]


def test_a_program_computes_what_its_calls_say_and_survives_its_text():
    parts = {
        "double": lambda tensors: [2 * tensors[0], tensors[0] + 1],
        "sum": lambda tensors: [sum(tensors)],
    }
    calls = [Call("double", ((0, 0, 1),), (1, 2)), Call("sum", ((1, 0, 1), (2, 0, 1), (0, 1, 2)), (3,), side=True)]
    program = Program.from_json(scheduled(calls, 3).to_json())
    assert program == scheduled(calls, 3)
    images = torch.tensor([[5.0], [100.0]])
    assert execute(program, parts, images).tolist() == [[10 + 6 + 100]]


def test_auto_takes_it_only_with_a_checkpoint(tmp_path):
    assert choose_backend(BuildSettings()) != "inductor"
    with pytest.raises(SpecError, match=r"inductor cannot build here: .*gen_trt_engine.checkpoint"):
        choose_backend(BuildSettings(backend="inductor"))
    with pytest.raises(SpecError, match=r"gen_trt_engine.checkpoint"):
        spec_from_dict("gen_trt_engine", {"gen_trt_engine": {"backend": "inductor", "onnx_file": __file__}})


@pytest.mark.parametrize(
    "ranges", [{"heights": (32, 64, 96)}, {"widths": (None, 96, 128)}, {"min_batch": 1, "max_batch": 4, "opt_batch": 2}]
)
def test_an_engine_of_several_shapes_is_refused(colour_onnx, tmp_path, ranges):
    needs_a_compiler()
    source = colour_onnx(batch=None, height="height", width="width")
    one = {"heights": (64, 64, 64), "widths": (96, 96, 96)}
    settings = BuildSettings(backend="inductor", checkpoint="some.pth", **one | ranges)
    with pytest.raises(SpecError, match="one shape"):
        build_engine(source, tmp_path / "e.pt2", settings)


def needs_a_compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("there is no C++ compiler here, so that nothing can be compiled ahead of time")


@pytest.fixture
def package(tmp_path):
    """A package as PyTorch lays it out, that would run code, and a side-car that fits it."""
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/x.wrapper.so", b"\x7fELF")
    info = dict.fromkeys(("encoder", "variant", "max_disparity", "valid_iters", "onnx_sha256"))
    info |= dict.fromkeys(("input_height", "min_height", "max_height"), 64)
    info |= dict.fromkeys(("input_width", "min_width", "max_width"), 96)
    info |= dict.fromkeys(("min_batch", "opt_batch", "max_batch"), 1)
    info |= {"kind": "engine", "backend": "inductor", "backend_version": torch.__version__, "precision": "fp32"}
    info |= {"normalisation": "imagenet", "sha256": sha256_of(path), "target": "CPU of another kind"}
    sidecar_path(path).write_text(json.dumps(info))
    return path


@pytest.fixture
def nothing_is_opened(monkeypatch):
    """Opening a package runs its code."""

    def opened(*_, **__):
        raise AssertionError("the package was opened")

    monkeypatch.setattr("stereo_core.engines.inductor.runtime.load_parts", opened)


def test_native_code_without_its_side_car_is_not_loaded(package, nothing_is_opened):
    sidecar_path(package).unlink()
    assert file_kind(package) == "pt2"
    for call in (load_engine, describe):
        with pytest.raises(ModelError, match=r"net.pt2"):
            call(package)
    with pytest.raises(ModelError, match=r"net.pt2: the compiled PyTorch package has no side-car .*SHA-256"):
        load_engine(package)


def test_native_code_that_is_not_the_one_built_is_not_loaded(package, nothing_is_opened):
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr("net/data/aotinductor/model/more.so", b"\x7fELF")
    with pytest.raises(ModelError, match=r"net.pt2: the engine is truncated or was changed after its build .*SHA-256"):
        load_engine(package)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backend_version", "1.0", r"built by PyTorch 1.0 for .*; this machine has PyTorch"),
        ("target", "CPU of another kind", r"for CPU of another kind; this machine has a CPU"),
        ("target", "NVIDIA X, compute capability 1.0", r"for NVIDIA X, compute capability 1.0; "),
    ],
)
def test_an_engine_of_another_machine_is_refused(package, nothing_is_opened, key, value, message):
    info = json.loads(sidecar_path(package).read_text())
    sidecar_path(package).write_text(json.dumps(info | {key: value}))
    with pytest.raises(ModelError, match=message):
        load_engine(package)


def test_an_engine_for_a_cpu_does_not_go_to_a_gpu(package, nothing_is_opened):
    with pytest.raises(UserError, match=r"device cuda: .*was built for CPU"):
        load_engine(package, "cuda")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tiny network as checkpoint, ONNX file and engine of two pairs of 64 x 96, with the build's outcome."""
    needs_a_compiler()
    folder = tmp_path_factory.mktemp("inductor")
    torch.manual_seed(3)
    save_checkpoint(create_model(preset="tiny"), folder / "tiny.pth")
    section = {"checkpoint": str(folder / "tiny.pth"), "onnx_file": str(folder / "tiny.onnx"), "valid_iters": 2}
    section |= {"input_height": HEIGHT, "input_width": WIDTH, "on_cpu": True, "check": False}
    export.run(spec_from_dict("export", {"results_dir": str(folder), "export": section}), Status())
    outcome = gen_trt_engine.run(spec_from_dict("gen_trt_engine", build_spec(folder)), Status())
    return folder, outcome


def build_spec(folder, **keys):
    section = {"onnx_file": str(folder / "tiny.onnx"), "checkpoint": str(folder / "tiny.pth"), "backend": "inductor"}
    batches = dict.fromkeys(("min_batch_size", "opt_batch_size", "max_batch_size"), 2)
    return {"results_dir": str(folder), "gen_trt_engine": section | {"tensorrt": batches} | keys}


@pytest.mark.gpu  # runs on a CPU too, in many minutes
@pytest.mark.slow
class TestCompiled:
    def test_it_is_verified_against_its_onnx_file_and_says_what_it_is(self, made):
        folder, outcome = made
        path = folder / "gen_trt_engine" / "tiny.pt2"
        assert outcome.artifacts == {"engine": path} and 0 <= outcome.kpi["verify_mean_abs_difference_px"] < 0.01
        said = describe(path)
        assert (said["backend"], said["backend_version"]) == ("inductor", torch.__version__)
        assert (said["min_batch"], said["max_batch"], said["min_height"], said["max_width"]) == (2, 2, HEIGHT, WIDTH)
        assert said["onnx_sha256"] == sha256_of(folder / "tiny.onnx")
        assert load_engine(path).device == ("cuda:0" if torch.cuda.is_available() else "cpu")

    def test_it_gives_the_checkpoints_disparity_of_any_size_and_number(self, made):
        """Three pairs in batches of two, 45 x 82 px in 64 x 96: the network's own padding."""
        _, outcome = made
        scenes = [make_scene(60, 90, 12, seed) for seed in range(3)]
        left, right = (np.stack([scene[side] for scene in scenes]) for side in ("left", "right"))
        torch.manual_seed(3)
        model = create_model(preset="tiny").eval()
        with torch.no_grad():
            tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (left, right)]
            expected = model(*tensors, iters=2)[:, 0].numpy()
        engine = load_engine(outcome.artifacts["engine"])
        found = engine.infer(left, right)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        np.testing.assert_allclose(engine.infer(*tensors).numpy(), expected, atol=2e-3)
        assert len(engine.latencies_ms) == 4

    def test_evaluate_agrees_with_the_checkpoint(self, made, tmp_path):
        folder, outcome = made
        lines = []
        for index in range(2):
            scene = make_scene(HEIGHT, WIDTH, 12, index)
            files = [tmp_path / f"{index}{end}" for end in ("left.png", "right.png", "disparity.npy")]
            for file, side in zip(files, ("left", "right"), strict=False):
                cv2.imwrite(str(file), scene[side][..., ::-1])
            np.save(files[2], scene["disparity"])
            lines.append(" ".join(map(str, files)))
        (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
        source = {"dataset_name": "GenericDataset", "data_file": str(tmp_path / "pairs.txt")}
        epe = {}
        for key, file in (("checkpoint", folder / "tiny.pth"), ("trt_engine", outcome.artifacts["engine"])):
            tree = {"dataset": {"test_dataset": {"data_sources": [source], "batch_size": 1}}}
            tree |= {"evaluate": {key: str(file)}, "model": {"valid_iters": 2}, "results_dir": str(tmp_path / key)}
            epe[key] = evaluate.run(spec_from_dict("evaluate", tree), Status()).kpi["epe"]
        assert abs(epe["checkpoint"] - epe["trt_engine"]) < 0.01

    def test_a_checkpoint_of_another_network_is_refused(self, made, tmp_path):
        folder, _ = made
        shutil.copy(folder / "tiny.onnx", tmp_path)
        save_checkpoint(create_model(preset="tiny", variant="tao"), tmp_path / "tiny.pth")
        with pytest.raises(ModelError, match=r"tiny.pth: variant is tao, but .*tiny.onnx has nvlabs"):
            gen_trt_engine.run(spec_from_dict("gen_trt_engine", build_spec(tmp_path)), Status())
        assert not (tmp_path / "gen_trt_engine" / "tiny.pt2").exists()
