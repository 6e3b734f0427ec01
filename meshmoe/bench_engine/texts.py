"""What servers are asked in a measurement: beginnings of several kinds of text, all different, of a wanted length."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

OPENINGS = {
    "prose": (
        "The server process is started by the administrator. When a client connects, it",
        "Before the disk can be used, a file system has to be made on it. The command",
        "A signal that is sent to a process group reaches every process in it, unless",
        "This chapter describes how packages are built from their sources, and what",
    ),
    "python": (
        "def read_lines(path):\n    with open(path) as file:\n        for line in",
        "class Queue:\n    def __init__(self, size):\n        self._items = []\n\n    def put(self,",
        "import os\nimport sys\n\n\ndef main():\n    parser = argparse.ArgumentParser(",
        "    def test_empty(self):\n        self.assertEqual(parse(''), [])\n\n    def test_",
    ),
    "c": (
        "#ifndef _NET_BUFFER_H\n#define _NET_BUFFER_H\n\nstruct buffer {\n",
        "/* Returns the number of bytes written, or -1 on error. */\nextern ssize_t",
        "typedef struct list_node {\n    struct list_node *next;\n    void *",
        "#include <stdint.h>\n#include <sys/types.h>\n\n#define MAX_",
    ),
    "dictionary": (
        "lantern, noun: a lamp with",
        "harbour, noun: a sheltered part of",
        "to mend, verb: to put something broken",
        "brittle, adjective: hard but easily",
    ),
    "arithmetic": (
        "12 + 7 = 19\n25 + 4 = 29\n31 + 8 =",
        "8 * 4 = 32\n9 * 3 = 27\n7 * 6 =",
        "90 - 15 = 75\n64 - 20 = 44\n33 - 9 =",
        "5 + 5 = 10\n17 + 21 = 38\n40 + 2 =",
    ),
}
"""By kind of text, as topology files name it."""


def short_prompt(domain: str, number: int) -> str:
    """A beginning of some twenty tokens; other numbers give other texts."""
    openings = OPENINGS.get(domain, OPENINGS["prose"])
    again, which = divmod(number, len(openings))
    return f"{again}\n{openings[which]}" if again else openings[which]


def long_text(number: int, characters: int) -> str:
    """A text of mixed kinds; texts of other numbers differ from the first word on, so no cache of prefixes helps."""
    everything = [opening for openings in zip(*OPENINGS.values(), strict=True) for opening in openings]
    parts, length = [f"{number} {number * 7919 % 10007}"], 0
    for i in count(number):
        if length >= characters:
            return "\n".join(parts)[:characters]
        parts.append(f"{everything[i % len(everything)]} {i}.")
        length += len(parts[-1]) + 1
    raise AssertionError("unreachable")


async def characters_for(tokens: int, count_tokens: Callable[[str], Awaitable[int]]) -> int:
    """How long a `long_text` must be to have about so many tokens.

    Args:
        tokens: Wanted.
        count_tokens: Asks a server how many tokens a text has.
    """
    sample = long_text(1, min(2000, max(16, tokens)))  # so long a text has no more tokens than are wanted
    found = await count_tokens(sample)
    return max(16, round(tokens * len(sample) / max(1, found)))
