"""English text for the examples: 206 Wikipedia articles, which a package of the index carries for its own tests.

pip install --no-deps gensim==4.4.0
"""

from __future__ import annotations

import bz2
import html
import importlib.metadata
import re
import sys
from pathlib import Path

PACKAGE = "gensim"
FILE = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# What is no text, in the order in which it goes: comments, references, tables, pictures, templates, tags.
_MARKUP = (
    r"<!--.*?-->",
    r"<ref[^>/]*/>|<ref.*?</ref>",
    r"\{\|.*?\n\|\}",
    r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]",
    *(r"\{\{[^{}]*\}\}",) * 4,  # the innermost first
    r"<[^>]*>",
    r"'{2,}",
)


def articles() -> list[str]:
    """Return the articles as they were written, with their markup."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"the text is in the package {PACKAGE}: pip install --no-deps gensim==4.4.0")
    pages = bz2.decompress(Path(str(path)).read_bytes()).decode()
    return re.findall(r"<text[^>]*>(.*?)</text>", pages, re.DOTALL)


def paragraphs(article: str) -> list[str]:
    """Return the paragraphs of an article without markup; headings, lists and tables are left out."""
    text = html.unescape(html.unescape(article))
    for pattern in _MARKUP:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)  # links say what stands behind the bar
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]", r"\1", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line[:1].isalpha() and line[-1:] in '.!?"']


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph, as full stops and capitals tell them."""
    return re.split(r"(?<=[.!?]) (?=[A-Z\"])", paragraph)
