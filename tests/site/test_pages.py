"""What the pages say is so: the build itself, strict, is a gate of its own (``make docs``)."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = re.findall(r"<!-- api: (\S+) -->", "".join(p.read_text() for p in (DOCS / "api").glob("*.md")))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("latex2mathml", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_start_quotes_the_demo() -> None:
    quoted = re.search(
        r"^\.venv/bin/pgnas run .*?(?<!\\)\n", (DOCS / "quickstart.md").read_text(), re.MULTILINE | re.DOTALL
    )
    made = re.search(r"^\t@?\$\(BIN\)/pgnas run .*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert quoted is not None
    assert made is not None
    words = shlex.split(made[0].strip().lstrip("@").replace("$(BIN)", ".venv/bin").replace("$(ARGS)", ""))
    assert shlex.split(quoted[0].replace("\\\n", " ")) == words


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_a_page_and_has_a_docstring(hooks: ModuleType, package: str) -> None:
    module = importlib.import_module(package)
    listed = re.findall(rf"^::: {re.escape(package)}\.(\w+)$", hooks.api(package), re.MULTILINE)
    assert listed
    assert set(getattr(module, "__all__", listed)) == set(listed)
    for name in listed:
        value = getattr(module, name)
        assert value.__doc__ or not (inspect.isclass(value) or inspect.isfunction(value)), name


def test_every_page_is_in_the_navigation_and_every_section_of_the_readme_that_a_page_wants_exists(
    hooks: ModuleType,
) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(re.findall(r"([\w/-]+\.md)", navigation)) == sorted(pages)
    for page in pages:
        for title in re.findall(r"<!-- readme: (.+?) -->", (DOCS / page).read_text()):
            assert len(hooks.readme_section(title)) > 100


def test_every_example_is_shown_whole(hooks: ModuleType) -> None:
    pages = "".join(hooks.on_page_markdown(page.read_text()) for page in DOCS.glob("extend-*.md"))
    for example in (ROOT / "examples").glob("*.py"):
        assert example.read_text() in pages


def test_formulas_outside_code_become_mathml(hooks: ModuleType) -> None:
    made = hooks.on_page_markdown("`$a$` and $\\pi$\n\n```math\nx^2\n```\n\n```sh\necho $HOME $PATH\n```\n")
    assert made.count("<math") == 2
    assert "`$a$`" in made
    assert "echo $HOME $PATH" in made
