"""What `longrl quickstart` prints at its end: the result, and where everything is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from longrl.report.build import REPORT_NAME

__all__ = ["print_summary"]

SERVE_OPTIONS = "--dtype float32 --gpu-memory-utilization 0.5"  # on CPUs a share of main memory


def print_summary(output: Path, summary: Mapping[str, Any], console: Console) -> None:
    """Print where everything is, the result and the next steps."""
    console.print()
    for name, accuracy in summary["accuracy"].items():
        console.print(f"{name:<11} {accuracy:6.1%}", highlight=False)
    console.print()
    for senses, models in summary["accuracy_by_senses"].items():
        shown = ", ".join(f"{name} {found['accuracy']:.1%}" for name, found in models.items())
        console.print(f"{f'needs {senses}':<15} {shown}", highlight=False)
    if summary["accuracy_by_senses"]:
        console.print()
    model = output / "grpo" / "model"
    console.print(f"report      {output / REPORT_NAME}", soft_wrap=True, highlight=False)
    console.print(f"checkpoint  {model}", soft_wrap=True, highlight=False)
    if summary["accuracy_by_senses"]:
        return  # an omni model's server lets no film be heard at the positions of its training
    console.print(
        f"serve it    python -m vllm.entrypoints.openai.api_server --model {model} {SERVE_OPTIONS}",
        soft_wrap=True,
        highlight=False,
    )
