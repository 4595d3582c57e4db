"""From the command line to a config and back to an exit code.

``--config FILE`` lies below dotted overrides; dashes and underscores are the same; what a person gets wrong
ends with one line on stderr and exit code 2.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml
from jsonargparse import ActionConfigFile

from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl import config

COMMANDS: dict[str, type] = {
    "train_diffusion": config.TrainDiffusionConfig,
    "train_extractor": config.TrainExtractorConfig,
    "train_policy": config.TrainPolicyConfig,
    "evaluate": config.EvaluateConfig,
    "search": config.SearchConfig,
    "sample": config.SampleConfig,
    "sampler_table": config.SamplerTableConfig,
    "headroom": config.HeadroomConfig,
    "reference": config.ReferenceConfig,
    "check_judge": config.CheckJudgeConfig,
    "benchmark": config.BenchmarkConfig,
    "study": config.StudyConfig,
    "study_training": config.StudyTrainingConfig,
}

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, [a, b]",
    "dict": "settings, {name: value}",
    "NoneType": "null",
}
"""What a person calls them."""

C = TypeVar("C")


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose complaints are :class:`UserError` lines."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_plain(" ".join(str(message).split())))


def _plain(message: str) -> str:
    """A parser's complaint of a value, without its own words for types; other complaints as they are."""
    key = re.match(r'Parser key "([^"]+)": ', message)
    value = re.search(r"(?:Given value|Got value): (.*)$", message)
    if key is None or value is None:
        return message
    name = f"--{key[1].replace('_', '-')}"
    one_of = re.search(r"Expected a typing\.Literal\[(.*?)\]", message)
    if one_of is not None:
        return f"{name}: expected one of {one_of[1]}, got {value[1]}"
    wanted = dict.fromkeys(re.findall(r"Expected a <class '(\w+)'>", message))
    if not wanted or not wanted.keys() <= _TYPES.keys():
        return message
    kinds = " or ".join(_TYPES[kind] for kind in wanted)
    return f"{name}: expected {kinds}, got {value[1]}"


def _parser(config_class: type, prog: str) -> _Parser:
    parser = _Parser(prog=f"python -m stepdrop_rl.{prog}", description=_summary(config_class))
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file, below all options.")
    parser.add_class_arguments(config_class)
    return parser


def _summary(config_class: type) -> str:
    return (config_class.__doc__ or "").strip().split("\n\n")[0]


def summary_of(name: str) -> str:
    """What a command does, in a line."""
    return _summary(COMMANDS[name])


def _fields(config_class: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Dotted names of all settings, nested dataclasses included."""
    for item in dataclasses.fields(config_class):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            yield from _fields(default, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def _normalise(argv: Sequence[str], names: dict[str, dataclasses.Field[Any]]) -> tuple[list[str], list[str]]:
    """Split ``argv`` into options (underscored, checked) and the config files named in it."""
    options: list[str] = []
    files: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            if token != "-h" and (not options or not options[-1].startswith("--") or "=" in options[-1]):
                raise UserError(f"unexpected argument '{token}'; options start with --")
            options.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        if name == "config":
            if not equals and not tokens:
                raise UserError("--config needs a file")
            files.append(value if equals else tokens.pop(0))
            continue
        base = name.removesuffix("+")
        root = any(base.startswith(f"{known}.") for known in names)  # an entry of a dictionary
        if base not in names and not root and name not in ("help", "print_config"):
            raise unknown_name("option", f"--{name}", [f"--{known}" for known in names])
        is_flag = base in names and names[base].type in ("bool", bool)
        if is_flag and not equals and (not tokens or tokens[0].startswith("--")):
            equals, value = "=", "true"
        if equals:
            options.append(f"--{name}={value}")
        elif tokens and (not tokens[0].startswith("--")) and name not in ("help", "print_config"):
            options.append(f"--{name}={tokens.pop(0)}")
        elif name in ("help", "print_config"):
            options.append(f"--{name}")
        else:
            raise UserError(f"--{name} needs a value")
    return options, files


def _flatten(tree: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("-", "_")
        if name in known or not isinstance(value, dict):
            yield name, value
        else:
            yield from _flatten(value, known, f"{name}.")


def _read_yaml(path: str, command: str, known: set[str]) -> dict[str, Any]:
    """Settings of ``command`` in a YAML file: its top level, then the command's own section."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path} must hold 'key: value' lines")
    sections = {name: tree.pop(name) or {} for name in COMMANDS if name in tree}
    settings = dict(_flatten(tree, known)) | dict(_flatten(sections.get(command, {}), known))
    for name in settings:
        if name not in known:
            raise unknown_name(f"key in {path}", name, known | set(COMMANDS))
    return settings


def parse(config_class: type[C], prog: str, argv: Sequence[str] | None = None) -> C:
    """Return the config that ``argv`` asks for; :class:`UserError` where it asks for what is not there."""
    names = dict(_fields(config_class))
    options, files = _normalise(sys.argv[1:] if argv is None else argv, names)
    parser = _parser(config_class, prog)
    for path in files:
        parser.set_defaults(_read_yaml(path, prog, set(names)))
    namespace = parser.parse_args(options)
    built = parser.instantiate(namespace) if hasattr(parser, "instantiate") else namespace
    values = {item.name: built[item.name] for item in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**values)


def _check_json(settings: Any) -> None:
    """A result that cannot be written is said before the work, not after it."""
    if settings.json is not None:
        from stepdrop_rl.weights import require_writable

        require_writable(Path(settings.json).parent)


def command(
    config_class: type[C], run: Callable[[C], None], prog: str, argv: Sequence[str] | None = None
) -> int:
    """Parse, run, and return the exit code: 0, 2 for a person's error, 130 for Ctrl-C."""
    try:
        settings = parse(config_class, prog, argv)
        _check_json(settings)
        run(settings)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0
