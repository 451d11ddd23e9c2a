"""The page: its numbers are those that were measured, and nothing in a file becomes markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from report_runs import EPOCHS, HOSTILE, MARKUP, NAMES, make_run, resets_of, weights
from torch import nn

import planescope as ps
from planescope.cli import main
from planescope.criticality.definition import decide
from planescope.criticality.relation.record import RelatedLayer
from planescope.criticality.relation.relate import relate_layers
from planescope.criticality.scores import SCORES
from planescope.figures.report import filters as filters_module
from planescope.figures.report.gather import BAND, STATISTICS
from planescope.figures.report.render import embedded
from planescope.figures.report.watch import watch
from planescope.files.errors import OutputError, UsageError, printable
from planescope.hyperplanes import chance
from planescope.hyperplanes.layer import Input, Kind
from planescope.training.config import RunConfig
from planescope.training.folder.status import State, Status
from planescope.training.run import Run

LENET = "tests/parity/lenet-epoch-12.tar"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "lenet-on-digits")


@pytest.fixture(scope="module")
def page(run) -> ps.Report:
    return ps.report(run.path, command="planescope report 'lenet-on-digits'")


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of each script by its id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id", "module") if tag == "script" else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.texts[self._script] = self.texts.get(self._script, "") + data


# What it shows


def test_statistics_through_the_epochs_are_those_of_the_run(page, run):
    network = page.contents.networks[0]
    assert network.epochs == EPOCHS
    assert [layer.name for layer in network.layers] == list(map(printable, NAMES))
    for epoch, layers in enumerate(run.measured_layers.values()):
        level = chance.called_level([layer.p_mass for layer in layers])
        bands = [chance.mass_band(layer.filters, level=1 - level) for layer in layers]
        for side, key in enumerate(BAND):
            assert_allclose(
                network.statistics[key][epoch], [band[side] for band in bands], rtol=5e-6
            )
        for key, table in network.statistics.items():
            if key in BAND:
                continue
            expected = [getattr(layer, key) for layer in layers]
            if isinstance(expected[0], float):
                assert_allclose(table[epoch], expected, rtol=5e-6, atol=0)  # six digits
            else:
                assert table[epoch] == expected
    assert set(network.statistics) <= {*STATISTICS, *BAND}


def test_all_filters_together_are_the_pool_of_the_measurement(page):
    for epoch, number in enumerate(EPOCHS):
        pool = ps.measure(weights(number)).network
        shown = {key: column[epoch] for key, column in page.contents.networks[0].pool.items()}
        assert (shown["filters"], shown["biased"]) == (pool.filters, pool.biased_layers)
        for key in ("negative_mass", "mean_cosine", "z"):
            assert shown[key] == pytest.approx(getattr(pool, key), rel=1e-5)


def test_the_verdict_is_that_of_the_measurement(page):
    assert page.contents.networks[0].verdict == printable(ps.measure(weights(EPOCHS[-1])).verdict)


def test_histograms_count_each_filter_once_in_bins_that_stay(page):
    shown = page.contents.networks[0].filters
    for i, name in enumerate(NAMES):
        histogram = shown.histograms[i]
        edges = histogram.low + histogram.width * np.arange(len(histogram.counts[0]) + 1)
        for epoch, number in enumerate(EPOCHS):
            cosine = ps.measure(weights(number)).layers[i].values.cosine
            assert sum(histogram.counts[epoch]) == len(cosine) == 16 + 8 * i
            # The kept cosines are in single precision: one at an edge may fall on its other side.
            moved = np.abs(np.histogram(cosine, edges)[0] - histogram.counts[epoch]).sum()
            assert moved <= 2, name


def test_portraits_have_each_filter_of_a_small_layer(page):
    measured = ps.measure(weights(EPOCHS[-1]))
    for portrait, layer in zip(
        page.contents.networks[0].filters.portraits, measured.layers, strict=True
    ):
        assert_allclose(portrait.cosine[-1], layer.values.cosine, rtol=6e-4)
        assert_allclose(portrait.offset[-1], layer.values.offset, rtol=6e-4)


def test_of_many_filters_some_are_drawn_the_same_at_every_epoch(run, monkeypatch):
    monkeypatch.setattr(filters_module, "MOST_BEFORE", 120)
    monkeypatch.setattr(filters_module, "MOST_OF_A_LAYER", 32)
    shown = ps.report(run).contents.networks[0].filters
    count = len(shown.portraits[4].cosine[0])
    assert 0 < 3 * sum(min(count, 16 + 8 * i) for i in range(5)) <= 120
    assert [len(p.cosine[-1]) for p in shown.portraits] == [16, 24, 32, 32, 32]
    kept = run.load_filters(EPOCHS[0])["features.10"][0]
    assert_allclose(shown.portraits[4].cosine[0], kept[np.arange(count) * 48 // count], rtol=6e-4)


def test_filters_without_a_hyperplane_are_left_out(tmp_path):
    state = weights(0)
    state["features.0.weight"][3] = 0.0
    state["features.0.weight"][4, 0, 0, 0] = np.nan
    shown = ps.report(ps.measure(state)).contents.networks[0]
    assert (shown.statistics["degenerate"][0][0], shown.statistics["non_finite"][0][0]) == (1, 1)
    assert [i for i, c in enumerate(shown.filters.portraits[0].cosine[0]) if c is None] == [3, 4]
    assert sum(shown.filters.histograms[0].counts[0]) == 14


def test_a_loaded_measurement_has_no_filters_and_a_page_all_the_same(tmp_path):
    ps.measure(LENET).save(tmp_path / "lenet.json")
    network = ps.report(tmp_path / "lenet.json").contents.networks[0]
    assert network.name == "lenet"
    assert network.filters.histograms == (None,) * 6
    assert len(network.statistics["negative_mass"][0]) == 6


def test_a_live_module_is_shown_and_left_as_it_is():
    import torch

    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = ps.report(module).contents.networks[0]
    assert [layer.filters for layer in network.layers] == [8, 4]
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_run_that_kept_no_filters_has_those_of_its_last_snapshot(tmp_path):
    import torch

    state = torch.load(LENET, weights_only=False)["model_state_dict"]
    run = Run.create(tmp_path / "old", RunConfig(network="lenet", epochs=3))
    for epoch in (0, 3):
        run.save_snapshot(epoch, state, {"network": "lenet"})
        run.add_measurement(epoch, ps.measure(LENET, network="lenet"))
    shutil.rmtree(run.path / "filters")
    shown = ps.report(run).contents.networks[0].filters
    assert [counts is not None for counts in shown.histograms[5].counts] == [False, True]
    assert_allclose(
        shown.portraits[5].cosine[1], ps.measure(LENET).layers[5].values.cosine, rtol=6e-4
    )


def test_resets_are_shown_as_their_own_table_does(page, run):
    shown, resets = page.contents.networks[0].resets, ps.Resets.load(run.resets)
    assert shown.verdict == resets.verdict
    assert shown.layers == (0, 1, 2, 3, 4)
    assert shown.columns == resets.snapshots == (0, 1, "rand")
    for texts, values, row in zip(shown.texts, shown.values, resets.rows, strict=True):
        assert texts == [resets.shown(row, column) for column in shown.columns]
        assert values == pytest.approx([100 * resets.drop(row, c)[0] for c in shown.columns])


def test_without_a_relation_scores_stand_beside_the_drops_of_epoch_0(page, run):
    relation, last = page.contents.networks[0].relation, run.measured_layers[EPOCHS[-1]]
    assert (relation.verdict, relation.runs, relation.column) == (None, 0, 0)
    assert [drop[0] for drop in relation.drops] == pytest.approx([0, 10, 20, 30, 40])
    scores = {score.key: score.values for score in relation.scores}
    assert scores["agreement"] == pytest.approx([layer.agreement for layer in last], rel=1e-5)
    assert scores["position"] == [0, 0.25, 0.5, 0.75, 1]
    assert "mean_centre" not in scores  # no norm, so no layer has one


def relation_of(run: Run) -> ps.Relation:
    """Advice and numbers by `relate_layers`, from scores that are made up."""
    related = [
        RelatedLayer(
            run=str(run.path), network="lenet", name=name, kind=Kind.CONV,
            input=Input.RELU if i else Input.IMAGE, biased=bool(i % 2),
            relative_drop=i / 10, relative_drop_low=i / 10 - 0.02, relative_drop_high=i / 10 + 0.02,
            loss=i / 9, loss_low=i / 9 - 0.02, loss_high=i / 9 + 0.02,
            critical=decide(i / 9 - 0.02, i / 9 + 0.02),
            scores=dict.fromkeys(SCORES) | {"agreement": i / 4, "position": i / 4, "random": 0.5},
        )
        for i, name in enumerate(NAMES)
    ]  # fmt: skip
    return relate_layers(related, draws=99)


@pytest.mark.parametrize("kept", [True, False], ids=["in-the-run", "given"])
def test_a_relation_is_shown_with_its_numbers_and_advice(tmp_path, kept):
    run = make_run(tmp_path / "run")
    relation = relation_of(run)
    relation.save(run.relation if kept else tmp_path / "relation.json")
    report = ps.report(run.path) if kept else ps.report(run.path, tmp_path / "relation.json")
    (network,) = report.contents.networks
    shown = network.relation
    assert shown.verdict == printable(relation.verdict)
    assert shown.drops[3] == pytest.approx((30, 28, 32))
    found = relation.at("agreement", relation.selection)
    association = next(s.association for s in shown.scores if s.key == "agreement")
    assert association["rho"] == pytest.approx(found.rho)
    assert shown.decisions == ["not critical", "undecided", *["critical"] * 3]


def test_resets_that_came_apart_from_a_checkpoint_find_it(tmp_path):
    run = make_run(tmp_path / "run", resets=False)
    resets_of(run).save(tmp_path / "resets.json")
    ps.measure(weights(5)).save(tmp_path / "trained.json")
    (network,) = ps.report(tmp_path / "trained.json", tmp_path / "resets.json").contents.networks
    assert network.resets.rows == tuple(map(printable, NAMES))


def test_several_networks_have_names_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        make_run(tmp_path / folder / "run")
    report = ps.report(tmp_path / "a" / "run", tmp_path / "b" / "run", LENET)
    names = [network.name for network in report.contents.networks]
    assert names == ["run", "run-2", "lenet-epoch-12"]


def test_of_several_networks_only_layers_behind_a_relu_are_counted(tmp_path):
    """One is turned in the layer that reads the image, the other in the one behind the ReLU."""
    for name, turned in (("image", 0), ("inner", 2)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
        with torch.no_grad():
            net[turned].weight.copy_(-net[turned].weight.abs())
        ps.measure(net).save(tmp_path / f"{name}.json")
    report = ps.report(tmp_path / "image.json", tmp_path / "inner.json")
    assert [network.pool["biased"] for network in report.contents.networks] == [[1], [1]]
    assert report.contents.verdict == (
        "In 1 of 2 networks layers behind a ReLU are biased beyond chance (by mass, corrected "
        "p < 0.05); most of all in inner, where 1 of 1 are."
    )


# The file


def test_the_page_is_its_contents_and_stays_small(page):
    texts = Elements(page.html).texts
    assert json.loads(texts["contents"]) == json.loads(page.contents.to_json())
    packed = base64.b64decode(texts["plotly"])
    assert b"plotly.js v" in gzip.decompress(packed)[:200]
    assert len(page.html) < 2.5 * 2**20


def test_the_same_page_twice_is_the_same_bytes(page, run):
    again = ps.report(run.path, command="planescope report 'lenet-on-digits'")
    assert again.html == page.html


def test_nothing_is_asked_for_outside_and_scripts_run_by_their_hash_alone(page):
    elements = Elements(page.html)
    (policy,) = (a["content"] for t, a in elements.tags if a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    scripts = [elements.texts["module"].encode()]
    scripts.append(gzip.decompress(base64.b64decode(elements.texts["plotly"])))
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    for tag, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert all(attributes.get(name, "#")[0] in "#d" for name in ("src", "href")), attributes


def test_names_from_files_become_text(page):
    elements = Elements(page.html)
    kinds = [attributes.get("type") for tag, attributes in elements.tags if tag == "script"]
    assert kinds == ["application/json", "text/plain", "module"]
    assert HOSTILE not in page.html
    assert not any(tag == "b" for tag, _ in elements.tags)
    names = [
        layer["name"] for layer in json.loads(elements.texts["contents"])["networks"][0]["layers"]
    ]
    assert names[2:4] == [HOSTILE, printable(MARKUP)]
    # What turns the direction of writing is shown as a sign of its own.
    label = page.contents.networks[0].layers[3].label
    assert label == "<b>a</b> & %{x} \N{REPLACEMENT CHARACTER}.1"


def test_json_within_a_page_ends_no_element():
    hostile = json.dumps(["</script>", "<!--", "\u2028", "&lt;"], ensure_ascii=False)
    text = embedded(hostile)
    assert json.loads(text) == json.loads(hostile)
    assert not set("<>&\u2028\u2029") & set(text)


def test_a_notebook_shows_the_page_in_a_frame_that_can_reach_nothing(page):
    (frame,) = (a for t, a in Elements(page._repr_html_()).tags if t == "iframe")
    assert frame["srcdoc"] == page.html
    assert frame["sandbox"] == "allow-scripts allow-downloads"


def test_saving_writes_the_page_or_nothing(page, tmp_path):
    page.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page.html
    with pytest.raises(UsageError, match=r"page\.pdf: the name must end in \.html or \.htm"):
        page.save(tmp_path / "page.pdf")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        page.save(tmp_path / "none" / "page.html")
    with pytest.raises(OutputError, match="cannot be written"):
        page.save("/proc/page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


# Following a training

HOLD = """
import sys
from planescope.training.run import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_page_follows_a_run_until_it_ends(tmp_path):
    run = Run.create(tmp_path / "run", RunConfig(epochs=5))
    run.save_status(Status(state=State.RUNNING))
    pages: list[ps.Report] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout.readline().strip() == b"held"
        out = tmp_path / "page.html"
        follower = threading.Thread(
            target=watch, args=(run, out), kwargs={"interval": 0.02, "on_page": pages.append}
        )
        follower.start()
        for number, epoch in enumerate((0, 1, 2), start=1):
            run.add_measurement(epoch, ps.measure(weights(epoch)))
            wait_for(lambda number=number: len(pages) >= number)
            assert json.loads(Elements(out.read_text()).texts["contents"])["follows"]
        trainer.kill()
        follower.join(timeout=30)
    assert not follower.is_alive()
    assert pages[-1].contents.networks[0].epochs == (0, 1, 2)
    assert [page.contents.follows for page in pages] == [True] * (len(pages) - 1) + [False]
    assert out.read_text() == pages[-1].html


def wait_for(met, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


# The command


def planescope(*args, cwd, **environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planescope", "report", *map(str, args)],
        capture_output=True, text=True, cwd=cwd, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_the_command_writes_the_page_and_opens_it(run, tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho \"$1\" > '{tmp_path}/opened'\n")
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    done = planescope(run.path, "--open", "--json", cwd=tmp_path, BROWSER=f"{browser} %s")
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(done.stdout)
    assert written["schema"] == "planescope.report/1"
    assert written["networks"] == [{"name": "lenet-on-digits", "path": str(run.path)}]
    path = tmp_path / "report.html"
    assert written["bytes"] == path.stat().st_size
    wait_for((tmp_path / "opened").exists)
    wait_for(lambda: (tmp_path / "opened").read_text().strip() == path.as_uri())
    assert f"planescope report {run.path} --open --json" in path.read_text()


def test_watching_a_run_that_has_ended_writes_its_page_once(run, tmp_path):
    done = planescope(run.path, "--watch", "--out", "page.html", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "page.html\n")
    assert done.stderr.count("\n") == 1
    assert '"follows":false' in (tmp_path / "page.html").read_text()


def unmeasured(folder):
    return [Run.create(folder / "new", RunConfig()).path]


def other_schema(folder):
    run = make_run(folder / "run")
    columns = run._measured()
    run._save_measured(
        columns | {"schema": ["planescope.run-measurements/9"] * len(columns["schema"])}
    )
    return [run.path]


def mixed_schemas(folder):
    run = make_run(folder / "run")
    columns = run._measured()
    mixed = [*columns["schema"][1:], "planescope.run-measurements/9"]
    run._save_measured(columns | {"schema": mixed})
    return [run.path]


def saved_by_another_version(folder):
    ps.measure(LENET).save(folder / "a.json")
    text = (folder / "a.json").read_text()
    (folder / "b.json").write_text(
        text.replace("planescope.measurement/1", "planescope.measurement/2")
    )
    return [folder / "a.json", folder / "b.json"]


def resets_alone(folder):
    return [make_run(folder / "run").resets]


def resets_of_another(folder):
    runs = [make_run(folder / name) for name in ("a", "b", "c")]
    return [runs[0].path, runs[1].path, runs[2].resets]


def damaged_filters(folder):
    run = make_run(folder / "run")
    (run.path / "filters" / "epoch-0001.safetensors").write_bytes(b"nonsense")
    return [run.path]


OTHER_ROWS = r"holds rows of the schema 'planescope\.run-measurements/9', and this version"
OTHER_FILE = r"b\.json: its schema is 'planescope\.measurement/2', and this version"
RESUME = r"new: nothing was measured yet; planescope train --resume --out \S+ goes on"


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        pytest.param(lambda _: [], "Missing argument", id="nothing"),
        pytest.param(lambda folder: [folder], "holds no model", id="empty-folder"),
        pytest.param(lambda folder: [folder / "none"], "no such file", id="no-such-file"),
        pytest.param(unmeasured, RESUME, id="unmeasured-run"),
        pytest.param(other_schema, OTHER_ROWS, id="other-schema"),
        pytest.param(mixed_schemas, OTHER_ROWS, id="mixed-rows"),
        pytest.param(saved_by_another_version, OTHER_FILE, id="mixed-files"),
        pytest.param(resets_alone, "nothing to report: give a run", id="resets-alone"),
        pytest.param(resets_of_another, "of none of the networks given", id="resets-of-another"),
        pytest.param(damaged_filters, r"1\.safetensors: cannot be read", id="damaged-filters"),
        pytest.param(lambda _: [LENET, "--out", "/proc/p.html"], "be written", id="no-write"),
        pytest.param(lambda f: [LENET, "--out", f / "no" / "p.html"], "make it", id="no-folder"),
        pytest.param(lambda f: [LENET, "--out", f], "the name must end in", id="a-folder"),
        pytest.param(lambda _: [LENET, "--watch"], "is no run", id="watch-a-file"),
        pytest.param(lambda _: [LENET, LENET, "--watch"], "follows one run", id="watch-several"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(made, sentence, tmp_path, capsys):
    args = [str(arg) for arg in made(tmp_path)]
    before = sorted(tmp_path.rglob("*"))
    if "--out" not in args:
        args += ["--out", str(tmp_path / "page.html")]
    status, message = run_in_process(args, capsys)
    assert status == 2
    assert re.search(sentence, message)
    assert sorted(tmp_path.rglob("*")) == before


def run_in_process(args, capsys) -> tuple[int, str]:
    """The command as `main` runs it, without a process of its own."""
    argv, sys.argv = sys.argv, ["planescope", "report", *args]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return ended.value.code, message
