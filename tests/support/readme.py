"""The two pages as their users read them: the blocks and the tables that they copy from."""

import re

from tests.support.client import ROOT

PAGES = {page: (ROOT / page).read_text("utf-8") for page in ("README.md", ".ci/examples/README.md")}
README = PAGES["README.md"]
BOTH = "\n".join(PAGES.values())


def section(title: str) -> str:
    """The text below a heading of the second level, on either page, up to the next one."""
    return BOTH.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def block(words: str) -> str:
    """The block that has these words, on either page."""
    [found] = {text for text in blocks(BOTH) if words in text}
    return found


def table(text: str, head: str = "") -> list[list[str]]:
    """The rows of the first table in `text`, or of the one whose head begins with `head`."""
    start = re.search(rf"^\| {re.escape(head)}", text, re.MULTILINE).start()
    lines = text[start:].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line[1:-1].split(" |")] for line in lines[2:]]


def codes(text: str) -> list[str]:
    """What stands between backquotes."""
    return re.findall(r"`([^`\n]+)`", text)
