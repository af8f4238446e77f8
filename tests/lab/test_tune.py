"""Tuning: what it measures, how it shares out effort, what it writes, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import tiny_config

import specdec
from specdec.cli.main import main
from specdec.errors import InvalidArgumentError, StoreError, UnknownNameError
from specdec.lab.text import calibration, read_text, split_passages
from specdec.lab.tune.allocation import allocate, net_of_rounding, tolerance_curve
from specdec.lab.tune.costs import best_speedup, rows_seconds
from specdec.lab.tune.divergence import Comparison
from specdec.lab.tune.run import QUICK, SHARES, Thoroughness, tune
from specdec.lab.tune.sensitivity import measure, open_sums
from specdec.lab.tune.trial import try_schedules
from specdec.lab.tune.units import units_of
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one
from specdec.store.profile import PROFILE_FILE, ProfileFile, find_profile

SMALL = Thoroughness(
    quick=False, levels=(0.25, 0.6), passages=2, passage_tokens=12, places=3, trial_tokens=4, repeats=2
)
TEXT = "a short text for a small model, long enough for two passages of a few bytes each"


def quiet(_stage: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture
def model(text_model_copy: Path) -> Model:
    return specdec.load(text_model_copy)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


# --- pieces ---


@given(
    rows=st.lists(st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5), min_size=2, max_size=2),
    shift=st.floats(-5, 5),
)
@settings(max_examples=100, deadline=None)
def test_divergence_is_that_of_the_softmaxes_and_ignores_a_constant(rows, shift):
    right, other = (np.array(row, np.float32) for row in rows)
    p, q = (np.exp(x.astype(np.float64) - x.max()) for x in (right, other))
    p, q = p / p.sum(), q / q.sum()
    comparison = Comparison(right)
    # Logits of up to 20 leave a rounding error of some 1e-14 in the logarithms; the shift is float32's.
    assert comparison.divergence(other) == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-11)
    assert comparison.divergence(right) == 0
    assert comparison.divergence(right + np.float32(shift)) == pytest.approx(0, abs=1e-5)
    assert comparison.distance(right) == 0
    if np.ptp(right) > 0.1:  # a shift of 1 rounds away differences that are much smaller
        assert comparison.distance(right + np.float32(1)) == pytest.approx(0, abs=1e-4)
    assert comparison.token == int(np.argmax(right))


def test_units_cover_every_matrix_once():
    for config in (tiny_config(num_layers=4), tiny_config(architecture="mixtral", num_experts=3, experts_per_token=2)):
        for quick in (False, True):
            units = units_of(config, quick=quick)
            names = [name for unit in units for name in unit.matrices]
            assert sorted(names) == sorted(config.matrices())
            assert len({unit.name for unit in units}) == len(units)
            assert sum(u.multiplications for u in units) == sum(a * b for a, b in config.matrices().values())
    assert len(units_of(tiny_config(num_layers=4), quick=False)) == 4 * 7 + 1
    assert len(units_of(tiny_config(num_layers=30), quick=True)) == 3 * 7 + 1
    experts = units_of(tiny_config(architecture="mixtral", num_experts=3, experts_per_token=2), quick=False)
    assert len(experts) == 2 * 7 + 1


def test_tolerance_between_levels_is_a_power_of_what_is_left_out():
    levels, grid = (0.2, 0.6), np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    curve = tolerance_curve(3 * (1 - np.array(levels)) ** 2, levels, grid)
    assert curve == pytest.approx(3 * (1 - grid) ** 2)
    # Noise that rises with effort is levelled, and nothing is below 0.
    levelled = tolerance_curve(np.array([0.1, 0.4]), levels, grid)
    assert (np.diff(levelled) <= 0).all()
    assert levelled[-1] == 0


def test_what_rounding_does_is_no_loss():
    kl = np.array([[0.5, 0.3, 0.1], [0.1001, 0.1, 0.1], [0.4, 0.2, 0.0]])
    assert net_of_rounding(kl) == pytest.approx(np.array([[0.4, 0.2], [0.002002, 0.002], [0.4, 0.2]]))


@given(
    scale=st.lists(st.floats(1e-6, 10), min_size=2, max_size=12),
    sizes=st.lists(st.integers(1, 50), min_size=12, max_size=12),
    rates=st.one_of(st.just([1.0] * 12), st.lists(st.floats(0.1, 3), min_size=12, max_size=12)),
    mean=st.floats(0.2, 1.0),
)
@settings(max_examples=400, deadline=None)
def test_allocation_meets_the_mean_and_beats_equal_efforts(scale, sizes, rates, mean):
    levels, count = (0.2, 0.6), len(scale)
    kl = np.outer(scale, (1 - np.array(levels)) ** 2)
    weights, rate = np.array(sizes[:count], float), np.array(rates[:count])
    efforts = allocate(kl, levels=levels, multiplications=weights, cost_rate=rate, mean=mean)
    share = weights / weights.sum()
    assert ((efforts >= 0.2) & (efforts <= 1)).all()
    assert efforts @ share <= mean + 1e-9
    assert efforts @ share >= mean - 0.025 * share.max() - 1e-9  # no step of any unit fits any more
    if (
        np.ptp(rate) == 0
    ):  # two steps of the grid: one to reach it, and one that ties may leave unspent before topping up
        equal = max(0.2, mean - 0.05)
        assert np.array(scale) @ (1 - efforts) ** 2 <= np.array(scale).sum() * (1 - equal) ** 2 + 1e-9


def test_allocation_gives_most_to_what_tolerates_least_and_saves_where_it_costs_most():
    levels, even = (0.2, 0.6), np.ones(2)
    power = (1 - np.array(levels)) ** 2
    tender, tough = allocate(np.outer([10, 1], power), levels=levels, multiplications=even, cost_rate=even, mean=0.5)
    assert tender > 0.6 > 0.4 > tough
    dear, cheap = allocate(
        np.outer([1, 1], power), levels=levels, multiplications=even, cost_rate=np.array([5.0, 1.0]), mean=0.5
    )
    assert cheap > 0.6 > 0.4 > dear


def test_expected_speed_is_that_of_the_formula():
    verify_s = {1: 1.0, 2: 1.1, 5: 1.4}
    assert rows_seconds(verify_s, 3) == pytest.approx(1.2)
    assert rows_seconds(verify_s, 9) == pytest.approx(1.8)
    speed, length = best_speedup(0.9, 0.2, verify_s)
    assert speed == pytest.approx((1 - 0.9 ** (length + 1)) / 0.1 / (length * 0.2 + 1 + 0.1 * length))
    assert best_speedup(0.5, 2.0, verify_s) == (1.0, 0)


# --- measurements ---


def test_what_is_measured_for_a_unit_is_the_divergence_of_lowering_it_alone(model, tmp_path):
    passages, units = [[5, 6, 7, 8, 9, 10], [20, 21, 22, 23]], units_of(model.config, quick=False)
    places, sums = [(0, 2), (0, 5), (1, 3)], open_sums(tmp_path / "sums", {}, units=len(units), levels=1)
    options = {"view": "int4", "levels": (0.3,), "places": places}
    measure(model.runtime, passages, units, sums=sums, done=lambda _sums: None, **options)
    assert sums.done == 3 * len(units)
    for row, unit in enumerate(units):
        expected = 0.0
        for passage, index in places:
            cache = model.runtime.new_cache(8)
            forward_one(model.runtime, passages[passage][:index], cache, effort=EffortSchedule())
            rows = []
            for schedule in (EffortSchedule(), EffortSchedule(1.0, dict.fromkeys(unit.matrices, 0.3))):
                rows.append(
                    forward_one(model.runtime, [passages[passage][index]], cache, effort=schedule, view="int4").logits[
                        0
                    ]
                )
                cache.trim(index)
            expected += Comparison(rows[0]).divergence(rows[1])
        assert sums.kl[row, 0] == expected
    assert (sums.kl > 0).any()


def test_a_trial_follows_the_models_own_text(model):
    start = [5, 6, 7]
    own = specdec.generate(model, start, max_tokens=5, speculate=False, stop=())
    full = EffortSchedule()
    agreement, kl = try_schedules(
        model.runtime, [start], [full, EffortSchedule(0.2)], view="exact", length=5, done=lambda _count: None
    )
    assert (agreement[0], kl[0]) == (1.0, 0.0)
    assert kl[1] > 0
    hits = 0
    for count in range(5):
        tokens = [*start, *own.tokens[:count]]
        if len(own.tokens) <= count:
            return  # an end token came up, which the trial writes like any other
        cache = model.runtime.new_cache(9)
        forward_one(model.runtime, tokens[:-1], cache, effort=full)
        logits = forward_one(model.runtime, tokens[-1:], cache, effort=EffortSchedule(0.2)).logits[0]
        hits += int(np.argmax(logits)) == own.tokens[count]
    assert agreement[1] == hits / 5


# --- the whole ---


def test_tuning_writes_a_profile_that_automatic_drafts_take_up(model, text, text_model_copy):
    before = model.auto_draft
    assert before == (model.runtime.info.auto_draft[0], EffortSchedule(model.runtime.info.auto_draft[1]))
    stages: dict[str, tuple[int, int]] = {}
    profile = tune(
        model,
        text=text,
        view="bucket",
        mean=0.5,
        thoroughness=SMALL,
        progress=lambda stage, done, total: stages.update({stage: (done, total)}),
    )
    assert all(done == total > 0 for done, total in stages.values())
    assert {(one.mean, one.tuned) for one in profile.candidates} == {
        (1.0, 0),
        (0.5, 0),
        *((0.5, share) for share in SHARES),
    }
    assert profile.choice.mean == 0.5  # it was asked for
    tuned = profile.candidates[-1]
    assert tuned.schedule.mean(model.config) == pytest.approx(0.5, abs=1e-3)  # efforts are kept to four digits
    assert set(tuned.efforts) == set(model.config.matrices())
    assert len(set(tuned.efforts.values())) > 1
    assert model.auto_draft == ("bucket", profile.choice.schedule)
    assert find_profile(model.store, model.runtime.info.name) == profile
    assert not (text_model_copy / f"{PROFILE_FILE}.partial").exists()
    result = specdec.generate(specdec.load(text_model_copy), "Hello", max_tokens=4, draft_view="auto", draft_effort=0.5)
    assert result.stats.draft_view == "bucket"


class StopNowError(Exception):
    """Raised by a test's progress."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopNowError])
def test_an_interrupted_measurement_goes_on_where_it_stopped(model, text, text_model_copy, error):
    def stopping(stage: str, done: int, _total: int) -> None:
        if stage.startswith("measuring") and done == 4:
            raise error

    options: dict[str, Any] = {"text": text, "view": "int4", "thoroughness": SMALL}
    whole = tune(model, progress=quiet, **options)
    (text_model_copy / PROFILE_FILE).unlink()
    with pytest.raises(error):
        tune(model, progress=stopping, **options)
    assert not (text_model_copy / PROFILE_FILE).exists()
    assert (text_model_copy / f"{PROFILE_FILE}.partial").exists()
    seen: list[int] = []
    again = tune(
        model, progress=lambda stage, done, _total: seen.append(done) if "measuring" in stage else None, **options
    )
    assert seen == list(range(4, 6 * 15 + 1))
    assert again.tolerance == whole.tolerance  # sums add up in the same order, so to the same bits
    assert [one.kl for one in again.candidates if not one.tuned] == [
        one.kl for one in whole.candidates if not one.tuned
    ]
    assert not (text_model_copy / f"{PROFILE_FILE}.partial").exists()


def test_other_settings_or_a_restart_begin_anew(model, text, text_model_copy):
    path = text_model_copy / f"{PROFILE_FILE}.partial"

    def done(settings: dict[str, int], levels: int) -> int:
        sums = open_sums(path, settings, units=3, levels=levels)
        sums.close(remove=False)
        return sums.done

    def keep_two() -> bytes:
        sums = open_sums(path, {"a": 1}, units=3, levels=2, restart=True)
        for _ in range(2):
            sums.add([0.25, 0.5], [1.0, 2.0])
        sums.close(remove=False)
        return path.read_bytes()

    content = keep_two()
    assert done({"a": 1}, 2) == 2
    assert done({"a": 1}, 3) == 0
    keep_two()
    assert done({"a": 2}, 2) == 0
    first, second, third = content.splitlines(keepends=True)
    for damage, left in (
        (b"", 0),
        (b"{", 0),
        (b"[]\n", 0),
        (first + b"[1]\n" + third, 0),
        (first + second + third[:-1], 1),
        (first + second + third.replace(b"0.25", b"NaN"), 1),
        (first + second + third.replace(b'"1"', b'"7"'), 1),
    ):
        path.write_bytes(damage)
        assert done({"a": 1}, 2) == left

    def stopping(_stage: str, done: int, _total: int) -> None:
        if done == 2:
            raise StopNowError

    with pytest.raises(StopNowError):
        tune(model, text=text, view="int4", thoroughness=SMALL, progress=stopping)
    seen: list[int] = []
    tune(
        model,
        text=text,
        view="int4",
        thoroughness=SMALL,
        restart=True,
        progress=lambda _stage, done, _total: seen.append(done),
    )
    assert seen[0] == 0


def test_profiles_of_several_runtimes_and_views_share_a_file_and_the_fastest_is_taken(model, text):
    profile = tune(model, text=text, view="int4", mean=0.4, thoroughness=SMALL, progress=quiet)
    choice = replace(profile.choice, speedup=profile.choice.speedup + 1)
    faster = replace(profile, view="bucket", candidates=(choice,), best=0)
    file = ProfileFile.read(model.store.path)
    for other in (faster, replace(faster, runtime="other", candidates=(replace(choice, speedup=99.0),))):
        file.profiles[other.key] = other
    file.write()
    name = model.runtime.info.name
    read = ProfileFile.read(model.store.path)
    assert set(read.profiles) == {f"{name}/int4", f"{name}/bucket", "other/bucket"}
    assert read.profiles == file.profiles
    assert find_profile(model.store, name) == faster
    assert model.auto_draft[0] == "bucket"
    assert find_profile(model.store, "neither") is None


def test_a_profile_of_other_weights_is_not_used_and_a_damaged_one_is_refused(model, text, text_model_copy):
    tune(model, text=text, view="int4", mean=0.4, thoroughness=SMALL, progress=quiet)
    path = text_model_copy / PROFILE_FILE
    good = json.loads(path.read_text())
    other = json.loads(path.read_text())
    other["profiles"][f"{model.runtime.info.name}/int4"]["store"] = "0" * 64
    path.write_text(json.dumps(other))
    with pytest.warns(UserWarning, match="is not used: the model was converted again since"):
        assert model.auto_draft[0] == model.runtime.info.auto_draft[0]
    damaged: list[tuple[str, str]] = [
        ("no json", "is not a draft profile"),
        ("[]", "is not a draft profile"),
        (json.dumps(good | {"version": 2}), "is of version 2, and this specdec reads version 1"),
        (json.dumps(good | {"profiles": []}), "is damaged"),
        (json.dumps(good | {"profiles": {"x": {"view": "int4"}}}), "is damaged"),
        (path.read_text().replace('"best": ', '"best": 7'), "is damaged"),
        (path.read_text().replace('"mean": 0.4', '"mean": 4'), "is damaged"),
    ]
    for content, message in damaged:
        path.write_text(content)
        with pytest.raises(StoreError, match=message):
            model.auto_draft  # noqa: B018
        with pytest.raises(StoreError, match=message):
            tune(model, text=text, thoroughness=SMALL, progress=quiet)


def test_what_cannot_be_tuned_is_told_in_one_sentence(model, text, tmp_path):
    options = {"thoroughness": SMALL, "progress": quiet}
    with pytest.raises(InvalidArgumentError, match=r"cannot read the text .*none: No such file"):
        tune(model, text=tmp_path / "none", **options)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match=r"text .*bytes is not UTF-8"):
        tune(model, text=tmp_path / "bytes", **options)
    (tmp_path / "short").write_text("short")
    with pytest.raises(InvalidArgumentError, match="has 5 tokens and needs at least 12"):
        tune(model, text=tmp_path / "short", **options)
    with pytest.raises(InvalidArgumentError, match="effort must be a number above 0 and at most 1, not 2"):
        tune(model, text=text, mean=2, **options)
    with pytest.raises(UnknownNameError, match="unknown draft view 'int3'"):
        tune(model, text=text, view="int3", **options)
    with pytest.raises(InvalidArgumentError, match=r"needs a model from specdec\.load"):
        tune(Model(model.runtime), text=text, **options)


def test_passages_are_spread_over_the_text(model):
    passages = split_passages(read_text(None, calibration), model.tokenizer, count=4, length=50)
    tokens = model.tokenizer.encode(read_text(None, calibration), add_bos=False)
    assert [len(passage) for passage in passages] == [50] * 4
    assert (passages[0], passages[-1]) == (tokens[:50], tokens[-50:])
    assert split_passages("x" * 50, model.tokenizer, count=2, length=50)[0] == model.tokenizer.encode("x" * 50)
    with pytest.raises(
        InvalidArgumentError, match="passages must be at most 50, one for each token of the text, not 99"
    ):
        split_passages("x" * 50, model.tokenizer, count=99_999_999, length=5)


def test_command_line(text_model_copy, text, capsys):
    arguments = ["tune", str(text_model_copy), "--text", str(text), "--quick", "--view", "bucket"]
    long = text.read_text() * 2
    text.write_text(long)
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "by matrix" in out
    assert "equal" in out
    assert " * " in out
    assert "measuring 15 groups of matrices" in err
    assert main([*arguments, "--json", "--effort", "0.4"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["view"] == "bucket"
    assert json.loads(out)["settings"]["quick"] is True
    assert json.loads(out)["settings"]["levels"] == list(QUICK.levels)
    assert main([*arguments, "--effort", "1.5"]) == 2
    assert "error: --effort must be a number above 0 and at most 1, not 1.5" in capsys.readouterr().err


def test_an_interrupted_command_says_that_it_can_go_on(text_model_copy, text, capsys, monkeypatch):
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specdec.lab.tune.run.measure", interrupted)
    text.write_text(text.read_text() * 2)
    assert main(["tune", str(text_model_copy), "--text", str(text), "--quick"]) == 130
    assert "interrupted; the same command continues from here" in capsys.readouterr().err
