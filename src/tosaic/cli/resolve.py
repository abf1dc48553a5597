"""The options of a command, from its flags, a YAML file and defaults.

A flag that was given wins over the file (`--config run.yaml`), the file wins over the defaults of the command's model.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tosaic.errors import InputError


class Options(BaseModel):
    """Base of all.

    Attributes:
        keys: option -> its key in a file, where that is not the flag's name; dots separate sections.
        file_only: options that have no flag.
        elsewhere: keys that people know from other tools, and what to write instead.
    """

    keys: ClassVar[Mapping[str, str]] = {}
    file_only: ClassVar[frozenset[str]] = frozenset()
    elsewhere: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


Model = TypeVar("Model", bound=Options)


def resolve(model: type[Model], given: Mapping[str, Any], config: Path | None = None) -> Model:
    """The options of a command.

    Args:
        given: what the command line says; None and () mean that a flag was not given.
        config: a YAML file with further options, keys spelt like the flags.

    Raises:
        InputError: an unknown key, a wrong type, something missing.
    """
    known = {model.keys.get(flag, flag): flag for flag in (field.alias or name for name, field in model.model_fields.items())}
    values = _read(config, known, model.elsewhere) if config is not None else {}
    from_file = set(values)
    for key, value in given.items():
        if value is not None and value != []:
            values[key] = value
            from_file.discard(key)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, config, {flag: key for key, flag in known.items() if flag in from_file}) from None


def _read(path: Path, known: Mapping[str, str], elsewhere: Mapping[str, str]) -> dict[str, Any]:
    """The options in a file, by their flags.

    Args:
        known: key -> flag.
        elsewhere: see `Options`.
    """
    try:
        data = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from None
    except (ValueError, RecursionError) as error:  # a date that is none; mappings in mappings without end
        raise InputError(f"not valid YAML: {error}", where=str(path)) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} holds {_kind(data)}, expected options as `key: value`", remedy="see the files in examples/")
    sections = dict.fromkeys(key[:i] for key in known for i, c in enumerate(key) if c == ".")
    values: dict[str, Any] = {}
    for key, value in _flat(data, "", known, sections):
        if key in sections:
            raise InputError(f"{key}: expected a mapping, found {_kind(value)}", where=str(path))
        if key not in known:
            close = difflib.get_close_matches(key, (*known, *(sections if isinstance(value, dict) else ())), 1)
            nearest = f"did you mean '{_as_key(close[0])}'?" if close else f"known are {', '.join(map(_as_key, known))}"
            raise InputError(f"unknown option '{_as_key(key)}' in {path}", remedy=elsewhere.get(key, nearest))
        if known[key] in values:
            raise InputError(f"'{_as_key(key)}' is given twice in {path}")
        if value is not None:
            values[known[key]] = value
    return values


def _flat(data: Mapping[Any, Any], section: str, known: Mapping[str, str], sections: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys with their sections in front, whether these are spelt out by dots or as mappings."""
    for key, value in data.items():
        name = section + str(key).replace("-", "_")
        if name not in sections or name in known or not isinstance(value, dict | None):
            yield name, value
        elif value is not None:
            yield from _flat(value, f"{name}.", known, sections)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: `on` is a key of ours, and `no` may be a name. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list", "dict": "a mapping"}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}
_ARGUMENTS = {"model": "MODEL", "file": "FILE", "folder": "DIR"}


def _explain(error: ValidationError, config: Path | None, from_file: Mapping[str, str]) -> InputError:
    """pydantic's first finding in our words: the key, what was expected, what was found.

    Args:
        from_file: option -> key, of those that the file gave.
    """
    first = error.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "missing":
        flag = _ARGUMENTS.get(key, f"--{_spelt(key)}")
        return InputError(f"{flag} is missing", remedy="give it on the command line, or in a file with --config")
    kind, limits = first["type"], first.get("ctx", {})
    if kind == "literal_error":
        expected = limits["expected"]
    elif kind in _LIMITS:
        word, limit = _LIMITS[kind]
        expected = f"{word} {limits[limit]}"
    else:
        expected = _EXPECTED.get(kind.split("_")[0], first["msg"].lower())
    part = "".join(f"[{p}]" for p in first["loc"][1:])
    name = _as_key(from_file[key]) if key in from_file else _ARGUMENTS.get(key, f"--{_spelt(key)}")
    found = first["input"]
    return InputError(f"{name}{part}: expected {expected}, found {_kind(found)}", where=str(config) if key in from_file else None)


_SHORT = reprlib.Repr()  # a few aliases of YAML make a list of a billion
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 200, 200


def _kind(value: Any) -> str:
    kinds = {str: "the text", bool: "", int: "the number", float: "the number", dict: "the mapping", list: "the list"}
    text = _SHORT.repr(value) if not isinstance(value, bool) else str(value).lower()
    return f"{kinds.get(type(value), type(value).__name__)} {text}".strip()


def _as_key(key: str) -> str:
    """A key as people write it: like a flag, or as it is where it has sections."""
    return key if "." in key else _spelt(key)


def _spelt(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
