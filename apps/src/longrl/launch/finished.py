"""Whether a job's run is finished already, so that starting it would only load models and end."""

from contextlib import suppress

from longrl.launch.job import LaunchJob
from longrl_trainer.config.effects import Effect, find_differences
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerError
from longrl_trainer.runs.folder import RESULT_NAME
from longrl_trainer.runs.settings import read_object, read_settings

__all__ = ["describe_finished"]

UNIMPORTANT = (Effect.NONE, Effect.PLACE)
"""What such settings change doesn't make another run, nor a longer one."""


def describe_finished(job: LaunchJob) -> str | None:
    """A line on the finished run in the job's folder; None if there is none, or the run itself has to judge."""
    if not isinstance(job.config, SftConfig | GrpoConfig):
        return None
    with suppress(TrainerError, OSError):  # the run tells what is wrong with its folder
        result, saved = read_object(job.output, RESULT_NAME), read_settings(job.output)
        if result is None or saved is None or saved.get("stage") != job.command:
            return None
        differences = find_differences(saved.get("settings", {}), job.config)
        if all(difference.effect in UNIMPORTANT for difference in differences):
            length = "--steps" if isinstance(job.config, GrpoConfig) else "--epochs"
            return (
                f"{job.output}: this run is finished, so nothing is started; set more {length} to go on with it, or "
                "another --output to begin a new one"
            )
    return None
