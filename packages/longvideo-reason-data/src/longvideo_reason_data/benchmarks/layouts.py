"""The file layouts in which benchmarks are published: which tables, and which fields of a row are read.

A layout is data; `longvideo_reason_data.benchmarks.reading` interprets it. Where a benchmark is published in several
forms (by its authors, and as a table on the Hugging Face hub) a field has several names, of which a row has one. The
package's README lists the fields with their sources. The module imports nothing heavy, so that settings can name a
benchmark at once.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from longrl_files.messages import visible
from longvideo_reason_data.errors import UsageError


class AnswerForm(StrEnum):
    """How a table gives the right option."""

    LETTER = "letter"
    INDEX = "index"
    """From 0."""
    TEXT = "text"
    """The option itself; of an open question, the answer."""


class SeriesRule(StrEnum):
    """How questions that belong together are scored together."""

    NONE = "none"
    NONLINEAR = "nonlinear"
    """Groups of four of Video-MME-v2."""
    ALL_RIGHT = "all_right"
    """Right only if all are: VNBench asks each question four times."""


Names = tuple[str, ...]
"""Names of a field, of which a row has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkLayout:
    """One published layout.

    Attributes:
        title: The benchmark's name.
        tables: Patterns of file names; the files of the first that matches any are read.
        ids: Fields that together name a question; without them, a question is named by its video and its number there.
        video: Field with the id or the path of the video.
        video_form: Name of the file of a video, if the field isn't that.
        answer: Field with the right answer.
        answer_forms: Forms in which it may be, tried in this order.
        answer_tables: Patterns of the table with the answers, if they are in one of their own.
        answer_key: Field that names a question in both tables.
        no_option: Text in place of an option that a question doesn't have.
        groups: Fields by which accuracy is reported, by the names they have there.
        subtitle: Field with the name of the subtitle file.
        subtitle_form: Name of that file, if the field isn't that.
        subtitle_start: Field with the time in the subtitles at which the video begins, in seconds.
        series: Fields that questions have in common which are scored together.
        series_rule: How they are.
        mean_of: The group whose accuracies are averaged for the published score, rather than the questions'.
    """

    title: str
    tables: tuple[str, ...]
    ids: tuple[Names, ...] = ()
    video: Names
    video_form: str = "{}"
    answer: Names = ("answer",)
    answer_forms: tuple[AnswerForm, ...] = (AnswerForm.LETTER,)
    answer_tables: tuple[str, ...] = ()
    answer_key: str = ""
    no_option: str | None = None
    groups: Mapping[str, Names] = field(default_factory=dict[str, Names])
    subtitle: Names = ()
    subtitle_form: str = "{}"
    subtitle_start: str = ""
    series: tuple[Names, ...] = ()
    series_rule: SeriesRule = SeriesRule.NONE
    mean_of: str = ""


LAYOUTS: Mapping[str, BenchmarkLayout] = {
    "videomme": BenchmarkLayout(
        title="Video-MME",
        tables=("videomme/*.parquet", "test-*.parquet", "*.parquet"),
        ids=(("question_id",),),
        video=("videoID",),
        groups={"duration": ("duration",), "domain": ("domain",), "task": ("task_type",)},
        subtitle=("videoID",),
        subtitle_form="{}.srt",
    ),
    "videomme_v2": BenchmarkLayout(
        title="Video-MME-v2",
        tables=("test-*.parquet", "*.parquet", "*.tsv"),
        ids=(("question_id", "index"),),
        video=("video_id", "video"),
        groups={
            "level": ("level",),
            "group type": ("group_type",),
            "second head": ("second_head",),
            "third head": ("third_head",),
        },
        subtitle=("video_id", "video"),
        subtitle_form="{}.jsonl",
        series=(("video_id", "video"),),
        series_rule=SeriesRule.NONLINEAR,
    ),
    "longvideo_reason": BenchmarkLayout(
        title="LongVideo-Reason-eval",
        tables=("test-*.parquet", "*eval*.json*", "*test*.json*"),
        ids=(("problem_id",),),
        video=("videos",),
        groups={"skill": ("problem_type",)},
    ),
    "longvideobench": BenchmarkLayout(
        title="LongVideoBench",
        tables=("lvb_val.json", "validation-*.parquet"),
        ids=(("id",),),
        video=("video_path",),
        answer=("correct_choice",),
        answer_forms=(AnswerForm.INDEX,),
        no_option="N/A",
        groups={"duration": ("duration_group",), "question": ("question_category",), "topic": ("topic_category",)},
        subtitle=("subtitle_path",),
        subtitle_start="starting_timestamp_for_subtitles",
    ),
    "mlvu": BenchmarkLayout(
        title="MLVU",
        tables=("json/[1-7]_*.json", "test-*.parquet", "*.parquet"),
        video=("video_name", "video"),
        answer_forms=(AnswerForm.TEXT, AnswerForm.LETTER),
        groups={"task": ("task_type", "question_type")},
        mean_of="task",
    ),
    "lvbench": BenchmarkLayout(
        title="LVBench",
        tables=("video_info.meta.jsonl", "train-*.parquet", "*.parquet"),
        ids=(("uid",),),
        video=("video_path", "key"),
        groups={"question": ("question_type",), "video": ("type",)},
    ),
    "egoschema": BenchmarkLayout(
        title="EgoSchema",
        tables=("questions.json", "Subset/*.parquet", "*.parquet"),
        ids=(("q_uid", "question_idx"),),
        video=("video_idx", "q_uid"),
        answer_forms=(AnswerForm.INDEX,),
        answer_tables=("subset_answers.json",),
        answer_key="q_uid",
    ),
    "nextqa": BenchmarkLayout(
        title="NExT-QA",
        tables=("MC/*.parquet", "mc.csv", "test.csv", "val.csv"),
        ids=(("video",), ("qid",)),
        video=("video",),
        answer_forms=(AnswerForm.INDEX,),
        groups={"type": ("type",)},
    ),
    "perceptiontest": BenchmarkLayout(
        title="PerceptionTest",
        tables=("mc_question_val*.json", "mc_question_val*/*.parquet", "*.parquet"),
        ids=(("video_name", "key"), ("question_id", "id")),
        video=("video_name", "key"),
        answer=("answer_id",),
        answer_forms=(AnswerForm.INDEX,),
        groups={"area": ("area",), "reasoning": ("reasoning",), "tag": ("tag",)},
    ),
    "activitynetqa": BenchmarkLayout(
        title="ActivityNet-QA",
        tables=("test_q.json", "test-*.parquet", "*.parquet"),
        ids=(("question_id",),),
        video=("video_name",),
        video_form="v_{}",
        answer_forms=(AnswerForm.TEXT,),
        answer_tables=("test_a.json",),
        answer_key="question_id",
        groups={"type": ("type",)},
    ),
    "vnbench": BenchmarkLayout(
        title="VNBench",
        tables=("VNBench-main-4try.json", "VNBench*.json"),
        ids=(("video",), ("question",), ("type",), ("try",)),
        video=("video",),
        answer=("gt",),
        answer_forms=(AnswerForm.TEXT, AnswerForm.LETTER),
        groups={"type": ("type",)},
        series=(("video",), ("question",), ("type",)),
        series_rule=SeriesRule.ALL_RIGHT,
        mean_of="type",
    ),
    "cgbench": BenchmarkLayout(
        title="CG-Bench",
        tables=("cgbench.json", "cgbench_mini.json"),
        ids=(("qid",),),
        video=("video_uid",),
        answer=("right_answer",),
        groups={"domain": ("domain",), "category": ("sub_category",)},
        subtitle=("video_uid",),
        subtitle_form="{}.srt",
    ),
    "vrbench": BenchmarkLayout(
        title="VRBench",
        tables=("VRBench_eval.jsonl",),
        ids=(("video_id",), ("question_key",)),
        video=("video_path",),
        groups={"reasoning": ("reasoning_type",)},
    ),
    "questions": BenchmarkLayout(
        title="Questions",
        tables=("*.parquet", "*.jsonl", "*.ndjson", "*.json", "*.csv", "*.tsv"),
        ids=(("question_id", "id", "problem_id", "qid", "uid"),),
        video=("video_path", "video", "videos", "video_name", "path", "videoID", "video_id", "video_uid"),
        answer=("answer", "solution", "right_answer", "gt", "label"),
        answer_forms=(AnswerForm.TEXT, AnswerForm.LETTER, AnswerForm.INDEX),
        groups={
            "skill": ("skill", "problem_type", "question_type"),
            "duration": ("duration_group",),
            "task": ("task_type", "type", "category"),
        },
        subtitle=("subtitle_path", "subtitles"),
    ),
}
"""The layouts by the names of the benchmarks; `questions` is any table of questions."""


def find_layout(name: str) -> BenchmarkLayout:
    """Return a layout by the benchmark's name.

    Raises:
        UsageError: There is none.
    """
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown benchmark {visible(repr(name), 60)}; {hint}expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
