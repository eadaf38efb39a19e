"""Every number of every settings class is finite and has a range, whichever system reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from rocketqa_paddle.commands.comparison.settings import CompareSettings
from rocketqa_paddle.settings import DataSettings, OptimizerSettings, RetrieverSettings, RunSettings, Settings
from rocketqa_paddle.systems import SYSTEMS
from rocketqa_paddle.systems.ar2.settings import AdversarialLossSettings

WHOLE = [CompareSettings, *(system.settings for system in SYSTEMS.values())]


def whole(kind: type[RunSettings]) -> Any:
    """Settings of a run whose every field has a default but for these."""
    return kind(output="run", data=DataSettings(folder="data"))


def sections(settings: Any) -> Iterator[Any]:
    """Settings, and all sections inside of them."""
    yield settings
    for field in fields(settings):
        if is_dataclass(value := getattr(settings, field.name)):
            yield from sections(value)


def numbers(kind: type) -> Iterator[tuple[str, type]]:
    """The fields of a settings class that hold a number, and its type."""
    for name, hint in get_type_hints(kind).items():
        for type_ in {hint, *get_args(hint)} & {int, float}:
            yield name, type_


SECTIONS = {type(section): section for kind in WHOLE for section in sections(whole(kind))}


def test_all_settings_are_found():
    assert set(SECTIONS) >= {RetrieverSettings, OptimizerSettings, AdversarialLossSettings, CompareSettings}
    assert all(issubclass(kind, Settings) for kind in SECTIONS)
    assert sum(1 for kind in SECTIONS for _ in numbers(kind)) > 80


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_number_is_finite_and_has_a_range(kind):
    for name, type_ in numbers(kind):
        wrong = [-12345, 2**31, 10**30] if type_ is int else [-12345.0, math.nan, math.inf, -math.inf, 1e300]
        for value in wrong:
            with pytest.raises(ValueError, match=name):
                replace(SECTIONS[kind], **{name: value})


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_a_value_is_missing_only_where_that_means_something(kind):
    for name, hint in get_type_hints(kind).items():
        if name != "warmed_up" and type(None) not in get_args(hint):
            with pytest.raises(ValueError, match=f"{name} is empty"):
                replace(SECTIONS[kind], **{name: None})


@pytest.mark.parametrize(
    "section, name",
    [
        (RetrieverSettings(), "temperature"),
        (AdversarialLossSettings(), "temperature"),
        (OptimizerSettings(), "max_grad_norm"),
    ],
)
def test_a_divisor_that_counts_as_0_in_32_bits_is_refused(section, name):
    with pytest.raises(ValueError, match=f"{name}=1e-300, expected a number above 0"):
        replace(section, **{name: 1e-300})
    assert getattr(replace(section, **{name: 0.01}), name) == 0.01


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.__name__)
def test_every_path_may_begin_with_the_home_folder(kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = kind(output="~/run", data=DataSettings(folder="~/data"))
    assert (settings.output, settings.data.folder) == ("/home/me/run", "/home/me/data")
    for section in sections(settings):
        hints = get_type_hints(type(section))
        for name in (name for name in ("init", "file") if hints.get(name) in (str, str | None)):
            assert getattr(replace(section, **{name: "~/it"}), name) == "/home/me/it"


def test_a_name_that_only_holds_a_tilde_stays(tmp_path):
    assert DataSettings(folder="a~b").folder == "a~b"
    assert DataSettings(folder="./~").folder == "./~"
    with pytest.raises(
        ValueError, match="~nobody-here/x: there is no such home folder; write ./~nobody-here/x"
    ):
        DataSettings(folder=str(Path("~nobody-here/x")))
