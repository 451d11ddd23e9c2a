"""Configs: their YAML, and what is said of an invalid one."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from planescope.data.options import DataOptions
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import Kind, KindName
from planescope.training.config import RunConfig, dump_config, load_config


def test_a_config_survives_its_file(tmp_path):
    config = RunConfig(
        network="vgg19_bn", width=0.25, label_noise=0.1, milestones=(3, 5), loggers=("csv",),
        kinds=("conv", "linear"), data_path="/data/ä b", patience=4, augment=False,
    )  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert path.read_text(encoding="utf-8").startswith("schema: planescope.config/1\n")


def test_what_a_file_leaves_out_has_its_default(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert load_config(path) == RunConfig()
    path.write_text("learning_rate: 1e-3\n", encoding="utf-8")  # YAML 1.1 reads that as text
    assert load_config(path) == RunConfig(learning_rate=0.001)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: 3\nlerning_rate: 1\n", "line 2: lerning_rate: .*the nearest are learning_rate"),
        ("\n\nlabel_noise: 1.5\n", "line 3: label_noise: .*less than or equal to 1, not 1.5"),
        ("learning_rate: .inf\n", "line 1: learning_rate: should be a finite number"),
        ("epochs: 3\nepochs: 4\n", "line 2: the field epochs is there twice"),
        ("epochs:\n  - 3\n", r"line 1: epochs: should be a valid integer, not \[3\]"),
        ("optimiser: sdg\n", "line 1: optimiser: should be 'sgd', 'adam' or 'adamw', not 'sdg'"),
        ("loggers: [csv, paper]\n", "line 1: loggers: should be 'csv'.*not 'paper'"),
        ("- epochs\n", "holds no fields"),
        ("? [a]\n: 1\n", "line 1: the field .* is no name"),
        ("epochs: [\n", "line 2: is not YAML"),
        ("epochs: !!python/object:os.system x\n", "line 1: is not YAML"),
        ("schema: planescope.config/9\n", "its schema is 'planescope.config/9'"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(text, sentence, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        load_config(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0), ("label_noise", -0.1), ("label_noise", 1.1), ("validation_share", 1),
        ("epochs", 0), ("batch_size", 0), ("learning_rate", 0), ("momentum", 1), ("seed", -1),
        ("snapshots_every", 0), ("devices", 0), ("threads", 0), ("label_noise", float("nan")),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_a_usage_error(field, value):
    with pytest.raises(UsageError, match=f"^{field}: .*not {value}"):
        RunConfig(**{field: value})


def test_differences_name_the_field_and_both_values():
    assert list(RunConfig().differences(RunConfig(epochs=3))) == [("epochs", 30, 3)]
    assert RunConfig().but({"epochs": 3}) == RunConfig(epochs=3)


def test_the_options_of_data_are_those_that_data_take():
    fields = RunConfig.model_fields
    own = {field.name for field in dataclasses.fields(DataOptions)} - {"seed"}
    assert own <= set(fields)
    assert all(
        getattr(RunConfig(), name) == getattr(DataOptions(), name) for name in own - {"resize"}
    )


def test_what_a_user_may_ask_for_are_the_kinds_of_layers():
    assert set(get_args(KindName)) == {*map(str, Kind), "all"}


def test_every_field_is_described():
    assert all(field.description for field in RunConfig.model_fields.values())


@pytest.mark.parametrize("character", ["\0", "\x7f", "\x05"])
def test_a_character_that_yaml_does_not_allow_is_refused(tmp_path, character):
    (tmp_path / "a.yaml").write_text(f"epochs: {character}3\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.yaml: is not YAML \(unacceptable character"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "value",
    ["!!timestamp never", "!!int ''", "!!bool perhaps", "!!float ''", "2001-13-45", "!!map [1]"],
)
def test_a_tag_that_its_value_does_not_have_is_refused(tmp_path, value):
    (tmp_path / "a.yaml").write_text(f"epochs: {value}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.yaml: (line 1: )?is not YAML \(") as caught:
        load_config(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["!!set {epochs, network}", "!!omap [epochs: 3]", "[]", "epochs"])
def test_a_document_of_no_fields_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.yaml: holds no fields; write one a line"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("given", [[0.5, 0.25], ("0.5,0.25",), ("0.5", "0.25")])
def test_numbers_a_channel_are_a_list_or_have_commas_between(given):
    assert RunConfig(mean=given).mean == (0.5, 0.25)


@pytest.mark.parametrize("given", ["0.5", [[0.5]], ["a"], [float("nan")], [True, None]])
def test_what_is_no_list_of_numbers_is_a_usage_error(given):
    with pytest.raises(UsageError, match=r"^std: .*not"):
        RunConfig(std=given)
