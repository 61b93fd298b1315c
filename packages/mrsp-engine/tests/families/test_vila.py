"""VILA from its three folders: projectors against plain loops, stored against live, pooling, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2ForCausalLM, SiglipImageProcessor, SiglipVisionModel

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.vila.config import MediaSyntax, VilaConfig
from mrsp_engine.families.vila.model import VilaModel
from mrsp_engine.families.vila.policy import VilaPolicy
from mrsp_engine.families.vila.projector import DownSample, VilaProjector
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import TINY_SIZES, create_tiny_vila
from mrsp_engine.tiny.published import write_published

QUESTION = "Which shape left first?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vila"
    create_tiny_vila(folder)
    return folder


def load(folder: Path, store: EmbeddingStore) -> VilaPolicy:
    policy = load_policy(folder, store=store)
    policy.freeze_vision()
    assert isinstance(policy, VilaPolicy)
    return policy


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def joined_by_loops(patches: Tensor, factor: int, *, is_by_columns: bool) -> Tensor:
    """[H, W, C] to [N, C × factor²]: neighbours row by row, missing ones zero."""
    height, width, channels = patches.shape
    places = [(top, left) for top in range(0, height, factor) for left in range(0, width, factor)]
    if is_by_columns:
        places.sort(key=lambda place: (place[1], place[0]))
    rows: list[Tensor] = []
    for top, left in places:
        neighbours = [(top + down, left + right) for down in range(factor) for right in range(factor)]
        rows.append(
            torch.cat([patches[y, x] if y < height and x < width else torch.zeros(channels) for y, x in neighbours])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("side", [4, 5, 7])
@pytest.mark.parametrize(("factor", "is_by_columns"), [(2, True), (2, False), (3, False)])
def test_neighbours_are_joined(side: int, factor: int, is_by_columns: bool) -> None:
    patches = torch.randn(2, side, side, 3)
    found = DownSample(factor, is_by_columns=is_by_columns)(patches)
    for of_frame, expected in zip(found, patches, strict=True):
        assert of_frame.equal(joined_by_loops(expected, factor, is_by_columns=is_by_columns))


@pytest.mark.parametrize(
    ("projector_type", "names", "num_rows"),
    [
        ("mlp_downsample", {"layers.1", "layers.2", "layers.4"}, 9),
        ("mlp_downsample_2x2_fix", {"layers.1", "layers.2", "layers.4"}, 9),
        ("mlp_downsample_3x3_fix", {"layers.1", "layers.2", "layers.4", "layers.5", "layers.7"}, 4),
        ("mlp2x_gelu", {"layers.0", "layers.2"}, 25),
    ],
)
def test_projectors(projector_type: str, names: set[str], num_rows: int, tmp_path: Path, store: EmbeddingStore) -> None:
    create_tiny_vila(tmp_path / "model", projector_type=projector_type)
    of_file = load_file(tmp_path / "model" / "mm_projector" / "model.safetensors")
    assert {name.rpartition(".")[0] for name in of_file} == names
    policy = load(tmp_path / "model", store)
    assert policy.encode_video(NoiseVideo(), range(3)).num_tokens == 3 * num_rows


def test_rows_of_the_first_release_stand_column_by_column(tmp_path: Path, store: EmbeddingStore) -> None:
    """Configurations of the first release name no encoders; everything else is the same."""
    create_tiny_vila(tmp_path / "later", projector_type="mlp_downsample")
    shutil.copytree(tmp_path / "later", tmp_path / "first")
    path = tmp_path / "first" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("_encoder")}))
    later, first = (
        store.get(load(tmp_path / name, store).encode_video(NoiseVideo(), range(2)).key) for name in ("later", "first")
    )
    assert later is not None
    assert first is not None
    assert not first.equal(later)
    assert first.unflatten(0, (2, 3, 3)).transpose(1, 2).flatten(0, 2).equal(later)


def test_frames_stand_for_all_scales(tmp_path: Path, store: EmbeddingStore) -> None:
    """With weights that use only the first scale, a model of three scales gives the same as one of a single scale."""
    create_tiny_vila(tmp_path / "single")
    create_tiny_vila(tmp_path / "scaled", num_scales=3)
    policy = load(tmp_path / "single", store)
    path = tmp_path / "scaled" / "mm_projector" / "model.safetensors"
    weights, single = load_file(path), load_file(tmp_path / "single" / "mm_projector" / "model.safetensors")
    width = single["layers.1.weight"].shape[0] // 4
    # A row is four neighbours, each with its channels repeated three times. Mean and variance are those of one scale.
    first = torch.cat([torch.arange(width) + 3 * width * neighbour for neighbour in range(4)])
    for name in ("layers.2.weight", "layers.1.weight", "layers.1.bias"):
        weights[name] = torch.zeros_like(weights[name])
        weights[name][..., first] = single[name]
    weights |= {name: single[name] for name in ("layers.2.bias", "layers.4.weight", "layers.4.bias")}
    save_file(weights, path)
    scaled = load(tmp_path / "scaled", store)
    found, expected = (store.get(of.encode_video(NoiseVideo(), range(3)).key) for of in (scaled, policy))
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(EngineUsageError, match="image for a model of family vila that accepts none"):
        scaled.encode_image(NoiseVideo(frame_count=1))
    scaled.save(tmp_path / "saved")
    again = load(tmp_path / "saved", store)
    assert again.encode_video(NoiseVideo(), range(3)) == scaled.encode_video(NoiseVideo(), range(3))


def test_cached_equals_live(folder: Path, store: EmbeddingStore) -> None:
    """Logits from the store equal those of the three parts combined by hand, with a line break after every frame."""
    policy = load(folder, store)
    video, picture = NoiseVideo(), NoiseVideo(seed=1, frame_count=1)
    media = [policy.encode_video(video, range(3)), policy.encode_image(picture)]
    prompt = policy.build_prompt(QUESTION, media)

    tower = SiglipVisionModel.from_pretrained(folder / "vision_tower", dtype=torch.float32)
    llm = Qwen2ForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32)
    images = SiglipImageProcessor.from_pretrained(folder / "vision_tower")
    weights = load_file(folder / "mm_projector" / "model.safetensors")
    seen: list[Tensor] = []
    tower.encoder.layers[-2].register_forward_hook(  # the last layer's output isn't used
        lambda *call: seen.append(call[2] if isinstance(call[2], Tensor) else call[2][0])
    )
    line_break = policy.tokenizer("\n", add_special_tokens=False)["input_ids"]
    table = llm.get_input_embeddings()
    with torch.no_grad():
        rows: list[Tensor] = []
        for frame in (*video.read(range(3)), *picture.read([0])):
            pixels = images(images=[torch.from_numpy(frame).permute(2, 0, 1)], return_tensors="pt")["pixel_values"]
            tower(pixels)
            joined = joined_by_loops(seen[-1].reshape(5, 5, -1), 2, is_by_columns=False)
            hidden = torch.nn.functional.layer_norm(
                joined, (joined.shape[1],), weights["layers.1.weight"], weights["layers.1.bias"]
            )
            hidden = torch.nn.functional.gelu(hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"])
            rows += [hidden @ weights["layers.4.weight"].T + weights["layers.4.bias"], table(torch.tensor(line_break))]
        written = "<|im_start|>user\n<vila/video><image>"
        before, _, after = policy.tokenizer.decode(prompt.token_ids).partition(written)
        parts = [before + "<|im_start|>user\n", None, QUESTION + after.removeprefix(QUESTION)]
        embedded = [
            torch.cat(rows)
            if part is None
            else table(torch.tensor(policy.tokenizer(part, add_special_tokens=False)["input_ids"]))
            for part in parts
        ]
        live = llm(inputs_embeds=torch.cat(embedded)[None]).logits[0]
        cached = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-5)


def test_pooled_frames_are_means(folder: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    create_tiny_vila(tmp_path / "model", pool_frames=4)
    plain, pooled = load(folder, store), load(tmp_path / "model", store)
    frames = store.get(plain.encode_video(NoiseVideo(), range(12)).key)
    medium = pooled.encode_video(NoiseVideo(), range(12))
    means = store.get(medium.key)
    assert frames is not None
    assert means is not None
    assert medium.grid_thw == (3, 3, 3)
    expected = frames.unflatten(0, (3, 4, 9)).mean(1).flatten(0, 1)
    torch.testing.assert_close(means, expected, atol=1e-6, rtol=1e-6)
    assert pooled.build_prompt(QUESTION, [medium]).length == plain.build_prompt(QUESTION, []).length + 3 * 10 - 0
    with pytest.raises(EngineUsageError, match="10 frames: this checkpoint pools 4"):
        pooled.encode_video(NoiseVideo(), range(10))


@pytest.mark.parametrize(("num_frames", "factor"), [(8, 4), (256, 4), (257, 8), (512, 8), (1024, 16), (8192, 32)])
def test_pooling_by_the_number_of_frames(num_frames: int, factor: int) -> None:
    assert MediaSyntax(start="", end="\n", pool=(None, 1, 1)).frames_per_pool(num_frames) == factor


class TestRefusals:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Path:
        create_tiny_vila(tmp_path / "own")
        return tmp_path / "own"

    def refuse(self, folder: Path, store: EmbeddingStore, message: str) -> None:
        with pytest.raises(EngineUsageError, match=message) as caught:
            load(folder, store)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"dynamic_s2": True, "s2_scales": "large"}, "s2_scales='large': expected side lengths of images"),
            ({"dynamic_s2": True, "s2_scales": "448,896,1344"}, "weight layers.1.bias has shape"),
            ({"s2": True}, "s2=True: frames in several scales"),
            ({"mm_vision_select_layer": "last"}, "mm_vision_select_layer='last'"),
            ({"video_encoder": {"_target_": "os.system"}}, "expected frames one after another"),
            ({"video_encoder": '{"_target_": "os.system"}'}, "expected frames one after another"),
            ({"video_encoder": '{"_target_": "llava'}, "expected an object, directly or as JSON text"),
            ({"image_encoder": ["BasicImageEncoder"]}, "expected an object, directly or as JSON text"),
            ({"video_encoder": {"_target_": "x.TSPVideoEncoder", "pool_sizes": [[4, 1, 1], [8, 2, 2]]}}, "one pool"),
            ({"video_encoder": {"_target_": "x.TSPVideoEncoder", "pool_sizes": [[0, 1, 1]]}}, "one pool"),
        ],
    )
    def test_configurations(self, own: Path, store: EmbeddingStore, values: dict[str, Any], message: str) -> None:
        change(own, **values)
        self.refuse(own, store, message)

    def test_projectors(self, own: Path, store: EmbeddingStore) -> None:
        path = own / "mm_projector" / "config.json"
        path.write_text(json.dumps({"mm_projector_type": "resampler"}))
        self.refuse(own, store, "mm_projector_type='resampler': expected mlp_downsample")
        path.write_text(json.dumps({"mm_projector_type": "mlp_downsample_3x3_fix"}))
        self.refuse(own, store, "weight layers.1.bias has shape .* for mlp_downsample_3x3_fix")
        path.unlink()
        self.refuse(own, store, r"config\.json: can't be read as JSON")

    def test_a_missing_projector_weight(self, own: Path, store: EmbeddingStore) -> None:
        path = own / "mm_projector" / "model.safetensors"
        weights = load_file(path)
        del weights["layers.4.bias"]
        save_file(weights, path)
        self.refuse(own, store, r"weight layers\.4\.bias has shape None")

    def test_images_cut_into_tiles(self, own: Path, store: EmbeddingStore) -> None:
        change(own, image_aspect_ratio="dynamic")
        policy = load(own, store)
        policy.encode_video(NoiseVideo(), range(2))
        with pytest.raises(EngineUsageError, match="image for a model of family vila that accepts none"):
            policy.encode_image(NoiseVideo(frame_count=1))

    def test_frames_of_another_size(self, own: Path, store: EmbeddingStore) -> None:
        path = own / "vision_tower" / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"height": 64, "width": 64}}))
        self.refuse(own, store, "makes frames of 64×64, the tower expects 80×80")


def test_the_model_type_of_vilas_own_trainer(folder: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    create_tiny_vila(tmp_path / "model")
    change(tmp_path / "model", model_type="llava_llama", resume_path="elsewhere", auto_map={"AutoModel": "x.Y"})
    policy = load(tmp_path / "model", store)
    other = load(folder, store)
    assert policy.encode_video(NoiseVideo(), range(2)) == other.encode_video(NoiseVideo(), range(2))
    assert VilaProjector("mlp_downsample", vision_width=4, hidden_size=TINY_SIZES.hidden_size).rows_per_side(5) == 3


@pytest.mark.parametrize(
    ("written", "pool"),
    [
        ('{"_target_": "llava.model.encoders.BasicVideoEncoder"}', (1, 1, 1)),
        (' {"_target_": "x.TSPVideoEncoder", "pool_sizes": [[4, 1, 1]], "end_tokens": "\\n"}\n', (4, 1, 1)),
        ("llava.model.encoders.BasicVideoEncoder", (1, 1, 1)),
    ],
)
def test_encoders_in_text(folder: Path, tmp_path: Path, written: str, pool: tuple[int, int, int]) -> None:
    """The default of VILA's own class is JSON text; it means the same as an object."""
    shutil.copytree(folder, tmp_path / "model")
    change(tmp_path / "model", video_encoder=written, image_encoder=written)
    assert VilaConfig.read(tmp_path / "model").video == MediaSyntax(start="", end="\n", pool=pool)


class TestMediaBeyondTheEmbedding:
    """VILA's own code extends the embedding on loading; the added rows are never read."""

    @pytest.fixture
    def own(self, tmp_path: Path) -> Path:
        write_published("nvila_8b", tmp_path / "own")
        return tmp_path / "own"

    def test_as_with_a_longer_embedding(self, own: Path, store: EmbeddingStore, tmp_path: Path) -> None:
        policy = load(own, store)
        medium = policy.encode_video(NoiseVideo(), range(3))
        prompt = policy.build_prompt(QUESTION, [medium])
        rows = policy.model.get_parameter("llm.model.embed_tokens.weight")
        assert max(prompt.expanded_ids) >= len(rows) == policy.vocab_size

        stored = store.get(medium.key)
        assert stored is not None
        longer = torch.cat([rows, torch.full((8, rows.shape[1]), 1e3)])
        ids = torch.tensor(prompt.expanded_ids)
        expected = longer[ids]
        expected[ids == ids.max()] = stored
        assert policy.embed(prompt).equal(expected)
        chosen = torch.tensor([0, 5, *range(20, prompt.length)])
        assert policy.embed_rows(prompt, chosen).equal(expected[chosen])

        policy.embed(prompt).sum().backward()
        policy.save(tmp_path / "saved")
        again = load(tmp_path / "saved", store)
        assert again.model.get_parameter("llm.model.embed_tokens.weight").shape == rows.shape

    def test_tokens_that_only_the_code_adds(self, own: Path, store: EmbeddingStore) -> None:
        """Some folders' tokenizer files lack the media tokens; VILA's code adds them on loading."""
        whole = load(own, store)
        medium = whole.encode_video(NoiseVideo(), range(3))
        ids = whole.build_prompt(QUESTION, [medium]).expanded_ids
        lacking = ("<image>", "<vila/video>", "<vila/sentinel>")
        path = own / "llm" / "tokenizer_config.json"
        values = json.loads(path.read_text())
        added = {key: entry for key, entry in values["added_tokens_decoder"].items() if entry["content"] not in lacking}
        named = [token for token in values["additional_special_tokens"] if token not in lacking]
        path.write_text(json.dumps(values | {"added_tokens_decoder": added, "additional_special_tokens": named}))
        path = own / "llm" / "added_tokens.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in lacking}))
        policy = load(own, store)
        text = [token for token in policy.build_prompt(QUESTION, [medium]).expanded_ids if token < policy.vocab_size]
        assert text == [token for token in ids if token < whole.vocab_size]

    def test_text_can_hold_none_of_them(self, own: Path, store: EmbeddingStore) -> None:
        policy = load(own, store)
        policy.tokenizer.add_tokens(["[NEW]"])
        policy = VilaPolicy(
            own,
            cast(VilaModel, policy.model),
            policy.tokenizer,
            SiglipImageProcessor.from_pretrained(own / "vision_tower"),
            store,
            VilaConfig.read(own),
        )
        with pytest.raises(EngineUsageError, match=r"text holds '\[NEW\]', a control token"):
            policy.build_prompt("What is [NEW]?", [])
