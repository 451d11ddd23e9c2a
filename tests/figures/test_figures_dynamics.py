"""A run through its epochs: what is drawn is what was measured then, and it can be read."""

from __future__ import annotations

import itertools
import shutil

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from planescope import figures
from planescope.figures import animation
from planescope.figures.canvas import shown
from planescope.figures.dynamics import METRICS, PANELS
from planescope.figures.layers import AWAY_BIASED, TOWARD_BIASED, UNBIASED
from planescope.files.errors import CheckpointError, MissingDependencyError, OutputError, UsageError
from planescope.hyperplanes import chance
from planescope.hyperplanes.layer import Kind, Layer, Tensor
from planescope.measurement.assemble import measure_layers
from planescope.measurement.record import Measurement, Source
from planescope.training.config import RunConfig
from planescope.training.loop import train
from planescope.training.run import Run

# Matplotlib warns where a layout has no room or a glyph is missing.
pytestmark = pytest.mark.filterwarnings("error::UserWarning:planescope")

WIDTHS = ("column", "page", 2.5)
EPOCHS = [0, 1, 2, 5, 10, 40]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Eight layers of three to thirty filters, with batch norm, through three snapshots."""
    path = tmp_path_factory.mktemp("runs") / "narrow-vgg"
    config = RunConfig(
        network="vgg11_bn", width=0.06, epochs=2, examples=64, train_accuracy=True, threads=1
    )
    return train(config, path)


def network(layers: int, epoch: int) -> Measurement:
    """Every second layer grows biased, the later ones more so."""
    rng = np.random.default_rng(layers)
    grown = min(1.0, epoch / 10)

    def layer(i: int) -> Layer:
        weight = rng.normal((i % 2) * grown * i / layers, 1.0, (20 + i, 2, 3, 3))
        weight[0] = 0.0
        tensor = Tensor(weight.shape, "float64", lambda: weight)
        name = f"backbone.layer{i}.conv{i % 3}"
        return Layer(name=name, kind=Kind.CONV, weight=tensor, bias=None, stage=i // 4)

    source = Source(path="network", format="arrays", bytes=None)
    return measure_layers([layer(i) for i in range(layers)], source=source)


def tables(layers: int, epochs=EPOCHS) -> tuple[pd.DataFrame, pd.DataFrame]:
    measured = {epoch: network(layers, epoch).to_pandas() for epoch in epochs}
    every = np.arange(max(epochs) + 1)
    metrics = {"epoch": every, "val_loss": 2 / (1 + every), "val_accuracy": every / (1 + every)}
    return pd.concat(measured, names=["epoch"]).reset_index(), pd.DataFrame(metrics)


def panels(figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines(axes) -> list:
    """What joins points; not points that stand by themselves, nor entries of the legend."""
    return [line for line in axes.lines if line.get_linestyle() != "None"]


def points(axes) -> dict[bool, set[tuple[float, float]]]:
    """Points that stand by themselves: filled ones, and hollow ones."""
    found = {True: set(), False: set()}
    for line in axes.lines:
        if line.get_linestyle() == "None":
            filled = mpl.colors.to_hex(line.get_markerfacecolor()) != "#ffffff"
            found[filled] |= set(map(tuple, line.get_xydata()))
    return found


# Dynamics


def test_each_statistic_is_drawn_as_it_was_measured(run):
    there = [name for name in PANELS if name not in ("activation_rate", "drift_pressure")]
    figure, table = figures.dynamics(run, statistics=there, width="column"), run.measurements
    assert_inside(figure)
    for name in there:
        drawn = lines(panels(figure)[PANELS[name].label])
        for line, (_, layer) in zip(drawn, table.groupby("layer", sort=False), strict=True):
            assert_array_equal(line.get_xdata(), [0, 1, 2])
            assert_array_equal(line.get_ydata(), layer[name].astype(float))


def test_loss_and_accuracy_are_drawn_of_training_and_validation(run):
    figure = figures.dynamics(run)
    for name in METRICS:
        training, validation = lines(panels(figure)[name])
        assert_array_equal(validation.get_ydata(), [getattr(m, f"val_{name}") for m in run.metrics])
        wanted = [getattr(m, f"train_{name}") for m in run.metrics]
        assert_array_equal(training.get_ydata(), np.array(wanted, dtype=float))


def test_the_usual_statistics_are_those_with_values(run):
    assert list(panels(figures.dynamics(run))) == [
        "loss", "accuracy", "negative mass", "agreement", "mean cosine", "l2 distance",
        "negative centre",
    ]  # fmt: skip
    table, _ = tables(3)  # nothing tells its beginning, and it has no norms
    assert list(panels(figures.dynamics(table))) == [
        "negative mass", "agreement", "mean cosine",
    ]  # fmt: skip


@pytest.mark.parametrize("layers", [6, 20])
def test_points_are_filled_where_a_layer_is_beyond_chance_and_hollow_ones_spare_many(layers):
    table, _ = tables(layers)
    drawn = points(panels(figures.dynamics(table))["negative mass"])
    beyond = table["q_mass"] < 0.05
    assert 0 < beyond.sum() < len(table)
    wanted = list(zip(table["epoch"], table["negative_mass"], strict=True))
    assert drawn[True] == {point for point, filled in zip(wanted, beyond, strict=True) if filled}
    hollow = {point for point, filled in zip(wanted, beyond, strict=True) if not filled}
    assert drawn[False] == (hollow if layers == 6 else set())


def test_bands_are_those_of_the_layers_with_the_fewest_and_the_most_usable_filters():
    table, _ = tables(6)  # of 20 to 25 filters, one of each without a normal
    found = panels(figures.dynamics(table))
    for filters in (19, 24):
        bands = []
        for _, rows in table.groupby("epoch"):  # each epoch is tested by itself, over its layers
            called = max(1, (rows["q_mass"] < chance.LEVEL).sum())
            level = chance.LEVEL * called / len(rows)
            bands.append(chance.mass_band(filters, level=1 - level))
        low, high = np.array(bands).T
        for name, band in (("negative mass", (low, high)), ("agreement", (0 * low, 2 * high - 1))):
            (drawn,) = [p for p in found[name].patches if p.get_label().endswith(f"N = {filters}")]
            assert drawn.get_label().startswith("chance, tested")
            values, _, baseline = drawn.get_data()
            assert_allclose((baseline, values), band)


def test_numbers_at_the_ends_name_the_lines_and_the_legend_says_whose_they_are():
    table, metrics = tables(6)
    figure = figures.dynamics(table, metrics)
    for axes in figure.axes[2:]:
        low, high = axes.get_ylim()
        (leaders,) = axes.collections
        assert len(axes.texts) == 6
        for number, leader in zip(axes.texts, leaders.get_segments(), strict=True):
            line = lines(axes)[int(number.get_text()) - 1]
            assert number.get_color() == pytest.approx(line.get_color())
            assert leader[0, 1] == pytest.approx((line.get_ydata()[-1] - low) / (high - low))
            assert leader[1, 1] == number.get_position()[1]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    wanted = [f"{i} {shown(name, 18)}" for i, name in enumerate(table["layer"].unique(), 1)]
    assert [entry for entry in entries if entry[0].isdigit()] == wanted


@pytest.mark.parametrize("values", ["apart", "equal"])
@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_do_not_cover_each_other_where_lines_meet(values, width):
    table, _ = tables(12, [0, 5])
    if values == "equal":
        table[["negative_mass", "agreement"]] = 1.0
        table["mean_cosine"] = 0.0
    for axes in figures.dynamics(table, width=width).axes:
        boxes = [number.get_window_extent() for number in axes.texts]
        assert len(boxes) == 12
        for lower, upper in itertools.pairwise(boxes):
            assert lower.y1 <= upper.y0 + 2.5
        assert axes.bbox.padded(6).y0 <= boxes[0].y0
        assert boxes[-1].y1 <= axes.bbox.padded(6).y1


def test_a_layer_without_a_value_at_the_end_is_numbered_at_its_last():
    table, _ = tables(3)
    gone = (table["layer"] == "backbone.layer1.conv1") & (table["epoch"] > 8)
    never = table["layer"] == "backbone.layer2.conv2"
    table.loc[gone | never, "mean_cosine"] = None
    axes = panels(figures.dynamics(table))["mean cosine"]
    assert sorted(number.get_text() for number in axes.texts) == ["1", "2"]


def test_many_layers_have_colours_by_depth_and_a_bar_that_tells_them():
    table, metrics = tables(50)
    figure = figures.dynamics(table, metrics)
    *drawn, bar = figure.axes
    assert bar.get_ylabel() == "layer"
    assert bar.get_ylim() == (1, 50)
    for axes in drawn[2:]:
        assert not axes.texts
        light = [mpl.colors.to_rgb(line.get_color()) @ np.array([0.2126, 0.7152, 0.0722])
                 for line in lines(axes)]  # fmt: skip
        assert np.all(np.diff(light) > 0)
        assert len(light) == 50


def test_many_layers_of_a_statistic_without_a_test_need_no_legend():
    table, _ = tables(20, [0, 1])
    assert not figures.dynamics(table, statistics=["mean_cosine"]).legends


@pytest.mark.parametrize(("last", "scale"), [(0, "linear"), (10, "linear"), (40, "symlog")])
def test_epoch_0_is_seen_and_many_epochs_are_logarithmic(last, scale):
    table, metrics = tables(2, [epoch for epoch in EPOCHS if epoch <= last])
    for axes in figures.dynamics(table, metrics, statistics=["agreement"]).axes:
        assert axes.get_xscale() == scale
        assert axes.get_xlim() == (0, max(last, 1))


@pytest.mark.parametrize(("layers", "width"), [
    (1, 2.5), (6, "page"), (12, "column"), (12, 2.5), (50, "column"), (50, "page"),
])  # fmt: skip
def test_no_text_is_cut_off(layers, width):
    assert_inside(figures.dynamics(*tables(layers), width=width))


def assert_inside(figure):
    canvas = figure.bbox.padded(1.5)
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent()
            assert canvas.x0 <= box.x0, text
            assert canvas.y0 <= box.y0, text
            assert box.x1 <= canvas.x1, text
            assert box.y1 <= canvas.y1, text


def test_a_run_its_path_and_its_tables_give_the_same_curves(run):
    metrics = pd.DataFrame(map(vars, run.metrics))
    given = ((run,), (str(run.path),), (run.measurements, metrics))
    drawn = [figures.dynamics(*one, statistics=["l2"]) for one in given]
    for figure in drawn[1:]:
        for one, other in zip(drawn[0].axes, figure.axes, strict=True):
            for line, same in zip(one.lines, other.lines, strict=True):
                assert_array_equal(line.get_xydata(), same.get_xydata())
    assert drawn[0].legends[0].get_title().get_text() == "narrow-vgg"


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    drawn = [figures.dynamics(run, statistics=["negative_mass"]) for _ in range(2)]
    for suffix in ("pdf", "svg", "png"):
        for i, figure in enumerate(drawn):
            figures.save(figure, tmp_path / f"{i}.{suffix}")
        assert (tmp_path / f"0.{suffix}").read_bytes() == (tmp_path / f"1.{suffix}").read_bytes()


def test_a_run_without_measurements_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing: is no run: it has no config\.yaml"):
        figures.dynamics(tmp_path / "missing")
    begun = Run.create(tmp_path / "begun", RunConfig())
    for draw in (figures.dynamics, lambda run: figures.animate(run, tmp_path / "film.gif")):
        with pytest.raises(CheckpointError, match="begun: nothing was measured yet"):
            draw(begun)


def test_tables_that_cannot_be_drawn_are_told():
    table, _ = tables(2)
    with pytest.raises(UsageError, match="measurements has no column epoch, q_mass"):
        figures.dynamics(table.drop(columns=["epoch", "q_mass"]))
    with pytest.raises(UsageError, match=r"layer 'backbone\.layer0\.conv0' twice at epoch 0"):
        figures.dynamics(pd.concat([table, table]))
    with pytest.raises(
        UsageError, match="no layer has a value of bias, l2; there are values of neg"
    ):
        figures.dynamics(table, statistics=["bias", "negative_mass", "l2"])
    with pytest.raises(UsageError, match="no layer has a value of any statistic; there are values"):
        figures.dynamics(table[:0])


# Animation


@pytest.fixture(scope="module")
def film(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.gif"
    figures.animate(run, path, fps=5)
    return path


def test_a_film_has_a_frame_a_snapshot_and_holds_the_last(film):
    with Image.open(film) as image:
        assert image.n_frames == 3
        assert image.size == (round(3.35 * 200), round((8 * 0.3 + 0.75) * 200))
        assert durations(image) == [200, 200, 2200]
    assert film.stat().st_size < 200_000


def durations(image) -> list[int]:
    found = []
    for frame in range(image.n_frames):
        image.seek(frame)
        found.append(image.info["duration"])
    return found


def test_frames_differ_in_what_moves_and_share_their_axes(film):
    with Image.open(film) as image:
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("L")))
    for frame in frames[1:]:
        assert np.any(frame[:40] != frames[0][:40])  # the title
        # The axis with its label, and the names of the layers; each frame has a palette of its own.
        assert np.abs(frame[-90:].astype(int) - frames[0][-90:]).max() < 32
        assert np.abs(frame[100:, :110].astype(int) - frames[0][100:, :110]).max() < 32


def test_the_filters_of_the_snapshots_are_those_that_were_measured(run):
    table = run.measurements.set_index(["epoch", "layer"])
    measured = animation._measure(run, None)
    assert list(measured) == [0, 1, 2]
    for epoch, measurement in measured.items():
        for layer in measurement.layers:
            row = table.loc[(epoch, layer.name)]
            assert layer.negative_mass == row["negative_mass"]
            assert layer.mean_cosine == pytest.approx(row["mean_cosine"], rel=1e-6, abs=1e-9)
            assert bool(layer.biased) == bool(row["biased"])


def test_each_frame_has_the_histograms_of_its_snapshot_in_bins_and_a_scale_that_stay(run):
    measured = animation._measure(run, None)
    frames, laws = animation._frames(run, measured)
    assert len(laws) == 8
    for frame, measurement in zip(frames, measured.values(), strict=True):
        for i, (layer, outline) in enumerate(zip(measurement.layers, frame.outlines, strict=True)):
            edges, heights = outline[::2, 0], outline[0, 1] - outline[1:-1:2, 1]
            assert_array_equal(edges, frames[0].outlines[i][::2, 0])
            counts, _ = np.histogram(layer.values.cosine[layer.values.usable], edges)
            assert counts.sum() == layer.filters
            unit = np.sum(heights * np.diff(edges))
            assert_allclose(heights, unit * counts / counts.sum() / np.diff(edges), atol=1e-9)
            law = chance.cosine_density(laws[i][:, 0], layer.fan_in)
            assert_allclose(outline[0, 1] - laws[i][:, 1], unit * law, rtol=1e-6, atol=1e-9)


def test_titles_say_the_epoch_and_its_accuracy(run):
    frames, _ = animation._frames(run, animation._measure(run, None))
    for frame, row in zip(frames, run.metrics, strict=True):
        accuracy = 100 * row.val_accuracy
        assert frame.title == f"epoch {row.epoch}, validation accuracy {accuracy:.1f} %"


@pytest.mark.parametrize("layers", [6, 20, 50])
@pytest.mark.parametrize("width", [2.5, 3.35, 6.9])
def test_no_text_of_a_film_is_cut_off_and_no_names_overlap(layers, width):
    shots = [network(layers, epoch) for epoch in (0, 10)]
    figure = animation._backdrop(shots, [], width, "epoch")
    assert_inside(figure)
    assert figure.get_figheight() < 5.3
    names = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    for lower, upper in itertools.pairwise(sorted(names, key=lambda box: box.y0)):
        assert lower.y1 <= upper.y0 + 2.5


def test_the_legend_of_a_film_has_every_look_from_its_first_frame_on():
    figure = animation._backdrop([network(3, 0)], [], 3.35, "epoch")
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    looks = [kind.label for kind in (AWAY_BIASED, TOWARD_BIASED, UNBIASED)]
    assert entries[:4] == [*looks, "chance, density"]


def test_the_same_run_gives_the_same_film_whatever_the_settings_are(run, film, tmp_path):
    own = {"savefig.bbox": "tight", "font.size": 30, "savefig.facecolor": "red"}
    with mpl.rc_context(own):
        figures.animate(run.path, tmp_path / "again.gif", fps=5)
    assert (tmp_path / "again.gif").read_bytes() == film.read_bytes()


def test_progress_is_told_by_snapshots(run, tmp_path):
    told = []
    figures.animate(run, tmp_path / "film.gif", progress=lambda *state: told.append(state))
    assert told == [(0, 3, "epoch 0"), (1, 3, "epoch 1"), (2, 3, "epoch 2")]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg")
def test_an_mp4_is_written_by_ffmpeg(run, tmp_path):
    figures.animate(run, tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_without_ffmpeg_an_mp4_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"needs the program ffmpeg.*or write a \.gif"):
        figures.animate(run, tmp_path / "film.mp4")


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")
def test_an_ffmpeg_that_fails_is_told_and_leaves_nothing(run, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    shell, cat = shutil.which("sh"), shutil.which("cat")
    program.write_text(f"#!{shell}\n{cat} > /dev/null; echo no x264 >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OutputError, match=r"film\.mp4: ffmpeg could not write it: no x264"):
        figures.animate(run, tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == [program]


@pytest.mark.parametrize(("options", "sentence"), [
    ({"fps": 0}, "fps 0: give frames a second, from 1 to 50"),
    ({"fps": 51}, "fps 51"),
    ({"fps": float("nan")}, "fps nan"),
    ({"width": "wide"}, "give 'column', 'page' or inches"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(run, tmp_path, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        figures.animate(run, tmp_path / "film.gif", **options)


def test_a_film_has_a_suffix_a_folder_and_snapshots(run, tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.gif or \.mp4"):
        figures.animate(run, tmp_path / "film.png")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        figures.animate(run, tmp_path / "missing" / "film.gif")
    copy = shutil.copytree(run.path, tmp_path / "copy")
    for snapshot in (copy / "snapshots").iterdir():
        snapshot.unlink()
    with pytest.raises(CheckpointError, match="copy: has no snapshots to animate"):
        figures.animate(copy, tmp_path / "film.gif")
    assert list(tmp_path.iterdir()) == [copy]
