"""How much of a server's capacity the language model client uses, and how much faster it is than a loop.

The server runs in another process, speaks the chat protocol on the loopback, answers each request after a fixed time
and works on a fixed number at once; its capacity is that number over that time. Three clients take turns against it,
several times over, so that a noisy machine is noisy for all: `LanguageModel` with as many requests under way as the
server works on, with journal and ledger on disk as in a build; `LanguageModel` with one at a time; and the plain loop
that one writes first, `openai` asked one after the other. Medians are reported, as JSON.

    python benchmarks/language_model_throughput.py --num-parallel 16 --latency-seconds 0.2
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai

from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.requests import Outcome, Request

WORDS = "A figure crosses the room towards the door and sets the blue box down beside it. " * 12


async def serve(num_parallel: int, latency_seconds: float) -> None:
    """Answer requests for ever, and print the port first."""
    free = asyncio.Semaphore(num_parallel)
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": WORDS}}
    usage = {"prompt_tokens": 900, "completion_tokens": 220, "total_tokens": 1120}
    answers: dict[bytes, dict[str, object]] = {
        b"GET": {"object": "list", "data": [{"id": "model", "object": "model", "created": 0, "owned_by": "x"}]},
        b"POST": {"id": "x", "object": "chat.completion", "model": "model", "choices": [message], "usage": usage},
    }

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.lower().split(b":", 1) for line in head.splitlines()[1:] if b":" in line)
                await reader.readexactly(int(fields.get(b"content-length", b"0")))
                method = head.split(maxsplit=1)[0]
                if method == b"POST":
                    async with free:
                        await asyncio.sleep(latency_seconds)
                body = json.dumps(answers[method]).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def ask_all(base_url: str, num_requests: int, num_parallel: int, folder: Path) -> float:
    """Ask through the client; gives answers per second."""
    with ResponseCache(folder / "responses.jsonl") as cache, Ledger(path=folder / "calls.jsonl") as ledger:
        async with LanguageModel(base_url, cache, ledger=ledger, num_parallel=num_parallel) as client:
            await client.ask(Request(model="model", parts=("warm up",)))
            requests = [Request(model="model", parts=(WORDS, str(number))) for number in range(num_requests)]
            begin = time.perf_counter()
            replies = await asyncio.gather(*(client.ask(request) for request in requests))
            seconds = time.perf_counter() - begin
    if any(reply.outcome is not Outcome.ANSWERED for reply in replies):
        raise SystemExit("a request wasn't answered")
    return num_requests / seconds


async def ask_in_a_loop(base_url: str, num_requests: int) -> float:
    """Ask one after the other with nothing but `openai`; gives answers per second."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:
        begin = time.perf_counter()
        for number in range(num_requests):
            await client.chat.completions.create(
                model="model", messages=[{"role": "user", "content": f"{WORDS} {number}"}], max_tokens=512
            )
        return num_requests / (time.perf_counter() - begin)


def measure(base_url: str, num_requests: int, num_parallel: int, num_repeats: int) -> dict[str, list[float]]:
    """Let the clients take turns; gives the answers per second of each repeat."""
    num_alone = max(1, num_requests // num_parallel)
    rates: dict[str, list[float]] = {"parallel": [], "one_at_a_time": [], "openai_loop": []}
    for _ in range(num_repeats):
        with tempfile.TemporaryDirectory() as folder:
            rates["parallel"].append(
                asyncio.run(ask_all(base_url, num_requests, num_parallel, Path(folder) / "parallel"))
            )
            rates["one_at_a_time"].append(asyncio.run(ask_all(base_url, num_alone, 1, Path(folder) / "alone")))
        rates["openai_loop"].append(asyncio.run(ask_in_a_loop(base_url, num_alone)))
    return rates


def main() -> None:
    """Run the benchmark, or its server."""
    parser = argparse.ArgumentParser(description="Throughput of the language model client.")
    parser.add_argument("--num-requests", type=int, default=320)
    parser.add_argument("--num-parallel", type=int, default=16)
    parser.add_argument("--latency-seconds", type=float, default=0.2)
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="be the server; the benchmark starts it")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.num_parallel, options.latency_seconds))
        return
    command = [sys.executable, __file__, "--serve", f"--num-parallel={options.num_parallel}"]
    command.append(f"--latency-seconds={options.latency_seconds}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline().strip() if server.stdout else ""
            base_url = f"http://127.0.0.1:{port}/v1"
            rates = measure(base_url, options.num_requests, options.num_parallel, options.num_repeats)
        finally:
            server.terminate()
    capacity = options.num_parallel / options.latency_seconds
    median = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "serve"},
        "capacity_per_second": capacity,
        "answers_per_second": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "share_of_capacity": round(median["parallel"] / capacity, 3),
        "times_one_at_a_time": round(median["parallel"] / median["one_at_a_time"], 2),
        "times_openai_loop": round(median["parallel"] / median["openai_loop"], 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
