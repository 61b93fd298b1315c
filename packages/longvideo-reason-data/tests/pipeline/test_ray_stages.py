"""The same stages on a cluster of two workers give the same dataset, through the one journal."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.by_answers import FilterModels
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.settings import BuildSettings, Engine, QuestionSettings, SkillQuotas
from longvideo_reason_data.pipeline.build import build
from longvideo_reason_data.pipeline.filter import filter_folder
from longvideo_reason_data.records.pass_rates import Condition

MakeVideo = Callable[..., Path]
SETTINGS = BuildSettings(
    window_seconds=1.0,
    first_wait_seconds=0.01,
    num_attempts=2,
    questions=QuestionSettings(quotas=SkillQuotas(temporal=2, goal=0, spatial=0, plot=0)),
)

FILTERS = FilterSettings(
    conditions=(Condition.BLIND, Condition.FULL, Condition.CAPTIONS), num_samples=2, num_full_frames=4
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a cluster of two workers with one processor each, and a head node that gets no work."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        running.add_node(num_cpus=1)
    ray.init(address=running.address, logging_level="error", log_to_driver=False)
    yield running
    ray.shutdown()
    running.shutdown()


@pytest.mark.long
def test_two_workers_make_the_same_dataset(cluster: Any, server: Any, make_video: MakeVideo, tmp_path: Path) -> None:
    for number in range(4):
        make_video(f"films/film {number}.mp4", num_frames=60, first_number=100 * number)
    films = tmp_path / "films"
    (films / "notes.mp4").write_text("no video")
    (films / "copy.mp4").write_bytes((films / "film 0.mp4").read_bytes())

    def run(name: str, engine: Engine) -> dict[str, Any]:
        output = tmp_path / name
        return build([films], output, base_url=server.base_url, model="model", settings=SETTINGS, engine=engine)

    local = run("local", "local")
    num_local = len(server.bodies)
    server.most_parallel, server.delay_seconds = 0, 0.1
    distributed = run("ray", "ray")
    assert distributed["dataset_hash"] == local["dataset_hash"]
    for same in ("input", "kept", "dropped", "stages", "calls", "tokens"):
        assert distributed[same] == local[same]
    assert distributed["dropped"] == {"video_duplicate": 1, "video_unreadable": 1}
    # A video here waits for one request after the other, so two at a time are two workers.
    assert server.most_parallel == 2
    assert Counter(map(json.dumps, server.bodies)).total() == 2 * num_local

    def filtered(name: str, engine: Engine) -> dict[str, Any]:
        manifest = filter_folder(
            tmp_path / name,
            base_url=server.base_url,
            models=FilterModels(answerer="model"),
            settings=FILTERS,
            client=SETTINGS,
            engine=engine,
        )
        return {"hash": manifest["dataset_hash"], **json.loads((tmp_path / name / "filters.json").read_text())}

    server.delay_seconds = 0
    report = filtered("local", "local")
    assert filtered("ray", "ray") == report
    assert report["kept"] == report["input"] == 8
    assert set(report["pass_rates"]) == {"blind", "full", "captions"}
    num_asked = len(server.bodies)
    assert num_asked == 2 * (num_local + 8 * 3 * FILTERS.num_samples)
    assert filtered("local", "ray") == report  # from the journal, without contacting the server

    # One engine continues with the answers paid for by the other, without contacting the server.
    for shard in (tmp_path / "ray" / "shards").iterdir():
        shard.unlink()
    again = run("ray", "local")
    assert again["dataset_hash"] == local["dataset_hash"]
    assert (again["calls"]["made"], len(server.bodies)) == (0, num_asked)
    for shard in (tmp_path / "local" / "shards").iterdir():
        shard.unlink()
    assert run("local", "ray")["calls"]["made"] == 0

    server.served = ["another"]
    with pytest.raises(UsageError, match="doesn't serve 'model'"):
        run("unserved", "ray")
    server.served, server.fail = ["model"], lambda body, times: (0, {}, b"")
    with pytest.raises(DataError, match="run again to go on"):
        run("dying", "ray")
