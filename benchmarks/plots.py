"""Plots of what a run measured, PNG beside the JSON; each says machine, versions and command.

Runs in: the process that measured. Without matplotlib it says so and draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from report import RESULTS, Report, caption

COLOURS = {
    "meles": "#d98c00",
    "plyvel": "#4c78a8",
    "rocksdict": "#b0413e",
    "lmdb": "#54a24b",
    "sqlite3": "#8a8a8a",
}


def draw_all(report: Report) -> None:
    """A plot for every figure this run kept."""
    try:
        import matplotlib as mpl
    except ImportError:
        report.say("no plots: matplotlib is not installed")
        return
    mpl.use("Agg")
    for name, data in report.figures.items():
        draw = _DRAW.get(name.partition(":")[0])
        if draw is not None:
            name = name.replace(":", "-")
            draw(name, data)
            report.say(f"wrote {(RESULTS / name).with_suffix('.png').relative_to(RESULTS.parent)}")


def _figure(title: str, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(5.2 * columns + 1.5, 4.6), squeeze=False)
    figure.suptitle(title)
    return figure, list(axes[0])


def _save(figure: Any, name: str) -> None:
    from matplotlib import pyplot

    figure.text(0.01, 0.01, caption(), fontsize=6, color="#555555", va="bottom")
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig((RESULTS / name).with_suffix(".png"), dpi=140)
    pyplot.close(figure)


def _points(name: str, data: dict[str, Any]) -> None:
    """Bars: microseconds per operation and engine, one panel for each load."""
    figure, panels = _figure("Time per operation", len(data))
    for axes, (title, rates) in zip(panels, data.items(), strict=True):
        engines = [engine for engine in COLOURS if engine in rates["get"]]
        width = 0.8 / len(engines)
        for at, engine in enumerate(engines):
            bars = [op for op in rates if rates[op].get(engine)]
            places = [list(rates).index(op) + at * width for op in bars]
            heights = [1e6 / median(rates[op][engine]) for op in bars]
            axes.bar(places, heights, width, label=engine, color=COLOURS[engine])
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("microseconds, less is better")
        axes.set_xticks([at + 0.4 for at in range(len(rates))], list(rates))
    panels[0].legend(fontsize=8)
    _save(figure, name)


def _lines(
    title: str, over: str, of: str, label: str, unit: str
) -> Callable[[str, dict[str, Any]], None]:
    """One panel for each operation, one line for each engine, over a variable."""

    def draw(name: str, data: dict[str, Any]) -> None:
        figure, panels = _figure(title, len(data[of]))
        for axes, (operation, lines) in zip(panels, data[of].items(), strict=True):
            for engine, heights in lines.items():
                colour = COLOURS[engine]
                axes.plot(data[over], heights, marker="o", label=engine, color=colour)
            axes.set_xscale("log", base=2 if max(data[over]) < 100_000 else 10)
            if unit == "microseconds":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set_title(operation, fontsize=10)
            axes.set_xlabel(label)
            axes.set_ylabel(unit)
        panels[0].legend(fontsize=8)
        _save(figure, name)

    return draw


def _timeline(name: str, data: dict[str, Any]) -> None:
    figure, (axes,) = _figure(f"Latency of set at {data['pace']:,}/s, with the workers' work")
    figure.set_size_inches(11, 4.8)
    microseconds, pace = data["microseconds"], data["pace"]
    step = pace // 100  # the worst of every 10 ms
    worst = [max(microseconds[at : at + step]) for at in range(0, len(microseconds), step)]
    axes.plot([at / 100 for at in range(len(worst))], worst, color="#222222", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("microseconds, longest of each 10 ms")
    axes.set_xlabel("seconds")
    colours = {"flusher": "#4c78a8", "compactor": "#d98c00", "value_gc": "#54a24b"}
    for row, (kind, colour) in enumerate(colours.items()):
        spans = [(at, data["look_every"]) for at in data["busy"].get(kind, [])]
        axes.broken_barh(
            spans, (0.01 + 0.035 * row, 0.03), color=colour, label=f"{kind} works",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.legend(fontsize=8, loc="upper right")
    _save(figure, name)


def _compaction(name: str, data: dict[str, Any]) -> None:
    figure, (axes,) = _figure("Compaction by one worker, MB/s of input")
    for at, (engine, rates) in enumerate(data.items()):
        heights = [median(found) for found in rates.values()]
        places = [place + 0.4 * at for place in range(len(rates))]
        axes.bar(places, heights, 0.4, label=engine, color=COLOURS[engine])
        axes.set_xticks([place + 0.2 for place in range(len(rates))], list(rates))
    axes.set_xlabel("bytes of a value")
    axes.set_ylabel("MB/s")
    axes.legend(fontsize=8)
    _save(figure, name)


def _seconds(title: str, key: str, label: str) -> Callable[[str, dict[str, Any]], None]:
    def draw(name: str, data: dict[str, Any]) -> None:
        figure, (axes,) = _figure(title)
        found = data[key]
        axes.plot(
            [int(x) for x in found], [1e3 * median(s) for s in found.values()], marker="o",
            color=COLOURS["meles"],
        )  # fmt: skip
        axes.set_xlabel(label)
        axes.set_ylabel("milliseconds")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        _save(figure, name)

    return draw


def _memory(name: str, data: dict[str, Any]) -> None:
    """What each part of the tree has resident, stacked, and the budget."""
    figure, (axes,) = _figure(data["title"])
    figure.set_size_inches(11, 4.8)
    seconds, *parts = ([row[at] for row in data["samples"]] for at in range(5))
    labels = ("host, its own", "host, of files", "workers, their own", "workers, of files")
    colours = ("#d98c00", "#f2cf8f", "#4c78a8", "#b6cbe3")
    stacks = [[value / 2**20 for value in part] for part in parts]
    axes.stackplot(seconds, stacks, labels=labels, colors=colours)
    for part, style, label in ((1.0, "-", "budget"), (data["allowed"], "--", "allowed")):
        axes.axhline(part * data["budget"] / 2**20, color="#222222", linestyle=style, label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MiB resident, all processes")
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8, loc="lower right")
    _save(figure, name)


_DRAW: dict[str, Callable[[str, dict[str, Any]], None]] = {
    "points": _points,
    "scaling": _lines("Cost by number of entries", "entries", "microseconds", "entries",
                      "microseconds"),
    "values": _lines("Cost by size of the value", "value bytes", "microseconds", "bytes of a value",
                     "microseconds"),
    "threads": _lines("Threads on one handle", "threads", "per second", "threads", "per second"),
    "timeline": _timeline,
    "memory-budget": _memory,
    "compaction": _compaction,
    "recovery": _seconds("Opening after a kill", "seconds by MB", "MB of write-ahead log"),
    "tables": _seconds("Opening by number of tables", "seconds by tables", "tables"),
}  # fmt: skip
