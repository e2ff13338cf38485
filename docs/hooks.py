"""What the pages of the site may write: parts of the README, public names, and mathematics.

<!-- readme: Data -->   the section of that title, without the title
<!-- api: pgnas.bayes -->   the documentation of every name in that package's __all__
```math ... ``` and $...$   LaTeX, as MathML, which browsers draw without a script
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Expand what the module's docstring lists, outside code."""
    markdown = re.sub(r"<!-- readme: (.+?) -->", lambda match: readme_section(match[1]), markdown)
    markdown = re.sub(r"<!-- file: (.+?) -->", lambda match: code(match[1]), markdown)
    markdown = re.sub(r"<!-- api: (.+?) -->", lambda match: api(match[1]), markdown)
    markdown = re.sub(r"^```math\n(.*?)^```", lambda match: formula(match[1], "block"), markdown, flags=re.M | re.S)
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.M | re.S)
    parts[::2] = [re.sub(r"\$([^$\n]+)\$", lambda match: formula(match[1], "inline"), part) for part in parts[::2]]
    return "".join(parts)


def readme_section(title: str) -> str:
    """The text under ``## title`` of the README.

    Raises:
        KeyError: There is none; the build stops.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", readme, flags=re.M | re.S))
    return "\n" + sections[title]


def code(path: str) -> str:
    """A file of the repository as a block of code; none stops the build."""
    return f"```python\n{(ROOT / path).read_text(encoding='utf-8')}```"


def api(package: str) -> str:
    """A directive for every public name of ``package``."""
    path = ROOT / "src" / Path(*package.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return "\n\n".join(f"::: {package}.{name}" for name in public_names(source))


def public_names(source: Path) -> list[str]:
    """``__all__`` of a file, without importing it; without one, its public classes and functions."""
    body = ast.parse(source.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def formula(latex: str, display: str) -> str:
    """LaTeX as MathML on one line, which Markdown leaves alone."""
    made = convert(latex.strip(), display=display)
    return f'\n<div class="formula">{made}</div>\n' if display == "block" else made
