"""What DeepSpeed can't do here, refused before it is loaded."""

import importlib.util

from longrl_trainer.config.sections import ShardingName
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.errors import TrainerUsageError

__all__ = ["refuse_unfit"]


def refuse_unfit(config: TrainingConfig, kind: ShardingName) -> None:
    """Refuse a recipe that DeepSpeed can't train as it says.

    Raises:
        TrainerUsageError: It can't, or isn't installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise TrainerUsageError(
            f'sharding.kind="{kind}" needs DeepSpeed, which is not installed; install longrl-trainer[deepspeed], or '
            'set "fsdp2"'
        )
    if config.dtype == "float64":
        raise TrainerUsageError(
            f'dtype="float64" with sharding.kind="{kind}": DeepSpeed updates weights in float32 at most; set '
            'sharding.kind to "fsdp2", or dtype to "float32"'
        )
    if config.trained_vision != "frozen":
        setting = "lora.vision=true" if config.lora.vision else f'train_vision="{config.train_vision}"'
        raise TrainerUsageError(
            f'{setting} with sharding.kind="{kind}": DeepSpeed trains the language model alone here; set sharding.kind '
            'to "fsdp2"'
        )
    if config.sharding.shard_ranks is not None:
        raise TrainerUsageError(
            f'sharding.shard_ranks={config.sharding.shard_ranks} with sharding.kind="{kind}": all processes hold one '
            'copy together; omit it, or set sharding.kind to "fsdp2"'
        )
