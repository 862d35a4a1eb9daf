import hashlib
import json
import struct
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from shortflow.train.weights import save_model, step_of, sum_of


def test_a_model_file_describes_itself(tmp_path: Path) -> None:
    model, said = nn.Linear(3, 2), {"data": {"shape": [1, 8, 8]}, "step": 5}
    save_model(model, tmp_path / "model.safetensors", said)
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as opened:
        header = json.loads(opened.metadata()["shortflow"])
        assert header == {**said, "sha256": sum_of(said, model.state_dict())}
        assert torch.equal(opened.get_tensor("weight"), model.weight)
        assert torch.equal(opened.get_tensor("bias"), model.bias)
    assert step_of(tmp_path / "model.safetensors") == 5
    assert step_of(tmp_path / "none.safetensors") == -1


def test_the_sum_of_weights_is_that_of_all_that_makes_them() -> None:
    """Golden: the bytes spelt out by hand. It sees the description, names, types, shapes and every bit."""
    tensors = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor(3, dtype=torch.int16)}
    spelt = b'{"step": 5}' + b'["a", "torch.int16", []]' + b"\3\0" + b'["b", "torch.float32", [2]]'
    assert sum_of({"step": 5}, tensors) == hashlib.sha256(spelt + struct.pack("<2f", 1.0, -2.0)).hexdigest()
    assert sum_of({"step": 5, "sha256": "x"}, tensors) == sum_of({"step": 5}, tensors)
    others = [
        sum_of({"step": 6}, tensors),
        sum_of({"step": 5}, {"c": tensors["b"], "a": tensors["a"]}),
        sum_of({"step": 5}, {**tensors, "b": tensors["b"][None]}),
        sum_of({"step": 5}, {**tensors, "b": torch.tensor([1.0, 2.0])}),
        sum_of({"step": 5}, {**tensors, "b": tensors["b"].view(torch.int32)}),
        sum_of({"step": 5}, {**tensors, "b": torch.stack([tensors["b"]] * 2, 1)[:, 0].bfloat16()}),
    ]
    assert len({sum_of({"step": 5}, tensors), *others}) == 7
    assert sum_of({}, {"e": torch.zeros(0, 3)}) != sum_of({}, {})
