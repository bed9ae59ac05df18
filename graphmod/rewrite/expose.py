"""Exposing inner tensors as outputs of the graph, and hiding outputs."""

from __future__ import annotations

from graphmod.errors import RefusedError
from graphmod.graph import Block
from graphmod.model import Model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.tensors import declarations, named_tensors
from graphmod.rewrite.verb import verb


@verb(exact=True, example="graphmod expose resnet.onnx layer2 layer3 --out features.onnx")
def expose(model: Model, tensors: list[str | Block]) -> Model:
    """Make inner tensors outputs of the graph, with their types, after those that it has.

    Parameters
    ----------
    model : Model
    tensors : list of str
        Tensors, blocks (what comes out of them), operators (their first outputs) or selectors (of all matches).

    Raises
    ------
    RefusedError
        There is no such place, no operator makes the tensor, or its type is unknown.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> list(gm.expose(m, ["layer1", "layer2"]).outputs)
    ['logits', 'relu_14', 'relu_28']
    """
    places = [tensors] if isinstance(tensors, str | Block) else tensors
    named = dict.fromkeys(name for place in places for name in named_tensors(model, place))
    for name in named:
        if name not in model.producer:
            what = "an input" if name in model.inputs else "an initializer"
            raise RefusedError(f"'{name}' is {what} already known to who runs the model; expose what an operator makes")
    fresh = [name for name in named if name not in model.outputs]
    if not fresh:
        return model
    draft = Draft(model)
    draft.graph.output.extend(declarations(model, fresh))
    draft.forget(fresh)  # an output's declaration says what the annotation did
    return draft.finish()


@verb(exact=True, example="graphmod hide detector.onnx aux_logits --out plain.onnx")
def hide(model: Model, outputs: list[str]) -> Model:
    """Let outputs of the graph be outputs no longer; what only they needed goes.

    Parameters
    ----------
    model : Model
    outputs : list of str
        Names of outputs.

    Raises
    ------
    RefusedError
        There is no such output, or none would be left.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> list(gm.hide(gm.expose(m, ["layer1"]), ["logits"]).outputs)
    ['relu_14']
    """
    names = [outputs] if isinstance(outputs, str) else outputs
    told = f"the outputs are {', '.join(model.outputs)}"
    unknown = [name for name in names if name not in model.outputs]
    if unknown:
        raise RefusedError(f"the model has no output '{unknown[0]}'; {told}")
    if not names:
        return model
    if set(names) == set(model.outputs):
        raise RefusedError(f"without {', '.join(names)} the model has no output left; keep one of them")
    draft = Draft(model)
    kept = [value for value in model.proto_outputs if value.name not in names]
    hidden = [value for value in model.proto_outputs if value.name in names]
    del draft.graph.output[:]
    draft.graph.output.extend(kept)
    inputs = {value.name for value in draft.graph.input}
    draft.graph.value_info.extend(value for value in hidden if value.name not in inputs)
    return draft.finish()
