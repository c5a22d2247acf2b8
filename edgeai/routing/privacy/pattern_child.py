"""The other side of patterns.py: reads patterns and then texts as lines of JSON, and answers each text with the places of matches.

Run as a script by its path with `python -I`, so it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import re
import sys

MOST_SPANS = 1000


def main() -> None:
    """Answer until the input ends."""
    patterns = [re.compile(pattern) for pattern in json.loads(sys.stdin.readline())]
    for line in sys.stdin:
        text = json.loads(line)
        spans: list[tuple[int, int]] = []
        for pattern in patterns:
            for match in pattern.finditer(text):
                spans.append(match.span())
                if len(spans) >= MOST_SPANS:
                    break
        sys.stdout.write(json.dumps(spans) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
