"""All figures of a paper at once: which are written, what they show, the numbers beside them."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import planescope as ps
from planescope import figures
from planescope.criticality.resets import ResetOptions, reset
from planescope.figures.groups import grouped, panels_by
from planescope.figures.sources import open_subjects
from planescope.files.errors import CheckpointError, OutputError, PlanescopeError, UsageError
from planescope.hyperplanes import chance
from planescope.measurement.measure import measure
from planescope.measurement.record import Measurement
from planescope.training.config import RunConfig
from planescope.training.loop import train
from planescope.training.run import Run

# The package has a function of this name.
paper = importlib.import_module("planescope.figures.write_all")

PARITY = Path("tests/parity")
LENET = PARITY / "lenet-epoch-12.tar"
WIDTHS = ("column", "page", 2.5)
ONE = ("training", "layers", "cosines", "portrait", "resets")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[float, int], Run]:
    """LeNets by label noise and seed, an epoch on few digits each; the first has resets."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for noise, seed in itertools.product((0.0, 0.5), (0, 1)):
        config = RunConfig(epochs=1, examples=128, label_noise=noise, seed=seed, threads=1)
        made[noise, seed] = train(config, folder / f"noise-{noise}-seed-{seed}")
    reset(made[0.0, 0].path, options=ResetOptions(subset=50, layers="features.(0|12)"))
    return made


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory) -> Path:
    """What is written of all of them together."""
    out = tmp_path_factory.mktemp("figures")
    figures.write_all([*runs.values(), LENET], out, form="svg")
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stems(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix == suffix}


# Which figures


def test_a_run_gives_training_layers_cosines_portrait_and_resets(runs, tmp_path):
    out = figures.write_all([runs[0.0, 0]], tmp_path / "new" / "folder")
    assert stems(tmp_path / "new" / "folder", ".pdf") == set(ONE)
    assert stems(tmp_path / "new" / "folder", ".csv") == set(ONE)
    assert sorted(out.files) == sorted((tmp_path / "new" / "folder").iterdir())
    # An epoch on so few digits teaches nothing that resets could cost.
    assert [reason.partition(":")[0] for reason in out.left_out] == ["relation"]
    for path in out.files:
        if path.suffix == ".pdf":
            data = path.read_bytes()
            assert b"/FontFile2" in data
            assert b"/Type3" not in data


def test_what_is_left_out_is_said_with_what_makes_it(runs, tmp_path):
    measure(LENET).save(tmp_path / "saved.json")
    run = runs[0.5, 0].path
    out = figures.write_all([run, tmp_path / "saved.json"], tmp_path / "out")
    assert out.left_out == (
        f"resets of {run.name}: planescope reset {run} makes them",
        "cosines and portrait of saved: a saved measurement has no values of single filters; "
        "give the checkpoint",
    )
    assert stems(tmp_path / "out", ".pdf") == {
        *(f"{run.name}-{name}" for name in ONE[:-1]), "saved-layers", "networks",
    }  # fmt: skip


def test_a_checkpoint_and_saved_resets_give_what_they_can(runs, tmp_path):
    shutil.copy(runs[0.0, 0].resets, tmp_path / "kept.json")
    figures.write_all([LENET], tmp_path / "checkpoint", form="png")
    figures.write_all([tmp_path / "kept.json"], tmp_path / "resets")
    assert stems(tmp_path / "checkpoint", ".png") == {"layers", "cosines", "portrait"}
    assert stems(tmp_path / "resets", ".pdf") == {"resets"}


def test_several_runs_are_compared_and_ordered_by_what_makes_their_data_noisy(written, runs):
    names = [run.path.name for run in runs.values()]
    each = {f"{name}-{figure}" for name in names for figure in ONE[:-1]}
    own = {f"lenet-epoch-12-{figure}" for figure in ("layers", "cosines", "portrait")}
    together = {"networks", "by-label-noise", f"{names[0]}-resets"}
    together |= {"repetitions-label-noise-0", "repetitions-label-noise-0.5"}
    assert stems(written, ".svg") == each | own | together == stems(written, ".csv")


def test_without_each_only_comparisons_are_written(runs, tmp_path):
    figures.write_all([*runs.values()], tmp_path, each=False)
    repeated = {"repetitions-label-noise-0", "repetitions-label-noise-0.5"}
    assert stems(tmp_path, ".pdf") == {"networks", "by-label-noise"} | repeated
    with pytest.raises(UsageError, match="nothing to compare: give several networks"):
        figures.write_all([LENET], tmp_path / "out", each=False)


def test_more_panels_than_a_page_holds_go_on_in_a_second_figure(tmp_path):
    measurement = measure(LENET)
    room = figures.comparisons.networks_room("column")
    figures.write_all([measurement] * (room + 1), tmp_path, width="column", each=False)
    panels = [{row["panel"] for row in rows(tmp_path / f"networks-{i}.csv")} for i in (1, 2)]
    assert list(map(len, panels)) == [room, 1]


def test_runs_with_resets_give_their_relation_or_the_reason_why_not(runs, tmp_path):
    knows = Path(shutil.copytree(runs[0.0, 0].path, tmp_path / "knows"))
    data = json.loads((knows / "resets.json").read_text())
    for cell in data["cells"]:
        cell["relative_drop"] = 0.5 if cell["layer"].endswith("12") else 0.0
    (knows / "resets.json").write_text(json.dumps(data))
    figures.write_all([knows], tmp_path / "a", each=False)
    assert stems(tmp_path / "a", ".pdf") == {"relation"}
    table = rows(tmp_path / "a" / "relation.csv")
    related = ps.relate(knows)
    assert [(row["layer"], float(row["relative_drop"])) for row in table] == [
        (layer.name, layer.relative_drop) for layer in related.layers
    ]
    related.save(tmp_path / "kept.json")
    figures.write_all([tmp_path / "kept.json"], tmp_path / "b")
    assert (tmp_path / "b" / "relation.csv").read_text() == (
        tmp_path / "a" / "relation.csv"
    ).read_text()
    for cell in data["cells"]:
        cell["relative_drop"] = None
    (knows / "resets.json").write_text(json.dumps(data))
    out = figures.write_all([knows, LENET], tmp_path / "c", each=False)
    assert stems(tmp_path / "c", ".pdf") == {"networks"}
    (reason,) = out.left_out
    assert re.match(r"relation: \S+knows: has no relative drops: its network is no better", reason)


# What they show


def groups(runs) -> dict[str, list[Measurement]]:
    subjects = open_subjects(runs.values())
    return grouped(subjects)


def test_runs_that_differ_in_seeds_alone_share_a_panel(runs):
    found = groups(runs)
    assert list(found) == ["label noise 0", "label noise 0.5"]
    assert [len(group) for group in found.values()] == [2, 2]


def test_each_network_is_drawn_where_it_is_with_the_look_of_its_bias(runs):
    measured = {**groups(runs), "lenet-epoch-12": [measure(LENET)]}
    figure = figures.networks(measured)
    for axes, group in zip(figure.axes, measured.values(), strict=True):
        drawn = {
            (x, y): line.get_markerfacecolor() != "white"
            for line in axes.lines
            if line.get_linestyle() == "None"
            for x, y in line.get_xydata()
        }
        for measurement in group:
            for number, layer in enumerate(measurement.layers, 1):
                assert (number, layer.negative_mass) in drawn
        if len(group) == 1:  # points of several may lie on each other
            layers = enumerate(group[0].layers, 1)
            assert drawn == {(i, one.negative_mass): bool(one.biased) for i, one in layers}


def test_a_line_is_the_mean_over_the_runs_of_a_value_and_its_band_their_range(runs):
    panels = panels_by(open_subjects(runs.values()), "label_noise")
    ((title, panel),) = panels.items()
    assert (title, list(panel)) == ("lenet", ["0", "0.5"])
    figure = figures.settings(panels, "label noise")
    for axes, key in zip(figure.axes, ("negative_mass", "mean_cosine"), strict=True):
        chances, *bands = axes.collections
        for line, band, (value, group) in zip(axes.lines, bands, panel.items(), strict=True):
            values = np.array([[getattr(one, key) for one in m.layers] for m in group])
            assert line.get_label() == value
            assert_allclose(line.get_ydata(), values.mean(axis=0))
            ends = band.get_datalim(axes.transData)
            assert_allclose((ends.y0, ends.y1), (values.min(), values.max()))
        assert chances.get_label() == "chance, 95 %"


def test_the_bands_are_those_of_chance(runs):
    panels = {"lenet": {"all": [measure(LENET)]}}
    masses, means = figures.settings(panels, "label noise").axes
    layers = measure(LENET).layers
    level = chance.called_level([layer.p_mass for layer in layers])
    heights = [chance.mass_band(layer.filters, level=1 - level)[1] for layer in layers]
    spreads = [chance.NORMAL_95 / np.sqrt(layer.filters * layer.fan_in) for layer in layers]
    for axes, wanted in ((masses, heights), (means, spreads)):
        (outline,) = [path.vertices for path in axes.collections[0].get_paths()]
        for number, high in enumerate(wanted, 1):
            inside = outline[np.abs(outline[:, 0] - number) <= 0.5]
            assert np.isclose(inside[:, 1], high).any()


def test_runs_that_differ_in_more_are_parted_and_titles_say_only_what_tells_them_apart():
    measurement = measure(LENET)
    base = {"network": "lenet", "width": 1.0}
    others = [
        base | {"classes": classes, "label_noise": noise, "examples": 10 * classes, "seed": seed}
        for classes in (2, 10) for noise in (0.0, 0.5) for seed in (0, 1)
    ]  # fmt: skip
    configs = [*(RunConfig(**one) for one in others), RunConfig(network="vgg11", width=0.5)]
    subjects = [
        paper.Subject(name=str(i), path=str(i), measurement=measurement, config=config)
        for i, config in enumerate(configs)
    ]
    assert list(grouped(subjects)) == [
        "lenet, classes 2, label noise 0", "lenet, classes 2, label noise 0.5",
        "lenet, classes 10, label noise 0", "lenet, classes 10, label noise 0.5",
        "vgg11, classes all, label noise 0",
    ]  # fmt: skip
    # The number of examples goes with that of classes: no two runs differ in one alone.
    classes = panels_by(subjects, "classes")
    assert {title: list(panel) for title, panel in classes.items()} == {
        f"label noise {noise}": [
            "2 (training examples 20)", "10 (training examples 100)",
        ] for noise in ("0", "0.5")
    }  # fmt: skip
    noise = panels_by(subjects, "label_noise")
    assert {title: list(panel) for title, panel in noise.items()} == {
        "classes 2": ["0", "0.5"], "classes 10": ["0", "0.5"],
    }  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_text_is_cut_off_and_no_titles_overlap(width, count):
    long = [measure(LENET)]
    titles = [f"lenet, classes {i}, label noise 0.5, shuffled pixels no" for i in range(count)]
    drawn = [figures.networks(dict.fromkeys(titles, long), width=width)]
    room = min(count, figures.comparisons.settings_room(width))
    panels = {title: {str(i): long for i in range(9)} for title in titles[:room]}
    drawn.append(figures.settings(panels, "label noise", width=width))
    for figure in drawn:
        canvas = figure.bbox.padded(1.5)
        for artist in (*figure.axes, *figure.legends, *figure.texts):
            box = artist.get_tightbbox()
            assert canvas.containsx(box.x0), artist
            assert canvas.containsx(box.x1), artist
            assert canvas.containsy(box.y0), artist
            assert canvas.containsy(box.y1), artist
        heads = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
        boxes = [head.get_window_extent() for head in heads if head.get_text()]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)


# The numbers beside them


def test_the_numbers_of_training_are_the_points_of_its_lines(runs, written):
    run = runs[0.0, 0]
    table = rows(written / f"{run.path.name}-training.csv")
    drawn = figures.dynamics(run, statistics=["l2"]).axes[-1]
    for line, (name, points) in zip(
        [line for line in drawn.lines if line.get_linestyle() != "None"],
        itertools.groupby((r for r in sorted(
            (r for r in table if r["panel"] == "l2"), key=lambda r: r["line"].rjust(20),
        )), key=lambda r: r["line"]),
        strict=True,
    ):  # fmt: skip
        assert name in line.get_label()
        values = [(float(point["epoch"]), float(point["value"])) for point in points]
        assert_allclose(line.get_xydata(), values)
    accuracies = [r for r in table if (r["panel"], r["line"]) == ("accuracy", "val")]
    assert [float(r["value"]) for r in accuracies] == [row.val_accuracy for row in run.metrics]


def test_the_numbers_of_layers_are_their_masses_and_bands(written):
    measurement = measure(LENET)
    table = rows(written / "lenet-epoch-12-layers.csv")
    assert [row["layer"] for row in table] == [*(x.name for x in measurement.layers), "all layers"]
    for row, layer in zip(table, [*measurement.layers, measurement.network], strict=True):
        assert float(row["negative_mass"]) == layer.negative_mass
        band = chance.mass_band(layer.filters)
        assert (float(row["chance_low"]), float(row["chance_high"])) == band


def test_the_numbers_of_cosines_and_portrait_are_those_of_the_filters(written):
    measurement = measure(LENET)
    table = rows(written / "lenet-epoch-12-cosines.csv")
    wanted = np.concatenate([layer.values.cosine for layer in measurement.layers])
    assert_array_equal([float(row["cosine"]) for row in table], wanted)
    portrait = rows(written / "lenet-epoch-12-portrait.csv")
    assert {row["layer"] for row in portrait} == {"features.12"}
    assert len(portrait) == 64


def test_the_numbers_of_resets_are_their_cells(runs, written):
    (path,) = written.glob("*-resets.csv")
    resets = ps.Resets.load(runs[0.0, 0].resets)
    table = rows(path)
    assert len(table) == len(resets.cells)
    for row, cell in zip(table, resets.cells, strict=True):
        assert (row["layer"], row["snapshot"]) == (cell.layer, str(cell.snapshot))
        assert float(row["top1"]) == cell.top1
        (layer,) = [layer for layer in resets.layers if layer.name == cell.layer]
        assert float(row["negative_mass"]) == layer.negative_mass


def test_the_numbers_of_comparisons_have_a_row_a_layer_of_each_network(runs, written):
    networks = rows(written / "networks.csv")
    assert len(networks) == 5 * 6
    noise = rows(written / "by-label-noise.csv")
    assert [row["label noise"] for row in noise] == ["0"] * 12 + ["0.5"] * 12
    (one,) = [
        row["negative_mass"]
        for row in noise
        if row["source"].startswith(str(runs[0.5, 1].path)) and row["layer"] == "features.7"
    ]
    found = runs[0.5, 1].measurements.set_index(["epoch", "layer"]).loc[(1, "features.7")]
    assert float(one) == found["negative_mass"]


# The style


def test_a_style_sheet_of_the_users_is_laid_over_ours(tmp_path):
    sheet = tmp_path / "mine.mplstyle"
    sheet.write_text("axes.grid: True\nfont.size: 9\npdf.fonttype: 3\n")
    measurement = measure(LENET)
    with figures.style(sheet):
        own = figures.negative_mass(measurement)
    plain = figures.negative_mass(measurement)
    for figure, grid in ((own, True), (plain, False)):
        assert figure.axes[0].xaxis.get_gridlines()[0].get_visible() == grid
        assert not figure.axes[0].spines["right"].get_visible()  # ours
    figures.write_all([LENET], tmp_path / "out", style_sheet=sheet)
    assert b"/Type3" in (tmp_path / "out" / "layers.pdf").read_bytes()
    assert mpl.rcParams["font.size"] == 10


@pytest.mark.parametrize(("text", "sentence"), [
    ("nonsense.key: 1", r"Bad key nonsense\.key"),
    ("font.size: large-ish", "large-ish"),
    ("no colon at all", "Missing colon"),
])  # fmt: skip
def test_a_style_sheet_that_matplotlib_does_not_know_is_refused(tmp_path, text, sentence, caplog):
    sheet = tmp_path / "mine.mplstyle"
    sheet.write_text(text + "\n")
    before = logging.getLogger("matplotlib").handlers[:]
    with pytest.raises(UsageError, match=sentence), figures.style(sheet):
        pass
    assert logging.getLogger("matplotlib").handlers == before
    with pytest.raises(UsageError, match="no such style sheet"), figures.style("https://x/y"):
        pass


# Errors


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda run: (run / "measurements.parquet").unlink(),
     r"measurements\.parquet: is lost; planescope measure \S+ measures what the run has kept"),
    (lambda run: [p.unlink() for p in (run / "snapshots").iterdir()], "has no snapshots"),
    (lambda run: (run / "resets.json").write_text('{"schema": "planescope.resets/9"}'),
     r"its schema is 'planescope\.resets/9', and this version"),
    (lambda run: shutil.rmtree(run), "no such file or folder"),
])  # fmt: skip
def test_a_run_that_lacks_something_is_told_and_nothing_is_written(runs, tmp_path, spoil, sentence):
    run = shutil.copytree(runs[0.0, 0].path, tmp_path / "run")
    spoil(run)
    with pytest.raises(CheckpointError, match=sentence):
        figures.write_all([runs[0.0, 1], run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saved_results_of_another_schema_or_of_none_are_told(tmp_path):
    for name, text, sentence in [
        ("old", '{"schema": "planescope.measurement/0"}', "schema is 'planescope.measurement/0'"),
        ("other", '{"schema": "planescope.status/1"}', "holds 'planescope.status/1'; give a run"),
        ("broken", "{", "holds no saved result; save it with --out"),
    ]:
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        with pytest.raises(CheckpointError, match=re.escape(sentence)):
            figures.write_all([LENET, path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    for error, sentence, out, options in [
        (UsageError, "form 'gif': give pdf, svg, png", tmp_path, {"form": "gif"}),
        (UsageError, "width 99: give 'column'", tmp_path, {"width": 99}),
        (OutputError, "is no folder; give another", tmp_path / "file", {}),
        (OutputError, "is no folder; give another", tmp_path / "file" / "below", {}),
    ]:
        with pytest.raises(error, match=sentence):
            figures.write_all(["missing.pt"], out, **options)
    with pytest.raises(UsageError, match="nothing to draw: give a run or a file"):
        figures.write_all([], tmp_path)


@pytest.mark.skipif(
    not Path("/proc/version").exists(), reason="a folder without room, as Linux has"
)
def test_a_folder_that_cannot_be_written_is_told():
    with pytest.raises(OutputError, match=r"/proc\S*: cannot be (made|written)"):
        figures.write_all([LENET], "/proc/figures")


def test_names_of_files_stay_apart_and_are_safe(tmp_path):
    for name in ("a/net.npz", "b/net.npz", "c/Net.npz", "net-2.npz", "..npz", "a b/ü (1).npz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **{"conv.weight": np.random.default_rng(0).normal(size=(4, 2, 3, 3))})
    paths = sorted(tmp_path.rglob("*.npz"))
    subjects = open_subjects(paths)
    assert len({subject.name for subject in subjects}) == 6
    slugs = paper._slugs(subjects)
    assert len({slug.casefold() for slug in slugs}) == 6
    assert all(re.fullmatch(r"\w[\w.-]*", slug) for slug in slugs)


# The command


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "planescope", "figures", *map(str, args)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(whole, capture_output=True, text=True, encoding="utf-8", env=environment)


def test_the_command_writes_what_the_library_writes(tmp_path):
    done = command(LENET, "--out", tmp_path / "a", "--format", "png", "--column", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["schema"] == "planescope.figures/1"
    figures.write_all([LENET], tmp_path / "b", form="png", width="column")
    assert [Path(path).name for path in told["files"]] == [
        "layers.png", "layers.csv", "cosines.png", "cosines.csv", "portrait.png", "portrait.csv",
    ]  # fmt: skip
    for path in map(Path, told["files"]):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(("args", "sentence"), [
    ((LENET, "--out", "figures", "--column", "--width", "3"), "give one of --column, --page and"),
    ((LENET, "--out", "figures", "--style", "missing.mplstyle"), "no such style sheet"),
    (("missing.pt", "--out", "figures"), "missing.pt: no such file"),
], ids=["widths", "style", "source"])  # fmt: skip
def test_bad_input_is_a_sentence_and_status_2(args, sentence):
    done = command(*args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert sentence in done.stderr
    assert not Path("figures").exists()


def test_errors_are_all_of_one_base():
    assert issubclass(UsageError, PlanescopeError)
