r"""Marks of kinds of tasks: regular expressions, each with what it weighs. A table of facts; tasks.py looks for them.

Every repetition is bounded and none is inside another, so that the time is linear in the text. `(?i:…)`: in any case.
"""

from __future__ import annotations

from edgeai.routing.request import Task

__all__ = ["LEAST", "MARKS"]

LEAST = 2.0
"""What the marks of a kind must weigh for a text not to be a chat."""


def words(*parts: str) -> str:
    """Return the expression of any of the words in PARTS (separated by spaces, `_` for a space in one), in any case."""
    listed = "|".join(word.replace("_", " ") for part in parts for word in part.split())
    return rf"\b(?i:{listed})\b"


def near(first: str, second: str, chars: int = 40) -> str:
    """Return the expression of SECOND at most CHARS after FIRST, on its line."""
    return rf"{first}.{{0,{chars}}}{second}"


PLACES = words(
    "text following passage document e?mail article paragraph below above invoice contract review transcript"
)
MARKS: dict[Task, tuple[tuple[float, str], ...]] = {
    "code": (
        (3.0, r"```|^#!/|^[ \t]{0,40}(?:def \w{1,60}\(|class \w{1,60}[(:{]|import \w|from [\w.]{1,60} import |#include)"),
        (3.0, r"\b(?:func|fn|impl|public|private|static|const|let|var) \w{1,60} ?[\w<>]{0,60} ?[(={]"),
        (3.0, r"Traceback \(most recent|\b(?:Syntax|Type|Value|Key|Name|Attribute|Index)Error\b|NullPointerException|[Ss]egfault"),
        (3.0, r"\bSELECT\b.{1,200}\bFROM\b|\bINSERT INTO\b|\bCREATE TABLE\b|</\w{1,20}>|=>|\w\(\)|\w::\w|[)\w\"]\{[ \t]{0,9}$|\);$"),
        (2.0, words("python javascript typescript java golang rust ruby php kotlin bash sql html css regexp?")),
        (2.0, r"\b[Cc](?:\+\+|#)|\.(?:py|js|ts|rs|cpp|java|sh)\b"),
        (2.0, words("unit_tests? refactor debug compiler? compiles stack_trace pull_request git docker kubernetes api_endpoint algorithm")),
        (
            2.0,
            near(
                words("write implement create fix build"),
                words("function method class script program code query loop parser decorator"),
            ),
        ),
        (1.0, words("code function script bug fonction funktion función código programm skript funzione função")),
        (2.0, r"(?i:функци[юя]|скрипт|программу)|代码|代碼|函数|函數|コード|関数|プログラム"),
    ),
    "maths": (
        (3.0, r"\\(?:frac|sqrt|int|sum|lim|alpha|theta|cdot|times|leq|begin)\b|\$[^$\n\d\s][^$\n]{0,200}\$|[∫∑√≤≥≠∂]"),
        (3.0, r"\d\s{0,3}=\s{0,3}(?:\?|_|$)|=\s{0,3}\?|\b[xyz]\s{0,3}[-+*/^=]\s{0,3}\d|\b\d{1,9}[xyz]\b|\b[xyz][²³]"),
        (2.0, r"\d\s{0,3}[+*×÷^]\s{0,3}\d|\d\s{1,3}[-/]\s{1,3}\d"),
        (2.0, r"\d (?i:times|plus|minus|mal|fois|por|più|умножить на|плюс|минус) \d"),
        (1.0, r"\d/\d|\d%"),
        (2.5, words("solve_for equations? integral derivative polynomial theorem eigenvalues? modulo triangle probability_that")),
        (2.5, words("calculate compute simplify factori[sz]e prove_that square_root divided_by multiplied_by percent_of remainder")),
        (2.5, words("berechne löse gleichung calculez? résou\\w+ équation calcula resuelve ecuación calcule equação calcola equazione")),
        (2.5, r"(?i:вычисли|реши|уравнени|сколько будет)|计算|方程|求解|計算|解け"),
        (2.0, rf"(?s)\A(?=\D{{0,2100}}\d[\d.,]{{0,20}}\D{{1,2100}}\d).{{0,2100}}?{words('how_(?:many|much|long|far|old|fast) the_total')}"),
        (1.5, words("in_total altogether per_hour per_day per_week per_cent each_day twice half_as")),
    ),
    "extraction": (
        (4.0, words("extract pull_out parse_out extrahiere\\w* extrais extraire extraer extrae extraia estrai estrarre")),
        (4.0, r"(?i:извлек)|提取|抽出"),
        (3.0, near(words("return output answer respond reply format"), words("json csv yaml xml table bullet"))),
        (3.0, near(words("find list identify name highlight"), near(words("all every each the"), PLACES, 60), 30)),
        (3.0, near(words("according_to based_on"), words("the_text the_passage the_document the_article the_contract the_table"), 20)),
        (2.5, near(words("classify categori[sz]e label tag"), words("following this these text sentence review e?mail ticket"))),
        (2.0, words("named_entit(?:y|ies) key.value invoice_number due_date")),
    ),
}  # fmt: skip
