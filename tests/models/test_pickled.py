"""NVlabs' pickled module is read without running it; whatever else such a file may hold is refused by name."""

from __future__ import annotations

import functools
import json
import marshal
import os
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType

import fast_parity
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from stereo_core.errors import ModelError
from stereo_core.models import load_model
from stereo_core.models.checkpoints import convert_checkpoint, describe
from stereo_core.models.pickled import read_module


class Genuine:
    """Modules in the layout of the published file, made without their constructors and without NVlabs' code."""

    def __init__(self, shared: Path, monkeypatch, root: str = "core"):
        self.tree = json.loads((shared / "model" / "ffs_bp2_module_tree.json").read_text())
        self.monkeypatch, self.root = monkeypatch, root
        self.args = OmegaConf.create({key: v for key, v in self.tree["args"].items() if key != "normalize"})

    def build(self, state: dict) -> nn.Module:
        made = {}
        for path, name, attributes, entries in self.tree["modules"]:
            module = made[path] = self.empty(name)
            module.__dict__ |= {key: self.attribute(value) for key, value in attributes.items()}
            prefix = f"{path}." if path else ""
            for key in entries["parameters"]:
                name, sign, _ = key.partition("=")
                module._parameters[name] = None if sign else nn.Parameter(state[prefix + name])
            for key in entries["buffers"]:
                name, sign, _ = key.partition("=")
                module._buffers[name] = None if sign else state[prefix + name]
        for path, _, _, entries in self.tree["modules"]:
            for child in entries["children"]:
                made[path]._modules[child] = made[f"{path}.{child}" if path else child]
        return made[""]

    def empty(self, name: str) -> nn.Module:
        module = nn.Module()
        module.__class__ = self.found(name)
        return module

    def found(self, name: str) -> type:
        """The class of this name: torch's own, else an empty one in a made-up module."""
        where, _, last = name.rpartition(".")
        if where.startswith("torch."):
            return getattr(sys.modules[where], last)
        where = where.replace("core", self.root)
        for end, _ in enumerate(parts := where.split("."), start=1):
            module = ".".join(parts[:end])
            if module not in sys.modules:
                self.monkeypatch.setitem(sys.modules, module, ModuleType(module))
        if not hasattr(sys.modules[where], last):
            setattr(sys.modules[where], last, type(last, (nn.Module,), {"__module__": where}))
        return getattr(sys.modules[where], last)

    def attribute(self, value):
        match value:
            case ["tuple", *items]:
                return tuple(items)
            case ["list", *items]:
                return items
            case str() if value.startswith("class "):
                return self.found(value.removeprefix("class "))
            case str() if value.startswith("object omegaconf."):
                return self.args
            case str() if value.startswith("tensor ["):
                return torch.zeros(json.loads(value[value.index("[") : value.index("]") + 1]))
            case "torch.float32":
                return torch.float32
        return value


@pytest.fixture(scope="module")
def keys(shared: Path) -> list:
    """Key, shape and dtype of every tensor of the published file, in its order."""
    return json.loads((shared / "model" / "state_dict_ffs_bp2_serialize.json").read_text())["state_dict"]


@pytest.fixture(scope="module")
def genuine(shared: Path, fill, keys, tmp_path_factory):
    """A file in the published layout, its weights those of fill.py, and these weights."""
    state = fill.deterministic_state_dict(keys)
    path = tmp_path_factory.mktemp("genuine") / "model_best_bp2_serialize.pth"
    with pytest.MonkeyPatch.context() as patch:
        torch.save(Genuine(shared, patch).build(state), path)
    yield path, state
    path.unlink()


def test_the_published_layout(genuine, keys):
    path, weights = genuine
    state, settings = read_module(path)
    assert [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in state.items()] == keys
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    assert not any(name.split(".")[0] in ("core", "timm") for name in sys.modules)
    wanted = {"max_disp": 192, "vit_size": "vitl", "hidden_dims": [128], "volume_dim": 28, "concat_channel": 24}
    assert wanted.items() <= settings.items()
    assert type(settings["hidden_dims"]) is list
    assert "normalize" not in settings


def test_describe_says_what_it_is(genuine):
    found = describe(genuine[0])
    assert (found["layout"], found["network"], found["tensors"]) == ("module", "FastFoundationStereo", 722)


def test_it_loads_into_the_network_as_tao_s_layout_does(genuine, golden, pair, tmp_path):
    """Both give the disparity that NVlabs' code gave with these weights."""
    path, _ = genuine
    convert_checkpoint(path, tmp_path / "tao.pth", "tao")
    reference = golden("fast_bp2_serialize_128x160_d192_it4")
    left, right, _ = map(torch.from_numpy, pair.make_pair(128, 160, 40.0, reference.info["image_seed"]))
    for file in (path, tmp_path / "tao.pth"):
        model = load_model(file).eval()
        assert (model.config.max_disparity, model.config.valid_iters) == (192, 8)
        with torch.no_grad():
            assert fast_parity.misses(reference, "disp", model(left, right, iters=4), bp2=True) is None


class Net(nn.Module):
    """A small module; `written` gives its class a name that the reader knows."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.register_buffer("dx", torch.arange(3, dtype=torch.int8))
        self.relu = True


def written(folder: Path, content, name: str = "core.foundation_stereo") -> Path:
    """torch.save, while Net is a class of this made-up module."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (name.partition(".")[0], name):
            patch.setitem(sys.modules, module, ModuleType(module))
        patch.setattr(sys.modules[name], "Net", Net, raising=False)
        patch.setattr(Net, "__module__", name)
        torch.save(content, folder / "m.pth")
    return folder / "m.pth"


def with_attribute(folder: Path, value) -> Path:
    net = Net()
    net.__dict__["odd"] = value
    return written(folder, net)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_module(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["core.foundation_stereo", "foundation_stereo_ori.core"])
def test_a_module_reads_as_its_state_dict(tmp_path, name):
    net = Net()
    state, settings = read_module(written(tmp_path, net, name))
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert settings == {"relu": True}


def test_strided_and_shared_weights(tmp_path):
    net = Net()
    whole = torch.arange(24.0)
    net.head.weight.data = whole[8:20].reshape(3, 4, 1, 1).transpose(0, 1)
    net.norm.running_mean = whole[2:6]
    state, _ = read_module(written(tmp_path, net))
    assert torch.equal(state["head.weight"], net.head.weight)
    assert torch.equal(state["norm.running_mean"], net.norm.running_mean)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Armed:
    """Would run on loading."""

    def __setstate__(self, state):
        raise AssertionError("the pickle ran")

    def __getstate__(self):
        return {"a": 1}


def zeros() -> torch.TypedStorage:
    return torch.zeros(4)._typed_storage()


def tensor(*view) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, zeros(), *view, False, OrderedDict())


HOSTILE = {
    "a shell": (lambda mark: Call(os.system, f"touch {mark}"), "names posix.system"),
    "code": (lambda mark: Call(marshal.loads, b"x"), "names marshal.loads"),
    "eval": (lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), "names __builtin__.eval"),
    "getattr": (lambda mark: Call(getattr, Path(mark), "touch"), "names __builtin__.getattr"),
    "open": (lambda mark: Call(open, str(mark), "w"), "open"),
    "numpy": (lambda mark: np.ones(3), "multiarray._reconstruct"),
    "partial": (lambda mark: functools.partial(print), "names functools.partial"),
    "another pickle": (lambda mark: Call(pickle.loads, b"N."), "pickle.loads"),
    "another file": (lambda mark: Call(torch.load, str(mark)), "names torch.serialization.load"),
    "setstate": (lambda mark: Armed(), "names test_pickled.Armed"),
    "a layer called": (lambda mark: Call(nn.Linear, 1, 1), "it calls torch.nn.modules.linear.Linear"),
    "a dict of a list": (lambda mark: Call(OrderedDict, [("a", 1)]), "collections.OrderedDict with arguments"),
    "a default factory": (lambda mark: defaultdict(nn.Linear(1, 1).forward), "getattr"),
    "a set of text": (lambda mark: Call(set, "abc"), "set with arguments"),
    "no parameter": (lambda mark: Call(torch._utils._rebuild_parameter, 1, True, OrderedDict()), "with arguments"),
    "a hook": (lambda mark: Call(torch._utils._rebuild_parameter, torch.ones(1), True, OrderedDict(a=1)), "arguments"),
    "a device": (lambda mark: torch.device("cpu"), "names torch.device"),
    "bytes": (lambda mark: b"abc", "names _codecs.encode"),
    "a key that is no text": (lambda mark: {(1, 2): 3}, "a tuple as key"),
    "too far": (lambda mark: tensor(2, (3,), (1,)), "does not fit its tensor data"),
    "too wide": (lambda mark: tensor(0, (2, 2), (3, 1)), "does not fit its tensor data"),
    "endless": (lambda mark: tensor(0, (1 << 40,), (0,)), "does not fit its tensor data"),
    "product": (lambda mark: tensor(0, (4,) * 8, (0,) * 8), "does not fit its tensor data"),
    "backwards": (lambda mark: tensor(3, (4,), (-1,)), "does not fit its tensor data"),
    "empty": (lambda mark: tensor(0, (0, 4), (1, 1)), "does not fit its tensor data"),
    "dimensions": (lambda mark: tensor(0, (1,) * 9, (1,) * 9), "does not fit its tensor data"),
    "no number": (lambda mark: tensor(0, ("4",), (1,)), "does not fit its tensor data"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_weight_is_refused_by_name(tmp_path, case):
    make, said = HOSTILE[case]
    message = refusal(with_attribute(tmp_path, make(tmp_path / "mark")))
    assert said in message
    assert "save only the weights" in message
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("protocol", [4, 5])
def test_later_protocols_are_refused(tmp_path, protocol):
    torch.save(nn.Linear(1, 1), tmp_path / "m.pth", pickle_protocol=protocol)
    assert "pickle instruction FRAME" in refusal(tmp_path / "m.pth")


def archive(folder: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> Path:
    """A zip file around a pickle that is written by hand."""
    with zipfile.ZipFile(folder / "m.pth", "w", compression) as file:
        file.writestr("m/data.pkl", b"\x80\x02" + program)
        for key, content in storages.items():
            file.writestr(f"m/data/{key.removeprefix('_')}", content)
    return folder / "m.pth"


EMPTY = b"(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_buffers}X\x08\x00\x00\x00_modules}u"
LAYER = b"ccore.a\nB\n)\x81"
PROGRAMS = {
    "a lambda": (b"ctypes\nFunctionType\n(ctypes\nCodeType\n)RtR.", "names types.FunctionType"),
    "slots": (LAYER + b"N}X\x09\x00\x00\x00__class__cposix\nsystem\ns\x86b.", "names posix.system"),
    "slots of records": (LAYER + b"N}\x86b.", "are no dict"),
    "attributes of a class": (b"ccore.a\nB\n}b.", "it sets attributes of core.a.B"),
    "attributes twice": (LAYER + b"}X\x01\x00\x00\x00aK\x01sb}b.", "set twice"),
    "an instance with arguments": (b"ccore.a\nB\nK\x01\x85\x81.", "core.a.B with arguments"),
    "an instance of a call": (b"c__builtin__\nset\n)\x81.", "an object of __builtin__.set"),
    "a call of an object": (LAYER + b")R.", "it calls core.a.B"),
    "old instance": (b"(iposix\nsystem\n.", "pickle instruction INST"),
    "old object": (b"(cposix\nsystem\no.", "names posix.system"),
    "name from the stack": (b"\x8c\x05posix\x8c\x06system\x93.", "pickle instruction SHORT_BINUNICODE"),
    "extension": (b"\x82\x01.", "pickle instruction EXT1"),
    "out of band": (b"\x97\x98.", "pickle instruction NEXT_BUFFER"),
    "bytes": (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
    "text longer than the file": (b"X\xff\xff\xff\x7fa.", "damaged"),
    "nothing": (b".", "damaged"),
    "no end": (b"}", "damaged"),
    "no mark": (b"}u.", "damaged"),
    "odd items": (b"}(X\x01\x00\x00\x00au.", "damaged"),
    "not in the memo": (b"h\x05.", "damaged"),
    "items added to a record": (LAYER + b"X\x01\x00\x00\x00aK\x01s.", "no dict"),
    "an item for a tuple": (b")K\x01a.", "no list"),
    "a dict": (b"}.", "the file holds"),
    "no module": (LAYER + b"}b.", "without _parameters"),
    "reference by text": (b"Pabc\n.", "pickle instruction PERSID"),
    "reference": (b"X\x01\x00\x00\x00aQ.", "not a tensor's numbers"),
    "strange storage": (b"(X\x07\x00\x00\x00storageccore.a\nB\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
                        "not a tensor's numbers"),
    "a module in itself": (LAYER + b"q\x00}" + EMPTY[:-1] + b"X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00sub.",
                           "is not a name that PyTorch gives to a weight or layer"),
    "terminal": (b"c\x1b[2J\nx\n.", r"\x1b[2J.x"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_by_hand(tmp_path, case):
    program, said = PROGRAMS[case]
    assert said in refusal(archive(tmp_path, program))


def test_a_memo_of_any_index(tmp_path):
    """Python's own unpickler takes 32 GiB for this."""
    state, _ = read_module(archive(tmp_path, LAYER + b"r\xff\xff\xff\x7f}" + EMPTY + b"b."))
    assert state == {}


def test_nests_do_not_take_for_ever(tmp_path):
    doubled = b")" + b"q\x00h\x00\x86" * 1000
    assert "a tuple as key" in refusal(archive(tmp_path, b"}" + doubled + b"Ns."))
    settings = EMPTY[:-1] + b"X\x04\x00\x00\x00args" + doubled + b"u"
    assert "levels" in refusal(archive(tmp_path, LAYER + b"}" + settings + b"b."))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_module(tmp_path, share):
    path = written(tmp_path, Net())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "truncated, damaged" in refusal(path)


def test_zip_bombs(tmp_path):
    assert "m/data.pkl is compressed" in refusal(archive(tmp_path, b"}" * 10**6, zipfile.ZIP_DEFLATED))
    assert "data.pkl has 2.9 MiB" in refusal(archive(tmp_path, b"}" * 3_000_000))


def test_an_entry_that_would_be_larger_than_the_file_is_not_read(tmp_path):
    """zipfile would ask for the gigabyte at once."""
    path = archive(tmp_path, b"}.", _0=b"1234")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 20  # of the directory's entry: its size in the file, and that of its content
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    assert "the sizes of its entries add up to more than the file's" in refusal(path)


def rewritten(path: Path, change) -> Path:
    """The same zip file, its contents changed by entry name."""
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in contents.items():
            file.writestr(name, change(name, content))
    return path


def test_storages_that_are_not_what_the_pickle_says(tmp_path):
    path = rewritten(written(tmp_path, Net()), lambda name, data: data[:-4] if "/data/0" in name else data)
    assert "tensor data 0 has 8 bytes, not 3 numbers of torch.float32" in refusal(path)
    path = rewritten(written(tmp_path, Net()), lambda name, data: b"big" if name.endswith("byteorder") else data)
    assert "big-endian" in refusal(path)


def test_a_byte_of_a_weight_that_flipped(tmp_path):
    net = Net()
    path = written(tmp_path, net)
    whole = bytearray(path.read_bytes())
    whole[whole.index(net.head.weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes(whole)
    assert "damaged" in refusal(path)


def test_an_entry_name_that_is_no_text(tmp_path):
    path = archive(tmp_path, b"}.", _é=b"abcd")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    assert "damaged" in refusal(path)


def test_every_reader_of_weights_refuses_it(tmp_path):
    path = with_attribute(tmp_path, Call(os.system, f"touch {tmp_path / 'mark'}"))
    with pytest.raises(ModelError, match=r"names posix\.system"):
        describe(path)
    assert not (tmp_path / "mark").exists()


def test_files_of_other_kinds(tmp_path):
    assert "cannot read the file" in refusal(tmp_path / "none.pth")
    torch.save(Net().state_dict(), tmp_path / "m.pth")
    assert "it sets attributes of a dict" in refusal(tmp_path / "m.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "no zip file" in refusal(tmp_path / "old.pth")
