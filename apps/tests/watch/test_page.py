"""The page, served and as a file: complete, safe with any text, and usable with thousands of responses."""

import json
import re
import urllib.error
import urllib.request
from http.client import HTTPConnection

import pytest
from chromium import Chromium
from watched_journals import make_group, write_run

from longrl.watch.page import MOST_GROUPS, write_page
from longrl.watch.watched_run import WatchedRun
from longrl_trainer.runs.journal import JsonLines
from longvideo_reason_data.records.record import Split, read_records
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings


def ask(server, path):
    with urllib.request.urlopen(server.address + path) as answer:
        return answer.read().decode()


def test_the_server_gives_the_page_what_is_new_and_each_group(tmp_path, serve):
    write_run(tmp_path / "run", num_steps=2)
    server = serve(WatchedRun(tmp_path / "run"))
    assert "<main>" in ask(server, "")
    state = json.loads(ask(server, "state"))
    assert len(state["steps"]) == 2
    assert json.loads(ask(server, f"state?edition={state['edition']}&steps=2&groups=4"))["groups"] == []
    assert len(json.loads(ask(server, "state?steps=-1&groups=none&edition="))["groups"]) == 4
    group = json.loads(ask(server, "groups/2-1"))
    assert [response["reward"] for response in group["responses"]] == [1.0, 0.0]
    assert group["frames"] == []
    assert group["frames_missing"]
    for path in ("groups/9-9", "settings.json", "../settings.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(server, path)


def test_only_this_machine_can_ask_and_only_by_its_name(tmp_path, serve):
    write_run(tmp_path / "run", num_steps=1)
    server = serve(WatchedRun(tmp_path / "run"))
    assert server.server_address[0] == "127.0.0.1"
    for host, status in (("evil.example", 403), (f"localhost:{server.server_port}", 200)):
        connection = HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", "/state", headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_a_damaged_run_is_told_on_the_page(tmp_path, serve):
    write_run(tmp_path / "run", num_steps=1)
    (tmp_path / "run" / "metrics.jsonl").write_text("{nonsense\n")
    with pytest.raises(urllib.error.HTTPError, match="409") as caught:
        ask(serve(WatchedRun(tmp_path / "run")), "state")
    assert "is not a journal of this trainer" in caught.value.read().decode()


def test_the_file_is_self_contained_and_safe_with_any_text(tmp_path):
    write_run(tmp_path / "run", num_steps=1, text="</script><script>alert(1)</script><!-- \u2028 <img src=http://x>")
    write_page(WatchedRun(tmp_path / "run"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == page.count("</script") == 2
    assert "<img" not in page
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, flags=re.DOTALL)[1])
    assert content["groups"]["1-1"]["responses"][0]["text"].startswith("</script><script>")


def test_a_very_long_run_is_thinned_and_says_so(tmp_path):
    write_run(tmp_path / "run", num_steps=30, groups_per_step=100)
    write_page(WatchedRun(tmp_path / "run"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, flags=re.DOTALL)[1])
    assert content["num_groups"] == 3000
    assert 1000 <= len(content["groups"]) <= MOST_GROUPS
    assert {row["step"] for row in content["state"]["groups"]} == set(range(1, 31))


def test_frames_of_a_question_are_shown_with_their_times(tmp_path):
    settings = WorldSettings(seconds=16.0, num_scenes=4, scene_seconds=2.0)
    write_timeline_dataset(tmp_path / "world", settings, videos={Split.TRAIN_RL: 1}, questions_per_video=2, seed=0)
    record = read_records(tmp_path / "world" / "records.parquet")[0]
    write_run(tmp_path / "run", num_steps=1, dataset=str(tmp_path / "world"))
    found = WatchedRun(tmp_path / "run").frames(record.question_id)
    assert len(found["frames"]) == 8
    times = [frame["seconds"] for frame in found["frames"]]
    assert times == sorted(times)
    assert times[-1] > 12
    assert any(frame["is_evidence"] for frame in found["frames"])
    assert WatchedRun(tmp_path / "run").frames("unheard of")["frames_missing"]


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    return Chromium(tmp_path_factory.mktemp("profile")).open


@pytest.mark.slow
def test_a_browser_draws_curves_and_opens_responses_of_a_long_run(tmp_path, browse):
    write_run(tmp_path / "run", num_steps=50, groups_per_step=40, text="<b>bold</b> words")
    write_page(WatchedRun(tmp_path / "run"), tmp_path / "page.html")
    page = (tmp_path / "page.html").as_uri()
    curves = browse(page)
    assert curves.count("<figure>") == 4
    assert "reward 0.5" in curves
    everything = browse(f"{page}#responses")
    assert 'data-found="2000"' in everything
    assert everything.count("<tr>") == 101
    some = browse(f"{page}#responses?skill=ordering&from=10&to=11&search=place+3")
    assert 'data-found="12"' in some  # places 3, 31, 33, 35, 37 and 39 of both steps
    group = browse(f"{page}#group?id=50-40")
    assert group.count("<article>") == 2
    assert "&lt;b&gt;bold&lt;/b&gt; words" in group
    assert "truncated" in group
    assert '<span class="gap-0" title="gap 0 nats">It is</span><span class="gap-3"' in group


@pytest.mark.slow
def test_a_browser_says_where_the_pictures_of_a_run_are(tmp_path, browse):
    write_run(tmp_path / "run", num_steps=1, groups_per_step=0)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings | {"stage": "generate-grpo"}))
    write_page(WatchedRun(tmp_path / "run"), tmp_path / "page.html")
    assert "in pictures/" in browse((tmp_path / "page.html").as_uri() + "#responses")


@pytest.mark.slow
def test_a_browser_follows_a_served_run(tmp_path, browse, serve):
    write_run(tmp_path / "run", num_steps=3, is_evaluated=True)
    server = serve(WatchedRun(tmp_path / "run"))
    page = browse(server.address)
    rewards, _, evaluation = page.split("<figure>")[1:4]
    assert page.count("<figure>") == 5
    assert page.count(">step 0<") == 5  # one axis for all: the untrained model is on its left
    assert 'cx="48" cy=' in evaluation
    assert 'd="M178.7 ' in rewards
    assert "grpo, step 3, going on or stopped" in page
    plain = browse(f"{server.address}#group?id=3-2")
    assert plain.count("<article>") == 2
    assert "shuffled frames" not in plain
    weighed = make_group(3, 2, "It is red.") | {"options": [], "answer": "red", "prompt_weight": 1.3}
    JsonLines(tmp_path / "run" / "rollouts.jsonl").append(3, weighed)
    group = browse(f"{server.address}#group?id=3-3")
    assert "Better than with shuffled frames: weight 1.3" in group
    assert "null" not in group  # an open question has no options
