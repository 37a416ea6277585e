"""The measuring program end to end on generated images, and each figure against a hand-worked case."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import evaluate
from training.attacks.ascent import Budget
from training.attacks.copies import attackers_copy
from training.attacks.evasion import EVASIONS
from training.data.images import ImageSet, Split
from training.data.sets import Source
from training.evaluate import main
from training.evaluation import judge
from training.evaluation.attackers import load_surrogate
from training.evaluation.judge import Answers, Evaluation, Judge
from training.evaluation.report import PartProgress, from_hex
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.networks.network import MODES, Network

LEVELS = ["T0", "T1", "T2", "T3"]


def images(n: int) -> Split:
    return Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Twelve generated test images in place of CIFAR-10, whose files are checked against their official sums."""
    made = ImageSet(train=images(1), validation=images(40), test=images(12), labels=[str(i) for i in range(10)])
    monkeypatch.setattr(evaluate, "load_images", lambda name, data_dir: made)
    return made


@pytest.fixture
def static_checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "static.pt"
    net = build_static(StaticConfig("resnet20", 4))
    checkpoint.save(path, checkpoint.pack(net, labels=[], recipe={}))
    return path


def command(ckpt: Path, out: Path, *more: str) -> list[str]:
    base = ["--ckpt", str(ckpt), "--data-dir", "unused", "--out", str(out), "--batch-size", "5"]
    return [*base, "--steps", "2", "--t3-steps", "3", *more]


def without_seconds(document: dict[str, Any]) -> dict[str, Any]:
    return {n: {k: v for k, v in p.items() if k != "seconds"} for n, p in document["parts"].items()}


@pytest.mark.slow
def test_one_run_reports_every_level_side_by_side(
    tiny_checkpoint: Path, static_checkpoint: Path, dataset: ImageSet, tmp_path: Path
) -> None:
    """All attacks at all levels, corruptions and checks, as JSON and as tables; T3 is never below its parts."""
    out = tmp_path / "report.json"
    options = [
        "--levels",
        *LEVELS,
        "--attacks",
        "fgsm",
        "pgd_trades",
        "cw_inf",
        "--surrogate",
        f"s={static_checkpoint}",
    ]
    document = main(command(tiny_checkpoint, out, *options))
    assert document == json.loads(out.read_text())
    parts = document["parts"]
    for attack in ("fgsm", "cw_inf"):
        for level in ("T0/s", "T1", "T2"):
            part = parts[f"{level}/{attack}"]
            assert part["images"] == 12 and part["seconds"] >= 0
            assert part["w_robust"] == pytest.approx((parts["clean"]["accuracy"] + part["accuracy"]) / 2)
            assert set(part["tpr"]) == set(part["sr_at"]) == {"0.01", "0.05"}
            assert part["auroc_interval"][0] <= part["auroc"] <= part["auroc_interval"][1]
            assert "float_accuracy" in part and "float_auroc" in part
    single = [p["sr_at"]["0.05"] for n, p in parts.items() if n.startswith("T3/")]
    assert len(single) == len(EVASIONS) and parts["T3"]["sr_at"]["0.05"] >= max(single)
    assert parts["T3"]["joint_at"]["0.05"] == pytest.approx(1 - parts["T3"]["sr_at"]["0.05"])
    assert {n for n in parts if n.startswith("corruptions/")} >= {
        "corruptions/jpeg",
        "corruptions/webp",
        "corruptions/sign_noise",
    }
    assert document["setup"]["thresholds_from"] == "checkpoint"
    tables = out.with_suffix(".md").read_text()
    for word in ("T0/s/fgsm", "T1/cw_inf", "T2/cw_inf", "T3 best case", "jpeg", "masking check"):
        assert word in tables
    assert str(tmp_path) not in tables + out.read_text()  # reports are committed: no paths of this machine


@pytest.mark.slow
def test_a_mode_is_judged_as_it_answers(tiny_checkpoint: Path, dataset: ImageSet, tmp_path: Path) -> None:
    """Mode robust: the adversarial branch's classes and the same scores; no evasion counts twice."""
    found = {}
    for mode in MODES:
        options = ["--mode", mode, "--levels", "T3", "--attacks", "worst_case", "--no-corruptions"]
        found[mode] = main(command(tiny_checkpoint, tmp_path / f"{mode}.json", *options))
        assert found[mode]["setup"].get("mode", "auto") == mode
    parts = {mode: document["parts"] for mode, document in found.items()}
    assert parts["robust"]["clean"]["fpr"] == parts["auto"]["clean"]["fpr"] == parts["natural"]["clean"]["fpr"]
    assert len({part["clean"]["correct_bits"] for part in parts.values()}) > 1
    assert "nat_ce" in parts["auto"]["worst_case"]["broken_first_by"]
    assert "nat_ce" not in parts["robust"]["worst_case"]["broken_first_by"]
    assert "T3/selective_nat" in parts["auto"] and "T3/selective_nat" not in parts["robust"]
    assert "mode robust" in (tmp_path / "robust.md").read_text()


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tiny_checkpoint: Path, dataset: ImageSet, tmp_path: Path
) -> None:
    """Finished parts are kept untouched, missing ones come out as they would have, random starts and all."""
    out = tmp_path / "report.json"
    options = ["--levels", "T1", "T2", "T3", "--attacks", "pgd_sat", "--evasions", "selective_nat", "--no-corruptions"]
    whole = main(command(tiny_checkpoint, out, *options))
    cut = json.loads(out.read_text())
    del cut["parts"]["T2/pgd_sat"]
    cut["parts"]["T1/pgd_sat"]["seconds"] = 12345.0
    out.write_text(json.dumps(cut))
    again = main(command(tiny_checkpoint, out, *options))
    assert without_seconds(again) == without_seconds(whole)
    assert again["parts"]["T1/pgd_sat"]["seconds"] == 12345.0


class Killed(BaseException):
    """A kill in the middle of an attack."""


@pytest.mark.parametrize("part", ["T2/pgd_sat", "T0/s/pgd_sat", "T3/selective"])
def test_a_run_killed_inside_an_attack_keeps_its_batches(
    tiny_checkpoint: Path,
    static_checkpoint: Path,
    dataset: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    """Finished batches are not attacked again; the figures are those of a run in one go, random starts and all."""
    options = ["--levels", part.split("/")[0], "--attacks", "pgd_sat", "--evasions", "selective", "--no-corruptions"]
    options += ["--restarts", "2", "--surrogate", f"s={static_checkpoint}"]
    whole = main(command(tiny_checkpoint, tmp_path / "whole.json", *options))
    attack, budget = evaluate.ATTACKS["pgd_sat"]
    calls, left = list[int](), [2]

    def counted(*args: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        calls.append(len(args[1]))
        return inner(*args)

    inner: Any = judge.evade if part.startswith("T3") else attack
    if part.startswith("T3"):
        monkeypatch.setattr(judge, "evade", counted)
    else:
        monkeypatch.setitem(evaluate.ATTACKS, "pgd_sat", (counted, budget))
    monkeypatch.setattr(evaluate.PartProgress.__init__, "__defaults__", (0.0,))
    out = tmp_path / "cut.json"
    with pytest.raises(Killed):
        main(command(tiny_checkpoint, out, *options))
    assert part not in json.loads(out.read_text())["parts"] and out.with_suffix(".progress.pt").is_file()
    left[0] = 10
    again = main(command(tiny_checkpoint, out, *options))
    assert calls == [5, 5, 2]
    assert without_seconds(again) == without_seconds(whole)
    assert not out.with_suffix(".progress.pt").exists()


@pytest.mark.parametrize("kept", ["another part", "another set-up", "a damaged file"])
def test_batches_of_something_else_are_not_taken_over(tmp_path: Path, kept: str) -> None:
    """What is kept beside a report counts for the same part of the same set-up only."""
    path = tmp_path / "r.progress.pt"
    first = PartProgress(path, {"eps": 8 if kept != "another set-up" else 4}, every=0)
    first.begin("T2/fgsm" if kept == "another part" else "T2/pgd_sat")
    first.keep([(torch.ones(3, dtype=torch.bool), None)])
    if kept == "a damaged file":
        path.write_bytes(path.read_bytes()[:100])
    second = PartProgress(path, {"eps": 8})
    second.begin("T2/pgd_sat")
    assert second.restored() == []
    first.begin(first.name)
    assert kept == "a damaged file" or len(first.restored()) == 1


@pytest.mark.slow
def test_the_new_attacks_are_reported_where_they_mean_something(
    tiny_checkpoint: Path, static_checkpoint: Path, dataset: ImageSet, tmp_path: Path
) -> None:
    """Adaptive at T2 alone, AutoAttack and restarts at every level asked for, the worst case once, over them."""
    names = ["adaptive", "autoattack", "pgd_restarts", "worst_case"]
    options = ["--attacks", *names, "--no-corruptions", "--pgd-restarts", "2", "--surrogate", f"s={static_checkpoint}"]
    options += ["--limit", "3"]
    document = main(command(tiny_checkpoint, tmp_path / "a.json", "--levels", "T0", "T1", "T2", *options))
    parts = document["parts"]
    *levelled, whole = names
    assert {f"T2/{n}" for n in levelled} <= set(parts) and "T1/autoattack" in parts and "T0/s/pgd_restarts" in parts
    assert not {"T1/adaptive", "T0/s/adaptive"} & set(parts) and document["setup"]["pgd_restarts"] == 2
    assert "auroc" in parts["T2/autoattack"]
    assert [n for n in parts if whole in n] == [whole] and parts[whole]["images"] == 3
    assert sum(parts[whole]["broken_first_by"].values()) == 3 and "T1_margin" in parts[whole]["broken_first_by"]
    assert int(from_hex(parts[whole]["correct_bits"], 3).sum()) == 3 * parts[whole]["accuracy"]
    assert {c["check"] for c in document["checks"]} >= {"the worst case is at least as strong as each attack"}
    assert "broken first by" in (tmp_path / "a.md").read_text()
    static = main(command(static_checkpoint, tmp_path / "s.json", "--levels", "T2", *options))["parts"]
    assert {f"T2/{n}" for n in levelled} | {whole} <= set(static) and "auroc" not in static["T2/adaptive"]


def test_the_adaptive_attack_differentiates_the_detector_of_an_awnet(net: AWNet) -> None:
    """The T2 copy says logits and type logits of the deployed network; a T1 copy and a static network's do not."""
    x = torch.rand(2, 3, 32, 32)
    copy = attackers_copy(net, "T2")
    logits, type_logits = copy.with_type(x)  # type: ignore[attr-defined]
    assert torch.equal(logits, net(x)) and torch.equal(type_logits, net.detect(x).type_logits)
    assert not hasattr(attackers_copy(net, "T1"), "with_type")
    assert not hasattr(attackers_copy(build_static(StaticConfig("resnet20", 4)), "T2"), "with_type")


def test_a_checkpoint_is_judged_on_the_set_it_was_trained_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe names the set; --data-set overrides; another set than CIFAR-10 stands in the report."""
    asked = list[str]()
    made = ImageSet(train=images(1), validation=images(20), test=images(4), labels=[])

    def load(source: Source, data_dir: Path) -> ImageSet:
        asked.append(source.set)
        return made

    monkeypatch.setattr(evaluate, "load_images", load)
    document = checkpoint.read(tiny_checkpoint)
    document["recipe"] = {"name": "x", "data": {"set": "cifar100"}}
    checkpoint.save(tmp_path / "c.pt", document)
    quick = ["--levels", "T2", "--attacks", "fgsm", "--no-corruptions"]
    assert main(command(tmp_path / "c.pt", tmp_path / "c.json", *quick))["setup"]["set"] == "cifar100"
    assert "set" not in main(command(tiny_checkpoint, tmp_path / "d.json", *quick))["setup"]
    main(command(tiny_checkpoint, tmp_path / "e.json", *quick, "--data-set", "tiny"))
    assert asked == ["cifar100", "cifar10", "tiny"]


def test_another_set_up_is_refused_with_a_sentence(
    tiny_checkpoint: Path, dataset: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program ends with status 1 and names what differs; --fresh starts over."""
    out = tmp_path / "report.json"
    quick = ["--levels", "T2", "--attacks", "fgsm", "--no-corruptions"]
    main(command(tiny_checkpoint, out, *quick))
    with pytest.raises(SystemExit) as stopped:
        main(command(tiny_checkpoint, out, *quick, "--eps", "4"))
    assert stopped.value.code == 2 and "eps" in capsys.readouterr().err
    assert main(command(tiny_checkpoint, out, *quick, "--eps", "4", "--fresh"))["setup"]["eps"] == 4


def test_a_static_network_has_no_detector_figures(static_checkpoint: Path, dataset: ImageSet, tmp_path: Path) -> None:
    """Accuracy at T0 and T2 only, and nothing about scores, thresholds or T3."""
    options = ["--levels", *LEVELS, "--attacks", "fgsm", "--surrogate", f"s={static_checkpoint}", "--no-corruptions"]
    parts = main(command(static_checkpoint, tmp_path / "r.json", *options))["parts"]
    assert set(parts) == {"clean", "zero_gradients", "T0/s/fgsm", "T2/fgsm"}
    assert "auroc" not in parts["T2/fgsm"] and "tpr" not in parts["T2/fgsm"] and "fpr" not in parts["clean"]
    assert parts["T0/s/fgsm"]["accuracy"] == parts["T2/fgsm"]["accuracy"]  # it attacked itself


def test_attackers_in_bfloat16_are_in_float32_where_that_is_faster(
    static_checkpoint: Path,
    dataset: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a CPU without instructions for it `--bf16` says so, and the report holds what was computed."""
    monkeypatch.setattr("training.evaluate.multiplies_bfloat16", lambda device: False)
    options = ["--levels", "T2", "--attacks", "fgsm", "--no-corruptions"]
    plain, asked = (
        main(command(static_checkpoint, tmp_path / f"{len(o)}.json", *options, *o)) for o in ([], ["--bf16"])
    )
    assert capsys.readouterr().out.count("no instructions for bfloat16") == 1
    assert asked["setup"]["bf16"] is False and without_seconds(asked) == without_seconds(plain)


@pytest.mark.slow
def test_thresholds_are_taken_on_validation_images_where_none_travel(dataset: ImageSet, tmp_path: Path) -> None:
    """A checkpoint without calibration is judged by thresholds of the validation split, and the report says so."""
    ckpt = tmp_path / "bare.pt"
    checkpoint.save(ckpt, checkpoint.pack(AWNet(AWNetConfig(width=4)), labels=[], recipe={}))
    document = main(command(ckpt, tmp_path / "r.json", "--levels", "T2", "--attacks", "fgsm", "--split", "validation"))
    assert document["setup"]["thresholds_from"].startswith("validation split")
    assert document["parts"]["clean"]["fpr"]["0.05"] <= 0.05 and document["parts"]["clean"]["fpr"]["0.01"] <= 0.01


@pytest.mark.parametrize("missing", ["no surrogate", "no checkpoint", "unknown surrogate"])
def test_what_is_missing_is_said_in_one_line(
    tiny_checkpoint: Path, dataset: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    """Status 1 and a sentence, no traceback."""
    ckpt = tmp_path / "none.pt" if missing == "no checkpoint" else tiny_checkpoint
    level = "T2" if missing == "no checkpoint" else "T0"
    surrogate = ["--surrogate", "somebody"] if missing == "unknown surrogate" else []
    with pytest.raises(SystemExit) as stopped:
        main(command(ckpt, tmp_path / "r.json", "--levels", level, "--no-corruptions", *surrogate))
    assert stopped.value.code == 2
    word = {"no surrogate": "--surrogate", "no checkpoint": "none.pt", "unknown surrogate": "somebody"}[missing]
    assert word in capsys.readouterr().err


def test_kept_surrogate_images_give_the_same_figures(
    tiny_checkpoint: Path, static_checkpoint: Path, dataset: ImageSet, tmp_path: Path
) -> None:
    """T0 images do not depend on the judged network: from the cache, and without one, the answers are the same."""
    options = ["--levels", "T0", "--attacks", "pgd_sat", "--surrogate", f"s={static_checkpoint}", "--no-corruptions"]
    plain = main(command(tiny_checkpoint, tmp_path / "a.json", *options))
    kept = main(command(tiny_checkpoint, tmp_path / "b.json", *options, "--cache", str(tmp_path / "cache")))
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    again = main(command(tiny_checkpoint, tmp_path / "c.json", *options, "--cache", str(tmp_path / "cache")))
    assert without_seconds(plain) == without_seconds(kept) == without_seconds(again)
    assert file.stat().st_mtime_ns == written
    main(command(tiny_checkpoint, tmp_path / "d.json", *options, "--cache", str(tmp_path / "cache"), "--eps", "4"))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_figures_by_hand() -> None:
    """Four images, threshold 0.5: what is right, flagged, missed and turned, counted on fingers."""
    clean = Answers(torch.tensor([True, True, True, False]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    attacked = Answers(torch.tensor([True, False, False, False]), torch.tensor([0.9, 0.8, 0.25, 0.5]))
    figures = Judge(clean, {0.05: 0.5}).figures(attacked)
    assert figures["accuracy"] == 0.25
    assert figures["w_robust"] == pytest.approx((0.75 + 0.25) / 2)
    assert figures["tpr"] == {"0.05": 0.5}  # 0.9 and 0.8; 0.5 itself is not over 0.5
    assert figures["sr_at"] == {"0.05": 0.5}  # images 3 and 4: wrong and not flagged
    assert figures["joint_at"] == {"0.05": 0.5}  # image 1 is right, image 2 is flagged
    assert figures["auroc"] == pytest.approx((4 + 4 + 2 + 4) / 16)
    assert figures["successful"]["images"] == 2  # images 2 and 3; image 4 was wrong before
    assert figures["successful"]["auroc"] == pytest.approx((4 + 2) / 8)
    assert figures["successful"]["tpr"] == {"0.05": 0.5}


def test_a_part_of_the_images_is_compared_with_the_same_part_of_the_clean_ones() -> None:
    """With a limit, the clean side is the first images too, not all of them."""
    clean = Answers(torch.tensor([True, True, False, False]), torch.tensor([0.1, 0.2, 0.9, 0.9]))
    figures = Judge(clean, {0.05: 0.5}).figures(Answers(torch.tensor([False, False]), torch.tensor([0.3, 0.4])))
    assert figures["w_robust"] == 0.5 and figures["auroc"] == 1.0


@pytest.fixture
def net(tiny_checkpoint: Path) -> AWNet:
    return checkpoint.load(tiny_checkpoint).awnet.requires_grad_(False)


def gradient(model: Any, x: Tensor) -> Tensor:
    z = x.clone().requires_grad_()
    return torch.autograd.grad(model(z)[:, 0].sum(), z)[0]


def test_t1_ignores_the_detector_and_t2_does_not(net: AWNet) -> None:
    """Both see the deployed logits; T1's gradient is that of the trunk under frozen signals, T2's is the whole."""
    x = torch.rand(2, 3, 32, 32)
    t1, t2 = attackers_copy(net, "T1"), attackers_copy(net, "T2")
    assert torch.equal(t1(x), net(x)) and torch.equal(t2(x), net(x))
    frozen = net.detect(x).detach()
    torch.testing.assert_close(gradient(t1, x), gradient(lambda z: net.classify(z, frozen), x))
    torch.testing.assert_close(gradient(t2, x), gradient(net, x))
    assert not torch.allclose(gradient(t1, x), gradient(t2, x), rtol=1e-2)
    moved = (x + 0.1).clamp(0, 1)  # recomputed at every step, not frozen once
    assert torch.equal(t1(moved), net(moved))


def test_bfloat16_touches_the_attackers_gradient_only(net: AWNet) -> None:
    """The gradient is near the float32 one and not equal to it; the clean answers stay those of float32."""
    x = torch.rand(4, 3, 32, 32)
    exact, rough = gradient(attackers_copy(net, "T2"), x), gradient(attackers_copy(net, "T2", bf16=True), x)
    assert not torch.equal(exact, rough)
    assert float(nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0)) > 0.9
    split, thresholds = images(6), {0.05: 0.5}
    plain, with_bf16 = (Evaluation.start(net, split, thresholds, bf16=b).judge.clean for b in (False, True))
    assert torch.equal(plain.scores, with_bf16.scores)  # type: ignore[arg-type]


def test_images_are_judged_as_8_bit(net: AWNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that hides in fractions of a grey level keeps its float figure and loses the other."""
    split = Split(torch.full((6, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros(6, dtype=torch.long))
    seen: list[Tensor] = []

    def fraction(model: Any, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        return x + 0.4 / 255

    monkeypatch.setitem(evaluate.ATTACKS, "fraction", (fraction, Budget()))
    original = judge.ask

    def watched(judged: nn.Module, x: Tensor, y: Tensor) -> Answers:
        seen.append(x)
        return original(judged, x, y)

    run = Evaluation.start(net, split, {0.05: 0.5})
    monkeypatch.setattr(judge, "ask", watched)
    figures = run.white_box("T2", "fraction", Budget())
    torch.testing.assert_close(seen[0], split.images / 255, rtol=0, atol=1e-7)
    torch.testing.assert_close(seen[1], split.images / 255 + 0.4 / 255, rtol=0, atol=1e-7)
    assert figures["auroc"] == pytest.approx(0.5)


def test_evasions_are_reported_image_by_image(net: AWNet) -> None:
    """The bits say which images were lost, under both thresholds; more are lost under the laxer one."""
    split = images(7)
    scores = Evaluation.start(net, split, {0.05: 0.5}).judge.clean.scores
    assert scores is not None
    run = Evaluation.start(net, split, {0.05: float(scores.median()), 0.01: 1.0})
    part = run.evasion("selective", Budget(steps=3), limit=6)
    for fpr in ("0.05", "0.01"):
        assert float(from_hex(part["success_bits"][fpr], 6).double().mean()) == pytest.approx(part["sr_at"][fpr])
    assert part["images"] == 6 and part["sr_at"]["0.05"] <= part["sr_at"]["0.01"]
    assert part["sr_at"]["0.01"] >= 1 - float(run.judge.clean.correct[:6].double().mean())  # clean errors count


def test_a_dead_network_shows_zero_gradients() -> None:
    """A classifier that ignores its input has no gradient anywhere, and the report's check catches it."""

    class Dead(Network):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :10]

    assert Evaluation.start(Dead(), images(4), {}).zero_gradients() == {"class_images": 1.0, "class_pixels": 1.0}


def test_a_surrogate_is_one_of_ours_or_a_named_foreign_one(static_checkpoint: Path) -> None:
    """NAME=FILE loads a checkpoint, ready to be attacked; its hash follows its weights."""
    first = load_surrogate(f"mine={static_checkpoint}", torch.device("cpu"))
    assert first.name == "mine" and not first.network.training
    assert not any(p.requires_grad for p in first.network.parameters())
    assert first.sha256 == load_surrogate(f"other={static_checkpoint}", torch.device("cpu")).sha256


@pytest.mark.skipif("AWNET_DATA_DIR" not in os.environ, reason="AWNET_DATA_DIR does not name the folder of CIFAR-10")
def test_real_images_reach_the_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The command line as a user types it, on four real test images."""
    options = ["--limit", "4", "--levels", "T2", "--attacks", "fgsm", "--no-corruptions"]
    argv = command(tiny_checkpoint, tmp_path / "r.json", *options)
    argv[argv.index("unused")] = os.environ["AWNET_DATA_DIR"]
    assert main(argv)["parts"]["T2/fgsm"]["images"] == 4


def test_every_option_has_help_and_its_default() -> None:
    """But for --help itself, old names, which are hidden, and those that must be given or are switches."""
    for action in evaluate.arguments()._actions:
        assert action.help, action.option_strings
        if action.nargs != 0 and not action.required and action.help != "==SUPPRESS==":
            assert "default" in action.help or action.option_strings == ["--device"], action.option_strings
