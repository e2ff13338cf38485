"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgnas.report import page
from pgnas.report.candidates import candidates_figure
from pgnas.report.curves import curves_figure
from pgnas.report.distributions import accuracies, histogram_figure
from pgnas.report.keeping import keep_figure
from pgnas.report.network import network_figure
from pgnas.report.reliability import reliability_figure
from pgnas.report.sureness import about_the_accuracy, about_the_choice, prediction_tables
from pgnas.report.values import (
    DASH,
    Row,
    cost_name,
    count,
    duration,
    number,
    pairs,
    percent,
    section,
    share_of,
    text,
)

_KINDS = ("macs", "params")
_ACCURACIES = ("test_accuracy", "val_accuracy")
CANDIDATES = (
    "Candidates drawn from the posterior, not fine-tuned; below, where there are any, networks trained to the "
    "end beside them."
)
DRAWING = (
    "Operations from the images down. A box is filled as far as its channels are kept; dashed ones are dropped. "
    "Point at one for more."
)


def render_report(
    result: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    candidates: Sequence[Mapping[str, Any]],
    supernet_summary: Mapping[str, Any] | None,
    *,
    operations: object = None,
    reliability: object = None,
    others: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
    """The report as one HTML document without outside requests; what is missing is left out or becomes a dash.

    Args:
        result: ``result.json``, with ``settings``, ``environment`` and the ``command`` that makes this run again.
        history: The rows of ``metrics.jsonl``.
        candidates: The rows of ``candidates.jsonl``.
        supernet_summary: Gates with units and kept units, choices of operations with their probabilities and what was
            chosen, ungated layers, barriers, notes.
        operations: ``operations.json``: the network's operations and what is left of each.
        reliability: ``reliability.json``: accuracy by confidence.
        others: Candidates of other runs, such as random ones, to show beside this run's.
    """
    settings, environment = section(result, "settings"), section(result, "environment")
    names = [str(settings[key]) for key in ("model", "data") if settings.get(key) is not None]
    title = " on ".join(names) or "Architecture search"
    body = [
        f'<header>\n<h1>{text(title)}</h1>\n<p class="lead">{text(headline(result))}</p>\n',
        "".join(f"<p>{text(sentence)}</p>\n" for sentence in _details(result)),
        "</header>\n",
        page.part("Networks", _networks(result)),
        page.part("How sure the predictions are", prediction_tables(section(result, "uncertainty"))),
        page.part("Candidates", page.figures(_of_candidates(result, candidates, others or {}))),
        page.part("The found network", page.figure(network_figure(operations, supernet_summary), DRAWING)),
        page.part("Which operations were chosen", _choices(supernet_summary)),
        page.part("What is left of each layer", _layers(supernet_summary)),
        page.part("Training", page.figures(_of_training(history, reliability))),
        page.part("What could not be shrunk", _not_shrunk(supernet_summary)),
        page.part("Notes", page.items(_notes(result, supernet_summary))),
        page.part("How to get this again", _again(result, environment)),
        page.part("Settings and environment", _circumstances(result, settings, environment)),
    ]
    return page.page(f"pgnas: {title}", "".join(body))


def _of_candidates(result: Row, candidates: Sequence[Row], others: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    yield page.figure(candidates_figure(candidates, result), CANDIDATES)
    groups = {"this run": accuracies(candidates)} | {name: accuracies(rows) for name, rows in others.items()}
    yield page.figure(histogram_figure(groups), "How good the candidates are, not fine-tuned.")


def _of_training(history: Sequence[Row], reliability: object) -> Iterator[str]:
    yield page.figure(curves_figure(history), "Training, epoch by epoch.")
    yield page.figure(keep_figure(history), "What the layers' gates keep during the search, on average.")
    caption = "How often a prediction of each confidence is right, on the test images."
    yield page.figure(reliability_figure(reliability), caption)


def headline(result: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    sentence = result.get("sentence")
    if isinstance(sentence, str) and sentence:
        return f"{sentence[0].upper()}{sentence[1:]}."
    found, full = section(result, "found"), section(result, "full")
    if not found:
        return "The run has not found a network yet."
    test, val = (number(found.get(key)) for key in ("test_accuracy", "val_accuracy"))
    score = f"{percent(test)} on the test images" if test is not None else f"{percent(val)} on the validation images"
    words = [f"Found network: {score}"] if (test, val) != (None, None) else ["Found network: accuracy unknown"]
    shares = [(kind, share_of(found.get(kind), full.get(kind))) for kind in _KINDS]
    known = [f"{percent(share)} of the {cost_name(kind)}" for kind, share in shares if share is not None]
    if known:
        words.append(f"with {' and '.join(known)} of the full network")
    return " ".join(words) + "."


def _details(result: Mapping[str, Any]) -> list[str]:
    """What else a reader wants to know at once: the cap, the supernet, how sure the choice is."""
    found, cap = section(result, "found"), section(result, "cap")
    sentences = []
    for kind in _KINDS:
        limit, used = number(cap.get(kind)), number(found.get(kind))
        if limit is not None and used is not None:
            verdict = "is met" if used <= limit else "is exceeded"
            sentences.append(f"The cap of {count(limit)} {cost_name(kind)} {verdict}: the network has {count(used)}.")
    sentences += about_the_accuracy(found)
    drawn = section(result, "candidates")
    if number(drawn.get("count")) is not None:
        sentences.append(_choice(drawn))
    if number(drawn.get("finalists")) is not None:
        sentences.append(f"The {count(drawn['finalists'])} best were told apart by training each for a short while.")
    joint = section(result, "joint")
    caps = joint.get("caps")
    if isinstance(caps, list | tuple) and caps:
        *others, last = map(str, caps)
        named = f"{', '.join(others)} and {last}" if others else last
        taken = f" in {count(joint['epochs'])} epochs" if "epochs" in joint else ""
        sentences.append(f"The networks for {named} were trained together with shared weights{taken}, one a step.")
    return [*sentences, *about_the_choice(section(result, "choice"))]


def _choice(drawn: Row) -> str:
    """Among how many candidates the network was chosen, and how they did."""
    text = f"It was chosen among {count(drawn['count'])} candidates"
    if number(drawn.get("passes_share")) is not None:
        text += f" by a race with {percent(drawn.get('passes_share'))} of the passes of an exhaustive ranking"
    if number(drawn.get("val_mean")) is None:
        return f"{text}, with a validation accuracy of {percent(drawn.get('val_best'))} before any further training."
    return (
        f"{text}, whose validation accuracy before any further training was {percent(drawn.get('val_mean'))} ± "
        f"{percent(drawn.get('val_std'))} (mean and standard deviation); the chosen one's was "
        f"{percent(drawn.get('val_best'))}."
    )


def _networks(result: Mapping[str, Any]) -> str:
    full = section(result, "full")
    supernet = {**{kind: full.get(kind) for kind in _KINDS}, **section(result, "supernet")}
    entries: list[tuple[str, Row, str]] = [("Full network", full, "")] if full else []
    if section(result, "supernet"):
        entries.append(("Supernet (posterior mean)", supernet, ""))
    if section(result, "found"):
        entries.append(("Found network", section(result, "found"), "found"))
    if section(result, "finetuned"):
        entries.append(("Found network, fine-tuned", section(result, "finetuned"), ""))
    for name in section(result, "baselines"):
        entries.append((f"Baseline: {name}", section(result["baselines"], name), ""))
    lines = []
    for name, values, kind in entries:
        cells = [page.number_cell(percent(values.get(key))) for key in _ACCURACIES]
        for cost in _KINDS:
            cells.append(page.number_cell(count(values.get(cost))))
            cells.append(page.number_cell(percent(share_of(values.get(cost), full.get(cost)))))
        cells.append(page.number_cell(count(values.get("epochs"))))
        lines.append(page.row(name, cells, kind=kind))
    heads = ["Network", "Test", "Validation", "Multiply-adds", "of full", "Parameters", "of full", "Epochs"]
    caption = "Size and accuracy; baselines are plain networks trained at the same total compute."
    if not section(result, "baselines"):
        caption = "Size and accuracy."
    return page.table(caption, heads, lines, numbers=range(1, len(heads)))


def _layers(summary: object) -> str:
    lines = []
    for name in section(summary, "gates"):
        gate = section(section(summary, "gates"), name)
        kept, units, keep = (number(gate.get(key)) for key in ("kept", "units", "keep"))
        share = share_of(kept, units)
        numbers = (percent(share), f"{count(kept)} of {count(units)}", percent(keep))
        cells = [page.bar_cell(share), *map(page.number_cell, numbers)]
        lines.append(page.row(name, cells))
    heads = ["Layer", "", "Share", "Units", "Keep probability"]
    caption = (
        "What each searched layer still reads, in the units of its gate (input channels, several at once, groups or "
        "heads), and their mean keep probability in the posterior."
    )
    return page.table(caption, heads, lines, numbers=(2, 3, 4))


def _choices(summary: object) -> str:
    lines = []
    chosen = section(summary, "chosen")
    for name in section(summary, "choices"):
        options = section(section(summary, "choices"), name)
        kept = chosen.get(name)
        shown = ", ".join(map(str, kept)) if isinstance(kept, list | tuple) else ""
        shares = ", ".join(f"{option} {percent(number(share))}" for option, share in options.items())
        lines.append(page.row(name, [page.cell(shown or "nothing"), page.cell(shares)]))
    caption = "Operations of the found network, and the probability of each in the posterior."
    return page.table(caption, ["Choice", "Chosen", "Probabilities"], lines)


def _not_shrunk(summary: object) -> str:
    if not isinstance(summary, Mapping):
        return ""
    ungated = [page.row(layer, [page.cell(reason)]) for layer, reason in pairs(summary.get("ungated"))]
    barriers = [page.row(op, [page.cell(reason)]) for op, reason in pairs(summary.get("barriers"))]
    return page.table("Layers without a gate of their own.", ["Layer", "Reason"], ungated) + page.table(
        "Operations through which channels could not be followed; what they touch stays whole.",
        ["Operation", "Reason"],
        barriers,
    )


def _notes(result: Mapping[str, Any], summary: object) -> list[object]:
    found = [result.get("notes"), summary.get("notes") if isinstance(summary, Mapping) else None]
    notes = [note for some in found if isinstance(some, list | tuple) for note in some]
    baselines = section(result, "baselines")
    notes += [f"baseline {name}: {note}" for name in baselines if (note := section(baselines, name).get("note"))]
    return notes


def _again(result: Row, environment: Row) -> str:
    command = result.get("command") or environment.get("command")
    return f"<pre><code>{text(command)}</code></pre>\n" if command else ""


def _circumstances(result: Mapping[str, Any], settings: Row, environment: Row) -> str:
    seconds = section(result, "seconds")
    times = [page.row(name, [page.number_cell(duration(value))]) for name, value in seconds.items()]
    known = [value for value in map(number, seconds.values()) if value is not None]
    if known:
        times.append(page.row("in all", [page.number_cell(duration(sum(known)))], kind="found"))
    parts = [page.table("Time a stage.", ["Stage", "Time"], times, numbers=(1,))]
    seed = [("seed", result["seed"])] if result.get("seed") is not None and "seed" not in settings else []
    parts.append(page.details("Settings", page.definitions([*seed, *_shown(settings)])))
    parts.append(page.details("Environment", page.definitions(_shown(environment, without=("command",)))))
    return "".join(parts)


def _shown(values: Row, without: Sequence[str] = ()) -> list[tuple[object, object]]:
    """Settings as people write them: lists joined, nothing for nothing."""
    shown: list[tuple[object, object]] = []
    for name, value in values.items():
        if name in without or value is None:
            continue
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value)) or DASH
        shown.append((name, value))
    return shown
