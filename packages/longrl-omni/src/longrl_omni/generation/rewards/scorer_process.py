"""The other end of `longrl_omni.generation.rewards.process`: asks a function about pictures, in another environment.

This file is run by its path with the interpreter of that environment, so it imports nothing but the standard library,
numpy and safetensors, and no other module of this package. Requests come through standard input, replies go through
what was standard output; whatever the function prints goes to standard error. Every message is a length in eight bytes,
the lowest first, and so many bytes: of a request safetensors with `N.prompt` in UTF-8 and `N.picture`, of a reply JSON.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import load

Judge = Callable[[Sequence[str], Sequence[np.ndarray[Any, Any]]], Sequence[float | None]]


def main(name: str) -> int:
    """Serve a function named like `module:function` until the requests end."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Modules are those of the folder that this process was started in, and not those beside this file.
    sys.path[0] = str(Path.cwd())
    module_name, _, function_name = name.partition(":")
    try:
        judge: Judge = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        write_message(replies, {"failure": _describe(error)})
        return 1
    write_message(replies, {"ready": True})
    while (request := read_message(sys.stdin.buffer)) is not None:
        tensors = load(request)
        numbers = range(len(tensors) // 2)
        prompts = [tensors[f"{number}.prompt"].tobytes().decode() for number in numbers]
        write_message(replies, answer(judge, prompts, [tensors[f"{number}.picture"] for number in numbers]))
    return 0


def answer(judge: Judge, prompts: list[str], pictures: list[Any]) -> dict[str, Any]:
    """What a function says about all pictures, or about each of those that it can judge by itself."""
    try:
        return {"values": _numbers(judge(prompts, pictures), len(prompts)), "errors": {}}
    except Exception as error:
        if len(prompts) == 1:
            return {"values": [None], "errors": {"0": _describe(error)}}
    values: list[float | None] = []
    errors: dict[str, str] = {}
    for number, (prompt, picture) in enumerate(zip(prompts, pictures)):  # noqa: B905  (any Python from 3.9 on)
        found = answer(judge, [prompt], [picture])
        values += found["values"]
        if found["errors"]:
            errors[str(number)] = found["errors"]["0"]
    return {"values": values, "errors": errors}


def read_message(file: BinaryIO) -> bytes | None:
    """The next message; None at the end."""
    length = file.read(8)
    if len(length) < 8:
        return None
    return file.read(int.from_bytes(length, "little"))


def write_message(file: BinaryIO, content: Any) -> None:
    """Write JSON as a message."""
    text = json.dumps(content).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    file.flush()


def _numbers(values: Any, num_expected: int) -> list[float | None]:
    found = [None if value is None or not math.isfinite(value) else float(value) for value in values]
    if len(found) != num_expected:
        raise ValueError(f"returned {len(found)} values for {num_expected} pictures")
    return found


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
