"""Recipes: lists of edits that can be written down, checked as a whole, and replayed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, overload

import yaml

from graphmod.errors import GraphmodError, InvalidRecipeError
from graphmod.model import Model, edits_of, replace_file
from graphmod.rewrite.verb import VERBS, Reference, Verb, perform, plain

FORMAT = 1


@dataclass(frozen=True)
class Edit:
    """One step of a recipe.

    Parameters
    ----------
    verb : str
        The name of the verb.
    parameters : mapping of str to plain data
        What the verb is given besides the model. Data and other models are named by their file, or by
        ``{"file": ..., "sha256": ...}``, where ``file`` may be missing.
    """

    verb: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.verb}({told})"


@dataclass(frozen=True)
class Recipe:
    """A list of edits, applied one after the other.

    Parameters
    ----------
    edits : tuple of Edit
    folder : pathlib.Path, optional
        Where the files that the edits name lie, unless their paths are absolute; the working folder if None.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> shorter = gm.remove(gm.remove(m, "layer1.3"), "layer1.4")
    >>> recipe = gm.Recipe.of(shorter)
    >>> print(recipe[-1])
    remove(place='layer1.4')
    >>> gm.apply(recipe, m).digest == shorter.digest
    True
    >>> gm.apply(recipe[:1], m).n_weights > shorter.n_weights  # undo: replay less
    True
    """

    edits: tuple[Edit, ...]
    folder: Path | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Return the number of edits."""
        return len(self.edits)

    def __iter__(self) -> Iterator[Edit]:
        """Yield the edits, the first one first."""
        return iter(self.edits)

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> Recipe: ...
    def __getitem__(self, index: int | slice) -> Edit | Recipe:
        """Return one edit, or the recipe of some of them."""
        return Recipe(self.edits[index], self.folder) if isinstance(index, slice) else self.edits[index]

    @classmethod
    def of(cls, model: Model) -> Recipe:
        """Return the record of the edits that made a model, as its metadata keep it; empty where there were none."""
        return cls.read(edits_of(model))

    @classmethod
    def read(cls, content: object, folder: Path | None = None) -> Recipe:
        """Make a recipe of plain data: a list of steps, or a mapping with the list under ``edits``.

        A step is ``{verb: {parameter: value, ...}}``, ``{verb: its first parameter}``, just the verb's name, or an
        :class:`Edit`.

        Raises
        ------
        InvalidRecipeError
            It is no such list.
        """
        if isinstance(content, Mapping):
            if content.get("graphmod", FORMAT) != FORMAT:
                raise InvalidRecipeError(
                    f"the recipe's format is {content['graphmod']!r}; this graphmod reads {FORMAT}"
                )
            content = content.get("edits")
        if not isinstance(content, list):
            raise InvalidRecipeError("a recipe is a list of steps, or a mapping with that list under 'edits'")
        return cls(tuple(_step(number, one) for number, one in enumerate(content, 1)), folder)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Recipe:
        """Read a recipe from a YAML or JSON file; the files that it names are looked for beside it.

        Raises
        ------
        InvalidRecipeError
            The file cannot be read, or is no recipe.
        """
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidRecipeError(f"cannot read a recipe from '{path}': {' '.join(str(error).split())}") from error
        return cls.read(content, Path(path).resolve().parent)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return {"graphmod": FORMAT, "edits": [{edit.verb: dict(edit.parameters)} for edit in self.edits]}

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the recipe as YAML.

        Raises
        ------
        NotWritableError
            The path cannot be written.
        """
        text = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        return replace_file(path, lambda stream: stream.write(text.encode()))

    def check(self) -> None:
        """Check every step before any runs: verbs, parameters, types, and that the files they name exist.

        Raises
        ------
        InvalidRecipeError
            The message lists all that is wrong, step by step.
        """
        wrong = [
            f"step {number} ({edit.verb}): {problem}"
            for number, edit in enumerate(self.edits, 1)
            for problem in _problems(edit, self.folder)
        ]
        if wrong:
            raise InvalidRecipeError("the recipe cannot run: " + "; ".join(wrong))


def apply(recipe: Recipe | str | PathLike[str] | Sequence[Any], model: Model, *, given: Iterable[object] = ()) -> Model:
    """Replay a recipe on a model.

    The whole recipe is checked before anything runs. The record in the result's metadata replays to the same bytes, but
    for budgets of latency, which are measured anew.

    Parameters
    ----------
    recipe : Recipe, path, or list of steps
    model : Model
    given : iterable
        Data and models for steps that name them by hash only, because they were in memory when the edit was recorded.

    Raises
    ------
    InvalidRecipeError
        A step is not valid, a file that it names is missing or has another content than it had, or nothing given fits.
    RefusedError
        A verb refuses; the message says at which step.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> small = gm.apply([{"remove": "layer1.3"}, {"remove": {"place": "layer2.3"}}], m)
    >>> [edit.verb for edit in gm.Recipe.of(small)]
    ['remove', 'remove']
    """
    steps = _as_recipe(recipe)
    made = replay_parts(steps, model, given=given)
    if len(made) > 1:
        raise InvalidRecipeError(
            f"the last step ({steps[-1].verb}) makes {len(made)} models; say with 'part' which one is wanted"
        )
    return made[0]


def replay_parts(recipe: Recipe, model: Model, *, given: Iterable[object] = ()) -> list[Model]:
    """Replay a recipe whose last step may make several models; see :func:`apply`."""
    recipe.check()
    offered = list(given)
    made = [model]
    for number, edit in enumerate(recipe, 1):
        if len(made) > 1:
            raise InvalidRecipeError(
                f"step {number - 1} ({recipe[number - 2].verb}) makes {len(made)} models; say with 'part' which one "
                "goes on"
            )
        made = _apply_one(recipe, number, edit, made[0], offered)
    return made


def _as_recipe(recipe: Recipe | str | PathLike[str] | Sequence[Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | PathLike):
        return Recipe.load(recipe)
    return Recipe.read(list(recipe) if isinstance(recipe, Sequence) else recipe)


def _apply_one(steps: Recipe, number: int, edit: Edit, model: Model, offered: list[object]) -> list[Model]:
    verb = VERBS[edit.verb]
    arguments: dict[str, Any] = {}
    told: dict[str, Any] = {}
    try:
        for name, value in edit.parameters.items():
            mark = verb.reference(name)
            if mark is None or value is None:
                arguments[name], told[name] = _validated(verb, name, value), plain(value)
            elif mark.many:
                found = [_resolve(mark, model, one, steps.folder, offered) for one in _listed(value)]
                arguments[name], told[name] = [one for one, _ in found], [record for _, record in found]
            else:
                arguments[name], told[name] = _resolve(mark, model, value, steps.folder, offered)
        result = perform(verb, model, arguments, told)
    except GraphmodError as error:
        raise type(error)(f"step {number} ({edit.verb}): {error}" if len(steps) > 1 else str(error)) from error
    return result if isinstance(result, list) else [result]


def _resolve(
    mark: Reference, model: Model, value: Any, folder: Path | None, offered: list[object]
) -> tuple[Any, dict[str, str]]:
    """Return what a step points to, and how the record points to it."""
    file, expected = (value.get("file"), value.get("sha256")) if isinstance(value, Mapping) else (value, None)
    record = {} if file is None else {"file": fspath(file)}
    path = None if file is None else (folder or Path()) / file
    if path is not None and path.exists():
        found = mark.read(model, path)
        identity = mark.identify(found)
        if expected not in (None, identity):
            raise InvalidRecipeError(
                f"'{file}' is not the {mark.what} that the recipe was made with: its hash is {identity[:12]}, not "
                f"{str(expected)[:12]}"
            )
        return found, {**record, "sha256": identity}
    unfit = []
    for one in offered:
        try:
            found = mark.read(model, one)
        except GraphmodError as error:  # something given for another step, or data with other names
            unfit.append(error)
            continue
        if mark.identify(found) == expected:
            return found, {**record, "sha256": str(expected)}
    where = f"there is no file '{path.absolute()}'" if path is not None else "it was in memory when recorded"
    told = f"nothing given has it{f' ({unfit[0]})' if unfit else ''}" if offered else "give it, with given= or --given"
    raise InvalidRecipeError(f"the {mark.what} with hash {str(expected)[:12]} is needed: {where}; {told}")


def _step(number: int, content: object) -> Edit:
    if isinstance(content, Edit):
        return content
    if isinstance(content, str):
        return Edit(_spelled(content))
    if not isinstance(content, Mapping) or len(content) != 1:
        raise InvalidRecipeError(f"step {number} is no step: write 'verb: {{parameter: value}}', not {content!r}")
    ((given, parameters),) = content.items()
    name = _spelled(str(given))
    if parameters is None:
        return Edit(str(name))
    if isinstance(parameters, Mapping):
        return Edit(str(name), {str(key): value for key, value in parameters.items()})
    known = VERBS.get(str(name))
    first = next(iter(known.parameters), "") if known else ""
    return Edit(str(name), {first: parameters})


def _spelled(name: str) -> str:
    """Return the name of a verb as Python has it, from that of its command."""
    return name.replace("-", "_") if name.replace("-", "_") in VERBS else name


def _problems(edit: Edit, folder: Path | None) -> Iterator[str]:
    verb = VERBS.get(edit.verb)
    if edit.verb == "surgery":
        yield "an edit by hand, in 'with m.surgery()', cannot be replayed"
        return
    if verb is None:
        first, *rest = edit.verb.split() or [""]
        forgotten = f"; a colon is missing after '{first}'" if rest and first in VERBS else None
        yield f"there is no verb '{edit.verb}'{forgotten or _nearest(edit.verb, sorted(VERBS))}"
        return
    for name, parameter in verb.parameters.items():
        if parameter.default is parameter.empty and name not in edit.parameters:
            yield f"parameter '{name}' is missing"
    for name, value in edit.parameters.items():
        if name not in verb.parameters:
            yield f"there is no parameter '{name}'{_nearest(name, verb.parameters)}"
        elif value is not None and (mark := verb.reference(name)) is not None:
            yield from _wrong_references(mark, name, value, folder)
        else:
            try:
                _validated(verb, name, value)
            except InvalidRecipeError as error:
                yield str(error)


def _wrong_references(mark: Reference, name: str, value: Any, folder: Path | None) -> Iterator[str]:
    for one in _listed(value) if mark.many else [value]:
        if isinstance(one, Mapping):
            texts = all(isinstance(text, str) for text in one.values())
            if not texts or not one.get("sha256") or not one.keys() <= {"file", "sha256"}:
                yield f"'{name}' names a {mark.what} by 'sha256' and possibly 'file', not by {dict(one)}"
        elif not isinstance(one, str | PathLike):
            yield f"'{name}' is the path of a {mark.what}, not {one!r}"
        elif not (path := ((folder or Path()) / one).absolute()).exists():
            beside = "; paths are looked for beside the recipe, and only what a step names by its sha256 can be given "
            yield f"there is no {mark.what} at '{path}'{f'{beside}(given=, --given)' if folder is not None else ''}"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _validated(verb: Verb, name: str, value: Any) -> Any:
    """Return a plain parameter as the type that the verb declares, or say what is wrong with it."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    kind = verb.types[name]
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a dataclass brings a configuration of its own
        adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        if isinstance(value, str) and (several := _as_list(adapter, value)):
            return several
        told = " or ".join(dict.fromkeys(one["msg"][0].lower() + one["msg"][1:] for one in error.errors()))
        raise InvalidRecipeError(f"'{name}' is {value!r}: {told}") from error


def _as_list(adapter: Any, value: str) -> list[Any] | None:
    """Return a list of one text where a list is wanted, None where that would not do either."""
    from pydantic import ValidationError

    try:
        return list(adapter.validate_python([value]))
    except (ValidationError, TypeError):
        return None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
