"""What a recipe promises: strict reading, the paper's settings, and the things it names, from earlier stages too."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.sets import Source
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.trainer.build import OBJECTIVES, build_objective, copy_static, initialise, parameter_groups, schedule
from training.trainer.pretraining import DetectorPretraining
from training.trainer.recipe import DEFAULTS, RANGES, RecipeError, read_recipe

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
PAPER = sorted((RECIPES / "paper").rglob("*.toml"))


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda p: p.stem)
def test_every_committed_recipe_is_understood(path: Path) -> None:
    """Recipes are read with the same strictness as a user's, and say what they are for."""
    assert "about" in path.read_text()
    read_recipe(path)


def written(folder: Path, **recipes: str) -> Path:
    """Recipes in a folder, by name; returns the path of the last."""
    for name, text in recipes.items():
        path = folder / f"{name}.toml"
        path.write_text(text)
    return path


def test_a_recipe_that_extends_another_states_only_what_differs(tmp_path: Path) -> None:
    """Key by key over several steps, with options on top; [init] and [objective] as they stand, even empty."""
    path = written(
        tmp_path,
        first="about = 'a'\n[network]\nwidth = 8\nbeta = 2.0\n[init]\ntrunk = 't.pt'\n"
        "[objective]\nname = 'trades'\nbeta = 6.0\n[optim]\nepochs = 7\nlr = 0.5\n",
        second="extends = 'first.toml'\n[network]\nwidth = 16\n[objective]\nname = 'mart'\n[data]\nseed = 3\n",
        third="extends = 'second.toml'\n[init]\n[optim]\nlr = 0.25\n",
    )
    recipe = read_recipe(path, ["optim.epochs=9"])
    assert recipe["network"] == {"kind": "awnet", "freeze": [], "width": 16, "beta": 2.0}
    assert recipe["objective"] == {"name": "mart"} and recipe["init"] == {}
    assert (recipe["optim"]["epochs"], recipe["optim"]["lr"], recipe["data"]["seed"]) == (9, 0.25, 3)
    assert read_recipe(path.with_name("second.toml"))["init"] == {"trunk": "t.pt"}


def test_a_recipe_can_extend_one_of_the_repository_s_from_anywhere(tmp_path: Path) -> None:
    """By its path in training/recipes, where nothing lies beside it under that path."""
    path = written(tmp_path, mine="extends = 'paper/cifar10/awnet.toml'\n[network]\nbeta = 1.0\n")
    assert read_recipe(path) == read_recipe(RECIPES / "paper/cifar10/awnet-beta1.toml")


@pytest.mark.parametrize(
    ("recipes", "says"),
    [
        ({"b": "extends = 'none.toml'"}, r"b\.toml extends 'none\.toml', which is neither .* nor "),
        ({"b": "extends = ['a.toml']"}, "the path of one recipe"),
        ({"a": "extends = 'b.toml'", "b": "extends = 'a.toml'"}, r"circle: b\.toml > a\.toml > b\.toml"),
        ({"a": "extends = 'a.toml'"}, r"circle: a\.toml > a\.toml"),
        ({"a": "[optim]\nlearning_rate = 1", "b": "extends = 'a.toml'"}, r"a\.toml: unknown key optim\.learning_rate"),
        ({"a": "colour = 'red'", "b": "extends = 'a.toml'"}, r"a\.toml: unknown table colour"),
        ({"b": "optim = 3"}, "optim is a table"),
        ({"b": "[optim"}, r"b\.toml: "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_file(tmp_path: Path, recipes: dict[str, str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_recipe(written(tmp_path, **recipes))


def test_a_recipe_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    """Links in a circle, and a chain that never seems to end."""
    (tmp_path / "one.toml").symlink_to("two.toml")
    (tmp_path / "two.toml").symlink_to("one.toml")
    with pytest.raises(FileNotFoundError, match=r"no recipe at .*one\.toml"):
        read_recipe(tmp_path / "one.toml")
    chain = {f"r{i}": f"extends = 'r{i + 1}.toml'" for i in range(1500)} | {"r1500": "[optim]\nlr = 0.1"}
    with pytest.raises(RecipeError, match="more than 20 recipes"):
        read_recipe(written(tmp_path, **dict(reversed(chain.items()))))


KEYS = [f"{table}.{key}" for table, values in DEFAULTS.items() for key in values]


def test_every_default_is_a_value_that_its_key_can_have(tmp_path: Path) -> None:
    """Each key has a range, and stated as they stand the defaults are themselves."""
    assert set(KEYS) <= set(RANGES)
    stated = [f"{key}={json.dumps(DEFAULTS[key.partition('.')[0]][key.partition('.')[2]])}" for key in KEYS]
    assert read_recipe(written(tmp_path, empty=""), stated) == DEFAULTS


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_is_refused_with_its_key(key: str, tmp_path: Path) -> None:
    """A table is a value of no key; nor is a number where true or false, a text or a list is asked for."""
    default = DEFAULTS[key.partition(".")[0]][key.partition(".")[2]]
    for value in ("{x = 1}", "true" if type(default) in (int, float) else "1"):
        with pytest.raises(RecipeError, match=rf"^--set: {key} must be "):
            read_recipe(written(tmp_path, empty=""), [f"{key}={value}"])


@pytest.mark.parametrize(
    "override",
    [
        "optim.epochs=x",
        "optim.epochs=0",
        "optim.epochs=1.5",
        "optim.lr=abc",
        "optim.lr=-1",
        "optim.lr=nan",
        "optim.lr=inf",
        "optim.batch_size=0",
        "optim.ema=1.0",
        "optim.warmup=2",
        "optim.milestones=[1.5]",
        "optim.milestones=[-1]",
        "data.seed=-1",
        "data.train_images=-5",
        "data.set=imagenet",
        "validate.images=0",
        "validate.every=0",
        "attack.eps=256",
        "attack.steps=0",
        "attack.evading_radii=[2]",
        "runtime.threads=-1",
        "runtime.checkpoint_minutes=nan",
        "network.freeze=[1]",
        "init.trunk=3",
        "attack.eps=0",
        "attack.step=0",
    ],
)
def test_a_value_out_of_its_range_is_refused_with_its_key(override: str, tmp_path: Path) -> None:
    """And with the value, in the file that states it."""
    key, _, value = override.partition("=")
    with pytest.raises(RecipeError, match=rf"^--set: {key} must be .*, not '?{re.escape(value)}'?$"):
        read_recipe(written(tmp_path, empty=""), [override])
    table, _, name = key.partition(".")
    stated = f"[{table}]\n{name} = {value if value[-1] not in 'xctsb' else repr(value)}\n"
    with pytest.raises(RecipeError, match=rf"r\.toml: {key} must be "):
        read_recipe(written(tmp_path, r=stated))


@pytest.mark.parametrize(
    "path", [p for p in sorted(RECIPES.rglob("*.toml")) if "\nextends = " in p.read_text("utf-8")], ids=lambda p: p.stem
)
def test_a_variant_repeats_nothing_of_what_it_extends(path: Path) -> None:
    """What stands in its file is its difference."""
    stated = tomllib.loads(path.read_text("utf-8"))
    parent = next(p for p in (path.parent / stated["extends"], RECIPES / stated["extends"]) if p.is_file())
    other = read_recipe(parent)
    for table, values in stated.items():
        if table in ("init", "objective"):
            assert values != other[table], table
        elif table not in ("about", "extends"):
            assert [key for key, value in values.items() if other[table].get(key) == value] == [], table


@pytest.mark.parametrize(
    "path", [p for p in PAPER if not p.stem.startswith(("teacher", "extractor", "s", "mart", "rdi"))]
)
def test_the_paper_s_settings_are_in_its_recipes(path: Path) -> None:
    """Sec. 5.1 and 5.8: epochs, schedule, batch, rates, weight decay, inner attack, tau; beta but where it is swept."""
    recipe, tiny = read_recipe(path), path.parent.name == "tiny"
    optim, attack, objective = recipe["optim"], recipe["attack"], recipe["objective"]
    assert (optim["epochs"], optim["batch_size"]) == ((50, 64) if tiny else (300, 128))
    assert optim["milestones"] == ([25, 40] if tiny else [215, 260, 285]) and optim["schedule"] == "multistep"
    assert (optim["lr"], optim["regulator_lr"], optim["momentum"], optim["weight_decay"]) == (0.1, 0.01, 0.9, 2e-4)
    assert optim["optimizer"] == "sgd" and not optim["nesterov"]
    assert [attack[k] for k in ("eps", "step", "steps", "start")] == [8.0, 2.0, 10, "normal"]
    if objective["name"] == "mtard":
        assert objective["tau"] == (1.0 if path.parent.name == "cifar10" else 5.0)
    if recipe["network"]["kind"] == "awnet":
        swept = {"awnet-beta1": 1.0, "awnet-beta5": 5.0}
        assert recipe["network"]["beta"] == swept.get(path.stem, 4.0 if path.parent.name == "cifar10" else 1.0)
        assert recipe["network"].get("extractor_frozen", True) == (path.stem != "awnet-joint")


def test_every_objective_can_be_named_in_a_recipe(tmp_path: Path) -> None:
    """With its teachers as files; N-FGSM brings its own attack; what is missing is named."""

    net = build_static(StaticConfig("resnet18", 4))
    checkpoint.save(tmp_path / "t.pt", checkpoint.pack(net, labels=[], recipe={}))
    teachers = {
        "rslad": {"teacher": "t.pt"},
        "mtard": {"nat_teacher": "t.pt", "adv_teacher": "t.pt"},
        "bounded": {"answers": "a.npz"},
    }
    np.savez(tmp_path / "a.npz", logits=np.zeros((2, 4, 10), np.float16), labels=np.zeros(4, np.int64))
    path = tmp_path / "r.toml"
    path.write_text('[attack]\nsteps = 2\n[data]\npadding = 0\n[network]\nmixing = "bounded"\n')
    for name, kind in OBJECTIVES.items():
        recipe = read_recipe(path)
        recipe["objective"] = {"name": name, **teachers.get(name, {})}
        objective = build_objective(recipe, tmp_path, torch.device("cpu"))
        assert type(objective) is kind
        if name == "n_fgsm":
            adversary = objective.adversary  # type: ignore[attr-defined]
            assert (adversary.start, adversary.budget.steps, adversary.budget.step) == (
                "n_fgsm",
                1,
                adversary.budget.eps,
            )
    recipe["objective"] = {"name": "rslad", "teacher": "resnet56=missing.th"}
    with pytest.raises(FileNotFoundError, match=r"missing\.th"):
        build_objective(recipe, tmp_path, torch.device("cpu"))
    recipe["objective"] = {"name": "rslad"}
    with pytest.raises(RecipeError, match="teacher"):
        build_objective(recipe, tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.padding=4", "needs data.padding 0"),
        ("network.mixing=norms", "needs an AW-Net with network.mixing 'bounded'"),
        ("network.kind=static", "needs an AW-Net with network.mixing 'bounded'"),
        ("objective.answers=missing.npz", r"missing\.npz"),
        ("objective.answers=other.npz", "holds no answers"),
        ("objective.answers=flat.npz", r"logits are \[2,N,K\]"),
        ("objective.answers=text.npz", "holds no answers"),
        ("objective.distil=1.5", "objective.distil must be a number, from 0 to 1"),
    ],
)
def test_bounded_distillation_without_what_it_needs_is_refused(tmp_path: Path, override: str, message: str) -> None:
    """Before the first step, by name."""
    logits, labels = np.zeros((2, 4, 10), np.float16), np.zeros(4, np.int64)
    np.savez(tmp_path / "a.npz", logits=logits, labels=labels)
    np.savez(tmp_path / "other.npz", logits=logits)
    np.savez(tmp_path / "flat.npz", logits=logits[0], labels=labels)
    (tmp_path / "text.npz").write_text("not a zip file")
    path = tmp_path / "r.toml"
    path.write_text(
        '[network]\nmixing = "bounded"\n[data]\npadding = 0\n[objective]\nname = "bounded"\nanswers = "a.npz"\n'
    )
    build_objective(read_recipe(path), tmp_path, torch.device("cpu"))
    recipe = read_recipe(path, [override])
    with pytest.raises((RecipeError, FileNotFoundError), match=message):
        build_objective(recipe, tmp_path, torch.device("cpu"))


def test_a_detection_stage_s_other_networks_are_files(tmp_path: Path) -> None:
    """Surrogates and who says what omega was; one that scales other convolutions says so before the first step."""
    static, teacher = build_static(StaticConfig("resnet18", 4)), AWNet(AWNetConfig(width=4, extractor_width=2))
    checkpoint.save(tmp_path / "s.pt", checkpoint.pack(static, labels=[], recipe={}))
    checkpoint.save(tmp_path / "t.pt", checkpoint.pack(teacher, labels=[], recipe={}))
    path = tmp_path / "r.toml"
    path.write_text(
        '[network]\nwidth = 4\n[objective]\nname = "detector"\nattackers = ["nat", "transferred", "evading"]\n'
        'surrogates = ["s.pt", "t.pt"]\ncorruption_share = 0.5\nsignals_weight = 2.0\nsignals_teacher = "t.pt"\n'
    )
    objective = build_objective(read_recipe(path), tmp_path, torch.device("cpu"))
    assert isinstance(objective, DetectorPretraining) and objective.corruption_share == 0.5
    assert [net.kind for net in objective.surrogates] == ["static", "awnet"]
    assert not any(p.requires_grad for net in objective.surrogates for p in net.parameters())
    for wrong, message in (
        ("network.width=8", "objective.signals_teacher has depth 18 and width 4, network 18 and 8"),
        ('objective.signals_teacher="s.pt"', "objective.signals_teacher needs an AW-Net, not a static network"),
        ('objective.surrogates=["missing.pt"]', "objective.surrogates: .*missing.pt"),
        ("objective.surrogates=[]", "'transferred' and surrogates need each other"),
        ("objective.surrogates=[3]", "objective.surrogates must be a list, each item a text"),
        ("objective.signals_weight=-1.0", "objective.signals_weight must be a number, at least 0"),
        ("objective.corruption_share=1.5", "objective.corruption_share must be a number, from 0 to 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            build_objective(read_recipe(path, [wrong]), tmp_path, torch.device("cpu"))


def test_what_needs_an_aw_net_is_refused_for_a_static_network(tmp_path: Path) -> None:
    """Before anything is built or trained, by the key that asks for it."""
    path = tmp_path / "r.toml"
    path.write_text('network = { kind = "static", width = 8 }\nobjective = { name = "detector" }\n')
    with pytest.raises(RecipeError, match="'detector' needs an AW-Net"):
        build_objective(read_recipe(path), tmp_path, torch.device("cpu"))
    for part in ("trunk", "extractor", "detector"):
        with pytest.raises(RecipeError, match=f"init.{part}"):
            initialise(build_static(StaticConfig("resnet18", 8)), {part: "none.pt"}, tmp_path)


def test_a_clean_trunk_becomes_both_branches(tmp_path: Path) -> None:
    """After `init.trunk` the AW-Net answers exactly as the static network did, through either branch."""

    torch.manual_seed(0)
    static = build_static(StaticConfig("resnet18", 4)).train()
    static(torch.rand(8, 3, 32, 32))  # statistics that are not the initial ones
    net = AWNet(AWNetConfig(width=4))
    copy_static(net, "trunk", static)
    copy_static(net, "extractor", static)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for branch in ("nat", "adv", None):
            torch.testing.assert_close(net.eval()(x, branch), static.eval()(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(RecipeError, match="nothing for"):
        copy_static(AWNet(AWNetConfig(width=4, depth=34)), "trunk", static)


def test_a_network_can_start_with_the_detector_of_another(tmp_path: Path) -> None:
    """Extractor and type head, temperature included, whatever the trunks are; a static network has none to give."""
    source = AWNet(AWNetConfig(width=4, extractor_width=4))
    source.type_head.temperature.fill_(3.0)
    checkpoint.save(tmp_path / "detector.pt", checkpoint.pack(source, labels=[], recipe={}))
    static = build_static(StaticConfig("resnet20", 4))
    checkpoint.save(tmp_path / "static.pt", checkpoint.pack(static, labels=[], recipe={}))
    net = AWNet(AWNetConfig(width=8, extractor_width=4, mixbn=False, type_weighting=False))
    trunk = net.stem.conv.weight.clone()
    initialise(net, {"detector": "detector.pt"}, tmp_path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net.eval().detect(x).type_logits, source.eval().detect(x).type_logits)
    assert torch.equal(net.stem.conv.weight, trunk)
    with pytest.raises(RecipeError, match=r"init\.detector"):
        initialise(net, {"detector": "static.pt"}, tmp_path)
    with pytest.raises(RecipeError, match="does not fit"):
        initialise(AWNet(AWNetConfig(width=8)), {"detector": "detector.pt"}, tmp_path)


def test_the_regulator_has_its_own_learning_rate(tmp_path: Path) -> None:
    """Sec. 5.1: heads at 0.01, everything else at 0.1; a frozen extractor is in neither group."""

    net = AWNet(AWNetConfig(width=4))
    trunk, heads = parameter_groups(net, {"lr": 0.1, "regulator_lr": 0.01})
    assert (trunk["lr"], heads["lr"]) == (0.1, 0.01)
    assert len(heads["params"]) == 2 * (16 + 1)
    count = sum(p.numel() for group in (trunk, heads) for p in group["params"])
    assert count == sum(p.numel() for n, p in net.named_parameters() if not n.startswith("extractor."))


def test_schedules_rise_and_fall_where_they_say() -> None:
    """triangular peaks at 1 after the warm-up; multistep divides by ten at each milestone."""
    one = schedule({"schedule": "triangular", "epochs": 10, "warmup": 0.2}, 10)
    assert max(map(one, range(100))) == one(19) == 1.0 and one(99) < 0.02 < one(0) < 0.1
    steps = schedule({"schedule": "multistep", "epochs": 3, "milestones": [1, 2]}, 10)
    assert [steps(i) for i in (0, 9, 10, 20)] == pytest.approx([1, 1, 0.1, 0.01])
    with pytest.raises(RecipeError, match="schedule"):
        schedule({"schedule": "cosine", "epochs": 1}, 1)


def test_the_defaults_of_data_are_those_of_its_reader() -> None:
    """Also of checkpoints whose recipe knew fewer keys."""
    assert Source.of(DEFAULTS["data"]) == Source() == Source.of({})


@pytest.mark.parametrize("name", ["own/trunk", "own/trunk.toml", "small/0-trunk"])
def test_a_recipe_that_comes_with_the_package_goes_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder; a file at that path goes first."""
    monkeypatch.chdir(tmp_path)
    assert read_recipe(Path(name)) == read_recipe(RECIPES / Path(name).with_suffix(".toml"))
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("[optim]\nepochs = 77\n")
    assert read_recipe(Path(name))["optim"]["epochs"] == 77


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optim]\nepoch = 3\n", "unknown key optim.epoch; known are epochs, batch_size"),
        ("[optim]\nepoch = 3\n", "; is epochs meant?"),
        ("[optimiser]\nlr = 3\n", "is optim meant?"),
        ("[data]\nsize = 4\n", "data.size must be a whole number, from 8 to 1024, not 4"),
        ("[data]\nheld_out = 0.5\n", "data.held_out must be a number, above 0 and below 0.5, not 0.5"),
        ("[optim\n", "Expected ']' at the end of a table declaration (at line 1, column 7)"),
    ],
)
def test_a_mistake_is_named_with_what_may_have_been_meant(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, mine=text)
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_a_recipe_that_is_not_there_has_its_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe at own/trunc; is own/trunk meant\?"):
        read_recipe(Path("own/trunc"))
