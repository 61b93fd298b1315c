"""Following journals while they grow, shrink and are replaced; and what of them is drawn."""

import pytest
from watched_journals import add_steps, write_run

from longrl.errors import AppUsageError
from longrl.watch.curves import arrange
from longrl.watch.groups import GroupIndex
from longrl.watch.growing_journal import GrowingJournal
from longrl.watch.watched_run import WatchedRun
from longrl_trainer.runs.journal import JsonLines


def steps_of(journal):
    return [line["step"] for _, line in journal.look()]


def test_only_new_and_complete_lines_are_given(tmp_path):
    journal = GrowingJournal(tmp_path, "metrics.jsonl")
    assert steps_of(journal) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert steps_of(journal) == [1, 2]
    assert steps_of(journal) == []
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert steps_of(journal) == [3]
    assert journal.edition == 0


def test_a_run_that_goes_on_from_a_checkpoint_is_read_anew(tmp_path):
    write_run(tmp_path / "run", num_steps=4)
    run = WatchedRun(tmp_path / "run")
    first = run.state()
    assert [len(first["steps"]), len(first["groups"])] == [4, 8]
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        JsonLines(tmp_path / "run" / name).keep_until(2)
    add_steps(tmp_path / "run", range(3, 4), text="Another one.")
    again = run.state(edition=first["edition"], num_steps=4, num_groups=8)
    assert again["edition"] != first["edition"]
    assert [line["step"] for line in again["steps"]] == [1, 2, 3]
    assert [row["group_id"] for row in again["groups"]] == ["1-1", "1-2", "2-1", "2-2", "3-1", "3-2"]
    assert run.group("3-1")["responses"][0]["text"] == "Another one."
    assert run.group("4-1") is None


def test_a_page_gets_only_what_it_lacks(tmp_path):
    write_run(tmp_path / "run", num_steps=3)
    run = WatchedRun(tmp_path / "run")
    edition = run.state()["edition"]
    assert run.state(edition=edition, num_steps=3, num_groups=6)["steps"] == []
    add_steps(tmp_path / "run", range(4, 5))
    new = run.state(edition=edition, num_steps=3, num_groups=6)
    assert [line["step"] for line in new["steps"]] == [4]
    assert [row["step"] for row in new["groups"]] == [4, 4]
    assert not new["is_finished"]
    (tmp_path / "run" / "result.json").write_text("{}")
    assert run.state()["is_finished"]


def test_a_group_in_brief(tmp_path):
    write_run(tmp_path / "run", num_steps=1)
    index = GroupIndex(tmp_path / "run")
    index.refresh()
    row = index.rows[1]
    assert (row.group_id, row.skill, row.num_responses, row.num_unfinished) == ("1-2", "ordering", 2, 1)
    assert (row.reward, row.lowest, row.highest) == (0.5, 0.0, 1.0)


def test_numbers_are_drawn_where_they_belong(tmp_path):
    write_run(tmp_path / "run", num_steps=1)
    state = WatchedRun(tmp_path / "run").state()
    drawn = {panel["title"]: panel["names"] for panel in state["panels"]}
    assert drawn == {
        "Reward and its terms": ["reward", "rewards.answer", "rewards.format"],
        "Accuracy, form, finished": ["accuracy"],
        "Seconds by stage": ["seconds.rollouts", "seconds.update"],
        "Memory": ["peak_bytes"],
    }
    assert [(panel.title, names) for panel, names in arrange(["unheard", "loss"])] == [
        ("Loss", ["loss"]),
        ("unheard", ["unheard"]),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[]\n", "a line without a step"),
        ("{nonsense\n", "is not a journal of this trainer"),
        ('{"step": 1, "responses": 3}\n', "doesn't hold groups of responses"),
    ],
)
def test_a_journal_of_something_else_is_told_in_one_line(tmp_path, line, words):
    write_run(tmp_path / "run", num_steps=1)
    (tmp_path / "run" / "rollouts.jsonl").write_text(line)
    with pytest.raises(AppUsageError, match=words):
        WatchedRun(tmp_path / "run").state()


def test_a_link_in_a_run_is_not_followed(tmp_path):
    write_run(tmp_path / "run", num_steps=1)
    (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "private.jsonl")
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "private.jsonl")
    with pytest.raises(AppUsageError, match="link"):
        WatchedRun(tmp_path / "run").state()


def test_what_a_step_measures_of_itself_is_drawn_together():
    measured = ["tokens_per_second.trainer", "tokens_per_second.sampler", "utilisation", "padding_fraction"]
    measured += ["evaluation.accuracy", "evaluation.accuracy_standard_error", "evaluation.count", "seconds.evaluate"]
    titles = {name: panel.title for panel, names in arrange(measured) for name in names}
    assert titles["evaluation.accuracy"] == titles["evaluation.accuracy_standard_error"]
    assert titles["tokens_per_second.trainer"] == titles["tokens_per_second.sampler"] == "Tokens per second"
    assert titles["seconds.evaluate"] == "Seconds by stage"
    assert len(set(titles.values())) == 5
