"""A reward in a process of its own, in any Python environment: for scorers that need other versions of libraries.

The environment needs numpy and safetensors, and a function

    def judge(prompts: list[str], pictures: list[numpy.ndarray]) -> list[float | None]

of pictures as bytes [H, W, 3]. They go through a pipe as safetensors, never as a pickle, and numbers come back as JSON.
A picture at which the function raises, or for which it returns None or no finite number, isn't judged, which isn't 0;
where it raises for several pictures it is asked about each by itself. A process that ends, or doesn't answer in time,
ends the run in one line, with the last line that it wrote; the run can be continued.
"""

import math
import os
import selectors
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import Tensor

from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from longrl_omni.generation.rewards import scorer_process
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.jpeg import as_bytes
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import RewardResult, RewardStatus

NAME = "process"
_MOST_REPLY_BYTES = 2**24
_LAST_BYTES = 4096
_SECONDS_TO_END = 5.0


class ProcessSettings(BaseModel):
    """What judges, and in which environment."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    python: Path
    """The interpreter of the environment, such as `scorers/.venv/bin/python`."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """The function, as `module:function`."""
    folder: Path = Path()
    """The folder that the process is started in, and in which its module is looked for."""
    timeout_seconds: float = Field(default=600.0, gt=0, le=1e6)
    """Longest wait for an answer about the pictures of a step, and for the module to be imported."""


class ProcessReward:
    """What a function in another process says.

    Raises:
        TrainerError: It can't be started.
    """

    Settings = ProcessSettings

    def __init__(self, settings: ProcessSettings) -> None:
        if not settings.folder.is_dir():
            raise TrainerUsageError(f"`rewards.{NAME}.folder` = {settings.folder}: there is no such folder")
        self._settings = settings
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the process has ended)
        command = [str(settings.python.absolute()), "-u", scorer_process.__file__, settings.function]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=settings.folder,
                start_new_session=True,  # signals ask the run to save its state, for which pictures are judged still
            )
        except OSError as error:
            raise TrainerUsageError(
                f"`rewards.{NAME}.python` = {settings.python}: can't be started ({error.strerror}); expected the "
                "interpreter of an environment"
            ) from error
        self._end = weakref.finalize(self, _end, self._process, self._errors)
        reply = self._read_reply()
        if "failure" in reply:
            raise TrainerUsageError(
                f"`rewards.{NAME}.function` = {settings.function}: can't be imported there "
                f"({visible(str(reply['failure']), 200)})"
            )

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures.

        Raises:
            TrainerError: The process ended, or didn't answer as it should.
        """
        tensors: dict[str, Tensor] = {}
        for number, request in enumerate(requests):
            tensors[f"{number}.prompt"] = torch.tensor(list(request.prompt.encode()), dtype=torch.uint8)
            tensors[f"{number}.picture"] = as_bytes(request.picture)
        message = save(tensors)
        try:
            cast(IO[bytes], self._process.stdin).write(len(message).to_bytes(8, "little") + message)
            cast(IO[bytes], self._process.stdin).flush()
        except OSError:
            raise self._failed("ended") from None
        reply = self._read_reply()
        values, errors = reply.get("values"), reply.get("errors")
        if (
            not isinstance(values, list)
            or not isinstance(errors, dict)
            or len(cast(list[Any], values)) != len(requests)
        ):
            raise self._failed("answered something else than one value for each picture")
        reasons = cast(dict[str, Any], errors)
        return [_result(value, reasons.get(str(number))) for number, value in enumerate(cast(list[Any], values))]

    def _read_reply(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._settings.timeout_seconds
        length = int.from_bytes(self._read(8, deadline), "little")
        if length > _MOST_REPLY_BYTES:
            raise self._failed(f"answered with {length:,} bytes, expected at most {_MOST_REPLY_BYTES:,}")
        try:
            reply = parse_json(self._read(length, deadline))
        except UnfitJsonError as error:
            raise self._failed(f"answered with no JSON ({visible(str(error), 80)})") from None
        if not isinstance(reply, dict):
            raise self._failed("answered with no JSON object")
        return cast(dict[str, Any], reply)

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        """So many bytes from the process."""
        pipe = cast(IO[bytes], self._process.stdout)
        found = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while len(found) < num_bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    limit = self._settings.timeout_seconds
                    raise self._failed(f"didn't answer within {limit:g} s; raise `timeout_seconds` if it needs more")
                part = os.read(pipe.fileno(), num_bytes - len(found))
                if not part:
                    raise self._failed("ended")
                found += part
        return found

    def _failed(self, what: str) -> TrainerError:
        """End the process; the error that says what it did and wrote last."""
        if what == "ended":
            try:
                code = self._process.wait(_SECONDS_TO_END)
                what = f"ended with signal {-code}" if code < 0 else f"ended with code {code}"
            except subprocess.TimeoutExpired:
                what = "closed its output"
        self._process.kill()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self._end()
        last = f"; its last line: {visible(lines[-1], 200)}" if lines else ""
        return TrainerError(f"rewards.{NAME}: the process of {self._settings.function} {what}{last}")


def _result(value: Any, reason: Any) -> RewardResult:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return RewardResult(value=float(value), status=RewardStatus.OK)
    said = None if reason is None else visible(str(reason), 300)
    return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR, parsed=said)


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Let the process end by itself, as it does when there are no more requests; otherwise end it."""
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            cast(IO[bytes], pipe).close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()
