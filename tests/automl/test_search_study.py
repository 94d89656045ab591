"""The study outlives its process, and stops the trials that its algorithm finds poor."""

from __future__ import annotations

import math

import pytest

from stereo_core.automl.study import JOURNAL, SearchStudy
from stereo_core.errors import SpecError
from stereo_core.spec.automl import AutoML
from stereo_core.spec.search_space import Dimension

SPACE = [
    Dimension("train.optim.lr", 1e-6, 1e-2, True, False, (), 1e-4),
    Dimension("model.corr_radius", 2, 8, False, True, (), 4),
]


def study(folder, training=None, **settings) -> SearchStudy:
    return SearchStudy(folder, AutoML(**settings), SPACE, training or {})


def begin(search: SearchStudy) -> tuple[int, dict]:
    number = search.ask()
    return number, search.values(number)


def quality(values: dict) -> float:
    """Best at a learning rate of 1e-3."""
    return 1 + abs(math.log10(values["train.optim.lr"]) + 3)


@pytest.mark.parametrize("algorithm", ["bayesian", "hyperband", "asha", "bohb"])
def test_the_first_trial_is_the_spec_as_it_is_and_the_others_lie_in_the_space(tmp_path, algorithm):
    search = study(tmp_path, algorithm=algorithm, automl_max_recommendations=5)
    assert begin(search) == (0, {"train.optim.lr": 1e-4, "model.corr_radius": 4})
    tried = []
    for _ in range(4):
        number, values = begin(search)
        assert 1e-6 <= values["train.optim.lr"] <= 1e-2
        assert values["model.corr_radius"] in range(2, 9)
        search.complete(number, quality(values))
        tried.append(tuple(values.values()))
    assert len(set(tried)) == 4 and search.ask() is None


@pytest.mark.parametrize("algorithm", ["bayesian", "hyperband", "bohb"])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, algorithm):
    """Random values of a sampler that begins anew each time would repeat those of the first trials."""

    def run(folder, restart: bool) -> list[dict]:
        folder.mkdir()
        search, tried = study(folder, algorithm=algorithm, automl_max_recommendations=7), []
        for _ in range(7):
            if restart:
                search = study(folder, algorithm=algorithm, automl_max_recommendations=7)
            number, values = begin(search)
            search.complete(number, quality(values))
            tried.append(values)
        return tried

    undisturbed = run(tmp_path / "a", restart=False)
    assert run(tmp_path / "b", restart=True) == undisturbed
    assert len({tuple(values.values()) for values in undisturbed}) == 7


def test_a_trial_of_a_killed_search_is_taken_up_with_its_values_and_validations(tmp_path):
    search = study(tmp_path)
    begin(search)
    number, values = begin(search)
    search.report(number, 1, 5.0)
    search.complete(0, 7.0)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 6, "wor')  # a kill in the middle of a write
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)

    again = study(tmp_path)
    assert again.interrupted() == [number]
    assert again.values(number) == values
    assert again.trials()[number].intermediate_values == {1: 5.0}
    again.report(number, 1, 99.0)  # the epoch is trained once more; it was judged already
    again.complete(number, 4.0)
    assert study(tmp_path).best().number == number and study(tmp_path).interrupted() == []
    assert study(tmp_path).ask() == 2


def test_a_kill_before_the_values_of_a_trial_are_chosen(tmp_path):
    assert study(tmp_path).ask() == 0
    assert study(tmp_path).values(0) == {"train.optim.lr": 1e-4, "model.corr_radius": 4}


def test_a_folder_holds_one_search(tmp_path):
    study(tmp_path, training={"train": {"precision": "fp32"}})
    study(tmp_path, training={"train": {"precision": "fp32"}}, automl_max_recommendations=30, automl_max_concurrent=1)
    with pytest.raises(SpecError, match=r"holds a search with train.precision 'fp32', but this search has 'bf16'"):
        study(tmp_path, training={"train": {"precision": "bf16"}})
    with pytest.raises(SpecError, match=r"automl.automl_max_epochs 27, but this search has 9"):
        study(tmp_path, training={"train": {"precision": "fp32"}}, automl_max_epochs=9)


def test_trials_whose_journal_is_gone_are_not_resumed(tmp_path):
    """The first trial of the new search would go on from the weights of an old one, trained with other values."""
    (tmp_path / "trials/000").mkdir(parents=True)
    (tmp_path / "trials/000/model_epoch_000_step_00004.pth").touch()
    for _ in range(2):
        with pytest.raises(
            SpecError, match=r"checkpoints of another search \(trials/000/model_epoch.*remove the folder"
        ):
            study(tmp_path)


def test_a_damaged_journal_is_named(tmp_path):
    begin(study(tmp_path))
    lines = (tmp_path / JOURNAL).read_bytes().split(b"\n")
    (tmp_path / JOURNAL).write_bytes(b"\n".join([lines[0], b"x" + lines[1], *lines[2:]]))
    with pytest.raises(SpecError, match=rf"{JOURNAL}:2: damaged"):
        study(tmp_path)


def test_asha_stops_the_poor_at_each_rung_and_never_the_baseline(tmp_path):
    search = study(tmp_path, algorithm="asha", automl_max_epochs=9)
    for _ in range(5):
        begin(search)
    for number, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        stopped = search.report(number, 1, value)
        assert stopped == (number != 1), "one of three goes on"
    assert not search.report(0, 1, 9.0), "the baseline is what the others are compared with"
    assert not search.report(1, 2, 8.0), "between two rungs nothing is judged"
    assert not search.report(4, 1, 0.5)
    assert not search.report(4, 3, 0.1) and search.report(1, 3, 0.9)


def test_bayesian_stops_nothing(tmp_path):
    search = study(tmp_path)
    for _ in range(4):
        begin(search)
    assert not any(search.report(number, 1, 10.0 * number) for number in range(4))


def test_the_best_is_the_lowest_of_those_that_came_to_their_end(tmp_path):
    search = study(tmp_path)
    for _ in range(4):
        begin(search)
    search.complete(0, 3.0)
    search.report(1, 1, 0.5)
    search.prune(1)
    search.fail(2, "ended by SIGKILL")
    assert search.best().number == 0
    search.complete(3, 2.0)
    assert search.best().number == 3
    assert search.trials()[2].user_attrs == {"reason": "ended by SIGKILL"}


def test_the_key_that_matters_is_the_important_one(tmp_path):
    search = study(tmp_path, algorithm="asha", automl_max_recommendations=40)
    assert search.importances() == {}
    for _ in range(40):
        number, values = begin(search)
        search.complete(number, quality(values))
    shares = search.importances()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["train.optim.lr"] > 0.8
