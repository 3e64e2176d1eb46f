"""The functions of a JavaScript source and their lengths, without node.

A small tokenizer passes over comments, strings, regular expressions and the text of templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# After these a slash starts a regular expression; after a value it divides.
_BEFORE_REGEX = frozenset(
    "( , = : [ ! & | ? { ${ } ; + - * % < > ~ ^ => return typeof case".split()
)
_SKIPPED = re.compile(r"\s+|//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_REGEX = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/\w*")
_TEMPLATE_TEXT = re.compile(r"(?:\\.|\$(?!\{)|[^`\\$])*(?:`|\$\{)", re.DOTALL)
_WORD = re.compile(r"[\w$#]+")
_LITERAL = '""'
_OPEN = {"(": ")", "[": "]", "{": "}", "${": "}"}
_NOT_NAMES = {"if", "for", "while", "switch", "catch", "with", "await"}


@dataclass(frozen=True)
class _Token:
    text: str
    line: int


def javascript_functions(source: str) -> list[tuple[str, int]]:
    """Name and number of lines of each function with a body in braces, its head counted.

    `function name() {}`, methods `name() {}` and arrows are found, nested ones too. An arrow or a
    `function` without a name is called by what it is assigned to, else "anonymous".

    Raises:
        ValueError: brackets do not match, or a literal has no end.
    """
    tokens = list(_tokens(source))
    partner = _partners(tokens)
    found = []
    for brace, token in enumerate(tokens):
        if token.text != "{":
            continue
        head = _head(tokens, partner, brace)
        if head is not None:
            name, start = head
            found.append((name, tokens[partner[brace]].line - tokens[start].line + 1))
    return found


def _head(tokens: list[_Token], partner: dict[int, int], brace: int) -> tuple[str, int] | None:
    """Name and first token of the function whose body opens at `brace`; None for another brace."""
    before = brace - 1
    if before < 0:
        return None
    if tokens[before].text == "=>":
        end = before - 1
        start = partner[end] if tokens[end].text == ")" else end
        return _assigned(tokens, start - (tokens[start - 1].text == "async"))
    if tokens[before].text != ")":
        return None
    name = partner[before] - 1
    if name < 0 or tokens[name].text in _NOT_NAMES:
        return None
    if tokens[name].text in {"function", "*"}:
        start = name - (tokens[name].text == "*")
        return _assigned(tokens, start - (tokens[start - 1].text == "async"))
    if not _WORD.fullmatch(tokens[name].text):
        return None
    start = name
    while start > 0 and tokens[start - 1].text in {"function", "*", "async", "get", "set"}:
        start -= 1
    return tokens[name].text, start


def _assigned(tokens: list[_Token], start: int) -> tuple[str, int]:
    """The name that a function expression is assigned to: `name = …` or `name: …`."""
    if start >= 2 and tokens[start - 1].text in {"=", ":"}:
        name = tokens[start - 2].text
        if _WORD.fullmatch(name):
            return name, start - 2
    return "anonymous", start


def _partners(tokens: list[_Token]) -> dict[int, int]:
    """The index of the matching bracket of each bracket."""
    partner, open_ones = {}, []
    for i, token in enumerate(tokens):
        if token.text in _OPEN:
            open_ones.append(i)
        elif token.text in (")", "]", "}"):
            if not open_ones or _OPEN[tokens[open_ones[-1]].text] != token.text:
                raise ValueError(f"line {token.line}: {token.text} closes nothing")
            start = open_ones.pop()
            partner[start], partner[i] = i, start
    if open_ones:
        raise ValueError(f"line {tokens[open_ones[-1]].line}: a bracket is never closed")
    return partner


def _tokens(source: str) -> Iterator[_Token]:
    """Words, brackets and signs; a literal is one sign, whatever it holds."""
    at, line, last = 0, 1, ";"
    templates: list[int] = []  # per open `${`: how many braces are open inside it
    while at < len(source):
        for text, end in _next_tokens(source, at, last, templates):
            if text is not None:
                yield _Token(text, line)
                last = text
            line += source.count("\n", at, end)
            at = end


def _next_tokens(
    source: str, at: int, last: str, templates: list[int]
) -> Iterator[tuple[str | None, int]]:
    """What stands at `at`, and where it ends; None for a space or a comment."""
    char = source[at]
    if match := _SKIPPED.match(source, at):
        yield None, match.end()
    elif char == "`" or (char == "}" and templates and templates[-1] == 0):
        if char == "}":
            templates.pop()
            yield "}", at + 1
        end = _end_of(_TEMPLATE_TEXT, source, at + 1)
        yield _LITERAL, end
        if source[end - 1] == "{":
            templates.append(0)
            yield "${", end
    elif char in "\"'":
        yield _LITERAL, _end_of(_STRING, source, at)
    elif char == "/" and last in _BEFORE_REGEX:
        yield _LITERAL, _end_of(_REGEX, source, at)
    elif match := _WORD.match(source, at):
        yield match[0], match.end()
    elif source.startswith("=>", at):
        yield "=>", at + 2
    else:
        if templates and char in "{}":
            templates[-1] += 1 if char == "{" else -1
        yield char, at + 1


def _end_of(pattern: re.Pattern[str], source: str, at: int) -> int:
    match = pattern.match(source, at)
    if match is None:
        raise ValueError(f"line {source.count(chr(10), 0, at) + 1}: a literal has no end")
    return match.end()
