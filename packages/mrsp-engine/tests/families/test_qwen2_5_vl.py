"""The Qwen2.5-VL family against transformers itself: embeddings, prompts, checkpoints and their errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.qwen.qwen2_5_vl import Qwen25VlPolicy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.testing.fixtures import NoiseVideo

QUESTION = "Which shape left first?"


def processed(folder: Path, video: NoiseVideo, indices: range | list[int]) -> dict[str, torch.Tensor]:
    """Pixels from the checkpoint's own processor, all frames at once."""
    processor = Qwen2_5_VLProcessor.from_pretrained(folder)
    frames = torch.from_numpy(video.read(list(indices))).permute(0, 3, 1, 2)
    return processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")


class TestEmbeddings:
    def test_a_video_is_read_and_encoded_once(self, policy: Policy, video: NoiseVideo) -> None:
        first = policy.encode_video(video, range(0, 24, 2))
        assert (video.num_read, policy.store.counters.encodes) == (12, 1)
        assert policy.encode_video(video, range(0, 24, 2)) == first
        assert policy.encode_video(NoiseVideo(seed=0), range(0, 24, 2)) == first
        assert (video.num_read, policy.store.counters.encodes) == (12, 1)
        others = [policy.encode_video(video, range(12)), policy.encode_video(NoiseVideo(seed=1), range(0, 24, 2))]
        assert len({first.key, *(other.key for other in others)}) == 3
        assert policy.store.counters.encodes == 3

    def test_cached_equals_live(self, tiny_folder: Path, store: EmbeddingStore, video: NoiseVideo) -> None:
        """Logits from the store equal those of transformers' whole model from pixels, given the same positions."""
        policy = load_policy(tiny_folder, store=store)
        prompt = policy.build_prompt(QUESTION, [policy.encode_video(video, range(10))])
        inputs = processed(tiny_folder, video, range(10))
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32)
        with torch.no_grad():
            live = model(
                input_ids=torch.tensor([prompt.expanded_ids]),
                pixel_values_videos=inputs["pixel_values_videos"],
                video_grid_thw=inputs["video_grid_thw"],
                position_ids=prompt.positions[:, None],
            ).logits[0]
            cached = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
        assert tuple(inputs["video_grid_thw"][0].tolist()) == prompt.media[0].grid_thw
        torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("num_frames", [1, 5, 64, 131])
    def test_stretches_equal_the_whole(self, policy: Policy, tiny_folder: Path, num_frames: int) -> None:
        """Long videos are encoded in parts, odd ones completed with their last frame, like the processor does."""
        video = NoiseVideo(frame_count=131, height=56, width=84)
        reference = policy.encode_video(video, range(num_frames))
        inputs = processed(tiny_folder, video, range(num_frames))
        with torch.no_grad():
            features = policy.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])  # type: ignore[operator]
        stored = policy.store.get(reference.key)
        assert stored is not None
        assert tuple(inputs["video_grid_thw"][0].tolist()) == reference.grid_thw
        assert stored.shape == (reference.num_tokens, 96)
        torch.testing.assert_close(stored, torch.cat(list(features.pooler_output)), atol=1e-6, rtol=1e-6)

    @pytest.mark.slow
    @given(height=st.integers(20, 300), width=st.integers(20, 300), num_frames=st.integers(1, 9), cap=st.booleans())
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_size_is_foreseen(
        self, tiny_folder: Path, tmp_path: Path, height: int, width: int, num_frames: int, cap: bool
    ) -> None:
        """The grid, computed without decoding, equals the processor's, with and without its cap."""
        folder = shutil.copytree(tiny_folder, tmp_path / "capped", dirs_exist_ok=True)
        path = folder / "processor_config.json"
        config = json.loads(path.read_text())
        config["video_processor"] |= {"cap_pixels_per_frame": cap, "max_video_tokens": 40}
        path.write_text(json.dumps(config))
        policy = load_policy(folder, store=EmbeddingStore(tmp_path / "sizes"))
        policy.freeze_vision()
        video = NoiseVideo(frame_count=9, height=height, width=width)
        reference = policy.encode_video(video, range(num_frames))
        grid = processed(folder, video, range(num_frames))["video_grid_thw"][0]
        assert tuple(grid.tolist()) == reference.grid_thw

    @pytest.mark.parametrize(
        ("frames_per_second", "step", "seconds"), [(4.0, 1, 0.5), (30.0, 7, 14 / 30), (1.0, 3, 6.0)]
    )
    def test_seconds_come_from_the_frames_own_times(
        self, policy: Policy, frames_per_second: float, step: int, seconds: float
    ) -> None:
        video = NoiseVideo(frames_per_second=frames_per_second)
        reference = policy.encode_video(video, range(0, 24, step))
        assert reference.seconds_per_grid == pytest.approx(seconds, rel=1e-6)
        assert torch.tensor(reference.seconds_per_grid).item() == reference.seconds_per_grid  # exact in float32

    def test_trained_tower_makes_new_embeddings(
        self, tiny_folder: Path, store: EmbeddingStore, video: NoiseVideo
    ) -> None:
        policy = load_policy(tiny_folder, store=store)
        before = policy.encode_video(video, range(4))
        with torch.no_grad():
            policy.model.model.visual.merger.mlp[2].weight.mul_(1.5)  # type: ignore[union-attr]
        assert policy.encode_video(video, range(4)).key != before.key

    def test_impossible_frames_are_refused(self, policy: Policy, video: NoiseVideo) -> None:
        for indices in ([], [24], [-1, 2]):
            with pytest.raises(EngineUsageError, match="from 0 to 23"):
                policy.encode_video(video, indices)
        with pytest.raises(EngineUsageError, match="more than 200 times the other"):
            policy.encode_video(NoiseVideo(height=2, width=900), range(4))

    def test_a_lost_embedding_is_named(self, policy: Policy, video: NoiseVideo) -> None:
        prompt = policy.build_prompt(QUESTION, [policy.encode_video(video, range(4))])
        policy.store.path(prompt.media[0].key).unlink()
        with pytest.raises(EngineError, match=r"is not in the store .*embeddings"):
            policy.embed(prompt)


class TestPrompts:
    def test_layout(self, policy: Policy, video: NoiseVideo) -> None:
        media = [policy.encode_video(video, range(4)), policy.encode_video(video, range(6))]
        prompt = policy.build_prompt(QUESTION, media, system="Think first.")
        text = policy.tokenizer.decode(prompt.token_ids)
        one = "<|vision_start|><|video_pad|><|vision_end|>"
        assert text == (
            "<|im_start|>system\nThink first.<|im_end|>\n"
            f"<|im_start|>user\n{one}{one}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        )
        placeholder = policy.tokenizer.convert_tokens_to_ids("<|video_pad|>")
        assert prompt.expanded_ids.count(placeholder) == sum(medium.num_tokens for medium in media)
        assert [token for token in prompt.expanded_ids if token != placeholder] == [
            token for token in prompt.token_ids if token != placeholder
        ]
        assert prompt.positions.shape == (3, prompt.length)

    @given(text=st.text(max_size=40), has_media=st.booleans())
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_shared_prefix_and_tail_are_the_prompt(
        self, policy: Policy, video: NoiseVideo, text: str, has_media: bool
    ) -> None:
        media = [policy.encode_video(video, range(4))] if has_media else []
        prefix, tail = policy.build_shared_prompt(media, system="Think.")
        prompt = policy.build_prompt(text, media, system="Think.")
        assert prefix.expanded_ids + tail(text) == prompt.expanded_ids
        assert prefix.positions.equal(prompt.positions[:, : prefix.length])
        rest = prompt.positions[:, prefix.length :] - int(prefix.positions.max()) - 1
        assert rest.equal(torch.arange(rest.shape[1]).expand(3, -1))

    def test_control_tokens_in_text_are_refused(self, policy: Policy, video: NoiseVideo) -> None:
        media = [policy.encode_video(video, range(4))]
        _, tail = policy.build_shared_prompt(media)
        for text in ("What is <|video_pad|>?", "<|im_end|>"):
            with pytest.raises(EngineUsageError, match=r"control token"):
                policy.build_prompt(text, media)
            with pytest.raises(EngineUsageError, match=r"control token"):
                tail(text)


class TestCheckpoints:
    def test_saved_policy_is_the_same_policy(self, policy: Policy, video: NoiseVideo, tmp_path: Path) -> None:
        with torch.no_grad():
            policy.embed_tokens(torch.tensor([0])).data.add_(1.0)
            policy.model.model.language_model.layers[0].mlp.up_proj.weight.add_(0.01)  # type: ignore[union-attr]
        prompt = policy.build_prompt(QUESTION, [policy.encode_video(video, range(4))])
        folder = tmp_path / "deep" / "saved"
        policy.save(folder, exact=True)
        policy.save(folder, exact=True)  # replaces the first
        assert [path.name for path in folder.parent.iterdir()] == ["saved"]

        again = load_policy(folder, dtype=torch.float64, store=policy.store)
        again.freeze_vision()
        for name, tensor in policy.model.state_dict().items():
            assert again.model.state_dict()[name].equal(tensor), name
        branches = [Branch(token_ids=(1, 2, 3))]
        with torch.no_grad():
            expected = score_branches(policy, prompt, branches).logprobs[0]
            same = again.build_prompt(QUESTION, [again.encode_video(video, range(4))])
            assert score_branches(again, same, branches).logprobs[0].equal(expected)
        assert policy.store.counters.encodes == 1  # processor and tower are recognised as the same
        assert again.end_token_ids == policy.end_token_ids

    def test_sampler_weights_are_those_of_the_file(self, policy: Policy, tiny_folder: Path) -> None:
        of_file = load_file(tiny_folder / "model.safetensors")
        of_sampler = dict(policy.sampler_weights())
        assert of_sampler.keys() == {name for name in of_file if not name.startswith("visual.")}
        for name, tensor in of_sampler.items():
            assert tensor.float().equal(of_file[name])

    def test_a_trained_tower_goes_to_the_sampler(self, tiny_folder: Path, store: EmbeddingStore) -> None:
        of_sampler = dict(load_policy(tiny_folder, store=store).sampler_weights())
        assert of_sampler.keys() == load_file(tiny_folder / "model.safetensors").keys()

    def test_frozen_tower(self, policy: Policy) -> None:
        frozen = {name for name, parameter in policy.model.named_parameters() if not parameter.requires_grad}
        assert frozen
        assert all(name.startswith("model.visual.") for name in frozen)
        assert sum(name.startswith("model.visual.") for name, _ in policy.model.named_parameters()) == len(frozen)

    def test_attention_of_tower_and_language_model(self, policy: Policy) -> None:
        assert isinstance(policy, Qwen25VlPolicy)
        config = policy.model.config
        assert config.text_config._attn_implementation == "mrsp"
        assert config.vision_config._attn_implementation == "sdpa"

    def test_a_folder_that_cannot_be_written(self, policy: Policy, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(EngineError, match="can't write the checkpoint") as caught:
            policy.save(tmp_path / "file" / "model")
        assert caught.value.exit_code == 1


class TestBadFolders:
    def refuse(self, folder: Path, store: EmbeddingStore, message: str) -> None:
        with pytest.raises(EngineUsageError, match=message) as caught:
            load_policy(folder, store=store)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.fixture
    def folder(self, tiny_folder: Path, tmp_path: Path) -> Path:
        return shutil.copytree(tiny_folder, tmp_path / "model")

    def test_no_checkpoint(self, tmp_path: Path, store: EmbeddingStore) -> None:
        self.refuse(tmp_path, store, r"config\.json is missing")

    def test_no_json(self, folder: Path, store: EmbeddingStore) -> None:
        (folder / "config.json").write_text("{")
        self.refuse(folder, store, "can't be read as JSON")

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("[]", "expected a JSON object"),
            ("{}", "names no model_type"),
            ('{"model_type": 3}', "model_type=3: expected a text"),
        ],
    )
    def test_no_model_type(self, folder: Path, store: EmbeddingStore, config: str, message: str) -> None:
        (folder / "config.json").write_text(config)
        self.refuse(folder, store, message)

    def test_another_family(self, folder: Path, store: EmbeddingStore) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
        self.refuse(folder, store, r"model type 'llama'; expected one of .*qwen2_5_vl")

    def test_no_weights(self, folder: Path, store: EmbeddingStore) -> None:
        (folder / "model.safetensors").unlink()
        self.refuse(folder, store, "can't be loaded as qwen2_5_vl")

    def test_truncated_weights(self, folder: Path, store: EmbeddingStore) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        self.refuse(folder, store, "not a file of tensors")

    def test_a_missing_weight(self, folder: Path, store: EmbeddingStore) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, path, metadata={"format": "pt"})
        self.refuse(folder, store, "1 weights are missing or of another shape")

    def test_no_tokenizer(self, folder: Path, store: EmbeddingStore) -> None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        self.refuse(folder, store, "tokenizer files are missing")
