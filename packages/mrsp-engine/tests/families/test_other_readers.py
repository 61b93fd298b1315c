"""Other versions of transformers read saved models like ours does: weights, rotary angles, tokens, processors.

Readers have separate environments, created here; if they can't be installed, these tests are skipped. Most programs for
published VILA and Qwen models use transformers 4.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.testing.agreement import disturb_weights
from mrsp_engine.tiny.published import PUBLISHED_KINDS, write_published

pytestmark = pytest.mark.slow
VERSIONS = ("4.57.3", "5.19.0")
KINDS = [kind for kind in PUBLISHED_KINDS if not kind.startswith(("qwen3_5", "qwen2_5_omni"))]
"""What both versions know, and read by a class for any model; that of an omni thinker is tested with the commands."""
QUESTION = "Which shape left first?"
INSTALL_SECONDS, READ_SECONDS = 300, 500
TOKENS = torch.arange(3, 43)

READER = """
import json, sys, warnings
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig,
    SiglipImageProcessor, SiglipVisionModel,
)

root, output, question = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)

def load(model_class, folder):
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), (folder, report)
    return model.eval()

def first(output):
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.pooler_output

found = {}
for folder in sorted(root.iterdir()):
    tensors = {}
    language = folder / "llm" if (folder / "llm").is_dir() else folder
    sees = "_vl" in json.loads((folder / "config.json").read_text())["model_type"]
    model = load(AutoModelForImageTextToText if sees else AutoModelForCausalLM, language)
    with torch.no_grad():
        tensors["logits"] = model(input_ids=torch.arange(3, 43)[None]).logits[0]
        if sees:
            inputs = load_file(root.parent / f"{folder.name}.safetensors")
            tensors["seen"] = first(model.model.visual(inputs["patches"], grid_thw=inputs["grid"]))
        if language != folder:
            tower = load(SiglipVisionModel, folder / "vision_tower")
            pixels = load_file(root.parent / f"{folder.name}.safetensors")["pixels"]
            tensors["seen"] = tower(pixels, output_hidden_states=True).hidden_states[-2]
            SiglipImageProcessor.from_pretrained(folder / "vision_tower")
            tensors |= {f"projector {name}": weight.float()
                        for name, weight in load_file(folder / "mm_projector" / "model.safetensors").items()}
    tokenizer = AutoTokenizer.from_pretrained(language)
    template = AutoProcessor.from_pretrained(folder) if sees else tokenizer
    content = [{"type": "text", "text": question}] if sees else question
    text = template.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    found[folder.name] = {
        "ids": tokenizer(text)["input_ids"],
        "ends": GenerationConfig.from_pretrained(language).eos_token_id,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / f"{folder.name}.safetensors")
(output / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trained and saved model of every kind in `models`, and next to it the inputs of towers."""
    root = tmp_path_factory.mktemp("readers")
    generator = torch.Generator().manual_seed(0)
    for kind in KINDS:
        write_published(kind, root / "published" / kind)
        policy = load_policy(root / "published" / kind, store=EmbeddingStore(root / "embeddings"))
        disturb_weights(policy)
        policy.save(root / "models" / kind)
    shutil.rmtree(root / "published")
    for kind in KINDS:
        config = json.loads((root / "models" / kind / "config.json").read_text())
        vision = config.get("vision_config") or config.get("vision_tower_cfg")
        if vision is not None:
            _write_inputs(root / f"{kind}.safetensors", vision, generator)
    return root


def _write_inputs(path: Path, vision: dict[str, Any], generator: torch.Generator) -> None:
    if "image_size" in vision:
        side = vision["image_size"]
        save_file({"pixels": torch.randn(2, 3, side, side, generator=generator)}, path)
        return
    patches = torch.randn(32, 3 * 2 * vision["patch_size"] ** 2, generator=generator)
    save_file({"patches": patches, "grid": torch.tensor([[2, 4, 4]])}, path)


def install(place: Path, version: str) -> Path:
    """The Python of an environment with a version of transformers; skips the test if it can't be created."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv isn't installed")
    python = place / "bin" / "python"
    needed = (f"transformers=={version}", f"torch=={torch.__version__.partition('+')[0]}", "torchvision", "pillow")
    for command in (
        [uv, "venv", "--quiet", "--python", "3.11", str(place)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *needed],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS, cwd=place.parent)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"transformers {version} can't be installed here ({type(error).__name__})")
    return python


@pytest.mark.long
@pytest.mark.timeout(INSTALL_SECONDS + READ_SECONDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_another_version_reads_what_was_saved(root: Path, version: str, tmp_path: Path) -> None:
    python = install(tmp_path / "environment", version)
    output = tmp_path / "output"
    output.mkdir()
    command = [str(python), "-c", READER, str(root / "models"), str(output), QUESTION]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=READ_SECONDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((output / "found.json").read_text())
    assert found.keys() == set(KINDS)
    for kind, read in found.items():
        policy = load_policy(root / "models" / kind, store=EmbeddingStore(root / "embeddings"))
        assert isinstance(policy, LanguagePolicy)
        tensors = load_file(output / f"{kind}.safetensors")
        assert tuple(read["ids"]) == policy.build_prompt(QUESTION, []).token_ids, kind
        assert tuple(read["ends"]) == policy.end_token_ids, kind
        for name, tensor in of_policy(policy, root / f"{kind}.safetensors").items():
            torch.testing.assert_close(tensors.pop(name), tensor, atol=2e-4, rtol=2e-4, msg=f"{kind}: {name}")
        assert not tensors, kind


@torch.no_grad()
def of_policy(policy: LanguagePolicy, inputs: Path) -> dict[str, Tensor]:
    """The reader's output, computed with the engine's own model."""
    axes = policy.build_prompt(QUESTION, []).positions.shape[0]
    positions = torch.arange(len(TOKENS)).expand(axes, -1)
    hidden = policy.hidden_states(policy.embed_tokens(TOKENS), positions)
    tensors = {"logits": cast(Tensor, policy.language_model_head(hidden))}
    model: Any = policy.model
    shown = load_file(inputs) if inputs.exists() else {}
    if "pixels" in shown:
        tensors["seen"] = model.see_frames(shown["pixels"])
        projector: dict[str, Tensor] = model.mm_projector.state_dict()
        tensors |= {f"projector {name}": weight for name, weight in projector.items()}
    elif shown:
        tensors["seen"] = model.model.visual(shown["patches"], grid_thw=shown["grid"]).pooler_output
    return tensors
