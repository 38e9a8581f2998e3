"""The README as its users read it: the blocks and the commands that they copy."""

from __future__ import annotations

import re

from tests.support.client import ROOT

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def commands(title: str) -> dict[str, str]:
    """The commands of the tables in a section, each by what its row says of it."""
    return dict(re.findall(r"^\| (.+) \| `([^`]+)` \|$", section(title), re.MULTILINE))
