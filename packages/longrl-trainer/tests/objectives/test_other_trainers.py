"""Losses, gradients, advantages and importance weights equal those of TRL and verl, wherever they have the same.

They are run in an environment of their own, made here by `trl_and_verl.py` beside this file; if it can't be made, this
test is skipped. Differences by convention stand in the package's README; here each is undone by a setting, or by the
tolerance where only an epsilon differs.

Shapes: B responses, T tokens of the longest, R tokens of one.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.objectives.advantages import GroupRewards
from longrl_trainer.objectives.base import FixedTerms, Objective, build_objective
from longrl_trainer.objectives.terms import kl_divergence
from longrl_trainer.rl.step_metrics import TokenStatistics

INSTALL_SECONDS, RUN_SECONDS = 600, 300
TRL_PACKAGES = ("trl==1.16.0", "transformers==5.19.0", "numpy<2.4")
# verl itself comes without its dependencies, most of which these functions don't use.
VERL_PACKAGES = ("verl==0.9.1",)
VERL_IMPORTS = ("ray==2.60.0", "tensordict", "omegaconf", "hydra-core", "codetiming", "pandas", "pyarrow", "orjson")

LENGTHS, GROUP_SIZE, MAX_TOKENS = (3, 6, 1, 4, 8, 2), 3, 8
SETTINGS: dict[str, dict[str, Any]] = {
    "sequence": {"aggregation": "sequence"},
    "token": {},
    "constant": {"aggregation": "constant"},
    "cispo": {"objective": "cispo", "clip_high": 0.3},
    "sapo": {"objective": "sapo"},
    "gspo": {"objective": "gspo", "clip_low": 0.03, "clip_high": 0.04},
    "kl": {"kl_coefficient": 0.3},
    "kl by sequence": {"kl_coefficient": 0.3, "aggregation": "sequence"},
    "kl with ratio": {"kl_coefficient": 0.3, "kl_importance": True},
    "entropy": {"entropy_coefficient": 0.2},
    "weights": {"kl_coefficient": 0.3, "sampler_correction": "token_truncate", "sampler_correction_cap": 1.2},
}


def objective_of(**settings: Any) -> Objective:
    values = {
        "output": "run",
        "steps": 1,
        "learning_rate": 1e-3,
        "max_response_tokens": MAX_TOKENS,
        "model": {"folder": "model"},
        "data": {"dataset": "dataset", "split": "train_rl", "num_frames": 2},
    }
    return build_objective(parse_config(values | settings, GrpoConfig, source="test"))


def tensors() -> dict[str, Tensor]:
    """Two groups of three responses, in float64; ratios on both sides of every clip, and all rewards different."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)

    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).double()
    old = -noise(1.0).abs() - 0.1
    return {
        "mask": mask,
        "old": old * mask,
        "logprobs": (old + noise(0.3)) * mask,
        "reference": (old + noise(0.4)) * mask,
        "sampler": (old + noise(0.2)) * mask,
        "entropies": noise(1.0).abs() * mask,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.5, 0.0, 0.9], dtype=torch.float64),
        "rewards": torch.tensor([[1, 0.2], [0, 0.7], [0.5, 1], [1, 0.1], [0, 0], [0.25, 0.9]], dtype=torch.float64),
        "reward_weights": torch.tensor([1.0, 0.5], dtype=torch.float64),
        "group_size": torch.tensor(GROUP_SIZE),
    }


def rows(tensor: Tensor) -> list[Tensor]:
    """The tokens [R] of every response."""
    return [tensor[place, :length] for place, length in enumerate(LENGTHS)]


def ours(given: dict[str, Tensor], objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a step and its gradients by log-probabilities and entropies [B, T]."""
    logprobs, entropies = given["logprobs"].clone().requires_grad_(), given["entropies"].clone().requires_grad_()
    weights = [weight for group in objective.weigh([LENGTHS[:GROUP_SIZE], LENGTHS[GROUP_SIZE:]]) for weight in group]
    loss = torch.zeros((), dtype=torch.float64)
    parts = zip(
        rows(logprobs), rows(entropies), rows(given["old"]), rows(given["reference"]), rows(given["sampler"]),
        given["advantages"].tolist(), weights, strict=True,
    )  # fmt: skip
    for logprobs_R, entropies_R, old_R, reference_R, sampler_R, advantage, weight in parts:
        fixed = FixedTerms(
            advantage=advantage,
            old_logprobs=old_R,
            reference_logprobs=reference_R if objective.needs_reference else None,
            sampler_weights=objective.correct(old_R, sampler_R),
        )
        loss = loss + weight * objective.lose(logprobs_R, entropies_R, fixed).losses.sum()
    loss.backward()
    zero = torch.zeros_like(logprobs)
    return (
        loss.detach(),
        zero if logprobs.grad is None else logprobs.grad,
        zero if entropies.grad is None else entropies.grad,
    )


def groups_of(given: dict[str, Tensor]) -> list[GroupRewards]:
    totals = given["rewards"] @ given["reward_weights"]
    return [
        GroupRewards(
            totals=totals[start : start + GROUP_SIZE].tolist(),
            terms=given["rewards"][start : start + GROUP_SIZE].T.tolist(),
            weights=given["reward_weights"].tolist(),
            lengths=LENGTHS[start : start + GROUP_SIZE],
        )
        for start in range(0, len(LENGTHS), GROUP_SIZE)
    ]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What TRL and verl compute."""
    place = tmp_path_factory.mktemp("trainers")
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv isn't installed")
    python = place / "environment" / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    torch_version = f"torch=={torch.__version__.partition('+')[0]}"
    for command in (
        [uv, "venv", "--quiet", "--python", "3.11", str(place / "environment")],
        [*install, torch_version, *TRL_PACKAGES, *VERL_IMPORTS],
        [*install, "--no-deps", *VERL_PACKAGES],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS, cwd=place)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"TRL and verl can't be installed here ({type(error).__name__})")
    save_file(tensors(), place / "inputs.safetensors")
    script = Path(__file__).with_name("trl_and_verl.py")
    command = [str(python), str(script), str(place / "inputs.safetensors"), str(place / "outputs.safetensors")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(place / "outputs.safetensors")


def assert_same(actual: Tensor, expected: Tensor, where: str, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance, msg=where)


@pytest.mark.long
@pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)
def test_losses_and_gradients_are_those_of_other_trainers(outputs: dict[str, Tensor]) -> None:
    given = tensors()
    num_compared = 0
    for name, settings in SETTINGS.items():
        loss, gradient, entropy_gradient = ours(given, objective_of(**settings))
        assert gradient.abs().sum() > 0
        for trainer in ("trl", "verl"):
            if f"{trainer} {name} loss" not in outputs:
                continue
            # Two temperatures in one `where` are float32 there.
            tolerance = 1e-6 if name == "sapo" else 1e-9
            assert_same(loss, outputs[f"{trainer} {name} loss"], f"{trainer} {name}: loss", tolerance)
            assert_same(gradient, outputs[f"{trainer} {name} gradient"], f"{trainer} {name}: gradient", tolerance)
            num_compared += 1
        assert_same(entropy_gradient, outputs[f"trl {name} entropy gradient"], f"{name}: entropy")
    assert num_compared == len(SETTINGS) + 5


@pytest.mark.long
@pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)
def test_advantages_are_those_of_other_trainers(outputs: dict[str, Tensor]) -> None:
    given = tensors()
    groups = groups_of(given)
    for name, trainer in (
        ("grpo", "trl"),
        ("dr_grpo", "trl"),
        ("gdpo", "trl"),
        ("grpo", "verl"),
        ("rloo", "verl"),
        ("reinforce_plus_plus", "verl"),
        ("reinforce_plus_plus_baseline", "verl"),
    ):
        found = torch.tensor(objective_of(advantage=name).compare(groups), dtype=torch.float64).flatten()
        expected = outputs[f"{trainer} advantage {name}"]
        expected = expected[:, 0] if trainer == "verl" else expected
        assert_same(found, expected, f"{trainer} {name}", 2e-3 if trainer == "trl" and name != "dr_grpo" else 1e-5)
    divergences = [
        [kl_divergence(old_R, reference_R, "k1") for old_R, reference_R in pairs]
        for pairs in (
            list(zip(rows(given["old"]), rows(given["reference"]), strict=True))[start : start + GROUP_SIZE]
            for start in (0, GROUP_SIZE)
        )
    ]
    for name in ("reinforce_plus_plus", "rloo"):
        objective = objective_of(advantage=name, kl_coefficient=0.3, kl_place="reward", kl_estimator="k1")
        compared = [advantage for group in objective.compare_penalised(groups, divergences) for advantage in group]
        for place, (advantage, expected_R) in enumerate(
            zip(compared, rows(outputs[f"verl advantage {name} with costs"]), strict=True)
        ):
            assert_same(advantage.expand(len(expected_R)), expected_R, f"{name} with costs, response {place}", 1e-5)


@pytest.mark.long
@pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)
def test_divergences_and_importance_weights_are_those_of_other_trainers(outputs: dict[str, Tensor]) -> None:
    given = tensors()
    for estimator in ("k1", "k2", "k3"):
        found = kl_divergence(given["logprobs"], given["reference"], estimator)
        assert_same(found * given["mask"], outputs[f"verl {estimator}"] * given["mask"], estimator)
    for name in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        objective = objective_of(sampler_correction=name, sampler_correction_cap=1.2)
        statistics, num_capped = TokenStatistics(), 0
        for place, (old_R, sampler_R) in enumerate(zip(rows(given["old"]), rows(given["sampler"]), strict=True)):
            found = objective.correct(old_R, sampler_R)
            assert found is not None
            statistics.add_sampler_weights(found)
            num_capped += int(found.is_capped.sum())
            for trainer in ("trl", "verl"):
                if f"{trainer} weights {name}" in outputs:
                    expected_R = outputs[f"{trainer} weights {name}"][place, : len(found.weights)]
                    assert_same(found.weights, expected_R, f"{trainer} {name}, response {place}")
        assert num_capped > 0
        if name == "token_truncate":
            share = statistics.effective_sample_fraction
            assert share == pytest.approx(float(outputs[f"verl effective sample size {name}"]), abs=1e-6)
