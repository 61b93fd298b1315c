"""Run by TRL's and verl's own environment: their losses, gradients and advantages on given tensors.

    python trl_and_verl.py INPUTS.safetensors OUTPUTS.safetensors

TRL's loss is a method that needs little of its trainer, which is replaced by an object with those few settings. What
it computes before (advantages, importance weights) stands in the middle of a long method; those lines of its source are
run by themselves.

Shapes: B responses, T tokens of the longest, G responses of a group, K rewards.
"""

import inspect
import math
import sys
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from trl.trainer import grpo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from verl.trainer.ppo import core_algos, rollout_corr_helper
from verl.workers.config import ActorConfig

MAX_TOKENS = 8
TRL_LOSSES: dict[str, dict[str, Any]] = {
    "sequence": {"loss_type": "grpo"},
    "token": {"loss_type": "dapo"},
    "constant": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
    "sapo": {"loss_type": "sapo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    "kl": {"loss_type": "dapo", "beta": 0.3},
    "kl by sequence": {"loss_type": "grpo", "beta": 0.3},
    "kl with ratio": {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": True},
    "entropy": {"loss_type": "dapo", "entropy_coef": 0.2},
    "weights": {"loss_type": "dapo", "beta": 0.3, "use_vllm": True},
}
VERL_LOSSES: dict[str, tuple[str, str, dict[str, float]]] = {
    "sequence": ("vanilla", "seq-mean-token-mean", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}),
    "token": ("vanilla", "token-mean", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}),
    "gspo": ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04}),
    "cispo": ("cispo", "token-mean", {"clip_ratio_low": 1.0, "clip_ratio_high": 0.3}),
    "sapo": ("sapo", "seq-mean-token-mean", {"tau_pos": 1.0, "tau_neg": 1.05}),
}


def trl_loss(given: dict[str, Tensor], settings: dict[str, Any], out: dict[str, Tensor], name: str) -> None:
    """Loss and gradients of TRL's `_compute_loss`."""
    logprobs, entropies = given["logprobs"].clone().requires_grad_(), given["entropies"].clone().requires_grad_()
    chosen: dict[str, Any] = {"epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.0, "use_vllm": False} | settings
    trainer = SimpleNamespace(
        args=SimpleNamespace(
            use_bias_correction_kl=chosen.get("use_bias_correction_kl", False),
            delta=None,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            steps_per_generation=1,
        ),
        accelerator=SimpleNamespace(
            num_processes=1,
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
            sync_gradients=False,
        ),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropies, None),
        _entropy_bonus_enabled="entropy_coef" in chosen,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        importance_sampling_level="token",
        max_completion_length=MAX_TOKENS,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        vllm_importance_sampling_correction=True,
    )
    vars(trainer).update(chosen)
    mask = given["mask"].long()
    loss = GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
            "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": mask,
            "advantages": given["advantages"],
            "old_per_token_logps": given["old"],
            "ref_per_token_logps": given["reference"],
            "importance_sampling_ratio": out.get("trl weights token_truncate"),
            "num_items_in_batch": mask.sum(),
        },
    )
    loss.backward()
    zero = torch.zeros_like(logprobs)
    out[f"trl {name} loss"] = loss.detach()
    out[f"trl {name} gradient"] = zero if logprobs.grad is None else logprobs.grad
    out[f"trl {name} entropy gradient"] = zero if entropies.grad is None else entropies.grad


def run_lines(first: str, last: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the lines of TRL's long method from the one that contains `first` to the one before `last`."""
    lines = inspect.getsource(GRPOTrainer._generate_and_score_completions).splitlines()
    start = next(number for number, line in enumerate(lines) if first in line)
    end = next(number for number, line in enumerate(lines) if last in line and number > start)
    space = vars(grpo_trainer) | names
    exec(textwrap.dedent("\n".join(lines[start:end])), space)
    return space


def trl_advantages(given: dict[str, Tensor], aggregation: str, scale: str) -> Tensor:
    """The advantages of all responses."""
    space = run_lines(
        "unscorable_mask = torch.isnan(rewards_per_func)",
        "# Slice to keep only the local part",
        {
            "rewards_per_func": given["rewards"].clone(),
            "num_generations": int(given["group_size"]),
            "device": "cpu",
            "self": SimpleNamespace(
                multi_objective_aggregation=aggregation,
                reward_weights=given["reward_weights"],
                scale_rewards=scale,
                reward_funcs=[None] * given["rewards"].shape[1],
            ),
        },
    )
    return space["advantages"]


def trl_weights(given: dict[str, Tensor], mode: str) -> Tensor:
    """The importance weights [B, T] or [B, 1]."""
    space = run_lines(
        "per_token_logps_diff = (old_per_token_logps - sampling_per_token_logps)",
        "# Compute the per-token log probabilities for the reference model",
        {
            "mask": given["mask"],
            "old_per_token_logps": given["old"],
            "sampling_per_token_logps": given["sampler"],
            "self": SimpleNamespace(
                vllm_importance_sampling_mode=mode,
                vllm_importance_sampling_clip_min=None,
                vllm_importance_sampling_clip_max=1.2,
            ),
            "math": math,
        },
    )
    return space["vllm_importance_sampling_ratio"]


def verl_outputs(given: dict[str, Tensor], out: dict[str, Tensor]) -> None:
    """Losses, divergences, advantages and importance weights."""
    mask = given["mask"]
    per_token = given["advantages"][:, None].expand_as(mask).clone()
    for name, (kind, aggregation, settings) in VERL_LOSSES.items():
        config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_c=1e6, **settings)
        logprobs = given["logprobs"].clone().requires_grad_()
        loss, _ = core_algos.get_policy_loss_fn(kind)(
            old_log_prob=given["old"],
            log_prob=logprobs,
            advantages=per_token,
            response_mask=mask,
            loss_agg_mode=aggregation,
            config=config,
            rollout_is_weights=None,
        )
        loss.backward()
        assert logprobs.grad is not None
        out[f"verl {name} loss"], out[f"verl {name} gradient"] = loss.detach(), logprobs.grad
    for estimator in ("k1", "k2", "k3"):
        out[f"verl {estimator}"] = core_algos.kl_penalty(given["logprobs"], given["reference"], estimator)
    last = (torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1).double()
    index = np.repeat(np.arange(len(mask) // int(given["group_size"])), int(given["group_size"]))
    totals = (given["rewards"] * given["reward_weights"]).sum(1, keepdim=True) * last
    config = SimpleNamespace(gamma=1.0)
    lowered = core_algos.compute_rewards(totals, given["old"], given["reference"], 0.3) * mask
    for name, estimate, rewards in (
        ("rloo", core_algos.compute_rloo_outcome_advantage, totals),
        ("grpo", core_algos.compute_grpo_outcome_advantage, totals),
        ("reinforce_plus_plus", core_algos.compute_reinforce_plus_plus_outcome_advantage, totals),
        (
            "reinforce_plus_plus_baseline",
            core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage,
            totals,
        ),
        ("reinforce_plus_plus with costs", core_algos.compute_reinforce_plus_plus_outcome_advantage, lowered),
        ("rloo with costs", core_algos.compute_rloo_outcome_advantage, lowered),
    ):
        advantages, _ = estimate(token_level_rewards=rewards.clone(), response_mask=mask, index=index, config=config)
        out[f"verl advantage {name}"] = advantages.double().contiguous()
    for level in ("token", "sequence"):
        weights, metrics = rollout_corr_helper.compute_rollout_correction_weights(
            log_ratio=(given["old"] - given["sampler"]) * mask,
            response_mask=mask,
            rollout_is=level,
            rollout_is_threshold=1.2,
        )
        out[f"verl weights {level}_truncate"] = weights.contiguous()
        share = torch.tensor(metrics["rollout_is_eff_sample_size"], dtype=torch.float64)
        out[f"verl effective sample size {level}_truncate"] = share


def main() -> None:
    """Compute everything."""
    torch.set_num_threads(1)
    given, out = load_file(sys.argv[1]), dict[str, Tensor]()
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        out[f"trl weights {mode}"] = trl_weights(given, mode).contiguous()
    for name, settings in TRL_LOSSES.items():
        trl_loss(given, settings, out, name)
    for name, aggregation, scale in (
        ("grpo", "sum_then_normalize", "group"),
        ("dr_grpo", "sum_then_normalize", "none"),
        ("gdpo", "normalize_then_sum", "group"),
    ):
        out[f"trl advantage {name}"] = trl_advantages(given, aggregation, scale).contiguous()
    verl_outputs(given, out)
    save_file({name: tensor.contiguous().clone() for name, tensor in out.items()}, sys.argv[2])


if __name__ == "__main__":
    main()
