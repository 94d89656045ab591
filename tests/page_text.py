"""Reads a page as text in which names, numbers and paths are found as they were given."""

import re
from pathlib import Path


def text_of(page: Path) -> str:
    """HTML without the marks of where lines end."""
    return re.sub(r'<wbr>|<span class="whole">(.*?)</span>', r"\1", page.read_text(encoding="utf-8"))
