"""The three recipes of one's own videos, as text: imitation, reward, evaluation.

Sizes come from the planner (`longrl.footage.fitting`), the rest is what published trainings of such models use. They
are ordinary recipes; whatever is changed in them counts. Paths are absolute, so that they work from anywhere.
"""

from dataclasses import dataclass
from pathlib import Path

from longrl.errors import AppUsageError
from longrl.footage.fitting import FittingStep, fit_step
from longrl.footage.material import Footage, Machine
from longrl.planning.settings import describe_rates, planned_settings, toml_lines
from longrl_trainer.durable import write_text
from longvideo_reason_data.generation.settings import SkillQuotas
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.records.splits import SplitFractions

__all__ = ["RECIPE_NAMES", "FootagePlaces", "write_recipes"]

SFT_NAME, GRPO_NAME, EVALUATE_NAME = RECIPE_NAMES = ("sft.toml", "grpo.toml", "evaluate.toml")
SMALL_PARAMETERS = 1e8
"""Models below learn from scratch: with larger steps, and more of them."""
SMALL_EPOCHS = 20
QUESTIONS_PER_ROW = 4
GRPO_EPOCHS, LEAST_STEPS, MOST_STEPS = 3, 10, 500

Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class FootagePlaces:
    """Where everything of one's own videos lies.

    Attributes:
        output: The folder of all that is written.
        dataset: The dataset.
        model: The checkpoint to train.
    """

    output: Path
    dataset: Path
    model: Path

    @property
    def store(self) -> Path:
        """The embeddings."""
        return self.output / "embeddings"

    @property
    def sft(self) -> Path:
        """The run of imitation."""
        return self.output / "sft"

    @property
    def grpo(self) -> Path:
        """The run of reward."""
        return self.output / "grpo"

    @classmethod
    def of(cls, output: Path, model: Path, dataset: Path | None = None) -> "FootagePlaces":
        """The places below a folder; the dataset is there too unless it is elsewhere."""
        folder = output.absolute()
        return cls(output=folder, dataset=dataset.absolute() if dataset else folder / "dataset", model=model.absolute())


def write_recipes(
    places: FootagePlaces, footage: Footage, machine: Machine, *, only_missing: bool = False
) -> list[Path]:
    """Write the recipes into the output folder, and return their paths; none is ever replaced.

    Args:
        places: Where everything lies.
        footage: The videos and questions.
        machine: The device.
        only_missing: Leave those that are there as they are, instead of refusing.

    Raises:
        AppUsageError: One is there.
        EngineError: No training fits.
    """
    paths = {name: places.output / name for name in RECIPE_NAMES}
    present = [path for path in paths.values() if path.exists()]
    if present and not only_missing:
        raise AppUsageError(
            f"{present[0]} exists, and recipes are never replaced; remove it or choose another --output"
        )
    missing = [path for path in paths.values() if path not in present]
    if not missing:
        return []
    fitting = fit_step(places.model, footage, machine)
    texts = {
        SFT_NAME: _sft(places, footage, machine, fitting),
        GRPO_NAME: _grpo(places, footage, machine, fitting),
        EVALUATE_NAME: _evaluate(places, machine, fitting),
    }
    for path in missing:
        write_text(path, texts[path.name])
    return missing


def _head(title: str, command: str, path: Path, machine: Machine, *more: str) -> str:
    several = machine.num_devices > 1 and command != "evaluate"
    lines = [
        title,
        f"Run it:      longrl {command} {path}",
        *([f"On all GPUs: longrl launch {path} --gpus {machine.num_devices}"] if several else []),
        f"Settings:    longrl {command} {path} --help",
        f"Made for:    one {machine.described}",
        *more,
    ]
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _data(places: FootagePlaces, split: Split, planned: dict[str, Value], model: Path) -> dict[str, Value]:
    return {
        "model.folder": str(model),
        "model.store": str(places.store),
        "data.dataset": str(places.dataset),
        "data.split": str(split),
        **{key: value for key, value in planned.items() if key.startswith("data.")},
    }


_REMARKS = {
    "model.store": "the same for all stages: every video is encoded once",
    "data.num_frames": "more show more, and cost memory and time",
    "data.frame_pixels": "the most pixels of a frame",
    "activation_checkpointing": "saves memory: the backward pass computes again",
    "lora.rank": "adapters, since all weights don't fit here",
    "sampler.memory_bytes": "for keys and values",
    "max_response_tokens": "longer responses are cut off",
}


def _shared(planned: dict[str, Value], *names: str) -> dict[str, Value]:
    return {key: value for key, value in planned.items() if key.split(".")[0] in names}


def _is_small(fitting: FittingStep) -> bool:
    return fitting[0].shape.num_parameters < SMALL_PARAMETERS


def _sft(places: FootagePlaces, footage: Footage, machine: Machine, fitting: FittingStep) -> str:
    planned, is_small = planned_settings(*fitting), _is_small(fitting)
    num_videos = footage.num_videos if footage.videos is None else footage.videos[Split.TRAIN_SFT]
    peak = 1e-3 if is_small else 1e-4 if "lora.rank" in planned else 1e-5
    settings: dict[str, Value] = {
        "output": str(places.sft),
        "dtype": machine.dtype,
        "epochs": SMALL_EPOCHS if is_small else 2,
        "rows_per_step": max(1, min(16 if machine.is_gpu else 4, num_videos)),
        "questions_per_row": QUESTIONS_PER_ROW,
        "learning_rate": peak,
        "warmup_fraction": 0.05,
        "checkpoint_every_steps": 20,
        **({"answer_form": "text"} if is_small else {}),
        **_shared(planned, "activation_checkpointing"),
        **_data(places, Split.TRAIN_SFT, planned, places.model),
        **_shared(planned, "lora"),
    }
    head = _head(
        f"CoT-SFT of {places.model.name} on the questions of {places.dataset}: the first training, by imitation.",
        "sft",
        places.output / SFT_NAME,
        machine,
    )
    return head + "\n".join(toml_lines(settings, _REMARKS)) + "\n"


def _grpo(places: FootagePlaces, footage: Footage, machine: Machine, fitting: FittingStep) -> str:
    request, plan = fitting
    planned, is_small = planned_settings(request, plan), _is_small(fitting)
    expected = round(SkillQuotas().total * SplitFractions().train_rl * footage.num_videos)
    questions = expected if footage.questions is None else footage.questions[Split.TRAIN_RL]
    steps = max(LEAST_STEPS, min(MOST_STEPS, -(-GRPO_EPOCHS * questions // request.prompts_per_step)))
    settings: dict[str, Value] = {
        "output": str(places.grpo),
        "dtype": machine.dtype,
        "steps": steps,
        **_shared(planned, "prompts_per_step", "group_size", "max_response_tokens"),
        "learning_rate": 3e-4 if is_small else 1e-5 if "lora.rank" in planned else 1e-6,
        "warmup_steps": min(10, steps // 5),
        "objective": "grpo",
        "checkpoint_every_steps": max(1, min(50, steps // 5)),
        **_shared(planned, "activation_checkpointing"),
        **_data(places, Split.TRAIN_RL, planned, places.sft / "model"),
        **_shared(planned, "lora", "parallel"),
        "rewards.answer": 0.9,
        "rewards.format": 0.1,
        "sampler.engine": machine.sampler,
        **_shared(planned, "sampler"),
        "sampler.max_num_seqs": 128,
    }
    remarks = _REMARKS | {"objective": "or dapo, gspo, cispo, sapo, dr_grpo, rloo, ..."}
    seconds = sum(plan.seconds_by_stage.values())
    head = _head(
        f"GRPO after CoT-SFT of {places.model.name} on the questions of {places.dataset}: learning by reward.",
        "grpo",
        places.output / GRPO_NAME,
        machine,
        f"Planned:     {plan.sizes.prompt_tokens} tokens of a prompt, about {seconds:.0f} s for a step;",
        f"             {describe_rates(request.hardware)}",
    )
    return head + "\n".join(toml_lines(settings, remarks)) + "\n"


def _evaluate(places: FootagePlaces, machine: Machine, fitting: FittingStep) -> str:
    planned = planned_settings(*fitting)
    settings: dict[str, Value] = {
        "output": str(places.output / "accuracy.json"),
        "dtype": machine.dtype,
        **_shared(planned, "max_response_tokens"),
        **_data(places, Split.HELD_OUT, planned, places.grpo / "model"),
        "sampler.engine": machine.sampler,
        **_shared(planned, "sampler"),
    }
    head = _head(
        f"Accuracy of the trained {places.model.name} on the held-out videos of {places.dataset}.",
        "evaluate",
        places.output / EVALUATE_NAME,
        machine,
    )
    return head + "\n".join(toml_lines(settings, _REMARKS)) + "\n"
