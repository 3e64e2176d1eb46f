"""The loops of NVIDIA machine code, as `nvdisasm` prints it: what keys cost in instructions."""

import re

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"BRA\b.*`\((\.L_x_\d+)\)")


def loops_with(word: str, text: str) -> list[tuple[int, int]]:
    """Instructions of each innermost loop that has the word, and how many of them have it."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(match[1])
            back = _BRANCH.search(match[1])
            if back and back[1] in labels:
                loops.append((labels[back[1]], len(instructions)))
    found = [(a, b, sum(word in x for x in instructions[a:b])) for a, b in loops]
    found = [loop for loop in found if loop[2]]
    return [
        (b - a, count)
        for a, b, count in found
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d, _ in found)
    ]


def instructions_per_128_keys(text: str, head_dim: int) -> int | None:
    """What one warp issues for 16 queries and 128 keys in the shortest loop of an attend kernel.

    A tile of n keys takes D / 16 + n / 16 `HGMMA` of 64 queries, which tells n. None where no
    loop has any.
    """
    costs = [
        instructions * 128 / keys
        for instructions, products in loops_with("HGMMA", text)
        if (keys := 16 * products - head_dim) > 0
    ]
    return round(min(costs)) if costs else None
