"""What the documents say holds: links, commands, options, variables, figures, snippets, and the diagram."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import docs_site
import draw_diagram
import pytest

from fdpp.cli import COMMANDS, build_parser

ROOT = Path(__file__).parents[1]
PAGES = docs_site.sources()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ANCHORED = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)#([^)\s]+)\)")
NAME = re.compile(r"(?<![.\w/@-])fdpp(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?:bench|csrc|docs|examples|fdpp|tests|tools)/[\w./*-]*")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _prose(path: Path) -> str:
    return docs_site.CODE.sub("", _text(path))


def _anchors(path: Path) -> set[str]:
    """What GitHub and mkdocs make of the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", _text(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _code(path: Path) -> list[str]:
    """Each line of code, and each piece of code inside a line, without comments."""
    text = _text(path)
    lines = [line for _, block in FENCED.findall(text) for line in block.splitlines()]
    text = FENCED.sub("", text)
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    spans = re.findall(r"`([^`\n]+)`", "\n".join(line for line in text.splitlines() if not line.startswith("    ")))
    return [piece.partition(" #")[0].strip().removeprefix("$ ") for piece in (*lines, *spans)]


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def _parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices


def test_the_readme_is_read_in_three_minutes():
    assert len(_text(ROOT / "README.md").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_lead_somewhere(page):
    for link in docs_site.links(_text(page)):
        path = ROOT / docs_site.target(page, link)
        assert path.is_file(), f"{link}: expected a file"
        assert path.resolve().is_relative_to(ROOT), f"{link}: expected a file of the repository"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_anchors_are_headings(page):
    for link, anchor in ANCHORED.findall(_prose(page)):
        path = ROOT / docs_site.target(page, link) if link else page
        assert anchor in _anchors(path), f"{link}#{anchor}"


def test_the_site_has_every_page_once():
    listed = re.findall(r"- (?:\w+: )?(\S+\.md)$", _text(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(docs_site.place(_name(page)) for page in PAGES)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/gpus.md#captured-steps", "gpus.md#captured-steps"),
        ("README.md", "bench/results/decode_cpu.json", "files/bench/results/decode_cpu.json"),
        ("docs/gpus.md", "tables.md", "tables.md"),
        ("docs/gpus.md", "../CONTRIBUTING.md#recipes", "CONTRIBUTING.md#recipes"),
        ("docs/gpus.md", "../csrc/gpu/arch.h", "files/csrc/gpu/arch.h"),
        ("docs/gpus.md", "https://arxiv.org/abs/2311.01282", "https://arxiv.org/abs/2311.01282"),
        ("docs/gpus.md", "#captured-steps", "#captured-steps"),
    ],
)
def test_links_hold_on_the_site(page, link, expected):
    file = SimpleNamespace(abs_src_path=str(ROOT / page), src_uri=docs_site.place(page))
    text = "[`text`]({link}) ![plot]({link}) `code[0]({code})`\n\n```\ncode[0]({code})\n```\n"
    rendered = docs_site.on_page_markdown(text.format(link=link, code=link), SimpleNamespace(file=file), None, None)
    assert rendered == text.format(link=expected, code=link)


def test_roles_of_sphinx_are_left_out():
    html = "as in :func:<code>gemv</code>; Args: <code>x</code>"
    assert docs_site.on_page_content(html, None, None, None) == "as in <code>gemv</code>; Args: <code>x</code>"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_their_options_exist(page):
    parsers = _parsers()
    top, of_any = _options(build_parser()), set().union(*map(_options, parsers.values()))
    benches = set(re.findall(r'"(--[a-z-]+)"', "".join(_text(path) for path in (ROOT / "bench").glob("*.py"))))
    for line in _code(page):
        command = re.match(r"fdpp (\S+)", line)
        if command and command[1].startswith("-"):
            assert command[1] in top, line
        elif command:
            assert command[1] in COMMANDS, line
            assert set(OPTION.findall(line)) <= _options(parsers[command[1]]), line
        elif line.startswith("--"):
            assert set(OPTION.findall(line)) <= of_any | benches, line


def test_every_command_is_described():
    text = _text(ROOT / "docs" / "command.md")
    assert not [name for name in COMMANDS if f"| `fdpp {name}" not in text]
    assert not [name for name in _options(_parsers()["generate"]) - {"-h", "--help"} if f"`{name}" not in text]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_variables_and_targets_exist(page):
    sources = [*(ROOT / "fdpp").rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py"]
    sources += (ROOT / "tools").glob("*.py")
    variable, makefile = re.compile(r"\bFDPP_[A-Z_]+\b"), _text(ROOT / "Makefile")
    assert set(variable.findall(_text(page))) <= set(variable.findall("".join(map(_text, sources))))
    for target in {found[1] for line in _code(page) if (found := re.match(r"make ([a-z]+)", line))}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def _exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=_name)
def test_names_and_files_exist(page):
    code = _code(page)
    names = set(NAME.findall("\n".join(code))) | set(re.findall(r"^::: (\S+)$", _text(page), re.MULTILINE))
    assert not [name for name in names if not _exists(name)]
    files = filter(FILE.fullmatch, code)
    assert not [name for name in files if not any(ROOT.glob(name.rstrip("/")))]


def _numbers(value: object) -> list[float]:
    """Every number in a result."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, float) else []


def _mean_ratios(rows: Iterable[dict]) -> dict[str, float]:
    """Of each time ``<name> us`` of all rows, how many times as fast fdpp is: the geometric mean."""
    rows = list(rows)
    times = {name for name in rows[0] if name.endswith(" us") and all("us" in row for row in rows)}
    names = {name for name in times if all(isinstance(row.get(name), float) for row in rows)}
    return {name: statistics.geometric_mean(row[name] / row["us"] for row in rows) for name in names}


def test_figures_of_the_table_of_speed_stand_in_their_files():
    rows = re.findall(r"^\|.*results/\w+\.json.*$", _text(ROOT / "README.md"), re.MULTILINE)
    assert rows
    for row in (line.split("|") for line in rows):
        (link,) = re.findall(r"\((bench/results/\w+\.json)\)", row[2])
        result = json.loads(_text(ROOT / link))
        known = [*_numbers(result), *_mean_ratios(result["rows"]).values()]
        figures = re.findall(r"\d+\.\d+", row[3])
        assert figures, row
        for figure in figures:
            digits = len(figure.partition(".")[2])
            assert any(f"{number:.{digits}f}" == figure for number in known), (link, figure)


def _cells(page: str = "see-it.md") -> list[list[str]]:
    """The rows of all tables of measurements."""
    lines = [line for line in _text(ROOT / "docs" / page).splitlines() if line.startswith("| ")]
    return [[cell.strip().partition(" (")[0] for cell in line.strip("|").split("|")] for line in lines]


def _result(name: str) -> list[dict]:
    return json.loads(_text(ROOT / "bench" / "results" / name))["rows"]


def test_the_table_of_decoding_is_that_of_its_file():
    table = _cells()
    for row in _result("decode_cpu.json"):
        ratio = "" if row["engine"].startswith("fdpp") else f"{row['fdpp is x']:.2f}"
        figures = [f"{row['tokens/s']:.1f}", f"{row['min']:.1f} .. {row['max']:.1f}", ratio]
        figures.append(f"{100 * row['of bound']:.0f} %")
        assert [str(row["batch"]), row["engine"], *figures] in table, row


def test_the_table_of_contexts_is_that_of_its_files():
    table = _cells()
    for row in (*_result("decode_cpu_zen4.json"), *_result("decode_contexts_cpu_zen4.json")):
        is_ours = row["engine"].startswith("fdpp")
        engine = row["engine"].removesuffix(" 0.1.0") if is_ours else row["engine"]
        figures = [f"{row['tokens/s']:.1f}", "" if is_ours else f"{row['fdpp is x']:.2f}"]
        figures += [f"{100 * row['of bound']:.0f} %", f"{row['prompt tokens/s']:.0f}"]
        assert [str(row["context"]), str(row["batch"]), engine, *figures] in table, row


def test_the_table_of_guesses_is_that_of_its_file():
    table = [[cells[0].partition(",")[0], *cells[1:]] for cells in _cells()]
    for row in _result("speculate_cpu.json"):
        assert row["same"] == "yes"
        figures = [f"{row['plain']:.1f}", f"{row['ngram']:.1f}", f"{row['x']:.2f}", f"{100 * row['accepted']:.0f} %"]
        figures += [f"{row['tokens/step']:.2f}", f"{row['transformers']:.1f}", f"{row['its look-up']:.1f}"]
        assert [row["prompt"], *figures] in table, row


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0", "q4_k_m"])
def test_the_table_of_stored_files_is_that_of_its_files(kind):
    table, rows = _cells("quantised.md"), _result(f"decode_stored_{kind}_cpu_zen3.json")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        figures = [f"{ours['tokens/s']:.1f}", f"{theirs['tokens/s']:.1f}", f"{theirs['fdpp is x']:.2f}"]
        assert [kind.upper(), str(ours["batch"]), *figures, f"{100 * ours['of bound']:.0f} %"] in table, ours


def test_the_table_of_steps_is_that_of_its_file():
    table = _cells()
    for row in _result("step_nvidia_h200.json"):
        times = [f"{row['captured ms']:.2f}", f"{row['eager ms']:.2f}"]
        ratios = [f"{100 * row['share']:.0f} %", f"{row['x transformers']:.2f}"]
        shape = [row["model"], str(row["batch"]), str(row["context"])]
        assert [*shape, f"{row['tokens/s']:.0f}", *times, *ratios] in table, row


def test_the_table_of_attention_is_that_of_its_file():
    rows, table = _result("attention_nvidia_h200.json"), _cells()
    for context in ("all", *sorted({row["context"] for row in rows})):
        ratios = _mean_ratios(row for row in rows if context in ("all", row["context"]))
        assert [str(context), f"{ratios['torch flash us']:.2f}", f"{ratios['torch cudnn us']:.2f}"] in table, context


def test_the_diagram_is_what_the_script_draws():
    assert _text(draw_diagram.PATH) == draw_diagram.draw()


def _snippets() -> list:
    found = []
    for page in PAGES:
        blocks = [block for language, block in FENCED.findall(_text(page)) if language == "python"]
        found += [pytest.param(block, id=f"{_name(page)}-{number}") for number, block in enumerate(blocks)]
    return found


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """A directory with a tiny random Llama and a tokenizer that has a chat template."""
    pytest.importorskip("transformers")
    from tests.engine.models import tiny_model, tiny_tokenizer

    path = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("snippet", _snippets())
def test_snippets_run(snippet, request):
    """With a tiny random model in place of the one that a reader has."""
    if "LLM(" in snippet:
        path = str(request.getfixturevalue("tiny_checkpoint"))
        snippet, models = re.subn(r'LLM\("[^"]*"', f"LLM({path!r}", snippet)
        assert models
    exec(compile(snippet, "snippet", "exec"), {})
