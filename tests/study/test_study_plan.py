"""A study's YAML: which runs it comes to, what they are called, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from planescope.files.errors import CheckpointError, UsageError
from planescope.files.yaml import read_document
from planescope.study.folder import Study
from planescope.study.plan import read_plan
from planescope.study.record import RunRecord
from planescope.study.spec import name_of
from planescope.study.work.costs import GPU, THREAD, estimate, seconds_of
from planescope.study.work.forecast import forecast
from planescope.training.config import RunConfig


def plan(text: str, folder: Path):
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return read_plan(path)


def settings(text: str, folder: Path, *fields: str) -> list[tuple]:
    return [tuple(spec.get(field) for field in fields) for spec in plan(text, folder).specs]


def test_lists_are_combined_and_zipped_lists_go_together(tmp_path):
    text = """
base: {epochs: 3}
grid:
  classes: [2, 5]
  zip: {learning_rate: [0.1, 0.2], batch_size: [8, 16]}
seeds: 2
"""
    assert settings(text, tmp_path, "classes", "learning_rate", "batch_size", "seed", "epochs") == [
        (2, 0.1, 8, 0, 3), (2, 0.1, 8, 1, 3), (2, 0.2, 16, 0, 3), (2, 0.2, 16, 1, 3),
        (5, 0.1, 8, 0, 3), (5, 0.1, 8, 1, 3), (5, 0.2, 16, 0, 3), (5, 0.2, 16, 1, 3),
    ]  # fmt: skip


def test_blocks_follow_one_another_with_seeds_of_their_own(tmp_path):
    text = "seeds: [7]\ngrid:\n- network: lenet\n- {network: mlp, seeds: [1, 2]}\n"
    assert settings(text, tmp_path, "network", "seed") == [("lenet", 7), ("mlp", 1), ("mlp", 2)]


def test_conditions_set_fields_and_leave_combinations_out(tmp_path):
    text = """
grid:
  network: [lenet, vgg11, mlp]
  label_noise: [0, 0.5]
when:
- {match: {network: [vgg11, mlp]}, set: {width: 0.25}}
- {match: {width: 0.25, network: mlp}, set: {epochs: 5}}
exclude: {network: lenet, label_noise: 0.5}
"""
    assert settings(text, tmp_path, "network", "label_noise", "width", "epochs") == [
        ("lenet", 0.0, 1.0, 30), ("vgg11", 0.0, 0.25, 30), ("vgg11", 0.5, 0.25, 30),
        ("mlp", 0.0, 0.25, 5), ("mlp", 0.5, 0.25, 5),
    ]  # fmt: skip


def test_a_field_that_is_a_list_itself_is_varied_by_a_list_of_lists(tmp_path):
    text = "grid:\n- milestones: [3, 6]\n- milestones: [[1], [2, 4]]\n"
    assert settings(text, tmp_path, "milestones") == [((3, 6),), ((1,),), ((2, 4),)]


def test_an_empty_file_is_one_run_of_the_default_config(tmp_path):
    (spec,) = plan("", tmp_path).specs
    assert spec.config == RunConfig()


def test_a_spec_has_the_config_that_its_values_say(tmp_path):
    text = "base: {epochs: '4'}\ngrid: {classes: 2, kinds: [conv, linear], shuffle_pixels: yes}\n"
    (spec,) = plan(text, tmp_path).specs
    assert spec.config == RunConfig(
        epochs=4, classes=2, kinds=("conv", "linear"), shuffle_pixels=True
    )


def test_a_name_follows_from_the_config_alone(tmp_path):
    (one,) = plan("grid: {network: vgg11, width: 0.25, label_noise: 0.5}\n", tmp_path).specs
    several = plan("base: {width: 0.25, label_noise: 0.5}\ngrid: {network: [mlp, vgg11]}", tmp_path)
    assert one == several.specs[1]
    assert re.fullmatch(r"vgg11-w0\.25-digits-n0\.5-s0-[0-9a-f]{12}", one.name)


@pytest.mark.parametrize(
    ("field", "value", "counts"),
    [
        *[(f, v, False) for f, v in (("threads", 3), ("data_path", "/d"), ("download", True),
                                     ("workers", 0), ("loggers", ("csv",)))],
        *[(f, v, True) for f, v in (("seed", 1), ("epochs", 2), ("momentum", 0.5), ("kinds",
                                     ("linear",)), ("accelerator", "cpu"), ("view", "effective"))],
    ],
)  # fmt: skip
def test_a_name_changes_with_what_decides_about_a_run(field, value, counts):
    default = RunConfig().model_dump()
    assert (name_of(default | {field: value}) != name_of(default)) is counts


def test_names_can_be_files_everywhere():
    config = RunConfig(network="a.b:C/..\\x", data="folder:/tmp/ä b", classes=3)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name_of(config.model_dump()))


BAD = [
    ("base:\n  epochs: 2\n  learning_rat: 1\n", "line 3: learning_rat: .*nearest are learning_r"),
    ("grid:\n- network: lenet\n  epoch: 3\n", "line 3: epoch: there is no such field"),
    ("gird: {}\n", "line 1: gird: there is no such field; the nearest are grid"),
    ("reset:\n  draw: 1\n", "line 2: draw: there is no such field; the nearest are draws"),
    ("grid: {network: []}\n", "line 1: network: is empty; give a value, or leave it out"),
    ("grid: []\n", "line 1: grid: is empty"),
    ("\nseeds: []\n", "line 2: seeds: is empty"),
    ("seeds: many\n", "line 1: seeds: .* not 'many'"),
    ("grid:\n  network:\n  - lenet\n  - lenett\n", "line 4: network: no network is called 'le"),
    ("grid:\n- data: [digits, cifar11]\n", "line 2: data: unknown data 'cifar11'.*cifar10"),
    ("grid:\n  epochs: [1, 0]\n", "line 2: epochs: should be greater than or equal to 1, not 0"),
    ("grid:\n  seed:\n  - 3\n  - 3\n", "line 4: seed: 3 is there twice, .*two runs of one name"),
    ("grid: {label_noise: [0, 0.0]}\n", "line 1: label_noise: 0.0 is there twice"),
    ("grid:\n- network: lenet\n- network: [mlp, lenet]\n",
     "line 3: makes lenet-digits-s0-.* a second time, which line 2 makes already"),
    ("grid: {epochs: [1, 2]}\nwhen: {match: {epochs: 2}, set: {epochs: 1}}\n",
     "line 1: makes lenet-digits-s0-.* a second time, which line 1 makes already"),
    ("grid:\n  seed: [1, 2]\nseeds: 3\n", "line 2: seed, seeds: is varied in two places"),
    ("grid:\n  epochs: 3\n  zip: {epochs: [1]}\n", "line 2: epochs: is varied in two places"),
    ("grid:\n  zip:\n  - epochs: [1, 2]\n    seed: [1]\n",
     "line 3: zip: its lists must be of one length, and have epochs 2, seed 1 values"),
    ("exclude:\n- network: lenet\n", "line 1: exclude: leaves no run"),
    ("grid: {epochs: [1, 2]}\nexclude:\n- epochs: 1\n- epochs: 3\n",
     r"line 4: no run has epochs \[3\]"),
    ("when:\n- match: {network: mlp}\n  set: {width: 2}\n", r"line 2: no run has network \['mlp'"),
    ("when:\n- set: {width: 2}\n", "line 2: when.match: Field required"),
    ("make: [measure]\n", "line 1: make: leaves out train"),
    ("make: [train, play]\n", "line 1: make: should be .*not 'play'"),
    ("grid: {devices: 2}\n", "line 1: devices: a run of a study has one device"),
    ("base: 3\n", "line 1: base: .*dictionary, not 3"),
    ("base: {epochs: 2, epochs: 3}\n", "line 1: the field epochs is there twice"),
    ("schema: planescope.study/9\n", "line 1: schema: should be 'planescope.study/1'"),
    ("- 3\n", "holds no fields"),
    ("grid: {network: [\n", "line 2: is not YAML"),
    ("? 3\n: 4\n", "line 1: 3: there is no such field"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), BAD)
def test_a_wrong_study_is_refused_with_the_line(text, sentence, tmp_path):
    with pytest.raises(UsageError, match=r"study\.yaml(, |: )" + sentence) as caught:
        plan(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_study_takes_every_network_that_can_be_built_by_name(tmp_path):
    (tmp_path / "study.yaml").write_text("grid:\n  network: [lenet_gelu, mlp_bn, resnet20]\n")
    specs = read_plan(tmp_path / "study.yaml").specs
    assert [spec.get("network") for spec in specs] == ["lenet_gelu", "mlp_bn", "resnet20"]


def test_a_study_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.yaml: cannot be read: No such file"):
        read_plan(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ("base: *a59", r"base: should be a valid dictionary, not \[\["),
        ("grid: {zip: *a59}", r"grid.zip: should be a valid dictionary, not \[\["),
        ("seeds: *a59", r"seeds: should be a valid integer, not \[\["),
    ],
)
def test_what_anchors_unfold_to_2_to_the_60_items_is_not_unfolded(last, sentence, tmp_path):
    lines = [f"- &a{n + 1} [*a{n}, *a{n}]" for n in range(59)]
    with pytest.raises(UsageError, match=sentence) as caught:
        plan("\n".join(["lists:", "- &a0 [0, 0]", *lines, last]), tmp_path)
    assert len(str(caught.value)) < 300


def test_the_line_of_a_value_is_where_it_stands(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a:\n  b:\n  - 1\n  - c: 2\n", encoding="utf-8")
    document = read_document(path)
    places = {(): 1, ("a",): 1, ("a", "b"): 2, ("a", "b", 1): 4, ("a", "b", 1, "c"): 4}
    assert {place: document.line(*place) for place in places} == places
    assert document.line("a", 0, "b", 1) == 4  # one mapping where a list of them could be
    assert document.line("a", "none", "b") == 1


def test_the_documented_study_is_one(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.M | re.S)
    # Two networks, two noises, two zipped pairs, three seeds; without VGG11 on two classes.
    assert len(plan(example, tmp_path).specs) == (2 * 2 * 2 - 2) * 3


def test_the_estimates_that_are_documented_are_those_of_the_dry_run():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "studies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(studies/\S+)` \| .* \| (\d+) \| (\S+) (\S+)", text, flags=re.M)
    assert len(rows) == len(list((root / "studies").glob("*.yaml")))
    for file, runs, time, unit in rows:
        specs = read_plan(root / file).specs
        assert len(specs) == int(runs)
        cpu, gpu = estimate(specs, THREAD), estimate(specs, GPU)
        if cpu.unknown == len(specs):
            assert (time, unit) == ("not", "known")
            continue
        ours = gpu.hours if unit == "GPU" else 60 * cpu.hours / 2
        # What runs on data that are not known before is not in the estimate.
        ours *= len(specs) / (len(specs) - cpu.unknown)
        assert ours == pytest.approx(float(time.replace(",", "")), rel=0.2)


def test_a_forecast_of_runs_that_nothing_is_known_of_gives_no_time(tmp_path):
    """It said that they take about 0 s."""
    study = tmp_path / "study.yaml"
    study.write_text("base: {data: 'own:data'}\nseeds: 2\n", encoding="utf-8")
    said = forecast(study).sentence
    assert "How long the rest take is not known" in said
    assert not re.search(r"\d+ (s|min|h)\b", said)


def test_a_forecast_counts_what_is_left_of_a_run(tmp_path):
    """Runs whose training is there lack their resets alone, and a subset is evaluated on."""
    study = tmp_path / "study.yaml"
    study.write_text("base: {epochs: 2}\nseeds: 2\nreset: {subset: 100}\n", encoding="utf-8")
    whole = forecast(study, tmp_path / "out")
    specs = read_plan(study).specs
    folder = Study(tmp_path / "out")
    (folder.path / "runs" / specs[0].name).mkdir(parents=True)
    (folder.path / "study.yaml").write_bytes(study.read_bytes())
    folder.save_record(RunRecord(name=specs[0].name, made={"train": 1.0}))
    left = forecast(study, folder.path)
    reset = left.runs[0].seconds
    assert 0 < reset < whole.runs[0].seconds
    assert left.runs[1].seconds == whole.runs[1].seconds
    more = study.read_text(encoding="utf-8").replace("100", "1000")
    study.write_text(more, encoding="utf-8")
    few, every = (
        seconds_of(spec, steps=["reset"]) - THREAD.start
        for spec in (specs[0], read_plan(study).specs[0])
    )
    assert every == pytest.approx(10 * few)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("seeds: 100000\ngrid: {momentum: [0.1, 0.2]}\n", id="seeds"),
        pytest.param(
            "grid:\n"
            + "".join(
                f"  {field}: [{', '.join(str(n / 100) for n in range(1, 50))}]\n"
                for field in ("momentum", "label_noise", "validation_share", "decay", "width")
            ),
            id="product",
        ),
        pytest.param(
            "seeds: 50000\nwhen:\n" + "- {match: {network: lenet}, set: {momentum: 0.5}}\n" * 1000,
            id="conditions",
        ),
    ],
)
def test_a_study_of_more_runs_than_anybody_makes_is_refused_at_once(text, tmp_path):
    with pytest.raises(UsageError, match="comes to more than 100,000 runs; make several studies"):
        plan(text, tmp_path)
