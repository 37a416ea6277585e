"""The whole export: a checkpoint in, a proven version with its contract out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.graph.contract import ContractError
from export.graph.graph import GraphError, omega_layout
from export.graph.parity import ParityError
from export.onnx import ExportError, export_checkpoint, main
from export.repository.layout import METADATA_KEY
from server.core.contract import parse
from training.networks.checkpoint import CheckpointError, load, read, save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def contract(exported: Path) -> dict[str, Any]:
    model = onnx.load(exported / "model.onnx")
    document: dict[str, Any] = json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY])
    return document


def array(document: dict[str, Any]) -> np.ndarray:
    """A TENSOR of the contract, read as docs/architecture.md describes it."""
    kind = {"float32": "<f4", "uint8": "u1"}[document["dtype"]]
    return np.frombuffer(base64.b64decode(document["base64"]), kind).reshape(document["shape"])


def changed(tiny_checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the tiny checkpoint with some of its fields replaced."""
    path = folder / "best.pt"
    save(path, {**read(tiny_checkpoint), **changes})
    return path


@pytest.mark.process
def test_one_command_makes_a_version(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`python -m export.onnx --ckpt best.pt` needs nothing else, and says what it proved and wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "export.onnx", "--ckpt", tiny_checkpoint, "--repository", tmp_path / "models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "awnet" / "1" / "model.onnx").is_file()
    assert (tmp_path / "models" / "awnet" / "config.pbtxt").is_file()
    assert re.search(r"parity on .* attacked: logits \S+ .* p_type \S+ .* omega", done.stdout)


def test_parity_cannot_be_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line has exactly the documented options, none of which leaves the proof out."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--ckpt runs/small/d-robust/best.pt" in said  # what the README's commands make
    options = set(re.findall(r"--[a-z-]+", said.split("examples:")[0]))
    documented = "help ckpt repository name version opset data-dir card modes precision"
    assert options == {f"--{name}" for name in documented.split()}


def test_the_file_is_self_contained_and_portable(exported: Path) -> None:
    """IR version 10, opset 20, standard operators only, no second file, accepted by the checker, small."""
    path = exported / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert sorted(p.name for p in exported.iterdir()) == ["manifest.json", "model.onnx"]


def test_the_file_is_no_larger_than_its_weights(exported: Path, tiny_checkpoint: Path) -> None:
    """Four bytes a parameter, the contract, and at most 64 kB of graph."""
    model = onnx.load(exported / "model.onnx")
    contract_bytes = sum(len(p.value.encode()) for p in model.metadata_props)
    parameters = sum(p.numel() for p in load(tiny_checkpoint).network.parameters())
    assert (exported / "model.onnx").stat().st_size <= 4 * parameters + contract_bytes + 64_000


def test_no_file_carries_a_local_path(exported: Path, tiny_checkpoint: Path) -> None:
    """Nothing of the machine that exported is in the bytes: no folder, no source file, no stack trace."""
    local = [ROOT, Path.home(), Path.cwd(), tiny_checkpoint.parent, exported.parent, sys.prefix, sys.base_prefix]
    wanted = {str(p).encode() for p in local if len(str(p)) > 1} | {b".py", b"site-packages", b"Traceback"}
    for path in (exported / "model.onnx", exported.parent / "config.pbtxt"):
        data = path.read_bytes().replace(b"python -m export.onnx", b"")
        assert [word for word in wanted if word in data] == []
        # Absolute paths of any machine; base64 is taken out first, because '/' is one of its letters.
        prose = re.sub(rb'base64\\?":\\?"[A-Za-z0-9+/=]*', b"", data if path.suffix == ".pbtxt" else metadata(data))
        assert re.findall(rb"/(?:home|root|usr|opt|tmp|work|var|mnt|Users)/[\w.-]+", prose) == []
    model = onnx.load(exported / "model.onnx")
    assert not model.doc_string and not model.graph.doc_string
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)


def metadata(data: bytes) -> bytes:
    """A model's bytes without its weights."""
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    return bytes(model.SerializeToString())


def test_the_contract_carries_what_the_checkpoint_says(contract: dict[str, Any], tiny_checkpoint: Path) -> None:
    """Labels, thresholds, reference and provenance arrive unrounded."""
    checkpoint = load(tiny_checkpoint)
    calibration = checkpoint.calibration
    assert calibration is not None
    assert set(contract) == {
        "schema_version",
        "labels",
        "preprocessing",
        "thresholds",
        "reference",
        "omega",
        "golden",
        "provenance",
    }
    assert contract["schema_version"] == 1
    assert contract["labels"] == checkpoint.labels
    assert contract["preprocessing"] == {
        "size": 32,
        "resize": "short_side",
        "filter": "bilinear_antialias",
        "crop": "center",
        "orientation": "exif",
    }
    assert contract["thresholds"] == {
        "suspicious": {"score": calibration.thresholds[0.05], "fpr": 0.05},
        "adversarial": {"score": calibration.thresholds[0.01], "fpr": 0.01},
    }
    reference = contract["reference"]
    assert reference["images"] == calibration.images == sum(reference["score_histogram"]["counts"])
    assert reference["score_histogram"]["edges"] == calibration.histogram_edges
    np.testing.assert_array_equal(array(reference["omega_mean"]), calibration.omega_mean.numpy())
    np.testing.assert_array_equal(array(reference["omega_std"]), calibration.omega_std.numpy())
    layout = [(entry["name"], entry["offset"], entry["length"]) for entry in contract["omega"]]
    assert layout == omega_layout(checkpoint.awnet)
    provenance = contract["provenance"]
    assert re.fullmatch(r"[0-9a-f]{64}", provenance["checkpoint_sha256"])
    assert (provenance["recipe"], provenance["commit"]) == ("tiny", "0" * 40)
    assert re.fullmatch(r"awnet \S+, torch \S+, opset 20", provenance["exporter"])


def domain(name: str, low: float, high: float) -> dict[str, Any]:
    """A domain of a calibration as a checkpoint keeps it, with thresholds of its own."""
    return {
        "name": name,
        "about": f"images of the domain {name}",
        "kinds": [name],
        "images": 3,
        "ranges": {"colours": [0.25, 1.0]},
        "thresholds": {0.05: low, 0.01: high},
        "histogram_edges": [0.0, 0.5, 1.0],
        "histogram_counts": [2, 1],
        "map_scores": [0.0, 0.5, 1.0],
        "map_probabilities": [0.125, 0.5, 0.75],
        "map_prior": 0.5,
        "rates": {"fpr_pristine": {"suspicious": [0.05, 0.04, 0.06], "adversarial": [0.01, 0.0, 0.02]}},
    }


def with_domains(tiny_checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """The tiny checkpoint calibrated on two domains, the second with some fields replaced."""
    domains = [domain("pristine", 0.25, 0.5), {**domain("pool", 0.5, 0.75), **changes}]
    return changed(tiny_checkpoint, folder, calibration={**read(tiny_checkpoint)["calibration"], "domains": domains})


CARD = {
    "format": 1,
    "title": "Audit of a tiny network",
    "statement": "The detector pays nothing at T3.",
    "checkpoint_sha256": "0" * 64,
    "date": "2026-11-28",
    "figures": [],
}


@pytest.mark.parametrize("key", CARD)
def test_a_card_that_no_server_would_accept_is_refused(tiny_checkpoint: Path, tmp_path: Path, key: str) -> None:
    """Another file was meant, or the audit is of another release."""
    (tmp_path / "card.json").write_text(json.dumps({k: v for k, v in CARD.items() if k != key}), "utf-8")
    with pytest.raises(ContractError, match=key):
        export_checkpoint(with_domains(tiny_checkpoint, tmp_path), tmp_path / "models", card=tmp_path / "card.json")
    assert not (tmp_path / "models").exists()


def test_a_card_of_another_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The server would tell one network's figures as the other's."""
    (tmp_path / "card.json").write_text(json.dumps(CARD), "utf-8")
    with pytest.raises(ExportError, match="another checkpoint"):
        export_checkpoint(with_domains(tiny_checkpoint, tmp_path), tmp_path / "models", card=tmp_path / "card.json")
    assert not (tmp_path / "models").exists()


FIGURE = {"name": "a", "title": "b", "value": 0.5, "low": 0.4, "high": 0.6, "images": 9, "unit": "share"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"value": 10**9},
        {"value": True},
        {"low": None},
        {"high": 0.45},
        {"images": 0},
        {"unit": []},
        None,
    ],
    ids=str,
)
def test_a_figure_that_no_server_would_accept_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    """A version that servers refuse must not be published."""
    card = CARD | {"figures": [FIGURE, None if change is None else FIGURE | change]}
    (tmp_path / "card.json").write_text(json.dumps(card), "utf-8")
    with pytest.raises(ContractError, match="figure"):
        export_checkpoint(with_domains(tiny_checkpoint, tmp_path), tmp_path / "models", card=tmp_path / "card.json")
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_domains_and_card_travel_in_a_contract_of_schema_3(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Both domains in their order; the top thresholds are the last one's, so that who reads one pair errs quietly."""
    checkpoint = with_domains(tiny_checkpoint, tmp_path)
    card = CARD | {"checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(), "figures": [FIGURE]}
    (tmp_path / "card.json").write_text(json.dumps(card), "utf-8")
    folder = export_checkpoint(checkpoint, tmp_path / "models", card=tmp_path / "card.json")
    model = onnx.load(folder / "model.onnx")
    contract = json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY])
    assert contract["schema_version"] == 3 and contract["card"] == card
    assert contract["modes"] == {"auto": {"output": "logits"}}
    assert (contract["mixing"], contract["precision"]) == ({"kind": "norms"}, "float32")
    pristine, pool = contract["domains"]
    assert (
        contract["thresholds"]
        == pool["thresholds"]
        == {
            "suspicious": {"score": 0.5, "fpr": 0.05},
            "adversarial": {"score": 0.75, "fpr": 0.01},
        }
    )
    assert pristine == {
        "name": "pristine",
        "about": "images of the domain pristine",
        "ranges": {"colours": [0.25, 1.0]},
        "thresholds": {"suspicious": {"score": 0.25, "fpr": 0.05}, "adversarial": {"score": 0.5, "fpr": 0.01}},
        "images": 3,
        "kinds": ["pristine"],
        "score_histogram": {"edges": [0.0, 0.5, 1.0], "counts": [2, 1]},
        "score_map": {"scores": [0.0, 0.5, 1.0], "probabilities": [0.125, 0.5, 0.75], "prior": 0.5},
        "rates": domain("pristine", 0, 1)["rates"],
    }
    served = parse(json.dumps(contract))
    assert [domain.name for domain in served.domains] == ["pristine", "pool"]
    assert served.card == {key: value for key, value in card.items() if key != "format"}


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["norms", "bounded"])
def test_modes_travel_with_outputs_and_golden_values_of_their_own(
    tiny_checkpoint: Path, tmp_path: Path, mixing: str
) -> None:
    """What --modes adds, or bounded mixing brings: named in the contract, proven, and right in any engine."""
    config = read(tiny_checkpoint)["config"] | {"mixing": mixing, "mixing_limit": 0.25, "mixing_temperature": 2.0}
    checkpoint = with_domains(tiny_checkpoint, tmp_path)
    save(checkpoint, {**read(checkpoint), "config": config})
    modes = ["robust", "natural"] if mixing == "norms" else []
    folder = export_checkpoint(checkpoint, tmp_path / "models", modes=modes)
    model = onnx.load(folder / "model.onnx")
    contract = json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY])
    assert contract["modes"] == {
        "auto": {"output": "logits"},
        "robust": {"output": "logits_adv"},
        "natural": {"output": "logits_nat"},
    }
    limit = {"limit": 0.25, "temperature": 2.0} if mixing == "bounded" else {}
    assert contract["mixing"] == {"kind": mixing, **limit}
    names = ["logits", "p_type", "omega", "logits_adv", "logits_nat"]
    golden = contract["golden"]
    assert list(golden["tolerance"]) == names
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for name, got in zip(names, session.run(None, {"image": array(golden["image"])}), strict=True):
        np.testing.assert_allclose(got, array(golden[name]), atol=golden["tolerance"][name] / 10, rtol=0)
    if mixing == "bounded":
        np.testing.assert_allclose(np.exp(array(golden["logits"])).sum(1), 1, atol=1e-5)


def test_modes_and_precisions_of_a_checkpoint_without_domains_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a checkpoint is written in schema 1, which knows neither."""
    bounded = changed(tiny_checkpoint, tmp_path, config=read(tiny_checkpoint)["config"] | {"mixing": "bounded"})
    for checkpoint, options, reason in (
        (bounded, [], "modes need"),
        (tiny_checkpoint, ["--modes", "robust"], "modes need"),
        (tiny_checkpoint, ["--precision", "float16-weights"], "precision float16-weights needs"),
    ):
        assert main(["--ckpt", str(checkpoint), *options, "--repository", str(tmp_path / "models")]) == 2
        assert f"{reason} a checkpoint with domains" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_float16_weights_are_told_and_proven(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The contract names the precision; a checkpoint whose filters are no numbers of float16 is refused."""
    checkpoint = with_domains(tiny_checkpoint, tmp_path)
    with pytest.raises(GraphError, match="float16 would round"):
        export_checkpoint(checkpoint, tmp_path / "models", precision="float16-weights")
    state = {name: v.half() if v.dim() > 1 else v for name, v in read(checkpoint)["state"].items()}
    save(checkpoint, {**read(checkpoint), "state": state})
    sizes = []
    for precision in ("float32", "float16-weights"):
        file = export_checkpoint(checkpoint, tmp_path / "models", precision=precision) / "model.onnx"
        contract = json.loads({p.key: p.value for p in onnx.load(file).metadata_props}[METADATA_KEY])
        assert contract["precision"] == parse(json.dumps(contract)).precision == precision
        sizes.append(file.stat().st_size)
    parameters = sum(p.numel() for p in load(checkpoint).network.parameters() if p.dim() > 1)
    assert sizes[0] - sizes[1] > 1.6 * parameters


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ranges": {"entropy": [0, 1]}}, "unknown statistics: entropy"),
        ({"ranges": {"colours": [0.5, 0.25]}}, "ends before it begins"),
        ({"map_probabilities": [0.5, 0.25, 0.75]}, "score map"),
        ({"map_scores": [0.0, 0.0, 1.0]}, "score map"),
        ({"thresholds": {0.05: 0.8, 0.01: 0.4}}, "must rise"),
    ],
    ids=str,
)
def test_a_domain_that_no_server_would_accept_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    """The fault is found here, not when a server meets the model."""
    with pytest.raises(ContractError, match=complaint):
        export_checkpoint(with_domains(tiny_checkpoint, tmp_path, **changes), tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("text", "complaint"), [("[1]", "not a JSON object"), ("{", "is not JSON"), ("{}", "a card needs")]
)
def test_a_card_that_cannot_be_carried_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    """No object, no JSON, or a checkpoint that knows no domains."""
    (tmp_path / "card.json").write_text(text, "utf-8")
    options = ["--repository", str(tmp_path / "models"), "--card", str(tmp_path / "card.json")]
    assert main(["--ckpt", str(tiny_checkpoint), *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_model_answers_its_own_golden_inputs(exported: Path, contract: dict[str, Any]) -> None:
    """Any engine that runs the file can be tested with what the file carries; some of the inputs are attacked."""
    golden = contract["golden"]
    image = array(golden["image"])
    assert image.dtype == np.uint8 and image.shape == (8, 3, 32, 32)
    session = ort.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["logits", "p_type", "omega"]
    for name, got in zip(names, session.run(names, {"image": image}), strict=True):
        expected = array(golden[name])
        assert expected.dtype == np.float32 and len(np.unique(expected[:, 0])) > 4
        np.testing.assert_allclose(got, expected, atol=golden["tolerance"][name] / 10, rtol=0)


def test_the_contract_of_the_file_is_that_of_config(exported: Path) -> None:
    """The exporter copies the document; the file's hash stands beside it."""
    import hashlib

    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (exported.parent / "config.pbtxt").read_text(encoding="utf-8")
    parameters = text_format.Parse(text, model_config_pb2.ModelConfig()).parameters
    model = (exported / "model.onnx").read_bytes()
    (inside,) = onnx.load_from_string(model).metadata_props
    assert parameters["contract.1"].string_value == inside.value
    assert parameters["sha256.1"].string_value == hashlib.sha256(model).hexdigest()


def test_an_export_repeats(exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The same checkpoint gives the same bytes, so a hash can be compared."""
    again = export_checkpoint(tiny_checkpoint, tmp_path)
    assert (again / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()


def test_an_uncalibrated_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Without thresholds there is no verdict; the error says what to do, and nothing is written."""
    with pytest.raises(ContractError, match="no calibration"):
        export_checkpoint(changed(tiny_checkpoint, tmp_path, calibration=None), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_calibration_must_hold_both_operating_points(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """5 % for suspicious and 1 % for adversarial, by name."""
    calibration = {**read(tiny_checkpoint)["calibration"], "thresholds": {0.05: 0.4}}
    with pytest.raises(ContractError, match="1%"):
        export_checkpoint(changed(tiny_checkpoint, tmp_path, calibration=calibration), tmp_path / "models")


@pytest.mark.parametrize(
    "changes",
    [
        {"thresholds": {0.05: 0.8, 0.01: 0.4}},
        {"thresholds": {0.05: 0.8, 0.01: 1.4}},
        {"thresholds": {0.05: float("nan"), 0.01: 0.9}},
        {"histogram_counts": [1, 2]},
        {"histogram_edges": [1.0, 0.0], "histogram_counts": [3]},
    ],
    ids=str,
)
def test_a_calibration_that_no_server_would_accept_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The fault is found here, not when a server meets the model."""
    calibration = {**read(tiny_checkpoint)["calibration"], **changes}
    with pytest.raises(ContractError, match=r"thresholds|histogram"):
        export_checkpoint(changed(tiny_checkpoint, tmp_path, calibration=calibration), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_calibration_of_another_network_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As many omega statistics as the network has signals, as many labels as classes."""
    calibration = {**read(tiny_checkpoint)["calibration"], "omega_std": torch.zeros(3)}
    with pytest.raises(ContractError, match="omega_std"):
        export_checkpoint(changed(tiny_checkpoint, tmp_path, calibration=calibration), tmp_path / "models")
    with pytest.raises(ContractError, match="2 different labels for 10 classes"):
        export_checkpoint(changed(tiny_checkpoint, tmp_path, labels=["a", "b"]), tmp_path / "models")


def test_a_static_network_is_refused(tmp_path: Path) -> None:
    """Only an AW-Net can be exported, and the error says so."""
    from training.networks.baselines import StaticConfig, build_static
    from training.networks.checkpoint import pack

    path = tmp_path / "static.pt"
    save(path, pack(build_static(StaticConfig(width=4)), labels=["x"] * 10, recipe={}))
    with pytest.raises(CheckpointError, match="AW-Net"):
        export_checkpoint(path, tmp_path / "models")


def test_a_network_that_overflows_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Infinities are no answer, however well two engines agree on them."""
    state = dict(read(tiny_checkpoint)["state"])
    state["classifier.bias"] = torch.full_like(state["classifier.bias"], float("inf"))
    with pytest.raises(ParityError, match="not finite"):
        export_checkpoint(changed(tiny_checkpoint, tmp_path, state=state), tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ckpt", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--opset", "99"], "opset"),
        (["--name", "../x"], "no model name"),
        (["--version", "0"], "from 1 on"),
        (["--data-dir", "nowhere"], "CIFAR-10 is not in nowhere"),
    ],
)
def test_the_command_refuses_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    """A wrong option ends with status 2 and a sentence, not with a trace, and writes no version."""
    models = tmp_path / "models"
    assert main(["--ckpt", str(tiny_checkpoint), "--repository", str(models), *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.startswith("not exported: ") and "Traceback" not in error
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.slow
def test_real_test_images_take_part(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --data-dir, CIFAR-10's test images, clean and attacked, are part of the proof."""
    data_dir = os.environ.get("AWNET_DATA_DIR")
    if not data_dir:
        pytest.skip("AWNET_DATA_DIR is not set")
    assert main(["--ckpt", str(tiny_checkpoint), "--repository", str(tmp_path), "--data-dir", data_dir]) == 0
    assert "256 test, 32 attacked test" in capsys.readouterr().out
