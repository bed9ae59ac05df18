"""One command a verb, made from the verb's signature and docstring; all of them are one-step recipes."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser
import typer
import yaml
from rich.markup import escape

from graphmod.cli.commands import Json, ModelFile
from graphmod.cli.outcome import DryRun, OutFile, Verify, check_outcome, show, to_verify
from graphmod.errors import InvalidRecipeError
from graphmod.model import load
from graphmod.rewrite.recipe import Edit, Recipe, replay_parts
from graphmod.rewrite.verb import VERBS, Verb

_PLAIN = (str, int, float, bool)
_INTEGER = re.compile(r"-?[0-9]+")


def command(verb: Verb) -> Callable[..., None]:
    """Return the command of a verb."""
    shown = {name: _shown(verb, name) for name in verb.parameters}

    def run(model: Path, out: Path | None, dry_run: bool, verify: str | None, as_json: bool, **given: Any) -> None:
        defaults = {name: parameter.default for name, parameter in verb.parameters.items()}
        chosen = {name: value for name, value in given.items() if value not in (None, []) and value != defaults[name]}
        recipe = Recipe((Edit(verb.name, {name: _parsed(verb, name, value) for name, value in chosen.items()}),))
        check_outcome(out, dry_run)
        before = load(model)
        samples = to_verify(before, verify)
        try:
            after = replay_parts(recipe, before)
        except InvalidRecipeError as error:  # a recipe of one step, of which the user need not know
            raise InvalidRecipeError(
                str(error).replace(f"the recipe cannot run: step 1 ({verb.name}): ", "")
            ) from error
        timed = chosen.get("data", "random") if "latency" in chosen else None  # it was a budget
        show(before, after, out, dry_run, samples, as_json, timed)

    run.__name__ = verb.name.replace("_", "-")
    run.__doc__ = _help(verb)
    parameters = [
        inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, annotation=ModelFile),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in sorted(
                shown.items(), key=lambda item: item[1][1] is not inspect.Parameter.empty
            )
        ),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, kind, default in (
                ("out", OutFile, None),
                ("dry_run", DryRun, False),
                ("verify", Verify, None),
                ("as_json", Json, False),
            )
        ),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    return run


def _shown(verb: Verb, name: str) -> tuple[Any, Any]:
    """Return a parameter as typer takes it: its annotation, and its default (empty where it must be given)."""
    described = docstring_parser.parse(verb.function.__doc__ or "")
    told = {one.arg_name: one.description or "" for one in described.params}
    texts = {part.strip(): text for names, text in told.items() for part in names.split(",")}
    text = escape(" ".join(texts.get(name, "").replace("``", "").split()))
    parameter = verb.parameters[name]
    kind = _cli_type(verb, name)
    if parameter.default is inspect.Parameter.empty:
        return Annotated[kind, typer.Argument(help=text, show_default=False)], inspect.Parameter.empty
    if kind is bool:
        return Annotated[kind, typer.Option(help=text)], parameter.default
    default = str(parameter.default) if isinstance(parameter.default, _PLAIN) else False
    return Annotated[kind | None, typer.Option(help=text, show_default=default)], None


def _cli_type(verb: Verb, name: str) -> Any:
    """Return the type that the command line reads a parameter as: text, parsed as YAML, where it is no simple one."""
    mark = verb.reference(name)
    if mark is not None:
        return list[str] if mark.many else str
    kind = _without_none(verb.types[name])
    if kind in _PLAIN or get_origin(kind) is Literal:
        return kind
    return list[str] if _is_list_of_text(kind) else str


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [one for one in get_args(kind) if one is not type(None)]
        return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007  # the types are known at run time
    return kind


def _is_list_of_text(kind: Any) -> bool:
    """Whether a parameter is a list whose items may be given as they are."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return str not in kinds and any(
        get_origin(one) in (list, tuple) and str in _members(get_args(one)) for one in kinds
    )


def _members(kinds: tuple[Any, ...]) -> set[Any]:
    return {
        one for kind in kinds for one in (get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,))
    }


def _parsed(verb: Verb, name: str, value: Any) -> Any:
    """Return what a parameter was given as a recipe would hold it: numbers, lists and mappings are YAML."""
    kinds = _members((_without_none(verb.types[name]),))
    if isinstance(value, list) and len(value) == 1 and int in kinds and _INTEGER.fullmatch(value[0]):
        return int(value[0])
    if verb.reference(name) is not None or not isinstance(value, str) or kinds == {str}:
        return value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        if str in kinds:
            return value
        raise InvalidRecipeError(f"'{name}' is {value!r}, which is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(read, dict) and any(one is None and ":" in str(key) for key, one in read.items()):
        raise InvalidRecipeError(f"'{name}' is {value!r}; YAML wants a space after a colon: {value.replace(':', ': ')}")
    if str not in kinds:
        return read
    is_selector = isinstance(read, list) and any("=" in str(one) for one in read)
    return read if type(read) in {get_origin(kind) or kind for kind in kinds} and not is_selector else value


def _help(verb: Verb) -> str:
    described = docstring_parser.parse(verb.function.__doc__ or "")
    text = "\n\n".join(part for part in (described.short_description, described.long_description) if part)
    return f"{escape(text.replace('``', ''))}\n\n[dim]Example:[/] {escape(verb.example)}"


PANEL = "Edits"
COMMANDS = tuple(command(verb) for _, verb in sorted(VERBS.items()))
