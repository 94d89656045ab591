"""What is accepted, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from stereo_core.errors import SpecError
from stereo_core.spec import load_spec, results_dir, spec_from_dict
from stereo_core.spec.loading import build, checked, read_tree
from stereo_core.spec.text import parse

TRAIN = {"results_dir": "r", "dataset": {"train_dataset": {"data_sources": [{"data_file": "data/train.txt"}]}}}


def refusal(verb: str, text: str | None, *overrides: str) -> list[str]:
    """The lines of complaint about `spec.yaml` with this text, or about overrides alone."""
    path = None
    if text is not None:
        path = Path("spec.yaml")
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as error:
        load_spec(verb, path, list(overrides))
    return str(error.value).splitlines()


def test_an_unknown_key_names_the_file_the_path_and_the_nearest_key(workspace):
    lines = refusal(
        "convert",
        "data_root: data\nresults_dir: r\nimage_extention: .png\n",
    )
    assert lines == ["spec.yaml: image_extention: unknown key; did you mean image_extension?"]


def test_a_spec_whose_files_are_elsewhere_is_refused_in_the_same_words():
    assert checked("train", {"train": {"num_epochs": 2}}, "there.yaml").train.num_epochs == 2
    with pytest.raises(SpecError) as error:
        checked("train", {"train": {"num_epochs": "x"}, "qqqq": 1}, "there.yaml")
    number, unknown = str(error.value).splitlines()
    assert number.startswith("there.yaml: train.num_epochs: ") and unknown.startswith("there.yaml: qqqq: unknown key; ")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("model.stereo_backbone.encoder", "model.encoder"),
        ("train.lr", "train.optim.lr"),
        ("num_epochs", "train.num_epochs"),
        ("gen_trt_engine.workspace_size", "gen_trt_engine.tensorrt.workspace_size"),
        ("trian", "train"),
        ("dataset.val_dataset.augmentation.cropsize", "dataset.val_dataset.augmentation.crop_size"),
        ("evaluate.trt_engin", "evaluate.trt_engine"),
    ],
)
def test_the_nearest_key_is_the_one_meant(workspace, written, meant):
    assert f"command line: {written}: unknown key; did you mean {meant}?" in refusal("train", None, f"{written}=1")


def test_a_key_like_no_other_gets_no_guess(workspace):
    mend = "see all keys of train with `depth_net default_specs train`"
    assert f"command line: qqqq: unknown key; {mend}" in refusal("train", None, "qqqq=1")


def test_info_with_the_spec_of_a_training_names_the_keys_of_info(workspace):
    mend = "info reads only results_dir, data_sources at the top level; see all keys of info with"
    spec = "results_dir: r\nmodel: {encoder: vits}\ndataset: {train_dataset: {data_sources: []}}\ntrain: {seed: 1}\n"
    for line, section in zip(refusal("info", spec), ("model", "dataset", "train"), strict=True):
        assert line.startswith(f"spec.yaml: {section}: unknown key; {mend}")


def test_a_section_of_other_verbs_is_not_taken_for_a_misspelt_key(workspace):
    mend = "see all keys of publish_model with `depth_net default_specs publish_model`"
    assert f"command line: model: unknown key; {mend}" in refusal("publish_model", None, "model.encoder=vits")


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("train.optim.lr=0.1", "train.optim.lr: 0.1 is more than the largest value 0.01"),
        ("train.optim.lr=1e-9", "train.optim.lr: '1e-9' is less than the smallest value 1e-06"),
        ("train.optim.lr_decay=0", "train.optim.lr_decay: 0 is not greater than 0"),
        ("train.optim.lr=fast", "train.optim.lr: 'fast' is not a number"),
        ("train.optim.lr=.nan", "train.optim.lr: '.nan' is not a number"),
        ("train.optim.lr=nan", "train.optim.lr: 'nan' is not a finite number"),
        ("train.num_epochs=2.5", "train.num_epochs: 2.5 is not a whole number"),
        ("train.num_epochs=true", "train.num_epochs: expected a number, got true or false"),
        ("train.num_epochs=null", "train.num_epochs: None is not a whole number"),
        ("train.is_dry_run=maybe", "train.is_dry_run: 'maybe' is not true or false"),
        ("train.precision=fp8", "train.precision: 'fp8' is not one of 'bf16', 'fp32' or 'fp16'"),
        (
            "train.optim.optimizer=adamW2",
            "train.optim.optimizer: 'adamW2' is not one of 'AdamW' or 'SGD'; did you mean AdamW?",
        ),
        ("model.max_disparity=100", "model.max_disparity: 100 is not a multiple of 32"),
        ("dataset.max_disparity=417", "dataset.max_disparity: 417 is more than the largest value 416"),
        ("train.gpu_ids=0", "train.gpu_ids: 0 is not a list; write it in [ ]"),
        ("train.gpu_ids=[0,-1]", "train.gpu_ids[1]: -1 is less than the smallest value 0"),
        ("model=vits", "model: 'vits' is not a group of keys"),
        ("model_name=[a]", "model_name: ['a'] is not a text; put it in quotes"),
        ("quantize.device=tpu", "quantize.device: 'tpu' does not match ^(cuda|cpu|trt|cuda:[0-9]+)$"),
        (
            "dataset.train_dataset.augmentation.crop_size=[128]",
            "dataset.train_dataset.augmentation.crop_size: the list needs at least 2 entries, but has 1",
        ),
        (
            "dataset.train_dataset.data_sources=[{data_file:x,format:pfm}]",
            "dataset.train_dataset.data_sources[0].format: unknown key; "
            "did you mean dataset.train_dataset.data_sources[].disparity_format?",
        ),
    ],
)
def test_types_ranges_and_choices(workspace, override, rule):
    assert refusal("train", None, override)[0] == f"command line: {rule}"


def test_a_rule_without_words_of_ours_is_told_in_pydantic_s(workspace):
    assert refusal("train", "model: {1: 2}\n") == ["spec.yaml: model[1]: Keys should be strings"]


def test_all_complaints_come_at_once_each_with_its_source(workspace):
    lines = refusal("train", "train:\n  num_epochs: 0\n  optim: {lr: 1}\nmodell: {}\n", "train.precision=int8")
    assert lines == [
        "spec.yaml: train.num_epochs: 0 is less than the smallest value 1",
        "command line: train.precision: 'int8' is not one of 'bf16', 'fp32' or 'fp16'",
        "spec.yaml: train.optim.lr: 1 is more than the largest value 0.01",
        "spec.yaml: modell: unknown key; did you mean model?",
    ]


def test_numbers_in_all_spellings():
    spec = build("train", {"train": {"optim": {"lr": "1e-4", "min_lr": 1e-7}, "num_epochs": "3", "clip_grad_norm": 1}})
    assert (spec.train.optim.lr, spec.train.num_epochs, spec.train.clip_grad_norm) == (1e-4, 3, 1.0)
    assert type(spec.train.clip_grad_norm) is float and type(spec.train.num_epochs) is int


def test_yaml_words_keep_their_meaning(workspace):
    Path("any name.yml").write_text(
        "results_dir: 2024_01\nmodel_name: 007\ntrain:\n  optim: {lr: 1e-4}\n  compile: on\n  is_dry_run: yes\n"
        "wandb: {name: 12:30, run_id: 17, project: 2024-01-01}\n",
        encoding="utf-8",
    )
    spec = build("train", read_tree(Path("any name.yml")))
    assert (spec.results_dir, spec.model_name, spec.wandb.name) == ("2024_01", "007", "12:30")
    assert (spec.wandb.run_id, spec.wandb.project) == ("17", "2024-01-01")
    assert (spec.train.optim.lr, spec.train.compile, spec.train.is_dry_run) == (1e-4, "on", True)


def test_a_section_without_keys_is_at_its_defaults(workspace):
    Path("s.yaml").write_text("wandb:\ntrain:\n  optim:\n")
    assert build("train", read_tree(Path("s.yaml"))) == build("train", {})


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!timestamp 2024-13-01",
        "seed: !!timestamp 2024-01-01",
        "seed: !!set {x, y}",
        "seed: !!bool maybe",
        "!!map [1]",
        f"seed: {'1' * 5000}",
        "[" * 3000,
    ],
)
def test_what_is_no_plain_value_is_no_traceback(text):
    with pytest.raises(SpecError, match=r"^spec\.yaml(:1)?: not valid YAML: "):
        parse(text, "spec.yaml")


def test_aliases_do_not_make_a_small_file_a_large_one():
    layers = "\n".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    with pytest.raises(SpecError, match=r"^spec\.yaml: not valid YAML: .* far too large"):
        parse(f"k0: &a0 [x]\n{layers}\n", "spec.yaml")
    with pytest.raises(SpecError, match="not valid YAML"):
        parse("a: &a [*a]", "spec.yaml")


def test_references_do_not_make_a_small_file_a_large_one(workspace):
    layers = {f"k{n}": f"${{k{n + 1}}}${{k{n + 1}}}" for n in range(40)} | {"k40": "x"}
    with pytest.raises(SpecError, match=r"more than [0-9]+ references `\$\{\.\.\.\}`, counting those inside others"):
        spec_from_dict("train", layers)


def test_a_recursive_file_is_refused(workspace):
    [line] = refusal("train", "a: &a {b: *a}\n")
    assert line.startswith("spec.yaml:1: not valid YAML: found unconstructable recursive node")


def test_anchors_and_merges_work(workspace):
    Path("s.yaml").write_text("a: &a {num_epochs: 3}\ntrain: {<<: *a, seed: 7}\n")
    tree = read_tree(Path("s.yaml"))
    assert tree["train"] == {"num_epochs": 3, "seed": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  seed: 1\n  seed: 2\n", "spec.yaml:3: not valid YAML: duplicate key 'seed', first in line 2"),
        ("train: {seed: 1\n", "spec.yaml:2: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("- a\n- b\n", "spec.yaml: a spec must be a mapping of keys to values, but this is a list"),
        ("words", "spec.yaml: a spec must be a mapping of keys to values, but this is text"),
        ("3", "spec.yaml: a spec must be a mapping of keys to values, but this is a number"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "spec.yaml:1: not valid YAML: could not determine a constructor",
        ),
    ],
)
def test_files_that_are_no_spec(workspace, text, message):
    [line] = refusal("train", text)
    assert line.startswith(message)


def test_a_missing_file_and_bytes_that_are_no_text(workspace):
    with pytest.raises(SpecError, match=r"^nowhere.yaml: no such spec file$"):
        load_spec("train", Path("nowhere.yaml"))
    Path("binary.yaml").write_bytes(b"\x80\x04\x95")
    with pytest.raises(SpecError, match=r"^binary.yaml: not UTF-8 text"):
        load_spec("train", Path("binary.yaml"))


def test_an_unknown_verb_names_the_nearest():
    with pytest.raises(SpecError, match=r"evalute: unknown verb; did you mean evaluate\?"):
        load_spec("evalute", None)


def test_references_take_other_keys_and_their_defaults(workspace):
    tree = {
        "results_dir": "out",
        "train": {"results_dir": "${results_dir}/run ${train.seed}", "num_epochs": "${model.corr_levels}"},
        "wandb": {"name": "${dataset.dataset_name}"},
    }
    spec = build("train", tree)
    assert (spec.train.results_dir, spec.train.num_epochs, spec.wandb.name) == ("out/run 1234", 2, "StereoDataset")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${eval:'__import__(\"os\").getcwd()'}", "model_name: ${eval:...} is not supported"),
        ("${oc.env:HOME}", "model_name: ${oc.env:...} is not supported"),
        ("${result_dir}", "model_name: ${result_dir}: unknown key; did you mean ${results_dir}?"),
        ("${model_name}", "model_name: ${model_name} refers to itself; write the value itself"),
    ],
)
def test_references_that_are_refused(value, message):
    with pytest.raises(SpecError) as error:
        spec_from_dict("train", {"model_name": value})
    assert f"spec: {message}" in str(error.value)


def test_what_each_verb_needs(workspace):
    assert refusal("convert", "") == [
        "spec.yaml: results_dir: is required by convert",
        "spec.yaml: data_root: is required by convert",
    ]
    assert refusal("evaluate", None) == [
        "command line: results_dir: is required by evaluate (or set evaluate.results_dir)",
        "command line: dataset.test_dataset.data_sources: at least one entry with a data_file is required",
        "command line: evaluate.checkpoint: evaluate requires this or evaluate.trt_engine",
    ]
    assert refusal("export", "results_dir: r\nexport:\n  checkpoint: ???\n  input_width: 500\n  opset_version: 12") == [
        "spec.yaml: export.checkpoint: is required by export",
        "spec.yaml: export.onnx_file: is required by export",
        "spec.yaml: export.input_width: 500 is not a multiple of 32; the next larger one is 512",
        "spec.yaml: export.opset_version: 12 is not one of 16 to 20",
    ]
    assert refusal("gen_trt_engine", "results_dir: r\ngen_trt_engine: {onnx_file: gone.onnx}") == [
        "spec.yaml: gen_trt_engine.onnx_file: no such file: gone.onnx"
    ]
    folders = "results_dir: r\nexport: {checkpoint: starter, onnx_file: data}\ngen_trt_engine: {trt_engine: new/}"
    assert refusal("export", folders) == ["spec.yaml: export.onnx_file: data is a folder; name a file in it"]
    assert "spec.yaml: gen_trt_engine.trt_engine: new/ is a folder; name a file in it" in refusal(
        "gen_trt_engine", folders
    )


def test_a_checkpoint_or_an_engine_is_needed_and_the_verb_s_own_is_looked_for(workspace):
    data = "dataset.infer_dataset.data_sources=[{data_file: data/infer.txt}]"
    both = refusal("inference", None, "results_dir=r", data, "inference.checkpoint=gone.pth", "inference.trt_engine=x")
    assert both == [
        "command line: inference.checkpoint: no such file: gone.pth",
    ]
    only = refusal("trt_inference", None, "results_dir=r", data, "inference.checkpoint=dn_model_latest.pth")
    assert only == ["command line: inference.trt_engine: is required by trt_inference"]


def test_a_name_longer_than_a_file_s_may_be_is_of_no_file(workspace):
    long, data = "x" * 300, "dataset.test_dataset.data_sources=[{data_file: data/train.txt}]"
    stereo = f"model.stereo_backbone.edgenext_pretrained_path={long}"
    for verb, *said in (
        ("evaluate", data, f"evaluate.checkpoint={long}"),
        ("evaluate", data, f"evaluate.checkpoint={long}@best"),
        ("evaluate", f"dataset.test_dataset.data_sources=[{{data_file: data/train.txt, data_root: {long}}}]"),
        ("train", data.replace("test", "train"), stereo),
        ("quantize", "quantize.backend=modelopt.onnx", f"dataset.quant_calibration_dataset.images_dir={long}"),
        ("fetch_dataset", "mode=pack", f"uri={long}"),
    ):
        assert any(long in line for line in refusal(verb, None, "results_dir=r", *said)), said


def test_input_files_must_be_there(workspace):
    lines = refusal(
        "train",
        None,
        "results_dir=r",
        "dataset.train_dataset.data_sources=[{data_file: data/train.txt, data_root: nowhere}, {dataset_name: Kitti}]",
        "train.pretrained_model_path=gone.pth",
    )
    assert lines == [
        "command line: dataset.train_dataset.data_sources[0].data_root: no such folder: nowhere",
        "command line: dataset.train_dataset.data_sources[1].data_file: is required by train",
        "command line: train.pretrained_model_path: no such file: gone.pth",
    ]


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        (
            "model.hidden_dims=[64,64,64]",
            "model.hidden_dims: [64, 64, 64]: every GRU level of the network has a width of 128",
        ),
        ("model.volume_dim=24", "model.volume_dim: 24: the network has 28 cost volume channels; set 28"),
        ("model.cv_group=4", "model.cv_group: 4: the network has 8 correlation groups; set 8"),
        ("model.n_downsample=1", "model.n_downsample: the network works at a quarter of the resolution; set 2"),
        (
            "model.encoder=vitt",
            "model.encoder: vitt is available only in presets; set model.preset to small or tiny, or remove "
            "model.encoder if there is a checkpoint: it decides",
        ),
        (
            "dataset.dataset_name=MonoDataset",
            "dataset.dataset_name: MonoDataset is not supported: this product is for stereo only",
        ),
        (
            "dataset.train_dataset.augmentation.min_scale=0.5",
            "dataset.train_dataset.augmentation.min_scale: the lower bound 0.5 is above the upper bound 0.4",
        ),
        (
            "dataset.train_dataset.augmentation.gamma=[0.8,1.2,1.1,1.0]",
            "dataset.train_dataset.augmentation.gamma: the lower bound of the gain, 1.1, is above the upper bound 1.0",
        ),
        (
            "dataset.train_dataset.augmentation.color_aug_saturation=[-0.5,1]",
            "dataset.train_dataset.augmentation.color_aug_saturation: -0.5 is below 0",
        ),
    ],
)
def test_settings_that_do_not_exist_or_disagree(workspace, override, rule):
    data = "dataset.train_dataset.data_sources=[{data_file: data/train.txt}]"
    assert refusal("train", None, "results_dir=r", data, override) == [f"command line: {rule}"]


def test_tao_s_volume_dim_and_28_are_the_same(workspace):
    for value in (28, 32):
        spec_from_dict("train", TRAIN | {"model": {"volume_dim": value}})


def test_results_dir_rules(workspace):
    spec = build("train", {"results_dir": "r", "train": {"results_dir": "x/train"}})
    assert results_dir(spec, "train") == Path("x/train")
    assert results_dir(spec, "export") == Path("r/export")
    assert results_dir(spec, "evaluate") == Path("r/evaluate")
    engine = build("train", {"results_dir": "r", "evaluate": {"trt_engine": "m"}, "inference": {"trt_engine": "m"}})
    assert results_dir(engine, "evaluate") == results_dir(engine, "trt_evaluate") == Path("r/trt_evaluate")
    assert results_dir(engine, "trt_inference") == Path("r/trt_inference")
    assert results_dir(build("convert", {"results_dir": "lists"}), "convert") == Path("lists")


def test_without_a_results_dir_a_file_that_is_named_says_where(workspace):
    tree = {"onnx_file": "dn_model_latest.pth", "trt_engine": "out/net.engine"}
    engine = spec_from_dict("gen_trt_engine", {"gen_trt_engine": tree})
    assert results_dir(engine, "gen_trt_engine") == Path("out")
    onnx = spec_from_dict("export", {"export": {"checkpoint": "dn_model_latest.pth", "onnx_file": "net.onnx"}})
    assert results_dir(onnx, "export") == Path(".")
    onnx.results_dir = "r"
    assert results_dir(onnx, "export") == Path("r/export")
    assert refusal("gen_trt_engine", "gen_trt_engine: {onnx_file: dn_model_latest.pth}") == [
        "spec.yaml: results_dir: is required by gen_trt_engine (or set gen_trt_engine.results_dir)"
    ]


def test_the_tiny_preset_fills_what_the_user_leaves_open(workspace):
    spec = spec_from_dict("train", TRAIN | {"model": {"preset": "tiny", "train_iters": 2}})
    model = spec.model
    assert (model.encoder, model.max_disparity, model.train_iters, model.valid_iters) == ("vitt", 64, 2, 8)


def test_preset_small_trains_the_vit_unless_the_user_says_no(workspace):
    backbone = {"allow_random_backbone": True}
    said = {"preset": "small", "stereo_backbone": backbone}
    assert spec_from_dict("train", TRAIN | {"model": said}).model.stereo_backbone.train_vit
    spec = spec_from_dict("train", TRAIN | {"model": said | {"stereo_backbone": backbone | {"train_vit": False}}})
    assert not spec.model.stereo_backbone.train_vit
    assert spec.model.max_disparity == 192


def test_the_callers_dict_is_left_alone(workspace):
    tree = {**TRAIN, "model": {"preset": "tiny"}}
    spec_from_dict("train", tree)
    assert tree["model"] == {"preset": "tiny"}


def test_secrets_are_neither_shown_nor_complained_about_in_clear(workspace):
    assert "geheim" not in repr(build("train", {"encryption_key": "geheim"}))
    assert "geheim" not in "".join(refusal("train", None, "encryption_key=[geheim]"))


def test_assignment_is_checked_too():
    spec = build("train", {})
    with pytest.raises(ValueError):
        spec.train.num_epochs = 0


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").touch()
    sources = [{"data_file": "~/list.txt", "dataset_name": "FSD"}]
    spec = build("evaluate", {"results_dir": "~/results", "dataset": {"test_dataset": {"data_sources": sources}}})
    assert spec.results_dir == f"{tmp_path}/results"
    assert spec.dataset.test_dataset.data_sources[0].data_file == f"{tmp_path}/list.txt"
