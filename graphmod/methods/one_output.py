"""Training looks at the first output alone, so that others would be ruined."""

from __future__ import annotations

from graphmod.errors import RefusedError
from graphmod.model import Model


def check_one_output(model: Model) -> None:
    """Raise RefusedError if training would change outputs that are not looked at."""
    if len(model.outputs) > 1:
        raise RefusedError(
            f"the model has the outputs {', '.join(model.outputs)}, and only '{model.main_output}' would be trained, "
            "which would ruin the others; take out what makes the logits by itself with gm.extract"
        )
