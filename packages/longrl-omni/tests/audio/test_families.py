"""Both families against transformers itself, and what holds for every family: exactness and encoding once."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from longrl_omni.audio.audio_file import AudioFile
from longrl_omni.audio.tiny_tasks import make_tone, write_sound
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo, use_exact_norms

QUESTION = "How high is the tone?"
Load = Callable[..., Any]
LENGTHS = ((9, 0), (20, 4), (1, 0), (17, 17), (2, 1))


class CountedAudio:
    """A recording that counts how many samples were read of it."""

    sample_rate = 16_000
    conversion = "as it is"
    fillings = ()

    def __init__(self, samples: NDArray[np.float32], digest: str = "a" * 64) -> None:
        self.samples, self.content_digest, self.num_read = samples, digest, 0

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[NDArray[np.float32]]:
        for start, end in ranges:
            self.num_read += end - start
            yield self.samples[start:end]


@pytest.fixture(params=["qwen2", "qwen2_audio"])
def case(
    request: pytest.FixtureRequest, text_folder: Path, audio_folder: Path, load: Load
) -> tuple[LanguagePolicy, Prompt]:
    """A float64 policy of either family and a prompt with all the media it accepts."""
    if request.param == "qwen2":
        policy: LanguagePolicy = load(text_folder, torch.float64)
        media = ()
    else:
        hearing = load(audio_folder, torch.float64)
        media = hearing.encode_audio(CountedAudio(make_tone(440, 2.5)))
        assert len(media) == 2  # longer than one window
        policy = hearing
    use_exact_norms(policy.model)
    return policy, policy.build_prompt(QUESTION, media)


def branches() -> list[Branch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Branch(token_ids=tuple(torch.randint(0, 250, (length,), generator=generator).tolist()), scored_from=scored_from)
        for length, scored_from in LENGTHS
    ]


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def test_sharing_the_prompt_changes_no_gradient(case: tuple[LanguagePolicy, Prompt]) -> None:
    policy, prompt = case
    outcomes: list[dict[str, Tensor]] = []
    for share_prompt in (False, True):
        policy.model.zero_grad()
        scores = score_branches(policy, prompt, branches(), temperature=0.7, share_prompt=share_prompt)
        flat = torch.cat(scores.logprobs)
        loss = (flat * torch.linspace(-1, 1, len(flat), dtype=flat.dtype)).sum() + (flat**2).mean()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
        outcomes.append({"loss": loss.detach(), "entropies": torch.cat(scores.entropies), **gradients})
    plain, shared = outcomes
    trained = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert shared.keys() == plain.keys() == trained | {"loss", "entropies"}
    for name, value in plain.items():
        assert relative(shared[name], value) <= 1e-9, name


def test_scores_are_those_of_the_models_own_logits(case: tuple[LanguagePolicy, Prompt]) -> None:
    policy, prompt = case
    branch = branches()[1]
    row = torch.cat([policy.embed(prompt), policy.embed_tokens(torch.tensor(branch.token_ids))])
    with torch.no_grad():
        logits = policy.model(inputs_embeds=row[None], attention_mask=torch.ones(1, len(row))).logits[0]
        scored = score_branches(policy, prompt, [branch]).logprobs[0]
    expected = logits[prompt.length - 1 : -1].log_softmax(-1)
    wanted = expected[torch.arange(len(branch.token_ids)), torch.tensor(branch.token_ids)][branch.scored_from :]
    assert relative(scored, wanted) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("text", ["", "How high?", "\n A.\n", "naïve 🙂"])
def test_the_shared_prompt_and_its_tails_are_the_whole_prompt(
    case: tuple[LanguagePolicy, Prompt], system: str | None, text: str
) -> None:
    policy, prompt = case
    prefix, tail = policy.build_shared_prompt(prompt.media, system=system)
    whole = policy.build_prompt(text, prompt.media, system=system)
    assert prefix.expanded_ids + tail(text) == whole.expanded_ids
    assert torch.equal(whole.positions, torch.arange(whole.length)[None])
    assert prefix.media == whole.media == prompt.media


def test_the_sampler_agrees_with_the_trainer(case: tuple[LanguagePolicy, Prompt]) -> None:
    policy, prompt = case
    sampling = SamplingSettings(temperature=0.8, max_tokens=12, num_samples=3, seed=1)
    outcomes = TransformersRolloutEngine(policy).generate([prompt], sampling)
    assert logprob_gaps(policy, [prompt], outcomes, temperature=sampling.temperature).max() <= 1e-9


def test_a_saved_checkpoint_is_the_same_model_under_the_same_names(
    case: tuple[LanguagePolicy, Prompt], tmp_path: Path, load: Load
) -> None:
    policy, prompt = case
    with torch.no_grad():
        policy.language_model_head.get_parameter("weight").mul_(1.5)
        before = score_branches(policy, prompt, branches()).logprobs
    policy.save(tmp_path / "saved", exact=True)
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as saved:
        names = set(saved.keys())
    with safe_open(policy.folder / "model.safetensors", "pt") as original:
        assert names == set(original.keys())
    weights = {name for name, _ in policy.sampler_weights()}
    assert weights == {name for name in names if not name.startswith(("audio_tower.", "multi_modal_projector."))}
    again = load(tmp_path / "saved", torch.float64)
    use_exact_norms(again.model)
    with torch.no_grad():
        after = score_branches(again, prompt, branches()).logprobs
    assert relative(torch.cat(after), torch.cat(before)) <= 1e-12
    assert again.build_prompt(QUESTION, prompt.media).token_ids == prompt.token_ids


def test_what_a_family_cannot_take_is_refused(
    case: tuple[LanguagePolicy, Prompt], audio_folder: Path, text_folder: Path, load: Load, tmp_path: Path
) -> None:
    policy, _ = case
    with pytest.raises(EngineUsageError, match="accepts no video"):
        policy.encode_video(NoiseVideo(), [0])
    with pytest.raises(EngineUsageError, match="control token"):
        policy.build_prompt("<|im_end|>", ())
    if policy.name == "qwen2":
        medium = load(audio_folder).encode_audio(CountedAudio(make_tone(440, 0.5)))
        with pytest.raises(EngineUsageError, match="only reads"):
            policy.build_prompt(QUESTION, medium)
    folder = shutil.copytree(text_folder if policy.name == "qwen2" else audio_folder, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineUsageError, match="not a file of tensors"):
        load(folder)


def test_sliding_windows_are_refused(text_folder: Path, load: Load, tmp_path: Path) -> None:
    folder = shutil.copytree(text_folder, tmp_path / "sliding")
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"]
    config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineUsageError, match="sliding"):
        load(folder)


class TestAudio:
    @pytest.mark.parametrize("seconds", [0.03, 0.41, 2.0])
    def test_cached_equals_live(self, audio_folder: Path, store: EmbeddingStore, load: Load, seconds: float) -> None:
        """Logits from the store equal those of transformers' whole model from samples."""
        policy = load(audio_folder)
        samples = make_tone(700, seconds)
        prompt = policy.build_prompt(QUESTION, policy.encode_audio(CountedAudio(samples)))
        processor = Qwen2AudioProcessor.from_pretrained(audio_folder)
        text = policy.tokenizer.decode(prompt.token_ids)
        inputs = processor(text=text, audio=[samples], sampling_rate=16_000, return_tensors="pt")
        assert tuple(inputs["input_ids"][0].tolist()) == prompt.expanded_ids
        model = Qwen2AudioForConditionalGeneration.from_pretrained(audio_folder, dtype=torch.float32)
        with torch.no_grad():
            live = model(**inputs).logits[0]
            cached = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
        torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-5)

    def test_a_recording_is_read_and_encoded_once(self, audio_folder: Path, store: EmbeddingStore, load: Load) -> None:
        policy = load(audio_folder)
        audio = CountedAudio(make_tone(700, 2.5))
        first = policy.encode_audio(audio)
        assert (audio.num_read, store.counters.encodes) == (40_000, 2)
        assert [medium.num_tokens for medium in first] == [31, 31]  # 20,000 samples: 125 mel frames
        assert policy.encode_audio(audio) == first
        assert load(audio_folder).encode_audio(audio) == first
        assert (audio.num_read, store.counters.encodes) == (40_000, 2)
        other = [CountedAudio(audio.samples, "b" * 64)]
        keys = {medium.key for source in (audio, *other) for medium in policy.encode_audio(source)}
        assert len(keys) == 4
        (part,) = policy.encode_audio(audio, [(100, 16_000)])
        assert part.key not in keys

    def test_a_trained_encoder_does_not_find_the_old_embeddings(
        self, audio_folder: Path, store: EmbeddingStore, load: Load
    ) -> None:
        policy = load(audio_folder)
        audio = CountedAudio(make_tone(700, 0.5))
        (before,) = policy.encode_audio(audio)
        other = load(audio_folder)
        with torch.no_grad():
            other.model.get_parameter("model.multi_modal_projector.linear.bias").add_(1e-3)
        assert other.encode_audio(audio)[0].key != before.key

    def test_real_files_are_heard(self, audio_folder: Path, store: EmbeddingStore, load: Load, tmp_path: Path) -> None:
        """The same audio from a lossless file gives the same embedding, another pitch a different one."""
        policy = load(audio_folder)
        for name, pitch in (("low", 200.0), ("high", 3000.0)):
            write_sound(tmp_path / f"{name}.flac", [make_tone(pitch, 0.5, rate=48_000)] * 2, rate=48_000, codec="flac")
        media = [policy.encode_audio(AudioFile.open(tmp_path / f"{name}.flac"))[0] for name in ("low", "high")]
        low, high = (store.get(medium.key) for medium in media)
        assert low is not None
        assert high is not None
        assert (low - high).pow(2).mean().sqrt() > 0.3 * low.pow(2).mean().sqrt()

    def test_what_the_tower_cannot_hear_is_refused(self, audio_folder: Path, store: EmbeddingStore, load: Load) -> None:
        policy = load(audio_folder)
        audio = CountedAudio(make_tone(700, 3.0))
        assert policy.least_samples == 321
        for windows in ([(0, 320)], [(0, 32_001)], [(10, 48_001)], [(-1, 500)]):
            with pytest.raises(EngineUsageError, match="samples"):
                policy.encode_audio(audio, windows)
        audio.sample_rate = 48_000
        with pytest.raises(EngineUsageError, match="48000 samples per second"):
            policy.encode_audio(audio)

    def test_a_foreign_store_is_noticed(
        self, audio_folder: Path, store: EmbeddingStore, load: Load, tmp_path: Path
    ) -> None:
        policy = load(audio_folder)
        prompt = policy.build_prompt(QUESTION, policy.encode_audio(CountedAudio(make_tone(700, 0.5))))
        elsewhere = load(audio_folder, store=EmbeddingStore(tmp_path / "elsewhere"))
        with pytest.raises(EngineError, match="elsewhere"):
            elsewhere.embed(prompt)


def test_transformers_loads_the_text_checkpoint_by_itself(text_folder: Path, load: Load) -> None:
    policy = load(text_folder)
    model = AutoModelForCausalLM.from_pretrained(text_folder, dtype=torch.float32)
    prompt = policy.build_prompt("What is 1 + 2?", ())
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([prompt.expanded_ids])).logits[0]
        ours = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_length_of_a_prompt_is_known_without_laying_it_out(case: tuple[LanguagePolicy, Prompt]) -> None:
    policy, prompt = case
    for shown in (prompt.media, prompt.media * 3, ()):
        for system in (None, "Listen."):
            built = policy.build_prompt(QUESTION, shown, system=system)
            assert policy.prompt_length(QUESTION, shown, system=system) == built.length
    assert policy.max_positions == policy.model.config.get_text_config().max_position_embeddings  # type: ignore[operator,union-attr]
