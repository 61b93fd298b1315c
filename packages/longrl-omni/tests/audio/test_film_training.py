"""The trainer's loops on films that are seen and heard: imitation, then two steps of GRPO with the plain sampler."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from longrl_omni.audio.tiny_tasks import corpus_of
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.questions.media import opener_for
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from longvideo_reason_data.records.medium import MediumKind
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.parallel import PlannedMedium
from mrsp_engine.families import load_policy
from mrsp_engine.positions import FILM_SOUND
from mrsp_engine.tiny.language import LanguageSizes
from mrsp_engine.tiny.published.qwen2_5_omni import ThinkerTowers
from mrsp_engine.tiny.qwen2_5_omni import create_trainable_qwen2_5_omni

SIZES = LanguageSizes(
    hidden_size=64, num_layers=2, num_heads=2, num_key_value_heads=1, intermediate_size=128, vocabulary_size=512
)
TOWERS = ThinkerTowers(
    vision_hidden_size=32, vision_depth=1, frame_pixels=56 * 56, audio_hidden_size=32, audio_depth=1, rotary_base=1e4
)
WORLD = WorldSettings(seconds=8.0, num_scenes=3, scene_seconds=1.0, frames_per_second=1, size_pixels=64, sound=True)
VIDEOS = {Split.TRAIN_SFT: 1, Split.TRAIN_RL: 1}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of films in `films`, and a model for them in `model`."""
    folder = tmp_path_factory.mktemp("films")
    records = write_timeline_dataset(folder / "films", WORLD, videos=VIDEOS, questions_per_video=4, seed=0)
    create_trainable_qwen2_5_omni(folder / "model", corpus=corpus_of(records), sizes=SIZES, towers=TOWERS)
    return folder


@pytest.mark.slow
def test_a_thinker_learns_from_films_by_imitation_and_by_reward(films: Path, tmp_path: Path) -> None:
    store = {"store": str(tmp_path / "store")}
    data = {"dataset": str(films / "films"), "num_frames": 8, "sound": True}
    sft = parse_config(
        {
            "model": {"folder": str(films / "model"), **store},
            "data": {**data, "split": "train_sft"},
            "output": str(tmp_path / "sft"),
            "epochs": 60,
            "learning_rate": 5e-3,
            "warmup_fraction": 0.1,
            "answer_form": "text",
        },
        SftConfig,
        source="test",
    )
    imitated = train_sft(sft)
    losses = [line["loss"] for line in read_json_lines(sft.output / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    grpo = parse_config(
        {
            "model": {"folder": str(imitated.model_folder), **store},
            "data": {**data, "split": "train_rl"},
            "output": str(tmp_path / "grpo"),
            "steps": 2,
            "prompts_per_step": 4,
            "group_size": 6,
            "learning_rate": 1e-3,
            "temperature": 1.0,
            "max_response_tokens": 48,
            "sampler": {"engine": "transformers"},
        },
        GrpoConfig,
        source="test",
    )
    rewarded = train_grpo(grpo)
    lines = read_json_lines(grpo.output / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["logprob_gap"]["mean_abs"] < 1e-5 for line in lines)
    assert any(line["gradient_norm"] > 0 for line in lines)
    assert EmbeddingStore(tmp_path / "store").counters.encodes == 2 * 2  # each film's pictures and sound, once
    before, after = (
        {name: weight for path in folder.glob("*.safetensors") for name, weight in load_file(path).items()}
        for folder in (imitated.model_folder, rewarded.model_folder)
    )
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert changed
    assert all(name.startswith(("thinker.model.", "thinker.lm_head.")) for name in changed)
    asked = {"dataset": str(films / "films"), "num_frames": 8, "split": "train_rl"}
    for shown in ({"sound": True}, {"sound": False}, {"sound": True, "pictures": False}):
        evaluation = {
            "model": {"folder": str(rewarded.model_folder), **store},
            "data": asked | shown,
            "output": str(tmp_path / f"{len(shown)}{shown['sound']}.json"),
            "max_response_tokens": 2,
            "sampler": {"engine": "transformers"},
        }
        assert evaluate(parse_config(evaluation, EvaluateConfig, source="test")).count == 4
    assert EmbeddingStore(tmp_path / "store").counters.encodes == 2 * 2


def test_films_are_only_heard_where_that_is_wanted(films: Path, tmp_path: Path) -> None:
    policy = load_policy(films / "model", store=EmbeddingStore(tmp_path / "store"))
    (path, _) = sorted((films / "films" / "videos").iterdir())
    film = opener_for(policy, MediumKind.VIDEO)(path, policy)
    (shown, heard) = film.encode(FrameSettings(num_frames=4, sound=True))
    assert isinstance(shown, PlannedMedium)
    assert not isinstance(heard, PlannedMedium)
    (recording,) = film.encode(FrameSettings(num_frames=4, sound=True, pictures=False))
    assert not isinstance(recording, PlannedMedium)
    assert (heard.modality, recording.modality) == (FILM_SOUND, "audio")
    assert heard.key == recording.key
    assert policy.store.counters.encodes == 1
    with pytest.raises(TrainerUsageError, match="pictures=false with sound=false: nothing is left of a film"):
        parse_config({"num_frames": 4, "pictures": False}, FrameSettings, source="test")
