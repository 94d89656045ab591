"""`automl`: the search for hyperparameters, in one typed model from which other searches (Katib's) can be generated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stereo_core.spec.fields import Float, Int, Section, Text, Texts, key, null_is
from stereo_core.spec.train import Monitor

SEARCHED = ["train.optim.lr", "train.optim.weight_decay"]

_ALIASES = {"b": "bayesian", "h": "hyperband", "hes": "hyperband_es"}
_REFUSED = {
    "bfbo": "its bound with local penalties is in no library here; bayesian serves several workers too",
    "hyperband_es": "Optuna has Hyperband without that further early stop",
    "dehb": "Optuna has no differential evolution in brackets; bohb is the nearest",
    "pbt": "Optuna's trials can not take over each other's weights on the way",
    **dict.fromkeys(("llm", "hybrid", "autoresearch"), "it asks a language model, and nothing is sent anywhere here"),
}


def _algorithm(value: Any) -> Any:
    name = value.lower() if isinstance(value, str) else value
    name = _ALIASES.get(name, name) if isinstance(name, str) else name
    if isinstance(name, str) and name in _REFUSED:
        raise ValueError(f"{name} is not available: {_REFUSED[name]}; choose one of bayesian, hyperband, asha, bohb")
    return name


def _policy(value: Any) -> Any:
    """`on` and `off` are true and false to readers of YAML 1.1, who may have written the spec."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Algorithm = Annotated[Literal["bayesian", "hyperband", "asha", "bohb"], BeforeValidator(_algorithm)]
Policy = Annotated[Literal["on", "off", "auto"], BeforeValidator(_policy)]
Metric = Annotated[Monitor, BeforeValidator(lambda value: "val/loss" if value == "loss" else value)]


class ParamRange(Section):
    """What a search may try of one key, within the key's own range."""

    valid_min: Float | None = key(None, "Lowest value")
    valid_max: Float | None = key(None, "Highest value")
    valid_options: Annotated[list[Float], null_is([])] = key([], "The values to choose from, instead of a range")
    option_weights: Annotated[list[Float], null_is([])] = key([], "Weights of valid_options")
    disable_list: bool = key(False, "For keys that hold lists")


class AutoML(Section):
    results_dir: Text = key("", "Output folder, used as it is; empty: <results_dir>/automl")
    automl_policy: Policy = key("on", "off: plain training; auto: as on")
    algorithm: Algorithm = key(
        "bayesian",
        "bayesian (b): Gaussian process; hyperband (h), asha: random values, poor trials stopped early; bohb: Hyperband"
        " with density estimates",
    )
    metric: Metric = key("val/epe", "What a trial is judged by, its best validation; loss is val/loss")
    direction: Literal["minimize", "maximize"] = key("minimize", "Every metric here is the lower the better")
    automl_max_recommendations: Int = key(20, "Trials in all, the baseline included", ge=1)
    automl_max_epochs: Int = key(27, "Epochs of a trial that is not stopped early", ge=1)
    automl_reduction_factor: Int = key(3, "Of so many trials one goes on at epochs 1, n, n^2, ...", ge=2)
    automl_max_concurrent: Int = key(4, "Trials at a time; on GPUs at most one on each of train.gpu_ids", ge=1)
    automl_hyperparameters: Annotated[Texts, null_is(SEARCHED), Field(min_length=1)] = key(
        SEARCHED, "Keys to search, as dotted paths"
    )
    custom_param_ranges: Annotated[dict[str, ParamRange], null_is({})] = key(
        {}, "Dotted path of a searched key: valid_min, valid_max, or valid_options"
    )
    automl_delete_intermediate_ckpt: bool = key(False, "Remove the checkpoints of trials that are not the best")
    seed: Int = key(1234, "Seed of the values that are tried (ours)", ge=0)
    epoch_multiplier: Int = key(1, "Epochs of a unit of budget", ge=1)
    automl_population_size: Int = key(10, "Population of pbt and dehb", ge=1)
    automl_max_experiments: Int = key(50, "Trials of hyperband", ge=1)
    override_automl_disabled_params: bool = key(False, "Search keys that are no hyperparameters")
    train_sample_count: Int | None = key(None, "Training pairs", ge=1)
