"""The answer grammar: one table of real ways to answer, the five classic failures, and properties."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvideo_reason_data.records import answer_phrases
from longvideo_reason_data.records.answer_phrases import ANNOUNCEMENT, LETTER_IS_RIGHT, Phrase, find_suppositions
from longvideo_reason_data.records.answers import ParseStatus, format_prompt, format_response, parse_response

OPTIONS = ("the red circle", "the blue square", "a green star", "nobody")

# What a model wrote → the letter, "-" for no answer, "?" for an ambiguous one.
CASES = [
    # The five failures of a widely used extractor.
    ("A man enters the room with a box and puts it down, so the answer is C.", "C"),
    ("Answer: B because A is wrong", "B"),
    ("The correct option is (B), not A.", "B"),
    ("Based on the video it is impossible to tell.", "-"),
    ("A person walks by and nothing else happens.", "-"),
    # The answer block.
    ("<think>It meets the square.</think><answer>B</answer>", "B"),
    ("<think>x</think>\n<answer>\nB\n</answer>\n", "B"),
    ("<think>x</think><answer>b</answer>", "B"),
    ("<think>x</think><answer>a</answer>", "A"),
    ("<think>x</think><answer>(C)</answer>", "C"),
    ("<think>x</think><answer>C.</answer>", "C"),
    ("<think>x</think><answer>[D]</answer>", "D"),
    ("<think>x</think><answer>**D**</answer>", "D"),
    ("<think>x</think><answer>\\boxed{D}</answer>", "D"),
    ("<think>x</think><answer>$\\boxed{\\text{A}}$</answer>", "A"),
    ("<think>x</think><answer>Option C</answer>", "C"),
    ("<think>x</think><answer>Answer: C</answer>", "C"),
    ("<think>x</think><answer>C. a green star</answer>", "C"),
    ("<think>x</think><answer>(C) a green star.</answer>", "C"),
    ("<think>x</think><answer>C: A green star</answer>", "C"),
    ("<think>x</think><answer>a green star</answer>", "C"),
    ("<think>x</think><answer>A Green  Star.</answer>", "C"),
    ("<think>x</think><answer>The answer is D.</answer>", "D"),
    ("<think>x</think><answer>B, because A leaves first</answer>", "B"),
    ("<think>x</think><answer>Ｂ</answer>", "B"),
    ("<think>x</think><answer>（Ｂ）</answer>", "B"),
    ("<ANSWER>B</ANSWER>", "B"),
    ("<think>The answer is A.</think><answer>B</answer>", "B"),
    ("<think>x</think>The answer is A.<answer>B</answer>", "B"),
    ("<think>x</think><answer>C. the blue square</answer>", "?"),
    ("<think>x</think><answer>A or B</answer>", "?"),
    ("<think>x</think><answer>A, B</answer>", "?"),
    ("<think>x</think><answer>(A) and (C)</answer>", "?"),
    ("<think>x</think><answer>A/B</answer>", "?"),
    ("<think>x</think><answer>A or B or both</answer>", "?"),
    ("<think>x</think><answer>A</answer><answer>B</answer>", "?"),
    ("<answer>B</answer> again <answer>B</answer>", "B"),
    ("<think>x</think><answer></answer>", "-"),
    ("<think>x</think><answer> </answer> The answer is B.", "-"),
    ("<think>x</think><answer>E</answer>", "-"),
    ("<think>x</think><answer>A red ball</answer>", "-"),
    ("<think>x</think><answer>A-frame houses</answer>", "-"),
    ("<think>x</think><answer>I don't know</answer>", "-"),
    ("<think>x</think><answer>red</answer>", "-"),
    ("<think>x</think><answer>ABCD</answer>", "-"),
    ("<think>x</think><answer>:</answer>", "-"),
    ("<think>x</think><answer>B", "B"),
    ("reasoning without its opening tag</think><answer>B</answer>", "B"),
    # Reasoning without an end was cut off: nothing in it is an answer.
    ("<think>The answer is B. But let me check", "-"),
    ("<think>so <answer>B</answer>", "-"),
    ("<think>The answer is B.</think>", "-"),
    # Explicit phrases, the last one counts.
    ("The answer is B.", "B"),
    ("The answer is: (B)", "B"),
    ("**Answer:** B", "B"),
    ("Answer: $\\boxed{C}$", "C"),
    ("Final answer: D", "D"),
    ("final answer - see below\nAnswer:\nD", "D"),
    ("The correct answer is option C", "C"),
    ("Therefore, the best choice would be (A).", "A"),
    ("The answer is A because it comes first.", "A"),
    ("First I thought the answer is A. Wait. The answer is B.", "B"),
    ("The answer is A or B. After watching again, the answer is B.", "B"),
    ("The answer is the blue square.", "B"),
    ("The answer is B. the blue square", "B"),
    ("The answer is B. the red circle", "?"),
    ("The answer is A or B.", "?"),
    ("The answer is A or B or C.", "?"),
    ("The answer is A, B and D", "?"),
    ("The answer is A; C", "?"),
    ("I would choose A or maybe B.", "?"),
    ("The answer is B, or so I think.", "B"),
    ("The answer is B, A is wrong", "B"),
    ("I would choose C since it glows.", "C"),
    ("So B is correct.", "B"),
    ("Option D is the correct answer.", "D"),
    ("The answer is B. A is correct only at the start.", "B"),
    ("The answer is not A.", "-"),
    ("The answer is E.", "-"),
    ("The answer is A red ball.", "-"),
    ("the answer is a matter of taste", "-"),
    ("The answer is Beautiful.", "-"),
    ("The answer is I think unknown.", "-"),
    # Bare letters and options.
    ("B", "B"),
    ("b.", "B"),
    (" (D) \n", "D"),
    ("B. the blue square", "B"),
    ("The square turns up twice.\n\nB", "B"),
    ("The square turns up twice.\nB. the blue square", "B"),
    ("A. the red circle\nB. the blue square\nC. a green star\nD. nobody\n\nD", "D"),
    ("A. the red circle\nB. the blue square\nC. a green star\nD. nobody", "?"),
    ("A\nB", "?"),
    ("nobody", "D"),
    ("Nobody carries the box.", "-"),
    ("I saw the red circle and the blue square.", "-"),
    ("", "-"),
    ("\n\n", "-"),
    ("<answer></answer></think><think>", "-"),
]


# The same in other words and other languages.
SPOKEN = [
    # Quotes, brackets and full stops of all kinds.
    ("'B'", "B"),
    ("‘B’.", "B"),
    ('"B"', "B"),
    ("「B」", "B"),
    ("【B】。", "B"),
    ("<answer>'B'</answer>", "B"),
    ("B。", "B"),
    ("B、", "B"),
    ("<answer>B。</answer>", "B"),
    ("B、the blue square", "B"),
    ("The answer is 'B'.", "B"),
    ("The answer is 'A' or 'B'.", "?"),
    # Reasoning under another tag.
    ("<thinking>The answer is A.</thinking>B", "B"),
    ("<THINKING>A or C?</THINKING>\n\nThe answer is B.", "B"),
    ("<thought>A</thought><answer>B</answer>", "B"),
    ("<reasoning>So it's A.</reasoning>\nB", "B"),
    ("<thinking>The answer is B.", "-"),
    ("<thinking>The answer is B.</thinking>", "-"),
    ("<thinker>The answer is B.</thinker>", "B"),
    # A letter after its option.
    ("The answer is the blue square (B).", "B"),
    ("the blue square (B)", "B"),
    ("<answer>the blue square (B)</answer>", "B"),
    ("The answer is the square in the corner (B).", "B"),
    ("The answer is the red circle (B).", "?"),
    ("<answer>the red circle (B)</answer>", "?"),
    ("The answer is not (A).", "-"),
    ("The answer is neither A nor (B).", "-"),
    ("The answer is anything except (B).", "-"),
    ("A man walks by (B).", "-"),
    # Suppositions, over which an explicit phrase takes precedence.
    ("I think it's B.", "B"),
    ("I think it is B because it glows.", "B"),
    ("I believe that it's (B).", "B"),
    ("I'd say B.", "B"),
    ("It's B.", "B"),
    ("It must be B.", "B"),
    ("So B.", "B"),
    ("I'm pretty sure it's B, not A.", "B"),
    ("I think it's B or C.", "?"),
    ("I think it's A. The answer is B.", "B"),
    ("The answer is B. I think it's A first.", "B"),
    ("I think it's a.", "-"),
    ("I think it's a man.", "-"),
    ("I think it's A man.", "-"),
    ("I think A man walks.", "-"),
    ("I think I, too, saw it.", "-"),
    ("It's B-roll.", "-"),
    ("It is C-shaped.", "-"),
    ("The answer is B-52.", "-"),
    ("So A man walks.", "-"),
    ("I think so.", "-"),
    # Two letters in a block.
    ("<answer>B C</answer>", "?"),
    ("<answer>(B)(C)</answer>", "?"),
    ("<answer>B + C</answer>", "?"),
    ("<answer>B & C</answer>", "?"),
    ("<answer>Both B and C</answer>", "?"),
    ("<answer>Either B or C</answer>", "?"),
    ("<answer>B (or C)</answer>", "?"),
    ("<answer>Options B and C</answer>", "?"),
    ("<answer>B? C?</answer>", "?"),
    ("Options A and B can be ruled out, C is wrong, so it must be D.", "D"),
    ("In option A the man leaves. In option B he stays.", "-"),
    ("The woman says: it's a B-movie.", "-"),
    ("Plan A fails; so plan B.", "-"),
    ("Hepatitis B is shown, then vitamin C.", "-"),
    ("<answer>B\nC</answer>", "?"),
    ("<answer>B. the blue square C. a green star</answer>", "?"),
    ("<answer>B: not A</answer>", "B"),
    # German.
    ("Die richtige Antwort ist B.", "B"),
    ("Die Antwort lautet: B", "B"),
    ("Antwort: B", "B"),
    ("Antwort B", "B"),
    ("<answer>Antwort B</answer>", "B"),
    ("Richtig ist B.", "B"),
    ("Option B ist richtig.", "B"),
    ("Das ist klar: B ist die richtige Antwort.", "B"),
    ("Ich wähle B, weil es leuchtet.", "B"),
    ("Ich denke, es ist B.", "B"),
    ("Die Antwort ist A oder B.", "?"),
    ("<answer>A und B</answer>", "?"),
    ("<answer>Entweder A oder B</answer>", "?"),
    ("Die Antwort ist A, weil es rot ist.", "A"),
    ("Die Antwort ist A weil es rot ist.", "A"),
    ("Die Antwort ist nicht A.", "-"),
    ("B ist nicht richtig.", "-"),
    ("A ist falsch.", "-"),
    ("Ein Mann geht vorbei.", "-"),
    ("Die Antwort ist C-Dur.", "-"),
    # French.
    ("La réponse est B.", "B"),
    ("La bonne réponse est la B.", "B"),
    ("La réponse correcte est B.", "B"),
    ("Réponse : B", "B"),
    ("<answer>Réponse B</answer>", "B"),
    ("Je choisis B car il brille.", "B"),
    ("L'option B est correcte.", "B"),
    ("B est la bonne réponse.", "B"),
    ("C'est B.", "B"),
    ("Je pense que c'est B.", "B"),
    ("La réponse est A ou B.", "?"),
    ("<answer>A et B</answer>", "?"),
    ("La réponse est A car il est rouge.", "A"),
    ("La réponse n'est pas A.", "-"),
    ("A est fausse.", "-"),
    ("Il y a un homme.", "-"),
    ("La réponse est à la fin.", "-"),
    ("A la fin, un homme sort.", "-"),
    ("La réponse est A la fin.", "-"),
    # Spanish.
    ("La respuesta es B.", "B"),
    ("La respuesta correcta es la B.", "B"),
    ("Respuesta: B", "B"),
    ("<answer>Respuesta B</answer>", "B"),
    ("La opción correcta es B porque brilla.", "B"),
    ("La opción B es correcta.", "B"),
    ("B es la respuesta correcta.", "B"),
    ("Elijo la B.", "B"),
    ("Creo que es B.", "B"),
    ("La respuesta es A o B.", "?"),
    ("<answer>A y B</answer>", "?"),
    ("La respuesta no es A.", "-"),
    ("A es incorrecta.", "-"),
    ("A mi juicio, nadie sale.", "-"),
    ("La respuesta es a las tres.", "-"),
    ("Va a la casa o a la calle.", "-"),
    # Chinese.
    ("答案是B。", "B"),
    ("答案：B", "B"),
    ("答案为B", "B"),
    ("正确答案是（B）", "B"),
    ("正确答案是选项B。", "B"),
    ("答案应该是B选项，因为它在发光。", "B"),
    ("因此答案是A因为它是红色的。", "A"),
    ("所以选B。", "B"),
    ("应选B。", "B"),
    ("我选择B", "B"),
    ("故選B", "B"),
    ("选项B是正确的。", "B"),
    ("B是正确答案", "B"),
    ("B选项正确。", "B"),
    ("<answer>选项B</answer>", "B"),
    ("<answer>B选项</answer>", "B"),
    ("<answer>B、the blue square</answer>", "B"),
    ("答案是A或B。", "?"),
    ("<answer>A和B</answer>", "?"),
    ("<answer>A、B</answer>", "?"),
    ("答案不是A。", "-"),
    ("不选A。", "-"),
    ("不能选A。", "-"),
    ("不应该选A。", "-"),
    ("选项A是错误的。", "-"),
    ("A不正确。", "-"),
    ("A是不正确的。", "-"),
    ("答案是AB。", "-"),
    ("A和B正确。", "?"),
    ("如果A正确，他会走。", "-"),
    ("A是否正确？", "-"),
    ("有一个人走过。", "-"),
    # Japanese.
    ("答えはBです。", "B"),
    ("正解はBです", "B"),
    ("答え：B", "B"),
    ("正しい答えは「B」です。", "B"),
    ("回答：（B）", "B"),
    ("Bが正解です。", "B"),
    ("Bが正しいです。", "B"),
    ("私はBを選びます。", "B"),
    ("<answer>Bです</answer>", "B"),
    ("<answer>選択肢B</answer>", "B"),
    ("答えはthe blue squareです。", "B"),
    ("答えはAまたはBです。", "?"),
    ("<answer>AとB</answer>", "?"),
    ("答えはAではありません。", "-"),
    ("Aが正解ではない。", "-"),
    ("Aは正しくない。", "-"),
    ("Aを選びません。", "-"),
    ("AとBが正解です。", "?"),
    ("男の人が歩いています。", "-"),
]


@pytest.mark.parametrize(("text", "expected"), [*CASES, *SPOKEN])
def test_table(text: str, expected: str) -> None:
    parsed = parse_response(text, OPTIONS)
    shown = {ParseStatus.NO_ANSWER: "-", ParseStatus.AMBIGUOUS: "?", ParseStatus.OK: parsed.letter}[parsed.status]
    assert shown == expected
    assert (parsed.letter is None) == (parsed.status is not ParseStatus.OK)


def test_the_table_is_large_enough() -> None:
    assert len({text for text, _ in CASES}) >= 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>why</think><answer>B</answer>", True),
        (" <think>\nwhy\n</think>\n\n<answer>B</answer>\n", True),
        ("<think></think><answer>B</answer>", False),
        ("<think> \n</think><answer>B</answer>", False),
        ("<think>why</think><answer></answer>", False),
        ("<think>why</think><answer>\t</answer>", False),
        ("<answer>B</answer><think>why</think>", False),
        ("<think>why</think><think>why</think><answer>B</answer>", False),
        ("<think>why</think><answer>B</answer><answer>B</answer>", False),
        ("<think>why</think> so <answer>B</answer>", False),
        ("Well, <think>why</think><answer>B</answer>", False),
        ("<think>why</think><answer>B</answer>.", False),
        ("<think>why<answer>B</answer></think>", False),
        ("<think>why</think><answer>B", False),
        ("why</think><answer>B</answer>", False),
        ("</think>why<think><answer>B</answer>", False),
        ("<think>why</think></answer>B<answer>", False),
        ("<THINK>why</THINK><ANSWER>B</ANSWER>", False),
        ("B", False),
    ],
)
def test_well_formed(text: str, expected: bool) -> None:
    assert parse_response(text, OPTIONS).well_formed is expected


def test_reasoning_and_text_are_kept() -> None:
    parsed = parse_response("<think> it turns </think><answer> (B) </answer>", OPTIONS)
    assert (parsed.reasoning, parsed.text, parsed.letter) == ("it turns", "(B)", "B")
    assert parse_response("B", OPTIONS).reasoning is None


def test_open_questions_keep_the_text() -> None:
    parsed = parse_response("<think>x</think><answer>A red ball</answer>", ())
    assert (parsed.status, parsed.letter, parsed.text) == (ParseStatus.OK, None, "A red ball")
    assert parse_response("just this", ()).text == "just this"
    assert parse_response("<think>cut", ()).status is ParseStatus.NO_ANSWER
    assert parse_response("<answer>x</answer><answer>y</answer>", ()).status is ParseStatus.AMBIGUOUS


def test_options_with_the_same_text_are_ambiguous_and_letters_win_over_texts() -> None:
    assert parse_response("<answer>red</answer>", ("red", "Red.", "c", "d")).status is ParseStatus.AMBIGUOUS
    assert parse_response("<answer>A</answer>", ("B", "A", "x", "y")).letter == "A"


def test_prompt_has_one_line_per_option() -> None:
    assert format_prompt(" Who?\n", ("x", "y")) == "Who?\nA. x\nB. y"
    assert format_prompt("Who?", ()) == "Who?"


@given(st.text(), st.lists(st.text(), max_size=8))
def test_never_crashes(text: str, options: list[str]) -> None:
    parsed = parse_response(text, options)
    assert parsed.letter is None or parsed.letter in "ABCDEFGH"[: len(options)]


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "A", "B", "(", ")", " or ", "The answer is ", ". ", "\n", "x"]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_well_formed_means_the_whole_form(text: str) -> None:
    parsed = parse_response(text, OPTIONS)
    if parsed.well_formed:
        assert parsed.reasoning
        assert parsed.text
        rebuilt = format_response(parsed.reasoning, parsed.text)
        assert "".join(rebuilt.split()) == "".join(text.split())


@given(st.sampled_from("ABCD"), st.text(alphabet=st.characters(exclude_characters="<>"), min_size=1).filter(str.strip))
def test_round_trip(letter: str, reasoning: str) -> None:
    parsed = parse_response(format_response(reasoning, letter), OPTIONS)
    assert (parsed.letter, parsed.well_formed, parsed.reasoning) == (letter, True, reasoning.strip())


NOISE = ["The answer is A.", "A", "(C)", "D. nobody", "a green star", "So C is correct.", "\n", "Answer: D", "hm"]


@given(st.sampled_from("ABCD"), st.lists(st.sampled_from(NOISE), max_size=8), st.lists(st.sampled_from(NOISE)))
def test_nothing_outside_the_answer_block_counts(letter: str, before: list[str], thoughts: list[str]) -> None:
    text = f"<think>{' '.join(thoughts)}</think>{' '.join(before)}<answer>{letter}</answer>"
    assert parse_response(text, OPTIONS).letter == letter


@given(
    st.permutations(OPTIONS), st.sampled_from(OPTIONS), st.sampled_from(["{}", "**{}**", "The answer is {}.", " {}. "])
)
def test_an_option_by_its_text_is_that_option_wherever_it_stands(options: list[str], said: str, form: str) -> None:
    for text in (form.format(said), f"<answer>{form.format(said.upper())}</answer>"):
        assert parse_response(text, options).letter == "ABCD"[options.index(said)]


@given(
    st.sets(st.sampled_from("ABCD"), min_size=2), st.sampled_from([" or ", ", ", "/", " and ", "; ", " & ", ", or "])
)
def test_two_letters_are_never_one_answer(letters: set[str], between: str) -> None:
    said = between.join(sorted(letters))
    for text in (f"<answer>{said}</answer>", f"The answer is {said}."):
        assert parse_response(text, OPTIONS).status is ParseStatus.AMBIGUOUS


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "<answer>",
        "</think>",
        "The answer is ",
        "answer ",
        "A or ",
        "(",
        "A. ",
        " ",
        "I think it's ",
        "答案是",
        "B ",
        "选",
        "Bが",
        "so ",
        "(B) ",
        "'",
        "die Antwort ist ",
    ],
)
def test_endless_repetition_is_read_in_linear_time(piece: str) -> None:
    start = time.process_time()
    parse_response(piece * 30_000, OPTIONS)
    assert time.process_time() - start < 3


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "answer",
                "option",
                "Lösung",
                "Antwort",
                "lautet",
                "ist",
                "is",
                "est",
                "es",
                "the",
                "die",
                "la",
                "correct",
                "RIGHT",
                "best",
                "richtig",
                "korrekt",
                "réponse",
                "juste",
                "respuesta",
                "correcta",
                "elijo",
                "I think",
                "it's",
                "so",
                "probably",
                "creo que",
                "je pense",
                "A",
                "B",
                "(C)",
                "b",
                "「D」",
                "が正解",
                "を選びます",
                "正确",
                "正解",
                "选择",
                "答案是",
                "は",
                ":",
                ".",
                ",",
                ";",
                "\n",
                "because",
                "or",
                "go with",
                "I choose",
                "ich wähle",
            ]
        ),
        max_size=10,
    ),
    st.sampled_from(["", " "]),
)
def test_looking_for_words_first_loses_no_phrase(words: list[str], space: str) -> None:
    text = space.join(words)

    def spans(found: object) -> list[tuple[int, int]]:
        return [match.span() for match in found]

    for phrase in (ANNOUNCEMENT, *LETTER_IS_RIGHT):
        assert isinstance(phrase, Phrase)
        assert spans(phrase.finditer(text)) == spans(phrase.pattern.finditer(text))
    assert spans(find_suppositions(text)) == spans(answer_phrases._SUPPOSITION.finditer(text))
