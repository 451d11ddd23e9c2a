"""What other weights in a layer cost equals loading them, evaluating, and putting the old back."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from click.testing import CliRunner

import planescope as ps
from planescope.cli.app import app
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.data.options import DataOptions
from planescope.files.errors import CheckpointError, UsageError

torch = pytest.importorskip("torch")
from planescope.networks.build import build  # noqa: E402

nn = torch.nn


IMAGES = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture(scope="module")
def network():
    """A network that is sure, and gives all of its four classes."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        made[8].weight *= 30
        made[8].bias -= made(IMAGES).mean(0)
    return made


@pytest.fixture(scope="module")
def examples(network):
    with torch.no_grad():
        labels = network(IMAGES).argmax(1)
    assert len(labels.unique()) == 4
    return IMAGES, labels


def outputs(network, images, **tensors):
    own = copy.deepcopy(network)
    own.load_state_dict({**own.state_dict(), **tensors})
    with torch.no_grad():
        return own(images)


def without_filters(network):
    """The first layer without half its filters, by hand."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    which = state["0.weight"].flatten(1).norm(dim=1).argsort()[:3]
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        state[name][which] = 0
    return state


def test_a_measured_loss_is_that_of_the_plain_loop(network, examples):
    images, labels = examples
    before = copy.deepcopy(network.state_dict())
    found = ps.sensitivity(
        network, ways="filters:0.5,bits:2,prune:0.9", data=(images, labels), kinds="all"
    )
    right = (outputs(network, images, **without_filters(network)).argmax(1) == labels).float()
    chance = float(labels.bincount().max()) / len(labels)
    cell = found.layers[0].ways["filters:0.5"]
    assert found.method == "measured"
    assert found.trained == 1.0
    assert cell.loss == pytest.approx((1 - float(right.mean())) / (1 - chance))
    assert cell.drop == pytest.approx(1 - float(right.mean()))
    assert cell.lower <= cell.loss <= cell.upper
    assert cell.scope == "branch"
    assert found.layers[2].ways["filters:0.5"] is None  # the output layer keeps its classes
    assert found.layers[0].multiply_adds == 6 * 9 * 64
    assert found.layers[0].parameters == 6 * 9 + 6
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_without_labels_the_network_s_own_probabilities_are_counted(network, examples):
    images, labels = examples
    p = outputs(network, images).softmax(1).double()
    answers = outputs(network, images, **without_filters(network)).argmax(1)
    given = p.gather(1, answers[:, None]).sum()
    expected = 1 - float(given / p.max(1).values.sum())
    surest = float(p.max(1).values.mean())
    found = ps.sensitivity(network, ways="filters:0.5", data=(images, labels), labelled=False)
    cell = found.layers[0].ways["filters:0.5"]
    assert found.method == "unlabelled"
    assert cell.score == pytest.approx(expected, rel=1e-5)
    assert cell.loss == pytest.approx(expected / (1 - 0.25 / surest), rel=1e-5)
    assert cell.drop is None


def test_noise_is_the_mean_over_its_draws_and_an_own_way_is_called(network, examples):
    images, labels = examples
    ways = {"noise": "noise:1.5", "same": lambda weight: weight, "none": lambda weight: weight * 0}
    found = ps.sensitivity(network, ways=ways, data=(images, labels)).layers[1].ways
    assert found["same"].loss == 0
    assert found["none"].loss > 0
    rng, state = np.random.default_rng(0), network.state_dict()
    weight = state["4.weight"].double().numpy()
    right = []
    for _ in range(5):
        draw = rng.standard_normal(weight.shape)
        draw *= 1.5 * np.linalg.norm(weight) / np.linalg.norm(draw)
        changed = torch.from_numpy(weight + draw).float()
        answers = outputs(network, images, **{"4.weight": changed}).argmax(1)
        right.append(float((answers == labels).float().mean()))
    assert found["noise"].drop == pytest.approx(1 - np.mean(right))


def test_with_nothing_but_the_network_synthetic_pictures_rank(network):
    found = ps.sensitivity(network, ways="prune:0.1,prune:1", input_shape=(1, 8, 8))
    assert (found.method, found.assumed, found.input_shape) == ("synthetic", False, (1, 8, 8))
    for layer in found.layers:
        little, all_of_it = (layer.ways[key] for key in ("prune:0.1", "prune:1"))
        assert little.score < all_of_it.score
        assert (little.loss, little.lower, little.upper) == (None, None, None)
    assert "no loss" in found.sentence


def test_what_the_test_of_synthetic_pictures_did_not_cover_is_named(network):
    found = ps.sensitivity(network, ways="prune:0.1", input_shape=(1, 8, 8))
    assert any("not on 4 classes and inputs of 1×8×8" in note for note in found.notes)
    covered = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    found = ps.sensitivity(covered, ways="prune:0.1", input_shape=(3, 32, 32))
    assert not any("tested on networks" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({}, "linear; taken with --kinds all", id="kinds"),
        pytest.param({"layers": "0"}, "not chosen by --layers", id="layers"),
        pytest.param(
            {"layers": "0", "kinds": "all"}, "not chosen by --layers and --kinds", id="both"
        ),
    ],
)
def test_why_a_layer_was_left_out_is_said(network, examples, options, reason):
    found = ps.sensitivity(network, ways="prune:0.5", data=examples, **options)
    assert {one.name: one.reason for one in found.skipped}["8"] == reason


def test_outputs_that_are_no_classes_are_ranked_by_their_change(examples):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))
    found = ps.sensitivity(network, ways="prune:1", data=examples[0])
    whole = outputs(network, examples[0])
    weight = {"1.weight": torch.zeros(8, 64)}
    change = (outputs(network, examples[0], **weight) - whole).norm() / whole.norm()
    assert found.layers[0].ways["prune:1"].score == pytest.approx(float(change), rel=1e-4)
    assert found.layers[0].ways["prune:1"].loss is None
    assert any("no classes" in note for note in found.notes)


def test_a_normed_weight_is_taken_as_it_acts(examples):
    torch.manual_seed(0)
    network = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 6, 3)), nn.ReLU(), nn.Flatten(),
        nn.Linear(216, 3),
    ).eval()  # fmt: skip
    found = ps.sensitivity(network, ways={"same": lambda weight: weight}, data=examples[0])
    assert found.layers[0].ways["same"].score == 0


def test_files_hold_what_was_found(network, examples, tmp_path):
    found = ps.sensitivity(network, ways="bits:3", data=examples)
    found.save(tmp_path / "worth.json")
    assert Sensitivity.load(tmp_path / "worth.json") == found
    data = json.loads((tmp_path / "worth.json").read_text())
    assert data["schema"] == "planescope.sensitivity/1"
    assert set(data["layers"][0]["ways"]["bits:3"]) >= {"score", "loss", "lower", "upper"}
    found.save(tmp_path / "worth.csv")
    assert (tmp_path / "worth.csv").read_text().startswith("schema,path,method,layer")


def test_a_dry_run_tells_the_cells(network, examples):
    cost = ps.sensitivity(network, ways="bits:3,noise:1", data=examples, dry_run=True)
    assert (cost.layers, cost.cells, cost.inputs) == (2, 12, 200)


def test_bad_input_is_a_sentence(network, examples, tmp_path):
    images, _ = examples
    np.save(tmp_path / "bytes.npy", np.zeros((4, 1, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "alike.npy", np.zeros((4, 1, 8, 8), dtype=np.float32))
    for data, sentence in (
        (torch.zeros(8, 1, 8, 8), "all inputs are alike"),
        (torch.zeros(8, 3, 8, 8), "does not take its batches"),
        (str(tmp_path / "bytes.npy"), "scale them first"),
        (str(tmp_path / "alike.npy"), "alike.npy: all inputs are alike"),
    ):
        with pytest.raises(UsageError, match=sentence):
            ps.sensitivity(network, ways="bits:3", data=data)
    broken = copy.deepcopy(network)
    broken[0].weight.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        ps.sensitivity(broken, ways="bits:3", data=images)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="give --network NAME"):
        ps.sensitivity(tmp_path / "net.pt")


def handed(images, container):
    rows = images.numpy() if container == "array" else images
    return {
        "Dataset": lambda: torch.utils.data.TensorDataset(rows),
        "DataLoader": lambda: torch.utils.data.DataLoader(rows, batch_size=8),
        "batches": lambda: [rows[:20], rows[20:]],
        "pair": lambda: (rows, torch.zeros(len(rows), dtype=torch.int64)),
    }.get(container, lambda: rows)()


def moved(network):
    made = copy.deepcopy(network)
    with torch.no_grad():
        made[0].weight += 0.1
    return made


CALLS = {
    "sensitivity": lambda net, data: ps.sensitivity(net, ways="bits:3", data=data),
    "predict": lambda net, data: ps.predict_critical(net, init=moved(net), data=data),
    "plan": lambda net, data: ps.plan(net, size=0.5, data=data),
    "repair": lambda net, data: ps.repair(moved(net), net, data=data),
    "reset": lambda net, data: ps.reset(net, to={"init": moved(net)}, data=data),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("container", ["tensor", "array", "Dataset", "DataLoader", "batches"])
def test_integers_are_to_be_scaled_first_however_they_come(network, call, container):
    container = "pair" if call == "reset" else container
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(UsageError, match="they are uint8, not floats; scale them first"):
        CALLS[call](network, handed(images, container))
    with pytest.raises(UsageError, match=r"float64, and it computes in float32; give them in fl"):
        CALLS[call](network, handed(images.double(), container))


def test_integers_are_taken_by_a_network_that_takes_them_and_other_faults_are_told():
    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(56, 16), nn.Linear(16, 3))
    data = torch.randint(0, 10, (40, 7))
    assert ps.sensitivity(words, ways="bits:3", data=data).inputs == 40
    with pytest.raises(UsageError, match=r"\(index out of range in self\)"):
        ps.sensitivity(words, ways="bits:3", data=data + 9)


def test_attributes_of_a_network_of_the_users_are_the_users(network, examples):
    """Names that a graph of a file has too say nothing of a torch module."""
    own = copy.deepcopy(network)
    own.work, own.channels_last, own.picture_shape, own.largest_bytes = "hard", True, (9, 9), 1e12
    for data in (examples[0], None):
        options = {
            "ways": "prune:0.9",
            "data": data,
            "input_shape": None if data is not None else (1, 8, 8),
        }
        plain = ps.sensitivity(network, **options)
        assert ps.sensitivity(own, **options).layers == plain.layers


def test_a_run_takes_the_network_that_was_given_with_it(network, examples, tmp_path):
    tracker = ps.Tracker(out=tmp_path / "run")
    tracker.update(network, 0)
    tracker.close()
    data = examples[0]
    found = ps.sensitivity(tmp_path / "run", network=network, data=data, ways="prune:0.9")
    assert found.layers == ps.sensitivity(network, data=data, ways="prune:0.9").layers
    with pytest.raises(UsageError, match="knows of its network only the class; give network="):
        ps.sensitivity(tmp_path / "run", data=data, ways="prune:0.9")


def test_a_run_says_on_what_size_its_network_was_trained(network, tmp_path):
    from planescope.training.config import RunConfig
    from planescope.training.run import Run

    run = Run.create(tmp_path / "run", RunConfig())
    start = {n: t.roll(1) if n == "4.weight" else t for n, t in network.state_dict().items()}
    for epoch, state in enumerate((start, network.state_dict())):
        run.save_snapshot(epoch, state, {"network": "own", "input": (1, 8, 10)})
    for given in (run, run.snapshots[1]):
        found = ps.sensitivity(given, network=network, ways="prune:0.9")
        assert (found.input_shape, found.assumed) == ((1, 8, 10), False)
    told = ps.sensitivity(run, network=network, input_shape=(1, 8, 8), ways="prune:0.9")
    assert (told.input_shape, told.assumed) == ((1, 8, 8), False)
    predicted = ps.predict_critical(run, network=network)
    assert (predicted.input_shape, predicted.assumed) == ((1, 8, 10), False)
    for made in (
        ps.plan(run, network=network, size=0.5, repair=False, examples=20),
        ps.repair(run.snapshots[0], run, architecture=network, examples=20),
    ):
        assert not [note for note in made.notes if "assumed" in note]


@pytest.mark.parametrize("labelled", [False, True])
def test_classes_count_only_where_labels_do(labelled):
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 26 * 26, 2))
    options = {"data": "digits", "labelled": labelled, "examples": 20}
    if labelled:
        with pytest.raises(UsageError, match="digits has 10 classes"):
            ps.sensitivity(own, ways="prune:0.9", **options)
    else:
        assert ps.sensitivity(own, ways="prune:0.9", **options).method == "unlabelled"
        assert ps.plan(own, size=0.5, repair=False, **options).method == "unlabelled"


def test_a_weight_that_two_layers_share_is_replaced_in_both() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.two.weight = self.one.weight

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.last(self.two(self.one(given).relu()).relu())

    torch.manual_seed(0)
    whole, inputs = Tied(), torch.randn(80, 6)
    with torch.no_grad():
        labels = whole(inputs).argmax(1)
        changed = Tied()
        changed.load_state_dict(whole.state_dict())
        weight = changed.one.weight.flatten()
        weight[weight.abs().argsort()[:32]] = 0  # round(0.9 * 36)
        agrees = (changed(inputs).argmax(1) == labels).double().mean()
    found = ps.sensitivity(whole, ways="prune:0.9", data=(inputs, labels), kinds="all")
    assert found.layers[0].ways["prune:0.9"].drop == pytest.approx(1 - float(agrees))
    zeros = {name: torch.zeros_like(t) for name, t in whole.state_dict().items()}
    zeros |= {n: t for n, t in whole.state_dict().items() if n.startswith("last")}
    predicted = ps.predict_critical(whole, init=zeros, data=inputs, kinds="all", layers="one")
    with torch.no_grad():
        for name in ("one.weight", "one.bias"):
            changed.get_parameter(name).zero_()
        sure, answers = whole(inputs).softmax(1), changed(inputs).argmax(1)
        left = sure.gather(1, answers[:, None]).sum() / sure.amax(1).sum()
    assert predicted.layers[0].score == pytest.approx(1 - float(left), abs=1e-6)


def test_outputs_of_one_number_each_are_ranked_by_their_change() -> None:
    whole = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Flatten(0))
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = ps.sensitivity(whole, ways={"half": lambda w: w / 2}, data=inputs)
    with torch.no_grad():
        assert whole(inputs).shape == (40,)
    assert found.layers[0].ways["half"].score == pytest.approx(0.5, rel=1e-5)
    labels = (inputs[:, 0] > 0).long()
    measured = ps.sensitivity(
        whole, ways={"half": lambda w: w / 2}, data=(inputs, labels),
        metric=lambda out, batch: ((out > 0) == batch[1]).double(),
    )  # fmt: skip
    assert measured.layers[0].ways["half"].drop is not None


TASK = "8 outputs are taken for scores of 8 classes"


def regression():
    """A network of eight outputs, its file as it was before, and inputs without labels."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8))
    start = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in
             own.state_dict().items()}  # fmt: skip
    return own, start, torch.randn(40, 1, 8, 8)


def results(task):
    own, start, inputs = regression()
    changed = copy.deepcopy(own)
    changed.load_state_dict(start)
    return (
        ps.sensitivity(own, ways="prune:0.5", data=inputs, task=task),
        ps.sensitivity(own, ways="prune:0.5", input_shape=(1, 8, 8), task=task),
        ps.predict_critical(own, init=start, data=inputs, task=task),
        ps.plan(own, size=0.5, data=inputs, examples=20, repair=False, task=task),
        ps.repair(changed, own, data=inputs, examples=20, task=task),
        ps.reset(own, to={"start": start}, data=inputs, task=task),
    )


def test_outputs_that_only_their_number_makes_classes_are_told_once() -> None:
    for found in results(None):
        assert sum(TASK in note for note in found.notes) == 1, found
    for found in results("classification"):
        assert not any("8 outputs" in note for note in found.notes), found


def test_outputs_that_are_values_are_compared_as_values() -> None:
    by_way, synthetic, predicted, plan, repaired, put_back = results("regression")
    for found in (by_way, synthetic, predicted, plan, repaired, put_back):
        assert not any("8 outputs" in note for note in found.notes)
    own, start, inputs = regression()
    whole = outputs(own, inputs)
    for state, score in (
        ({name: t for name, t in start.items() if name.startswith("0.")},
         predicted.layers[0].score),
        ({"0.weight": halved(own[0].weight)}, by_way.layers[0].ways["prune:0.5"].score),
    ):  # fmt: skip
        change = (outputs(own, inputs, **state) - whole).norm() / whole.norm()
        assert score == pytest.approx(float(change), rel=1e-4)
    assert "relative change" in synthetic.sentence
    assert by_way.layers[0].ways["prune:0.5"].loss is None
    assert predicted.layers[0].critical is None
    assert (plan.measure, plan.chosen.loss) == ("relative change", None)
    assert repaired.measure == "relative change"
    assert put_back.cells[0].disagreement is None


def halved(weight):
    found = weight.detach().clone().flatten()
    found[found.abs().argsort(stable=True)[: len(found) // 2]] = 0
    return found.reshape(weight.shape)


def test_what_else_tells_of_classes_is_heeded() -> None:
    own, _, inputs = regression()
    labels = outputs(own, inputs).argmax(1)
    own.num_classes = 8
    for found in (
        ps.sensitivity(own, ways="prune:0.5", data=inputs),
        ps.plan(own, size=0.5, data=inputs, examples=20, repair=False),
    ):
        assert not any("8 outputs" in note for note in found.notes)
    del own.num_classes
    for found in (
        ps.sensitivity(own, ways="prune:0.5", data=(inputs, labels)),
        ps.plan(own, size=0.5, data=(inputs, labels), examples=20, repair=False),
    ):
        assert not any("8 outputs" in note for note in found.notes)


def test_a_task_that_does_not_fit_is_a_sentence() -> None:
    own, start, inputs = regression()
    labels = outputs(own, inputs).argmax(1)
    one = nn.Sequential(*own, nn.Linear(8, 1))
    for call, said in (
        (lambda: ps.sensitivity(own, data=inputs, task="values"), "one of classification, regr"),
        (lambda: ps.plan(own, size=0.5, data=inputs, task="values"), "one of classification, regr"),
        (lambda: ps.reset(own, to={0: start}, data=inputs, task=""), "one of classification, regr"),
        (lambda: ps.sensitivity(own, data=(inputs, labels), task="regression"), "labelled=False"),
        (lambda: ps.sensitivity(one, data=inputs, task="classification"), "no scores of two"),
        (lambda: ps.predict_critical(own, task="regression"), "task needs init="),
    ):
        with pytest.raises(UsageError, match=said):
            call()


@pytest.fixture
def pictures(tmp_path):
    """The same images in a folder by themselves, in one class folder, and beside a folder."""
    Image = pytest.importorskip("PIL.Image")
    for number, image in enumerate(IMAGES[:6, 0]):
        for folder in ("flat", "classes/one", "mixed"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            shown = Image.fromarray((image * 40 + 120).clamp(0, 255).byte().numpy())
            shown.convert("RGB").resize((40, 40)).save(tmp_path / folder / f"{number}.PNG", "png")
    (tmp_path / "mixed/sub").mkdir()
    (tmp_path / "flat/notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_without_class_folders_are_inputs_without_labels(pictures):
    small = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(*small, nn.Flatten(), nn.Linear(4, 5)).eval()
    ways = {"ways": "bits:3", "labelled": False}
    flat, classes = (
        ps.sensitivity(network, data=str(pictures / name), **ways) for name in ("flat", "classes")
    )
    assert (flat.method, flat.inputs) == ("unlabelled", 6)
    assert flat.layers == classes.layers
    ps.repair(halved_first(network), network, data=pictures / "flat")
    for data, options, sentence in (
        (
            "flat",
            {"labelled": True},
            "holds 6 images and no class folder, so that none has a label",
        ),
        ("mixed", {"labelled": False}, "holds images and folders beside them"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            ps.sensitivity(network, data=str(pictures / data), **{**ways, **options})


def halved_first(network):
    own = copy.deepcopy(network)
    own[0].weight.data[:2] = 0
    return own


@pytest.mark.parametrize("command", ["sensitivity --ways bits:3", "plan --way bits --bits 3"])
def test_the_page_of_a_command_knows_the_network_that_was_given(command, tmp_path):
    pytest.importorskip("plotly")
    file, rows, page = tmp_path / "lenet.pt", tmp_path / "rows.npy", tmp_path / "page.html"
    torch.save(build("lenet", seed=0).state_dict(), file)
    np.save(rows, torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy())
    name, *ways = command.split()
    options = [*ways, "--network", "lenet", "--inputs", str(rows), "--page", str(page)]
    done = CliRunner().invoke(app, [name, str(file), *options])
    assert done.exit_code == 0, done.output
    shown = page.read_text("utf-8")
    assert "layers behind a ReLU" in shown
    assert "What feeds the layers is not known" not in shown


@pytest.mark.parametrize(
    "command",
    [
        "sensitivity whole.pt --ways bits:3",
        "predict whole.pt --init start.pt",
        "plan whole.pt --size 0.5",
        "repair start.pt --reference whole.pt",
    ],
)
@pytest.mark.parametrize("option", [["--mean", "0.5"], ["--std", "0.2"]], ids=["mean", "std"])
def test_inputs_that_go_in_as_they_come_are_not_prepared(command, option, tmp_path):
    made = build("lenet", in_channels=1, width=0.25, seed=0)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 1, 28, 28)))
    for name in ("whole", "start"):
        torch.save(made.state_dict(), tmp_path / f"{name}.pt")
        with torch.no_grad():
            made.features[0].weight += 0.1
    words = [str(tmp_path / word) if word.endswith(".pt") else word for word in command.split()]
    told = ["--network", "lenet", "--inputs", str(tmp_path / "x.npy"), *option]
    done = CliRunner().invoke(app, [*words, *told])
    assert isinstance(done.exception, UsageError)
    assert "x.npy: its inputs go to the network as they come; leave out --mean" in str(
        done.exception
    )


@pytest.mark.parametrize("data", [IMAGES, [IMAGES], torch.utils.data.TensorDataset(IMAGES)])
def test_batches_of_the_users_are_not_prepared(network, data):
    told = {"data": data, "data_options": DataOptions(mean=(0.5,))}
    with pytest.raises(UsageError, match="its inputs go to the network as they come"):
        ps.sensitivity(network, ways="bits:3", **told)
    with pytest.raises(UsageError, match="its inputs go to the network as they come"):
        ps.plan(network, size=0.5, **told)


def test_moments_of_synthetic_pictures_are_one_or_one_a_channel(network):
    options = {"ways": "bits:3", "input_shape": (1, 8, 8)}
    assert ps.sensitivity(network, mean=(0.1,), std=(2.0,), **options).layers
    with pytest.raises(UsageError, match="mean holds NaN or an infinity"):
        ps.sensitivity(network, mean=(float("nan"),), **options)
    with pytest.raises(UsageError, match="std has 2 values; give one for each of 1 channels, or"):
        ps.sensitivity(network, std=(1.0, 1.0), **options)
