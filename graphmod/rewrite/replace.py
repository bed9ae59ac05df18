"""Replacing regions: by a fitted layer, by a named operator, by another model, or by a torch module."""

from __future__ import annotations

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.graph.scope import scope
from graphmod.model import Model, TensorType
from graphmod.rewrite.draft import Draft, shared_scope
from graphmod.rewrite.graft import graft
from graphmod.rewrite.parts import Fitter, OtherPart, Part, chosen, contradict, known_type
from graphmod.rewrite.propose import propose
from graphmod.rewrite.region import Place, find_regions, operators_between, sole_producer
from graphmod.rewrite.replacements import RIDGE, kinds
from graphmod.rewrite.verb import Samples, verb


@verb(exact=False, example="graphmod replace resnet.onnx Relu --by HardSwish --out swish.onnx")
def replace(
    model: Model,
    place: Place,
    data: Samples = None,
    kind: str = "auto",
    *,
    by: str | None = None,
    other: OtherPart = None,
    max_error: float = 0.3,
    ridge: float = RIDGE,
) -> Model:
    """Replace blocks or operators by a fitted layer, by another operator, by another model, or by a torch module.

    With ``data``, one region becomes an identity, a per-channel affine or a linear layer (a 1x1 convolution on images):
    a ridge regression in closed form, from statistics streamed through ONNX Runtime; activations are never stored. With
    ``by`` or ``other``, every place that is named gets a copy of what is given, weights included. Types stay.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, an operator's name, the tensors before and after a region (``"before..after"``), or a
        selector.
    data : anything that :func:`graphmod.data.as_data` takes, optional
        Samples to fit on; targets are not used.
    kind : {"auto", "identity", "affine", "linear"}
        Of a fitted layer; "auto" takes the cheapest whose error is at most ``max_error``.
    by : str, optional
        An operator with attributes and constant inputs, ``"Clip(min=0, max=6)"``, or several, ``"Sigmoid > Neg"``.
    other : path, Model or torch.nn.Module, optional
        A model of one input and one output; further inputs bear the names of tensors that they read here. A module is
        exported in place.
    max_error : float
        For "auto": root of the squared error at the block's exit over the variance there.
    ridge : float
        Share of the mean variance of a channel.

    Raises
    ------
    RefusedError
        There is no such region, kind or operator, ``ridge`` is below 0, the types do not fit, or no kind is good
        enough (the message says how good each is).

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> small = gm.replace(m, "layer3.5", gm.demo.splits().train, "linear")
    >>> list(small.outputs) == list(m.outputs)
    True
    >>> len(gm.find(gm.replace(m, "Relu", by="HardSwish"), "HardSwish")) == len(gm.find(m, "Relu"))
    True
    """
    if not ridge >= 0:
        raise RefusedError(f"a ridge is a share of the variance; give one of at least 0, not {ridge}")
    if data is not None:
        if by is not None or other is not None:
            raise RefusedError("data is there to fit a layer; leave it out with 'by' or 'other'")
        return _by_fit(model, place, data, kind, max_error, ridge)
    if by is None and other is None:
        raise RefusedError("say by what: give data to fit a layer on, 'by' an operator, or 'other', a model or module")
    return _by_part(model, place, chosen(by, other))


def _by_fit(model: Model, place: Place, data: Data, kind: str, max_error: float, ridge: float) -> Model:
    if kind != "auto" and kind not in kinds():
        raise RefusedError(f"there is no replacement '{kind}'; choose 'auto', {', '.join(map(repr, kinds()))}")
    found = propose(model, place, data, ridge=ridge)
    good = [one for one in found if (one.kind == kind if kind != "auto" else one.error <= max_error)]
    if not good:
        told = ", ".join(f"{one.kind} {one.error:.3g}" for one in found) or "none"
        wanted = f"of kind '{kind}'" if kind != "auto" else f"with an error of at most {max_error}"
        raise RefusedError(f"no replacement {wanted} fits here; what fits, with its error: {told}")
    return good[0].apply(model)


def _by_part(model: Model, place: Place, part: Part) -> Model:
    draft, fitter = Draft(model), Fitter(part, model)
    regions = list(dict.fromkeys(find_regions(model, place)))
    unknown = TensorType(None, None)
    for region in regions:
        old = sole_producer(draft, region.exit)
        fitted = fitter.at(known_type(model, region.entry), region.entry, region.exit)
        exit_ = model.tensors.get(region.exit, unknown)
        if contradict(fitted.kind, exit_):
            raise RefusedError(
                f"'{region.exit}' is {exit_}, and the replacement would make it {fitted.kind} from '{region.entry}', "
                f"{model.tensors.get(region.entry)}"
            )
        graft(
            draft,
            fitted.model,
            fitted.reads(region.entry),
            {fitted.exit: region.exit},
            prefix=region.exit,
            at=old,
            within=shared_scope(operators_between(model, region)) if len(regions) == 1 else scope(old),
        )
        draft.discard(old)
    return draft.finish()
