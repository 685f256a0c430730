"""Everything that is stored comes back from JSON as it was."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab import model
from lab.model import ExitCode, LabError, LabFault, UserError, decode, encode

STORED = sorted(
    (
        thing
        for thing in vars(model).values()
        if isinstance(thing, type)
        and dataclasses.is_dataclass(thing)
        and thing.__module__ == model.__name__
    ),
    key=lambda thing: thing.__name__,
)


def sample(kind: Any, full: bool) -> Any:
    """A value of the type: every field filled and told apart, or as empty as it may be."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        real = next(part for part in inner if part is not type(None))
        return sample(real, full) if full else None
    if origin is tuple:
        return (sample(inner[0], full), sample(inner[0], full)) if full else ()
    if origin is dict:
        return {f"key {n}": sample(inner[1], full) for n in range(2)} if full else {}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        hints = typing.get_type_hints(kind)
        return kind(**{name: sample(hint, full) for name, hint in hints.items()})
    if issubclass(kind, enum.Enum):
        return list(kind)[-1] if full else next(iter(kind))
    values: dict[type, tuple[Any, Any]] = {
        bool: (True, False),
        int: (2**53 + 1, 0),
        float: (0.1, 0.0),
        str: ('ünïcode "\n\t\\ \x7f 🐧', ""),
        Path: (Path("/a b/c"), Path()),
    }
    return values[kind][0 if full else 1]


def test_the_list_is_not_empty() -> None:
    assert {"Series", "RunRecord", "Manifest", "Kernel"} <= {kind.__name__ for kind in STORED}


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
def test_round_trip(kind: type[Any], full: bool) -> None:
    value = sample(kind, full)
    raw = encode(value)
    assert decode(raw, kind) == value
    assert encode(decode(raw, kind)) == raw
    assert raw.endswith(b"}\n")


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.__name__)
def test_values_are_frozen_and_named(kind: type[Any]) -> None:
    value = sample(kind, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(kind)[0].name, None)
    assert not hasattr(value, "__dict__"), "slots"
    with pytest.raises(TypeError):
        kind(*[None for _ in dataclasses.fields(kind)])


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"name": 3}', b'{"outcome": "green"}'])
def test_what_is_not_a_value_is_a_lab_fault(raw: bytes) -> None:
    with pytest.raises(LabFault, match="Verdict"):
        decode(raw, model.Verdict)


def test_no_verdict_by_default() -> None:
    fields = {field.name: field for field in dataclasses.fields(model.Verdict)}
    assert fields["outcome"].default is dataclasses.MISSING
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({}, model.CaseResult)


def test_the_kinds_of_failure_and_their_exit_codes() -> None:
    assert issubclass(UserError, LabError)
    assert issubclass(LabFault, LabError)
    assert not issubclass(UserError, LabFault)
    assert not issubclass(LabFault, UserError)
    assert [code.value for code in ExitCode] == [0, 1, 2, 3, 4]
    error = UserError("what", hint="way out")
    assert (error.message, error.hint, str(error)) == ("what", "way out", "what")


def test_the_path_of_a_change() -> None:
    change = model.FileChange(old_path="a", new_path=None, added=0, removed=1)
    assert change.path == "a"
    assert dataclasses.replace(change, new_path="b").path == "b"
