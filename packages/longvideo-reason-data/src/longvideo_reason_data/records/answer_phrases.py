"""How a choice is announced in words: patterns for English, German, French, Spanish, Chinese and Japanese.

All expect text in Unicode's NFKC form without Markdown, in which full-width letters, brackets and colons are plain
ones. Spaces are bounded everywhere: a model can repeat anything thousands of times, and the search must stay linear.
`longvideo_reason_data.records.answers` interprets the letter after an announcement.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrase:
    """A pattern that can match only where certain words are; looking for these first is many times as fast.

    Attributes:
        pattern: What is searched for, regardless of case.
        words: In lower case; the text must have one of each tuple.
    """

    pattern: re.Pattern[str]
    words: tuple[tuple[str, ...], ...]

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Find all matches, in their order."""
        lowered = text.lower()
        if all(any(word in lowered for word in alternatives) for alternatives in self.words):
            yield from self.pattern.finditer(text)


_OPEN, _CLOSE = r"[(\[‘'「『【《<]", r"[)\]’'」』】》>]"
_LETTER_ENDS = r"(?![A-Za-z0-9_'’]|[-–]\w|[À-ɏ])"
"""The letter isn't part of a longer word; Chinese and Japanese characters may follow it directly."""

_NOUN = (
    r"(?:option|choice|answer|letter|antwort(?:möglichkeit)?|lösung|buchstabe|réponse|lettre|respuesta|opción|letra"
    r"|选项|選項|答案|選択肢|正解|答え|回答)"
)
_AND_OR = r"(?:and|or|und|oder|et|ou|y|o|u)"

LONE_LETTER = re.compile(
    rf"(?:(?:the |die |la |l')?{_NOUN} ?:? ?)?{_OPEN}? ?([a-z]) ?{_CLOSE}? ?(?:です|选项|選項|项)?[.:,;!。、]?",
    re.IGNORECASE,
)
LETTER_AND_TEXT = re.compile(
    rf"(?:(?:option|choice|opción) )?(?:{_OPEN}([a-z]){_CLOSE}|([a-z])(?: ?[.:),、。]| [–-] ))\s{{0,3}}(\S.*)",
    re.IGNORECASE,
)
TEXT_AND_LETTER = re.compile(r"(.*\S) ?[(\[]([A-Z])[)\]] ?[.!。]?")
# "A or B", "A, B", "A or maybe B or C", but not "B, I think" or "B, A is wrong".
LETTER_LIST = re.compile(
    rf"(?:(?i:both|either|entweder|soit|options?|choices?|answers?) )?{_OPEN}?([A-Z]){_CLOSE}?"
    rf"(?: ?[,;/&|+、] ?(?:{_AND_OR} )?| \(?{_AND_OR} | ?(?:或者|或|和|与|與|及|または|もしくは|と|か) ?)"
    rf"(?:(?:maybe|perhaps|possibly|option|vielleicht|peut-être|quizás) ){{0,2}}"
    rf"{_OPEN}?([A-Z]){_CLOSE}?(?![A-Za-z0-9_'’]| (?!{_AND_OR} )[a-z])"
)
ONLY_LETTERS = re.compile(r"\W{0,3}[A-Z](?:\W{1,4}[A-Z])+\W{0,3}")

_ANNOUNCEMENT = re.compile(
    r"(?:\b(?:"
    r"(?:answer|option|choice)(?: (?:is|was|would be|must be|should be|has to be)\b| ?[:=])"
    r"|I(?: would| will|'d|'ll)? (?:choose|pick|select|go with)\b"
    r"|(?:antwort|lösung|option|antwortmöglichkeit)(?: (?:ist|lautet|wäre|muss)\b| ?[:=])"
    r"|(?:richtig|korrekt) ist\b|ich (?:wähle|nehme|entscheide mich für)\b"
    r"|(?:réponse|option|solution)(?: (?:correcte|exacte|finale|juste))?(?: (?:est|serait)\b| ?[:=])"
    r"|je (?:choisis|sélectionne)\b"
    r"|(?:respuesta|opción|solución)(?: (?:correcta|final))?(?: (?:es|sería)\b| ?[:=])"
    r"|(?:elijo|escojo|selecciono)\b"
    rf"|(?:answer|antwort|réponse|respuesta) (?={_OPEN}?[A-Z]{_CLOSE}?(?:[.,;!]|$))"
    r")"
    r"|(?<![不非未无無])(?:答案|答え|正解|回答|解答)(?:应该|應該|应|應|就|最终|最終)?(?:是|为|為|选|選|は| ?[:=])"
    r"|(?<![不没別别勿若])(?<!如果)(?<!不能)(?<!不会)(?<!不會)(?<!不应)(?<!不應)(?<!不该)(?<!不应该)(?<!不應該)"
    r"(?:选择|選擇|选|選)(?=[ :]{0,3}[A-Za-z(\[「])"
    r")"
    r"(?:[ :]{0,3}(?:most likely|therefore|clearly|wahrscheinlich|also|donc|probablement|probablemente|应该|應該)\b)?"
    r"[ :]{0,3}",
    re.IGNORECASE | re.MULTILINE,
)
ANNOUNCEMENT = Phrase(
    _ANNOUNCEMENT,
    (
        (
            *("answer", "option", "choice", "choose", "pick", "select", "go with"),
            *("antwort", "lösung", "richtig ist", "korrekt ist", "ich wähle", "ich nehme", "ich entscheide"),
            *("réponse", "solution", "je choisis", "je sélectionne"),
            *("respuesta", "opción", "solución", "elijo", "escojo", "selecciono"),
            *("答案", "答え", "正解", "回答", "解答", "选", "選"),
        ),
    ),
)
ANNOUNCED_LETTER = re.compile(
    rf"(?:the |die |der |la |le |l'|el )?(?:{_NOUN} ?)?(?:{_OPEN} ?([a-z]) ?{_CLOSE}|([a-z]){_LETTER_ENDS})",
    re.IGNORECASE,
)
# Weaker phrases, which count where there is no explicit one: "I think it's B."
_SUPPOSITION = re.compile(
    r"(?:^|[.;,:] |\b)(?:I(?:'m| am)? (?:think|believe|guess|suppose|say|(?:pretty |quite |fairly )?(?:sure|confident))"
    r"|I(?:'d| would) say|so|thus|hence|therefore|probably|^(?=it|this|c'est|es ist)"
    r"|ich (?:denke|glaube|meine),?|je (?:pense|crois)(?: que)?|creo(?: que)?|pienso(?: que)?)"
    r",? ?(?:that )?(?:(?:it|this|that)(?:'s|’s| is| must be| would be| should be) |es ist |c['’]est |es )?"
    r"(?:(?:the |die |la |l')?(?:option|choice|answer|antwort|réponse|opción|respuesta) )?"
    rf"(?={_OPEN}?(?-i:[A-HJ-Z]){_CLOSE}?(?:$|[.!]|[,;] |[,;]$| (?:or|because|since|oder|weil|denn|ou|car|o|porque) ))",
    re.MULTILINE | re.IGNORECASE,
)
_SUPPOSED_LETTER = re.compile(rf"[A-HJ-Z]{_CLOSE}?(?:$|[.!,; ])", re.MULTILINE)


def find_suppositions(text: str) -> Iterator[re.Match[str]]:
    """Find the phrases by which a letter is supposed, in their order."""
    if _SUPPOSED_LETTER.search(text):  # many times as fast as what follows
        yield from _SUPPOSITION.finditer(text)


_BEFORE_LETTER = (
    r"(?:^|[.:;,。,] ?|\b(?:so|thus|hence|therefore|also|daher|somit|folglich|donc|ainsi|así que"
    r"|option|choice|antwort|réponse|opción|respuesta),? |l'option )"
)
_RIGHT_BEHIND = r"(?= ?(?:$|[.,;!。]|(?:answer|option|choice|because|since|weil|denn|car|parce|porque)\b))"
_ALONE = r"(?<![A-Za-z0-9和或与與、,と])(?<!如果)(?<!假设)(?<!または)"
LETTER_IS_RIGHT = tuple(
    Phrase(re.compile(pattern, re.IGNORECASE | re.MULTILINE), words)
    for pattern, words in (
        (
            rf"{_BEFORE_LETTER}{_OPEN}?([A-Z]){_CLOSE}? is (?:(?:clearly|therefore) )?(?:the )?(?:correct|right|best)"
            rf"{_RIGHT_BEHIND}",
            ((" is ",), ("correct", "right", "best")),
        ),
        (
            rf"{_BEFORE_LETTER}{_OPEN}?([A-Z]){_CLOSE}? ist (?:die )?"
            rf"(?:richtige? antwort|korrekte antwort|richtig|korrekt){_RIGHT_BEHIND}",
            ((" ist ",), ("richtig", "korrekt")),
        ),
        (
            rf"{_BEFORE_LETTER}{_OPEN}?([A-Z]){_CLOSE}? est (?:la )?(?:(?:bonne|meilleure) (?:réponse|option)"
            rf"|réponse correcte|correcte?|exacte?|juste){_RIGHT_BEHIND}",
            ((" est ",), ("réponse", "option", "correct", "exact", "juste")),
        ),
        (
            rf"{_BEFORE_LETTER}{_OPEN}?([A-Z]){_CLOSE}? es (?:la )?"
            rf"(?:(?:respuesta|opción) correcta|respuesta|correcta){_RIGHT_BEHIND}",
            ((" es ",), ("respuesta", "correcta")),
        ),
        (
            rf"{_ALONE}([A-Z])(?: ?(?:选项|選項|项|項))? ?(?:是|为|為)?(?:正确|正確)"
            r"(?:的|答案|选项|選項){0,3}(?!性|吗|嗎|与|與)",
            (("正确", "正確"),),
        ),
        (
            rf"{_ALONE}([A-Z]) ?が(?:正解|正しい|答え)(?!で(?:は|も)|じゃ|と(?:は|も)|か(?:は|も|ど))",
            (("が",),),
        ),
        (rf"{_ALONE}([A-Z]) ?を(?:選びます|選ぶ(?!べきで)|選択します|選択する)", (("を",),)),
    )
)
# "A red ball" is an article and a noun; "A because it is red" is an answer and a reason.
GOES_ON_AS_LETTER = re.compile(
    r" ?(?:$|[^\w\s]|[\u3040-\u30ff\u4e00-\u9fff]"
    rf"|(?:because|since|as|due|for|not|rather|instead|which|given|is|based|{_AND_OR}"
    r"|weil|denn|da|nicht|sondern|car|parce|pas|porque|pues|ya)\b)",
    re.IGNORECASE,
)
ENDS_AS_LETTER = re.compile(r" ?(?:$|[.,;:!)。、]|[\u3040-\u30ff\u4e00-\u9fff])")
DENIED = re.compile(r" ?(?:では(?:な|あり)|じゃ(?:な|あり)|でな|不|吗|嗎|か[?。])")
NEGATION = re.compile(
    r"\b(?:not|neither|nor|never|except|than|unlike|nicht|kein\w*|pas|ni|no|or|oder|ou|o)\b|n't|不|没|非",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|。")


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence."""
    return _SENTENCE_END.split(text, maxsplit=1)[0]
