"""How sure a result is, in sentences and tables: of the choice, and of the predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pgnas.report import page
from pgnas.report.values import DASH, Row, count, number, percent, section

NETWORKS = {"found": "found network", "ensemble": "posterior average", "full": "full network"}
_SCORES = {"nll": "NLL", "brier": "Brier", "ece": "ECE"}
_TOLD_BY = {"entropy": "", "mutual_information": ", MI"}
_SHORT = {"found": "Found", "ensemble": "Average", "full": "Full"}


def about_the_accuracy(found: Row) -> Iterator[str]:
    """The interval of the test accuracy, if it is known."""
    bounds, images = interval(found.get("test_interval")), number(found.get("test_images"))
    if bounds is not None and images:
        yield (
            f"As there are {count(images)} test images, its accuracy on others like them lies between "
            f"{percent(bounds[0])} and {percent(bounds[1])} (95 % confidence)."
        )


def about_the_choice(choice: Row) -> Iterator[str]:
    """What the chosen candidate scores where it was not chosen, and whether the runner-up is better."""
    accuracy, bounds = number(choice.get("accuracy")), interval(choice.get("interval"))
    if accuracy is None or bounds is None:
        return
    sentence = (
        f"The best score of many is optimistic: where it was chosen, the network scored "
        f"{percent(choice.get('selected_accuracy'))}; on {count(choice.get('images'))} images that the choice did not "
        f"see, {percent(accuracy)} [{percent(bounds[0])}, {percent(bounds[1])}], both before any further training"
    )
    better = number(section(choice, "runner_up").get("probability_better"))
    if better is not None:
        sentence += f". The runner-up is truly better with probability {better:.2f}"
    yield sentence + "."


def interval(value: object) -> tuple[float, float] | None:
    """Two numbers, if that is what it is."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def prediction_tables(uncertainty: Row) -> str:
    """Scores of what predicts, each with its interval, and how well uncertainty tells other data."""
    return _scores(uncertainty) + _other_data(section(uncertainty, "ood"))


def _scores(uncertainty: Row) -> str:
    networks = section(uncertainty, "networks")
    lines = []
    for name in networks:
        values = section(networks, str(name))
        after = section(values, "calibrated")
        cells = [_measured(section(values, "accuracy"), percent)]
        cells += [_measured(section(values, key), _plain) for key in _SCORES]
        cells.append(page.number_cell(_plain(values.get("temperature"))))
        cells += [_measured(section(after, key), _plain) for key in ("nll", "ece")]
        lines.append(page.row(NETWORKS.get(str(name), str(name)).capitalize(), cells))
    heads = ["Network", "Accuracy", *_SCORES.values(), "Temperature", "NLL after", "ECE after"]
    caption = (
        "On the test images, with 95 % intervals; lower is better but for the accuracy. The temperature was fitted on "
        f"validation images; the posterior average is that of {count(uncertainty.get('samples'))} sampled networks."
    )
    return page.table(caption, heads, lines, numbers=range(1, len(heads)))


def _plain(value: object) -> str:
    known = number(value)
    return DASH if known is None else f"{known:.3f}"


def _measured(values: Row, show: Callable[[object], str]) -> str:
    low, high = (number(values.get(key)) for key in ("low", "high"))
    shown = show(values.get("value"))
    if low is None or high is None:
        return page.number_cell(shown)
    return page.measured_cell(shown, f"[{show(low)}, {show(high)}]")


def _other_data(ood: Row) -> str:
    """A row for each other data, a column for each score that any of them has."""
    told = {str(spec): section(ood, str(spec)) for spec in ood}
    columns = [
        (name, key)
        for name in NETWORKS
        for key in _TOLD_BY
        if any(number(section(values, name).get(key)) is not None for values in told.values())
    ]
    lines = [
        page.row(spec, [page.number_cell(_plain(section(values, name).get(key))) for name, key in columns])
        for spec, values in told.items()
    ]
    caption = (
        "How well uncertainty tells other data from the test images: area under the ROC curve, 0.5 is chance. "
        "Uncertainty is the entropy of the prediction or, MI, the mutual information of class and network."
    )
    titles = [_SHORT[name] + _TOLD_BY[key] for name, key in columns]
    return page.table(caption, ["Data", *titles], lines, numbers=tuple(range(1, 1 + len(titles))))
