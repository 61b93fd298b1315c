"""`longrl export`: a model out of a run, as a checkpoint for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["export"]


def export(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path,
    step: int | Literal["best"] | None = None,
    model: Path | None = None,
) -> None:
    """Write a run's model as a checkpoint in the layout that its family is published in.

    All files but the weights are those of the model that the run began with, byte for byte; weights keep their names,
    their division into files and their published number format. The run may still be going on.

    Example: longrl export runs/grpo --output checkpoints/mine

    Example: longrl export runs/grpo --step 150 --output checkpoints/after-150

    Example: longrl export runs/grpo --step best --output checkpoints/best

    Args:
        run: Folder of a run of sft or grpo.
        output: Folder of the checkpoint; it must not exist or be empty.
        step: After how many steps; `best` for the checkpoint with the highest accuracy on held-out questions (of a run
            that wasn't evaluated, the best loss or reward); by default the final model of a finished run, or else that
            of the newest checkpoint.
        model: Folder of the model that the run began with, if it has moved.
    """
    from longrl_trainer.runs.export import export_model

    found = export_model(run, output, step=step, model=model)
    print(f"the model after {found} steps")
    print(output)
