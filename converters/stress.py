"""Texts on which tokenizers differ, and plain prose on which models are compared.

A table of facts. The strings are chosen for what they do to splitting expressions: contractions in both cases, runs of digits, spaces
and newlines, letters with and without case, marks that combine, characters outside the basic plane, and texts that look like control.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["PROSE", "STRESS", "from_vocabulary"]

STRESS: tuple[str, ...] = (
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r\n\r\n",
    "\t\n",
    " \n",
    "\n ",
    "\n  x",
    "  \n\n  \n x  ",
    "a  b   c    d     e",
    "    four spaces, then\ttab\t\ttabs",
    "trailing spaces   ",
    "trailing newline\n",
    "a\n\n\nb\r\rc\n\r\nd",
    " leading",
    "Hello, world!",
    "Hello world",
    "HELLO WORLD hello World hELLO wORLD",
    "I'm you're he's she'll we've they'd can't it's",
    "I'M YOU'RE HE'S SHE'LL WE'VE THEY'D CAN'T IT'S",
    "I’m you’re ‘quoted’ “double” „low“ «guillemets»",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D 'Re 'vE",
    "rock'n'roll o'clock 'tis d'être l'eau ''x'' 'x",
    "1 12 123 1234 12345 123456 1234567 12345678901234567890",
    "3.14159 1,000,000 -273.15 1e-6 0xDEADBEEF 0b1010 50% $9.99 №5 ½ ² Ⅷ ٣٤٥ १२३ ၁၂၃",
    "a1b22c333d4444 x1y2 2nd 3rd 4x4 v1.2.3-rc4",
    " 1 22  333   4444",
    "2024-02-29T23:59:59.999Z 12:34 1/2 1-2 1+1=2",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "... !!! ??? --- ___ *** ### === >>> <<< &&& ||| ;;;",
    "!!!\n\n???\n;;;\r\n",
    "word!\nword? word. word,word;word:word",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE dotted.name path/to/file C:\\dir\\file",
    "https://example.org/a/b?c=d&e=%20f#g user@example.com ftp://x.y:21/~z",
    'def f(x: int = 3) -> str:\n    """Doc."""\n    return f\'{x!r:>10}\'  # comment\n',
    "for (int i = 0; i < n; ++i) {\n\tif (a[i] != b[i]) { return -1; }\n}\n",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "<html><body class='x'>&nbsp;</body></html>",
    "SELECT * FROM t WHERE a='b' -- comment",
    "# Title\n\n* item\n  * nested\n\n1. one\n2. two\n\n```python\nprint(1)\n```\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "Ünïcödé naïve café Ærøskøbing Straße ĲSSEL Łódź Dvořák İstanbul ǅ",
    "cafe\u0301 A\u030a n\u0303 e\u0323\u0302 \u0301alone o\u0308\u0304",
    "Привет, мир! Съешь ещё этих мягких французских булок, да выпей чаю. ПРИВЕТ",
    "Γειά σου Κόσμε, ΑΒΓΔ αβγδ ά",
    "שלום עולם שָׁלוֹם",
    "مرحبا بالعالم السَّلَامُ عَلَيْكُمْ ٱلْحَمْدُ",
    "नमस्ते दुनिया क्षत्रिय किताबें",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ នេះ",
    "မင်္ဂလာပါ ကမ္ဘာ",
    "你好，世界！今天是2024年2月29日。",
    "こんにちは世界。カタカナ ﾊﾝｶｸ １２３",
    "안녕하세요 세계 한글",
    "混合text和English，以及123数字",
    "😀 😃👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 ❤️ ☕️ 🤷🏾‍♀️",
    "text😀text 😀😀😀 a👍b",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𐍈 𓀀 🂡 𠜎",
    "zero\u200bwidth \u200djoiner \u00a0nbsp\u00a0 \u2003em \u3000ideographic \ufeffbom soft\u00adhyphen",
    "\u2028line\u2029paragraph \x0bvertical\x0cform \x85next",
    "control \x01\x02\x1b[0m \x7f",
    "\u202eright-to-left override\u202c",
    "→ ⇒ ∀x∈ℝ: x² ≥ 0 ∑∏∫ ≈≠≤ €£¥₹ ©®™ §¶ †‡ •",
    "ﬁ ﬂ ﬀ ﷺ ㎏ ℡",
    "a" * 200,
    "ab" * 150,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 37 + "1" * 37 + "!" * 37 + " " * 37 + "\n" * 7 + "é" * 37,
    "=" * 80 + "\n" + "-" * 80,
    "<s> </s> <unk> <pad> <|endoftext|> <|im_start|>user\nhi<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nx<|eot_id|> [INST] [/INST] <<SYS>>",
    "<|im_start|",
    "<|im_start|>>",
    "<<|im_end|>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "The quick brown fox jumps over the lazy dog. 'Twas brillig, and the slithy toves.",
)

TEXTS = """
The sea was calm when the small boat left the harbour. Nobody spoke. The old man looked at the sky, counted the gulls,
and said that it would rain before noon. His daughter laughed, because he had said the same thing every morning.
~
To install the program, open a terminal and type the command below. It copies two files, asks one question, and starts
the service. If the service does not start, read the last lines of the log: they name the file that is missing.
~
def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

print(mean([1, 2, 3]))  # 2.0
~
User: What is the capital of France?
Assistant: The capital of France is Paris. It lies on the river Seine and has about two million people.
User: And of Italy?
Assistant:
~
Once upon a time there was a little girl named Lily. She had a red ball. One day the ball rolled into the garden, and a
big dog came and picked it up. Lily was sad, but the dog brought the ball back to her.
"""
PROSE: tuple[str, ...] = tuple(text.strip() for text in TEXTS.split("~"))


def from_vocabulary(pieces: Sequence[str], count: int = 48, length: int = 24) -> list[str]:
    """Return texts of randomly joined PIECES, the same for the same pieces: what a generic list does not reach in a vocabulary."""
    if not pieces:
        return []
    draw = random.Random(20240229)  # noqa: S311 - not a secret: the list must be the same every time
    joints = ("", "", "", " ", "  ", "\n")
    return ["".join(draw.choice(pieces) + draw.choice(joints) for _ in range(length)) for _ in range(count)]
