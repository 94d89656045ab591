"""A search tunes only what changes this training, and never outside the key's own range."""

from __future__ import annotations

from pathlib import Path

import pytest

from stereo_core.errors import SpecError
from stereo_core.spec import load_spec
from stereo_core.spec.effects import without_effect
from stereo_core.spec.search_space import never_reached, search_space

TEMPLATE = Path(__file__).parent / "tao" / "train.yaml"
AUGMENTATION = "dataset.train_dataset.augmentation"


def load(*overrides: str):
    """TAO's training template as a spec for a search; it starts from random weights, unlike the template."""
    return load_spec("automl", TEMPLATE, ["train.pretrained_model_path=", *overrides])


def idle(*overrides: str) -> dict[str, str]:
    return dict(without_effect("automl", load(*overrides)))


def refusal(*overrides: str) -> str:
    with pytest.raises(SpecError) as error:
        load(*overrides)
    return str(error.value)


def test_learning_rate_and_weight_decay_by_their_logarithm_are_the_default(workspace):
    found = {d.path: (d.low, d.high, d.log, d.integer) for d in search_space(load())}
    assert found == {
        "train.optim.lr": (1e-6, 1e-2, True, False),
        "train.optim.weight_decay": (1e-6, 1e-2, True, False),
    }


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("train.optim.momentum", "only SGD has a momentum, and OneCycleLR overrides it"),
        ("train.optim.lr_step_size", "only StepLR uses it"),
        ("train.optim.min_lr", "only CosineAnnealingLR uses it"),
        ("model.cv_group", "8 correlation groups"),
        ("model.volume_dim", "28 cost volume channels"),
        ("dataset.val_dataset.augmentation.stretch_prob", "it has no effect: this split uses whole images"),
        ("dataset.test_dataset.augmentation.h_flip_prob", "it has no effect: this split uses whole images"),
        (f"{AUGMENTATION}.h_flip_prob", "do_flip"),
        ("train.num_epochs", "it is not a hyperparameter"),
        ("train.optim.learning_rate", "unknown key"),
    ],
)
def test_a_key_that_changes_nothing_is_refused_with_the_reason_and_the_choices(workspace, path, reason):
    message = refusal(f"automl.automl_hyperparameters=[{path}]")
    said, _, choices = message.partition("; possible with this spec: ")
    assert f"automl.automl_hyperparameters: {path} cannot be searched: " in said and reason in said
    assert {"train.optim.lr", "train.optim.weight_decay", "model.corr_radius"} <= set(choices.split(", "))
    assert path not in choices.split(", ")


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("train.optim.momentum", ["train.optim.optimizer=SGD"]),
        ("train.optim.lr_step_size", ["train.optim.lr_scheduler=StepLR"]),
        ("train.optim.min_lr", ["train.optim.lr_scheduler=CosineAnnealingLR"]),
        (f"{AUGMENTATION}.h_flip_prob", [f"{AUGMENTATION}.do_flip=true"]),
        ("model.corr_radius", []),
    ],
)
def test_the_same_key_is_searched_where_it_counts(workspace, path, settings):
    (dimension,) = search_space(load(f"automl.automl_hyperparameters=[{path}]", *settings))
    assert dimension.path == path and dimension.low <= dimension.default <= dimension.high


FLAT = {"brightness": "0", "contrast": "0", "saturation": "[1,1]", "hue_range": "[0.1,0.1]"}


@pytest.mark.parametrize(
    ("path", "idle", "reason", "mend"),
    [
        ("train.optim.lr_step_size", ["train.optim.lr_scheduler=StepLR", "train.optim.lr_decay=1"],
         "nothing decays", "train.optim.lr_decay=0.5"),
        (f"{AUGMENTATION}.stretch_prob", [f"{AUGMENTATION}.max_stretch=0"],
         "there is no stretch", f"{AUGMENTATION}.max_stretch=0.1"),
        (f"{AUGMENTATION}.stretch_prob", [f"{AUGMENTATION}.spatial_aug_prob=0"],
         "there is no stretch", f"{AUGMENTATION}.spatial_aug_prob=0.1"),
        (f"{AUGMENTATION}.spatial_aug_prob",
         [f"{AUGMENTATION}.{name}=0" for name in ("min_scale", "max_scale", "stretch_prob")],
         "are not scaled", f"{AUGMENTATION}.stretch_prob=0.1"),
        (f"{AUGMENTATION}.color_aug_prob", [f"{AUGMENTATION}.color_aug_{name}={value}" for name, value in FLAT.items()],
         "both views are equal", f"{AUGMENTATION}.gamma=[0.8,1.2,1,1]"),
    ],
)  # fmt: skip
def test_a_key_whose_change_other_keys_undo_is_refused(workspace, path, idle, reason, mend):
    keys = f"automl.automl_hyperparameters=[{path}]"
    said, _, choices = refusal(keys, *idle).partition("; possible with this spec: ")
    assert f"{path} cannot be searched: " in said and reason in said and path not in choices.split(", ")
    assert [dimension.path for dimension in search_space(load(keys, *idle, mend))] == [path]


def test_two_keys_that_need_each_other_may_be_searched_together(workspace):
    """Trials have them above 0, whatever the spec's own values."""
    paths = [f"{AUGMENTATION}.stretch_prob", f"{AUGMENTATION}.spatial_aug_prob"]
    idle = [f"{path}=0" for path in paths] + [f"{AUGMENTATION}.min_scale=0", f"{AUGMENTATION}.max_scale=0"]
    assert [d.path for d in search_space(load(f"automl.automl_hyperparameters=[{','.join(paths)}]", *idle))] == paths


@pytest.mark.parametrize(
    ("keys", "settings", "first"),
    [
        (["lr_decay"], ["lr_scheduler=MultiStep", "lr_steps=[40,20]"], 20),
        (["lr_decay"], ["lr_scheduler=StepLR", "lr_step_size=20"], 20),
        (["lr_decay", "lr_step_size"], ["lr_scheduler=StepLR", "lr_step_size=3000"], 1),
    ],
)
def test_a_decay_after_a_trial_s_last_step_is_told(workspace, keys, settings, first):
    """With TAO's default, at step 1000, the decay of a short trial would be searched in vain."""
    searched = f"automl.automl_hyperparameters=[{','.join(f'train.optim.{key}' for key in keys)}]"
    spec = load(searched, *(f"train.optim.{setting}" for setting in settings))
    assert not list(never_reached(spec, first + 1))
    told = dict(never_reached(spec, first))
    assert set(told) == {f"train.optim.{key}" for key in keys}
    assert f"decays at step {first}, but a trial has {first} steps" in told["train.optim.lr_decay"]


def test_the_radius_of_pretrained_weights_is_theirs(workspace):
    overrides = ["train.pretrained_model_path=pretrained.pth", "automl.automl_hyperparameters=[model.corr_radius]"]
    with pytest.raises(SpecError, match="fixes it"):
        load_spec("automl", TEMPLATE, overrides)


def ranged(path: str, given: str) -> list[str]:
    return [f"automl.automl_hyperparameters=[{path}]", f"automl.custom_param_ranges={{{path}: {given}}}"]


def test_a_range_narrows_and_keeps_its_scale(workspace):
    (dimension,) = search_space(load(*ranged("train.optim.lr", "{valid_min: 5e-5, valid_max: 2e-4}")))
    assert (dimension.low, dimension.high, dimension.log) == (5e-5, 2e-4, True)
    (radius,) = search_space(load(*ranged("model.corr_radius", "{valid_options: [2, 4, 6]}")))
    assert radius.options == (2, 4, 6) and all(type(option) is int for option in radius.options)


@pytest.mark.parametrize(
    ("path", "given", "rule"),
    [
        ("train.optim.lr", "{valid_max: 0.1}", "valid_max 0.1 is outside the key's own range, from 1e-06 to 0.01"),
        ("train.optim.lr_decay", "{valid_min: 0}", "valid_min 0 is outside the key's own range, greater than 0"),
        ("model.corr_radius", "{valid_min: 2.5}", "valid_min 2.5 is not a whole number"),
        ("train.optim.lr", "{valid_min: 5e-4, valid_max: 2e-4}", "the range from 0.0005 to 0.0002 is empty"),
        ("train.optim.lr", "{valid_options: [1e-4]}", "needs at least two different values"),
        ("train.optim.lr", "{valid_options: [1e-4, 1e-3], valid_max: 1e-3}", "leave valid_min and valid_max out"),
        ("train.optim.lr", "{valid_min: 1e-3}", "does not include the spec's value"),
    ],
)
def test_a_range_that_widens_or_makes_no_sense_is_refused(workspace, path, given, rule):
    message = refusal("train.optim.lr=1e-4", "train.optim.lr_scheduler=StepLR", *ranged(path, given))
    assert f"automl.custom_param_ranges.{path}: " in message and rule in message


def test_a_range_of_a_key_that_is_not_searched_is_refused(workspace):
    message = refusal("automl.custom_param_ranges={train.optim.lr_decay: {valid_min: 0.5}}")
    assert "automl.custom_param_ranges.train.optim.lr_decay: the key is not in automl.automl_hyperparameters" in message


@pytest.mark.parametrize("name", ["pbt", "dehb", "bfbo", "hes", "hyperband_es", "llm", "hybrid", "autoresearch"])
def test_an_algorithm_without_an_implementation_is_refused_with_those_there_are(workspace, name):
    assert "is not available: " in refusal(f"automl.algorithm={name}")
    assert "choose bayesian, hyperband, asha or bohb" in refusal(f"automl.algorithm={name}")


def test_names_of_the_contract(workspace):
    assert load("automl.algorithm=b").automl.algorithm == "bayesian"
    assert load("automl.algorithm=H").automl.algorithm == "hyperband"
    assert load("automl.metric=loss").automl.metric == "val/loss"
    assert load("automl.automl_policy=off").automl.automl_policy == "off"


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("automl.direction=maximize", "automl.direction: val/epe is better when lower"),
        ("dataset.val_dataset.data_sources=[]", "a search compares trials on validation pairs"),
        ("train.is_dry_run=true", "train.is_dry_run: a search cannot compare dry runs"),
        ("automl.automl_max_epochs=0", "automl.automl_max_epochs: 0 is less than the smallest value 1"),
    ],
)
def test_what_a_search_can_not_do_without(workspace, override, rule):
    assert rule in refusal(override)
    assert rule in refusal(override, "automl.automl_policy=auto"), "auto is a search too"
    if "max_epochs" not in override:
        assert load(override, "automl.automl_policy=off"), "plain training does without"


def test_settings_without_effect_are_named(workspace):
    found = idle(
        "automl.automl_population_size=20",
        "automl.automl_reduction_factor=4",
        *ranged("train.optim.lr", "{valid_options: [1e-4, 1e-3], option_weights: [1, 2]}"),
        "train.optim.lr=1e-4",
    )
    assert "automl.automl_population_size" in found
    assert found["automl.automl_reduction_factor"].startswith("bayesian stops no trial")
    assert "automl.custom_param_ranges.train.optim.lr.option_weights" in found
    found = idle("automl.algorithm=asha", "automl.automl_reduction_factor=4")
    assert not [path for path in found if path.startswith("automl")]
