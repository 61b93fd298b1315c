"""Qwen2.5-Omni's thinker against transformers itself, in float64: what it sees and hears, gradients included."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError, UnfitMediumError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.copies import write_copy
from mrsp_engine.families.qwen.qwen2_5_omni import Qwen25OmniPolicy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.testing.agreement import disturb_weights
from mrsp_engine.testing.fixtures import NoiseSound, NoiseVideo, use_exact_norms
from mrsp_engine.tiny.families import build_tiny

QUESTION = "Which shape left first?"
RESPONSES = ((40, 41, 42, 43, 44), (50, 51, 52))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny("qwen2_5_omni", folder)
    return folder


@pytest.fixture
def policy(folder: Path, store: EmbeddingStore) -> Qwen25OmniPolicy:
    policy = load_policy(folder, dtype=torch.float64, store=store)
    policy.freeze_vision()
    use_exact_norms(policy.model)
    assert isinstance(policy, Qwen25OmniPolicy)
    return policy


@pytest.fixture(scope="module")
def policy_of_windows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(folder, store=EmbeddingStore(tmp_path_factory.mktemp("windows")))


@pytest.fixture
def whole_model(folder: Path) -> Any:
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    use_exact_norms(model)
    return model


def compare(policy: Qwen25OmniPolicy, whole_model: Any, prompt: Prompt, inputs: dict[str, Tensor]) -> None:
    """Positions, log-probs and gradients of two responses, each with its own prompt in transformers' whole model."""
    scores = score_branches(policy, prompt, [Branch(token_ids=response) for response in RESPONSES])
    sum(part.sum() for part in scores.logprobs).backward()
    for place, response in enumerate(RESPONSES):
        ids = torch.tensor([(*prompt.expanded_ids, *response)])
        seen: list[Tensor] = []
        handle = whole_model.model.register_forward_pre_hook(
            lambda _, arguments, named, seen=seen: seen.append(named["position_ids"]), with_kwargs=True
        )
        logits = whole_model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
        handle.remove()
        assert seen[0][:, 0, : prompt.length].equal(prompt.positions)
        logprobs = logits[prompt.length - 1 : -1].log_softmax(dim=1)[range(len(response)), response]
        torch.testing.assert_close(scores.logprobs[place], logprobs, atol=1e-10, rtol=0)
        logprobs.sum().backward()
    expected = {name: weight.grad for name, weight in whole_model.named_parameters()}
    norm = torch.stack([grad.norm() for grad in expected.values() if grad is not None]).norm()
    trained = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert len(trained) > 20
    for name, weight in trained.items():
        assert weight.grad is not None
        assert (weight.grad - expected[name]).norm() <= 1e-9 * norm, name


def pixels(policy: Qwen25OmniPolicy, video: NoiseVideo, number: int) -> Any:
    frames = torch.from_numpy(video.read(list(range(number)))).permute(0, 3, 1, 2)
    return policy.processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")


def test_what_is_seen(policy: Qwen25OmniPolicy, whole_model: Any) -> None:
    first, second = NoiseVideo(), NoiseVideo(seed=1, height=64, width=128)
    image = NoiseVideo(seed=2, frame_count=1, height=120, width=70)
    media = [policy.encode_video(first, range(7)), policy.encode_image(image), policy.encode_video(second, range(4))]
    shown = [pixels(policy, first, 7), pixels(policy, second, 4)]
    still = policy.processor.image_processor(
        images=[torch.from_numpy(image.read([0])[0]).permute(2, 0, 1)], return_tensors="pt"
    )
    inputs = {
        "pixel_values_videos": torch.cat([of_video["pixel_values_videos"] for of_video in shown]),
        "video_grid_thw": torch.cat([of_video["video_grid_thw"] for of_video in shown]),
        "video_second_per_grid": torch.tensor([media[0].seconds_per_grid, media[2].seconds_per_grid]),
        "pixel_values": still["pixel_values"],
        "image_grid_thw": still["image_grid_thw"],
    }
    compare(policy, whole_model, policy.build_prompt(QUESTION, media), inputs)


def features(policy: Qwen25OmniPolicy, sounds: list[Any]) -> dict[str, Tensor]:
    """Inputs of transformers' model for whole sounds."""
    made = [
        policy.processor.feature_extractor(
            sound,
            sampling_rate=16_000,
            padding="max_length",
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        for sound in sounds
    ]
    return {
        "input_features": torch.cat([of_sound["input_features"] for of_sound in made]),
        "feature_attention_mask": torch.cat([of_sound["attention_mask"] for of_sound in made]),
    }


def test_what_is_heard(policy: Qwen25OmniPolicy, whole_model: Any) -> None:
    """Recordings of any length beside a video, in any order."""
    first, second, video = NoiseSound(0, 50_000), NoiseSound(1, 99_999), NoiseVideo()
    media = [*policy.encode_audio(first), policy.encode_video(video, range(4)), *policy.encode_audio(second)]
    assert [medium.num_tokens for medium in media] == [78, 24, 156]
    shown = pixels(policy, video, 4)
    inputs = {
        "pixel_values_videos": shown["pixel_values_videos"],
        "video_grid_thw": shown["video_grid_thw"],
        "video_second_per_grid": torch.tensor([media[1].seconds_per_grid]),
        **features(policy, [first.samples, second.samples]),
    }
    compare(policy, whole_model, policy.build_prompt(QUESTION, media), inputs)


@pytest.mark.parametrize(
    ("frames_per_second", "num_frames", "num_samples"),
    [(4.0, 24, 100_000), (4.0, 7, 120_000), (1.0, 12, 50_000), (2.0, 20, 31_000), (8.0, 4, 1_000)],
    ids=["more than a chunk", "sound goes on", "pictures go on", "a sound within a chunk", "hardly any"],
)
def test_what_is_seen_and_heard(
    policy: Qwen25OmniPolicy, whole_model: Any, frames_per_second: float, num_frames: int, num_samples: int
) -> None:
    """A film: order, positions, log-probs and gradients are those of transformers' processor and model."""
    sound = NoiseSound(3, num_samples)
    video = NoiseVideo(frame_count=num_frames, height=56, width=84, frames_per_second=frames_per_second)
    media = [policy.encode_video(video, range(num_frames)), policy.encode_film_sound(sound)]
    prompt = policy.build_prompt(QUESTION, media)
    assert policy.prompt_length(QUESTION, media) == prompt.length
    # Where the sound ends before the last group of the same chunk, text begins before that group.
    excess = policy.prompt_positions(QUESTION, media) - int(prompt.positions.max()) - 1
    assert excess == (5 if num_samples == 1_000 else 0)
    shown = pixels(policy, video, num_frames)
    (written,) = policy.processor.replace_multimodal_special_tokens(
        [policy.tokenizer.decode(prompt.token_ids)],
        iter([media[1].num_tokens]),
        iter([]),
        iter(shown["video_grid_thw"]),
        video_second_per_grid=iter([media[0].seconds_per_grid]),
        use_audio_in_video=True,
        position_id_per_seconds=25,
        seconds_per_chunk=2,
    )
    assert tuple(policy.tokenizer.encode(written)) == prompt.expanded_ids
    inputs = {
        "pixel_values_videos": shown["pixel_values_videos"],
        "video_grid_thw": shown["video_grid_thw"],
        "video_second_per_grid": torch.tensor([media[0].seconds_per_grid]),
        "use_audio_in_video": True,
        **features(policy, [sound.samples]),
    }
    compare(policy, whole_model, prompt, inputs)
    rows = torch.arange(1, prompt.length, 3)
    assert policy.embed_rows(prompt, rows).equal(policy.embed(prompt)[rows])
    prefix, tail = policy.build_shared_prompt(media)
    assert prefix.expanded_ids + tail(QUESTION) == prompt.expanded_ids


def test_films_of_few_frames_keep_the_order_of_time(policy: Qwen25OmniPolicy) -> None:
    """A pair of frames every 8 seconds: chunks of two seconds between them have sound alone."""
    video = policy.encode_video(NoiseVideo(frame_count=4, height=28, width=28, frames_per_second=0.25), range(4))
    prompt = policy.build_prompt(QUESTION, [video, policy.encode_film_sound(NoiseSound(4, 16_000 * 9))])
    video_id, audio_id = (policy._placeholders[modality] for modality in ("video", "audio"))
    rows = [token == audio_id for token in prompt.expanded_ids if token in (video_id, audio_id)]
    assert rows == [False, *[True] * 200, False, *[True] * 25]
    start = prompt.expanded_ids.index(video_id)
    assert prompt.positions[:, start - 2 : start + 3].T.tolist() == [
        [start - 2] * 3, [start - 2] * 3, [start - 1] * 3, [start - 1] * 3, [start] * 3,
    ]  # fmt: skip
    assert prompt.positions[:, start + 201].tolist() == [start - 1 + 200, start - 1, start - 1]


def test_films_that_are_heard_stand_alone(policy: Qwen25OmniPolicy) -> None:
    video, (recording,) = policy.encode_video(NoiseVideo(), range(4)), policy.encode_audio(NoiseSound())
    sound = policy.encode_film_sound(NoiseSound())
    assert policy.store.counters.encodes == 2  # the sound of a film is that of the same file as a recording
    for media in ([video, sound, video], [video, sound, recording]):
        with pytest.raises(EngineUsageError, match=r"all of a prompt's films or none"):
            policy.build_prompt(QUESTION, media)
    with pytest.raises(EngineUsageError, match="audio_in_video for a model that"):
        policy.build_prompt(QUESTION, [sound, video])


def test_long_recordings_are_one_medium_and_lose_nothing(policy: Qwen25OmniPolicy, whole_model: Any) -> None:
    """Divided where attention ends too: 8 seconds are a window here, of which these are the fewest."""
    sound = NoiseSound(2, 300_001)
    (medium,) = policy.encode_audio(sound)
    assert sound.num_read == 300_001
    cuts = (0, 96_000, 192_000, 300_001)
    parts = [sound.samples[start:end] for start, end in pairwise(cuts)]
    with torch.no_grad():
        rows = [whole_model.get_audio_features(**features(policy, [part])).last_hidden_state for part in parts]
    assert [len(of_part) for of_part in rows] == [150, 150, 169]
    torch.testing.assert_close(policy.store.get(medium.key), torch.cat(rows), atol=1e-12, rtol=0)
    assert policy.encode_audio(sound) == (medium,)
    assert (policy.store.counters.encodes, sound.num_read) == (1, 300_001)


@given(st.integers(1, 2_000_000))
def test_windows_cover_a_recording_once(policy_of_windows: Qwen25OmniPolicy, num_samples: int) -> None:
    encoder = policy_of_windows._audio_encoder
    windows = encoder.plan_windows(num_samples)
    assert (windows[0][0], windows[-1][1]) == (0, num_samples)
    assert all(first[1] == second[0] for first, second in pairwise(windows))
    assert all(start % 32_000 == 0 and 0 < end - start <= 128_000 for start, end in windows)
    assert len(windows) == -(-num_samples // 128_000)
    assert len(windows) == 1 or windows[-1][1] - windows[-1][0] >= encoder.least_samples


def test_sounds_that_cannot_be_heard_are_refused_in_one_line(policy: Qwen25OmniPolicy) -> None:
    with pytest.raises(UnfitMediumError, match="sound of 320 samples at 16000 per second: expected 321 or more"):
        policy.encode_audio(NoiseSound(0, 320))
    other = NoiseSound()
    other.sample_rate = 44_100
    with pytest.raises(EngineUsageError, match="44100 samples per second: this checkpoint expects 16000"):
        policy.encode_audio(other)


def test_another_mix_is_another_sound(policy: Qwen25OmniPolicy) -> None:
    sound, mixed = NoiseSound(), NoiseSound()
    mixed.conversion = "left channel"
    assert len({medium.key for of_one in (sound, mixed) for medium in policy.encode_audio(of_one)}) == 2


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: weight for path in sorted(folder.glob("*.safetensors")) for name, weight in load_file(path).items()}


def test_what_speaks_stays_to_the_byte(folder: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    """Saved and exported alike; the voices too, which are a pickle that nothing here reads."""
    policy = load_policy(folder, store=store)
    assert not any(name.startswith(("talker", "token2wav")) for name in policy.model.state_dict())
    policy.save(tmp_path / "same")
    for path in folder.iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes(), path.name
    disturb_weights(policy)
    policy.save(tmp_path / "saved")
    exported = tmp_path / "exported"
    exported.mkdir()
    held = policy.checkpoint_weights()
    write_copy(folder, exported, held, is_whole=True, outside=[tmp_path])
    before = weights(folder)
    for target in (tmp_path / "saved", exported):
        assert (target / "spk_dict.pt").read_bytes() == (folder / "spk_dict.pt").read_bytes()
        after = weights(target)
        assert after.keys() == before.keys()
        changed = {name.partition(".")[0] for name, weight in after.items() if not weight.equal(before[name])}
        assert changed == {"thinker"}
        assert any(name.startswith("talker.") for name in after)
    shutil.rmtree(exported)
    exported.mkdir()
    del held[""]["thinker.lm_head.weight"], held[""]["lm_head.weight"]
    with pytest.raises(EngineError, match=r"holds thinker\.lm_head\.weight, which the model hasn't"):
        write_copy(folder, exported, held, is_whole=True, outside=[tmp_path])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"thinker_config": None}, "has no thinker_config"),
        ("config.json", {"position_id_per_seconds": 20}, "position_id_per_seconds=20 and tokens_per_second=25"),
        ("config.json", {"position_id_per_seconds": "25"}, "position_id_per_seconds='25': expected a number"),
        ("config.json", {"audio_token_index": 3}, "config.json has 3"),
        ("config.json", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ("tokenizer_config.json", {"audio_bos_token": None, "extra_special_tokens": None}, "names no audio_bos_token"),
    ],
)
def test_what_isnt_supported_is_refused_in_one_line(
    folder: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    values = json.loads((tmp_path / "model" / file).read_text())
    for name, value in change.items():
        section = values
        if "thinker_config" in values and name != "thinker_config":
            section = values["thinker_config"]["text_config"] if name == "rope_scaling" else values["thinker_config"]
        if value is None:
            del section[name]
        else:
            section[name] = value
    (tmp_path / "model" / file).write_text(json.dumps(values))
    with pytest.raises(EngineUsageError) as raised:
        load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
