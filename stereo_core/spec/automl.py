"""`automl`: the settings of a hyperparameter search. Katib's Experiment is generated from the same model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stereo_core.spec.fields import Float, Int, Section, Text, Texts, key, null_is
from stereo_core.spec.train import Monitor

SEARCHED = ["train.optim.lr", "train.optim.weight_decay"]

_ALIASES = {"b": "bayesian", "h": "hyperband", "hes": "hyperband_es"}
_REFUSED = {
    "bfbo": "no library here implements its acquisition function; bayesian handles parallel trials too",
    "hyperband_es": "Optuna has only Hyperband without the additional early stop",
    "dehb": "Optuna has no differential evolution with brackets; bohb is the nearest",
    "pbt": "Optuna's trials cannot exchange weights while they train",
    **dict.fromkeys(("llm", "hybrid", "autoresearch"), "it needs a language model; this product sends nothing out"),
}


def _algorithm(value: Any) -> Any:
    name = value.lower() if isinstance(value, str) else value
    name = _ALIASES.get(name, name) if isinstance(name, str) else name
    if isinstance(name, str) and name in _REFUSED:
        raise ValueError(f"{name} is not available: {_REFUSED[name]}; choose bayesian, hyperband, asha or bohb")
    return name


def _policy(value: Any) -> Any:
    """Accept true and false: YAML 1.1 reads and writes `on` and `off` that way."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Algorithm = Annotated[Literal["bayesian", "hyperband", "asha", "bohb"], BeforeValidator(_algorithm)]
Policy = Annotated[Literal["on", "off", "auto"], BeforeValidator(_policy)]
Metric = Annotated[Monitor, BeforeValidator(lambda value: "val/loss" if value == "loss" else value)]


class ParamRange(Section):
    """The values that a search may try for one key, within the key's own range."""

    valid_min: Float | None = key(None, "Lowest value to try; null: the lowest that the searched key may have")
    valid_max: Float | None = key(None, "Highest value to try; null: the highest that the searched key may have")
    valid_options: Annotated[list[Float], null_is([])] = key([], "Values to try, instead of a range")
    option_weights: Annotated[list[Float], null_is([])] = key(
        [], "Weights of valid_options; no effect: Optuna's samplers support none"
    )
    disable_list: bool = key(False, "Do not search a list; no effect: no key that can be searched holds a list")


class AutoML(Section):
    results_dir: Text = key("", "Output folder; empty: <results_dir>/automl")
    automl_policy: Policy = key("on", "on: search; off: one training run without a search; auto: same as on")
    algorithm: Algorithm = key(
        "bayesian",
        "Search algorithm. bayesian (or b): Gaussian process; hyperband (or h) and asha: random values, poor trials "
        "are stopped early; bohb: like hyperband, with values from density estimates (TPE)",
    )
    metric: Metric = key(
        "val/epe", "Validation metric that ranks the trials, each by its best value; loss means val/loss"
    )
    direction: Literal["minimize", "maximize"] = key(
        "minimize", "Only minimize is supported: every metric is better when lower"
    )
    automl_max_recommendations: Int = key(
        20, "Number of trials, including the first, which uses the spec's own values", ge=1
    )
    automl_max_epochs: Int = key(27, "Epochs of a trial that is not stopped early", ge=1)
    automl_reduction_factor: Int = key(
        3,
        "Reduction factor n of hyperband, asha and bohb: after 1, n, n^2, ... epochs only the best 1/n of the trials "
        "continue",
        ge=2,
    )
    automl_max_concurrent: Int = key(
        4, "Trials that run at the same time; at most one on each GPU of train.gpu_ids", ge=1
    )
    automl_hyperparameters: Annotated[Texts, null_is(SEARCHED), Field(min_length=1)] = key(
        SEARCHED, "Keys to search, as dotted paths"
    )
    custom_param_ranges: Annotated[dict[str, ParamRange], null_is({})] = key(
        {}, "Values to try for searched keys: dotted path -> valid_min and valid_max, or valid_options"
    )
    automl_delete_intermediate_ckpt: bool = key(False, "Remove all checkpoints except those of the best trial")
    seed: Int = key(1234, "Random seed of the search (not in TAO)", ge=0)
    epoch_multiplier: Int = key(1, "Epochs per unit of budget", ge=1)
    automl_population_size: Int = key(10, "Population size of the search algorithms pbt and dehb", ge=1)
    automl_max_experiments: Int = key(50, "Trials of hyperband", ge=1)
    override_automl_disabled_params: bool = key(False, "Allow searching keys that are not hyperparameters")
    train_sample_count: Int | None = key(None, "Number of training pairs to use", ge=1)
