"""What the figures draw is what was measured, and it can be read and printed."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from drawn_text import assert_inside, texts
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PolyCollection
from numpy.testing import assert_allclose, assert_array_equal

from planescope import figures
from planescope.figures.layers import AWAY_BIASED, POOL, TOWARD_BIASED, UNBIASED
from planescope.figures.portrait import half_lines
from planescope.files.errors import NoLayersError, OutputError, UsageError
from planescope.hyperplanes import chance, geometry
from planescope.hyperplanes.layer import Kind, Layer, Tensor
from planescope.measurement.assemble import measure_layers
from planescope.measurement.measure import measure
from planescope.measurement.record import Measurement, Source, load

# Matplotlib warns where a layout has no room or a glyph is missing.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

LENET = Path(__file__).parents[1] / "parity" / "lenet-epoch-12.tar"
WIDTHS = ("column", "page")
ODD_NAMES = (
    "a_$x_1$",
    "b^{2}$",
    "<script>&amp;",
    "слой.Größe",
    r"back\slash",
    "two\nlines",
    "x" * 99,
)


def layer(name: str, weight, bias=None, stage: int | None = None) -> Layer:
    weight = np.asarray(weight, dtype=np.float64)
    stored = None
    if bias is not None:
        stored = Tensor((len(weight),), "float64", lambda: np.asarray(bias, dtype=np.float64))
    tensor = Tensor(weight.shape, "float64", lambda: weight)
    return Layer(name=name, kind=Kind.CONV, weight=tensor, bias=stored, stage=stage)


def network(layers) -> Measurement:
    return measure_layers(layers, source=Source(path="net.npz", format="npz", bytes=1))


def deep(count: int) -> Measurement:
    """A network that grows more biased with depth, away from the orthant and then toward it."""
    rng = np.random.default_rng(count)
    shift = np.linspace(0.0, 0.5, count) * np.where(np.arange(count) % 3, -1, 1)
    return network(
        layer(
            f"backbone.layer{i}.conv{i % 3}",
            rng.normal(s, 1.0, (48, 2, 3, 3)),
            rng.normal(size=48),
            stage=i // 5,
        )
        for i, s in enumerate(shift)
    )


@pytest.fixture(scope="module")
def damaged() -> Measurement:
    """Layers of every kind that a portrait and a density can trip over."""
    rng = np.random.default_rng(7)
    holes = rng.normal(size=(40, 1, 3, 3))
    holes[:3], holes[3:5] = 0.0, np.nan
    parallel = np.tile([1.0, -1.0], (6, 1, 1))
    parallel[0] = [2.0, 1.0]
    return network([
        layer("holes", holes, rng.normal(size=40), 0),
        layer("dead", np.zeros((4, 1, 3, 3)), None, 0),
        layer("one", rng.normal(size=(1, 1, 2)), [1.0], 1),
        layer("same", np.ones((8, 1, 3, 3)), np.full(8, -2.0), 1),
        layer("depthwise-1x1", rng.normal(size=(9, 1, 1, 1)), rng.normal(size=9), 2),
        layer("parallel", parallel, np.ones(6), 2),
        layer("far", rng.normal(size=(9, 1, 3, 3)), [1e300, *[1e-3] * 8], 3),
        layer("tiny", rng.normal(size=(9, 1, 3, 3)), [1e-300] * 9, 3),
        layer("no-weights", np.zeros((4, 0, 3, 3)), None, None),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def lenet() -> Measurement:
    return measure(LENET)


def labelled(axes, label: str):
    return [artist for artist in axes.get_children() if artist.get_label() == label]


# Negative masses


@pytest.mark.parametrize("build", [lambda: deep(17), lambda: measure(LENET)], ids=["deep", "lenet"])
def test_masses_are_drawn_where_they_are_with_the_look_of_their_bias(build):
    measurement = build()
    (axes,) = figures.negative_mass(measurement).axes
    drawn = {}
    for kind in (AWAY_BIASED, TOWARD_BIASED, UNBIASED, POOL):
        for line in labelled(axes, kind.label):
            assert (line.get_markerfacecolor() != "white") == kind.filled
            assert line.get_marker() == kind.marker
            drawn |= {round(y): (x, kind) for x, y in line.get_xydata()}
    masses = [drawn[i][0] for i in range(len(drawn))]
    wanted = [*measurement.layers, measurement.network]
    assert masses == [row.negative_mass for row in wanted]
    for (mass, kind), one in zip(
        (drawn[i] for i in range(len(drawn) - 1)), measurement.layers, strict=True
    ):
        assert kind.filled == one.biased
        assert kind == UNBIASED or (kind == AWAY_BIASED) == (mass > 0.5)
    assert drawn[len(wanted) - 1][1] == POOL


def test_the_bands_are_those_of_chance_for_the_usable_filters(damaged):
    (axes,) = figures.negative_mass(damaged).axes
    (band,) = labelled(axes, "chance, 95 %")
    rows = [*damaged.layers, damaged.network]
    tested = chance.called_level([layer.p_mass for layer in damaged.layers])
    levels = [*[tested] * len(damaged.layers), chance.LEVEL]
    corners = band.get_paths()[0].vertices
    for i, (row, level) in enumerate(zip(rows, levels, strict=True)):
        usable = row.filters - row.degenerate - row.non_finite - row.sideless
        wanted = chance.mass_band(usable, level=1 - level) if usable else (0.5, 0.5)
        inside = corners[np.abs(corners[:, 1] - i) <= 0.5, 0]
        assert {wanted[0], wanted[1]} <= set(inside)


def test_rows_run_down_in_the_order_of_the_network_and_the_pool_is_last(lenet):
    (axes,) = figures.negative_mass(lenet).axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [*(one.name for one in lenet.layers), "all layers"]
    assert axes.yaxis_inverted()


def test_layers_with_filters_left_out_have_a_dagger_and_layers_without_usable_ones_say_none(
    damaged,
):
    figure = figures.negative_mass(damaged)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert [name for name in names if name.endswith("†")] == [
        *("holes †", "dead †", "parallel †", "no-weights †")
    ]
    drawn = [text.get_text() for text in texts(figure)]
    assert drawn.count("none") == 2
    assert "† filters left out" in drawn


def test_stages_are_parted_and_named(damaged):
    drawn = [text.get_text() for text in texts(figures.negative_mass(damaged))]
    assert [text for text in drawn if text.startswith("stage")] == [f"stage {i}" for i in range(4)]


# Cosines


def test_histograms_and_laws_are_those_of_the_layers_in_one_scale():
    measurement = deep(10)
    (axes,) = figures.cosines(measurement).axes
    (laws,) = labelled(axes, "chance, density")
    outlines = [path.vertices for polygons in histograms(axes) for path in polygons.get_paths()]
    assert len(outlines) == len(measurement.layers)
    for outline in outlines:
        row = math.floor(outline[:, 1].max())
        one, law = measurement.layers[row], laws.get_paths()[row].vertices
        base = outline[0, 1]
        heights, edges = base - outline[2:-2:2, 1], outline[:-1:2, 0]
        counts, _ = np.histogram(one.values.cosine, edges)
        assert counts.sum() == one.filters
        # The area of the histogram is 1 in the unit in which the law's heights are its density.
        unit = np.sum(heights * np.diff(edges))
        assert_allclose(heights, unit * counts / counts.sum() / np.diff(edges), atol=1e-9)
        density = chance.cosine_density(law[:, 0], one.fan_in)
        assert_allclose(base - law[:, 1], unit * density, rtol=1e-6, atol=1e-9)


def histograms(axes) -> list[PolyCollection]:
    labels = {kind.label for kind in (AWAY_BIASED, TOWARD_BIASED, UNBIASED)}
    return [c for c in axes.collections if c.get_label() in labels]


def test_biased_layers_have_filled_histograms_of_their_own_colour():
    measurement = deep(10)
    (axes,) = figures.cosines(measurement).axes
    counts = {polygons.get_label(): len(polygons.get_paths()) for polygons in histograms(axes)}
    biased = [one for one in measurement.layers if one.biased]
    away = sum(one.negative_mass > 0.5 for one in biased)
    assert counts == {
        AWAY_BIASED.label: away,
        TOWARD_BIASED.label: len(biased) - away,
        UNBIASED.label: len(measurement.layers) - len(biased),
    }


def test_many_layers_stand_in_two_columns_where_there_is_room():
    measurement = deep(31)
    assert [len(figures.cosines(measurement, width=width).axes) for width in WIDTHS] == [1, 2]
    left, right = figures.cosines(measurement, width="page").axes
    assert (len(left.get_yticks()), len(right.get_yticks())) == (16, 15)
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()


# The portrait


def test_each_half_line_lies_in_its_own_hyperplane():
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(7, 5)), rng.normal(size=7)
    measurement = network([layer("one", weight[:, None, :], bias)])
    (axes,) = figures.portrait(measurement, "one").axes
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    drawn = np.concatenate([c.get_segments() for c in lines if len(c.get_segments())])
    crossing = geometry.crossing(geometry.projection(weight), bias) * math.sqrt(5)
    low, high = axes.get_xlim()
    assert len(drawn) >= np.count_nonzero((low <= crossing) & (crossing <= high))
    for begin, end in drawn:
        residual = [np.abs(z(weight[i], bias[i], begin)) + np.abs(z(weight[i], bias[i], end))
                    for i in range(7)]  # fmt: skip
        i = int(np.argmin(residual))
        assert residual[i] < 1e-9
        # Above the half-line the filter is active.
        assert z(weight[i], bias[i], 0.5 * (begin + end) + [0.0, 0.1]) > 0


def z(w, b, point):
    """Preactivation at the point x along the identity line, y from it toward the normal."""
    e = np.ones_like(w) / math.sqrt(len(w))
    u = w - (w @ e) * e
    return w @ (point[0] * e + point[1] * u / np.linalg.norm(u)) + b


def test_triangles_on_the_axis_point_to_the_active_side(lenet):
    one = lenet.layers[2]
    (axes,) = figures.portrait(lenet, one.name).axes
    scale = math.sqrt(one.fan_in)
    for line in axes.lines:
        toward = {">": 1, "<": -1}[line.get_marker()]
        for x, y in line.get_xydata():
            assert y == 0
            i = int(np.argmin(np.abs(one.values.crossing * scale - x)))
            t = x / scale + toward
            assert one.values.projection[i] * t + one.values.bias[i] > 0


def test_the_legend_counts_the_filters_of_each_side(lenet):
    one = lenet.layers[2]
    (axes,) = figures.portrait(lenet, one.name).axes
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    positive = int(np.count_nonzero(one.values.projection > 0))
    assert entries[:2] == [f"π > 0 ({positive})", f"π < 0 ({one.filters - positive})"]


@pytest.mark.parametrize(("name", "caption"), [
    ("holes", r"\d+ cross outside, 3 degenerate, 2 non-finite"),
    ("dead", "4 degenerate"),
    ("parallel", "5 parallel to the line"),
    ("far", "1 cross outside|1 parallel to the line"),
    ("no-weights", "4 degenerate"),
])  # fmt: skip
def test_the_caption_counts_what_is_not_drawn(damaged, name, caption):
    (axes,) = figures.portrait(damaged, name).axes
    assert re.search(caption, axes.get_xlabel())


def test_angles_are_true_unless_the_caption_says_how_far_heights_are_stretched(lenet, damaged):
    for measurement in (lenet, damaged):
        for one in measurement.layers:
            (axes,) = figures.portrait(measurement, one.name).axes
            (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            box = axes.get_window_extent()
            stretch = (box.height / (top - bottom)) / (box.width / (high - low))
            said = re.search(r"heights × ([\d.]+)", axes.get_xlabel())
            assert stretch == pytest.approx(float(said[1]) if said else 1.0, rel=0.05)


def test_a_layer_without_biases_is_a_fan_from_the_origin():
    weight = np.random.default_rng(0).normal(size=(12, 1, 3, 3))
    (axes,) = figures.portrait(network([layer("fan", weight)]), "fan").axes
    segments = np.concatenate([c.get_segments() for c in axes.collections[:2]])
    assert len(segments) == 12
    assert_array_equal(segments[:, 0], 0.0)


@pytest.mark.parametrize("fan_in", [2, 3, 9])
def test_the_dark_cone_lies_in_the_orthant_and_the_light_one_holds_it(fan_in):
    rng = np.random.default_rng(fan_in)
    (axes,) = figures.portrait(network([layer("one", rng.normal(size=(5, 1, fan_in)))]), "one").axes
    slopes = {}
    for cone in axes.collections[2:]:
        x, y = cone.get_paths()[0].vertices.max(axis=0)
        slopes[cone.get_label()] = y / x
    points = np.abs(rng.normal(size=(1000, fan_in)))
    assert np.all(steepness(points) <= slopes["partly in it"])
    assert steepness(np.eye(fan_in)) == pytest.approx(slopes["partly in it"])
    anywhere = rng.normal(0.5, 1.0, size=(20000, fan_in))
    in_cone = (anywhere.sum(axis=1) > 0) & (steepness(anywhere) <= slopes["in the orthant"])
    assert in_cone.any()
    assert np.all(anywhere[in_cone] >= 0)
    on_a_face = np.ones(fan_in) - np.eye(fan_in)
    assert steepness(on_a_face) == pytest.approx(slopes["in the orthant"])


def steepness(points):
    """Distance from the identity line over the coordinate along it."""
    along = points.sum(axis=1) / math.sqrt(points.shape[1])
    return np.sqrt(np.maximum(0, (points**2).sum(axis=1) - along**2)) / np.abs(along)


@given(st.floats(-1, 1).filter(lambda c: abs(c) > 1e-6), st.floats(-5, 5), st.floats(0.1, 10))
def test_what_is_seen_of_a_half_line_is_inside_the_view_and_on_it(c, s, top):
    low, high = -3.0, 4.0
    (line,) = half_lines(np.array([c]), np.array([s]), low, high, top)
    rise = math.sqrt(1 - c * c)
    # By brute force: is any of its points in the view?
    y = np.linspace(0, top, 2001)[1:-1]
    x = -(s + rise * y) / c
    if np.any((x > low) & (x < high)):
        assert np.all(np.isfinite(line))
    if np.isnan(line).any():
        return
    assert np.all((line[:, 0] >= low - 1e-9) & (line[:, 0] <= high + 1e-9))
    assert np.all((line[:, 1] >= 0) & (line[:, 1] <= top))
    assert_allclose(c * line[:, 0] + rise * line[:, 1] + s, 0, atol=1e-9)


# Theory


@pytest.mark.parametrize("width", WIDTHS)
def test_the_theory_shows_that_interior_rows_agree_and_border_rows_do_not(width):
    panels = np.array(figures.theory(width=width).axes).reshape(2, 3)
    for column in (1, 2):
        agreed = [points(panels[0, column])[kind] for kind in ("blue", "red")]
        assert all(np.ptp(values) < 1e-9 and len(values) == 25 for values in agreed)
        zero = points(panels[1, column])
        for i, kind in enumerate(("blue", "red")):
            assert_allclose(zero[kind], agreed[i][0])
            assert len(zero[kind]) == 9  # of 5x5 positions, 3x3 lie inside
            assert len(zero[f"{kind} border"]) == 16
            assert np.ptp(zero[f"{kind} border"]) > 0.1


def points(axes) -> dict[str, np.ndarray]:
    """Values of the points by filter, hollow ones apart."""
    names = {"#0072B2": "blue", "#D55E00": "red"}
    found = {}
    for line in axes.lines[:-1]:
        hollow = " border" * (line.get_markerfacecolor() == "white")
        found[names[line.get_color()] + hollow] = line.get_xdata()
    return found


# The overview


@pytest.mark.parametrize("width", WIDTHS)
def test_the_overview_shows_the_masses_the_cosines_and_the_most_biased_layer(lenet, width):
    figure = figures.overview(lenet, width=width)
    masses, ridges, portrait = figure.axes
    assert masses.get_xlabel() == "negative mass m"
    assert ridges.get_xlabel() == "cosine c"
    strongest = max(lenet.layers, key=lambda one: (one.agreement, one.filters))
    assert portrait.get_legend().get_title().get_text().startswith(strongest.name)
    drawn = [text.get_text() for text in texts(figure)]
    assert {"a", "b", "c"} <= set(drawn)
    assert f"{LENET.name}: 6 of 6 layers biased" in drawn
    assert masses.get_ylim() == ridges.get_ylim()


# What can be read


def every_figure(measurement, width):
    yield figures.negative_mass(measurement, width=width)
    yield figures.cosines(measurement, width=width)
    yield figures.overview(measurement, width=width)
    yield figures.portrait(measurement, measurement.layers[0].name, width=width)


@pytest.mark.parametrize(("layers", "width"), [
    (1, "column"), (6, "page"), (6, 2.5), (17, "page"), (50, "column"), (50, "page"),
])  # fmt: skip
def test_no_text_is_cut_off_and_no_names_overlap(layers, width):
    for figure in [*every_figure(deep(layers), width), figures.theory(width=width)]:
        _assert_readable(figure)


@pytest.mark.parametrize("width", WIDTHS)
def test_damaged_layers_are_drawn_as_legibly(damaged, width):
    for figure in every_figure(damaged, width):
        _assert_readable(figure)
    for one in damaged.layers:
        _assert_readable(figures.portrait(damaged, one.name, width=width))


def _assert_readable(figure):
    assert_inside(figure)
    for axes in figure.axes:
        names = [tick.get_window_extent() for tick in axes.get_yticklabels() if tick.get_text()]
        for lower, upper in itertools.pairwise(sorted(names, key=lambda box: box.y0)):
            assert lower.y1 <= upper.y0 + 2.5


def test_a_page_holds_any_number_of_layers():
    measurement = deep(150)
    figure = figures.negative_mass(measurement)
    assert figure.get_size_inches()[1] < 9.5
    _assert_readable(figure)
    named = figure.axes[0].get_yticklabels()
    assert 60 < len(named) < 80
    assert named[-1].get_text() == "all layers"


def test_names_are_drawn_as_text_whatever_signs_they_hold(tmp_path):
    rng = np.random.default_rng(0)
    measurement = network(layer(name, rng.normal(size=(8, 1, 3, 3))) for name in ODD_NAMES)
    for figure in every_figure(measurement, "page"):
        assert not any(text.get_parse_math() for text in texts(figure))
        figures.save(figure, tmp_path / "figure.svg")
    names = [tick.get_text() for tick in figures.cosines(measurement).axes[0].get_yticklabels()]
    assert names[:5] == list(ODD_NAMES[:5])
    assert names[5] == "two\N{REPLACEMENT CHARACTER}lines"
    assert re.fullmatch("x{14}…x{15}", names[6])


# Files and settings


def test_pdf_embeds_truetype_fonts(lenet, tmp_path):
    figures.save(figures.overview(lenet), tmp_path / "figure.pdf")
    data = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in data
    assert b"/Type3" not in data


def test_svg_needs_no_font(lenet, tmp_path):
    figures.save(figures.overview(lenet), tmp_path / "figure.svg")
    assert "<text" not in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_png_has_300_dots_an_inch(lenet, tmp_path):
    from PIL import Image

    figures.save(figures.portrait(lenet, lenet.layers[0].name), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == round(3.35 * 300)


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_the_same_figure_gives_the_same_bytes(lenet, tmp_path, suffix):
    figure = figures.cosines(lenet)
    drawn = (figure, figure, figures.cosines(lenet))
    files = [tmp_path / f"{i}.{suffix}" for i in range(3)]
    for one, path in zip(drawn, files, strict=True):
        figures.save(one, path)
    first, *others = (path.read_bytes() for path in files)
    assert all(other == first for other in others)
    assert not re.search(rb"CreationDate|dc:date", first)


def test_settings_of_the_user_neither_change_a_figure_nor_are_changed(lenet, tmp_path):
    figures.save(figures.cosines(lenet), tmp_path / "plain.png")
    own = {"font.size": 30, "axes.grid": True, "text.parse_math": True, "pdf.fonttype": 3}
    with mpl.rc_context(own):
        before = settings()
        figures.save(figures.cosines(lenet), tmp_path / "own.png")
        assert settings() == before
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def settings() -> dict:
    # To look at the backend is to choose one.
    return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}


def test_the_style_can_be_used_by_its_name():
    from matplotlib import style

    with style.context("planescope.figures.planescope"):
        assert mpl.rcParams["pdf.fonttype"] == 42


def test_importing_costs_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    program = f"""
import sys
from planescope import figures
assert "matplotlib" not in sys.modules
from planescope.measurement.measure import measure
figures.save(figures.overview(measure({str(LENET)!r})), {str(tmp_path / "figure.pdf")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# Errors


def test_a_loaded_measurement_has_masses_and_no_filters(lenet, tmp_path):
    lenet.save(tmp_path / "lenet.json")
    loaded = load(tmp_path / "lenet.json")
    figures.negative_mass(loaded)
    for draw in (figures.cosines, figures.overview, lambda m: figures.portrait(m, "features.0")):
        with pytest.raises(NoLayersError, match="no values of single filters; measure the"):
            draw(loaded)


def test_an_unknown_layer_is_told_with_those_near_it(lenet):
    with pytest.raises(
        UsageError, match=r"no layer 'features.1' was measured; near it are features.1"
    ):
        figures.portrait(lenet, "features.1")


@pytest.mark.parametrize("width", ["wide", 0, -3.0, 1e9, float("nan"), None])
def test_a_width_that_cannot_be_is_refused(lenet, width):
    with pytest.raises(UsageError, match=r"give 'column', 'page' or inches from 2.5 to 30"):
        figures.negative_mass(lenet, width=width)


def test_a_figure_is_written_whole_or_not_at_all(tmp_path):
    figure = figures.theory()
    with pytest.raises(UsageError, match=r"must end in .pdf, .svg or .png"):
        figures.save(figure, tmp_path / "figure.gif")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        figures.save(figure, tmp_path / "missing" / "figure.pdf")
    assert list(tmp_path.iterdir()) == []
