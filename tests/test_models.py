from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from harness.inputs import assets, conversion
from harness.inputs.models import AssetModel, HubModel

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def checkpoint(tmp_path, cache, tiny_model, tiny_tokenizer) -> Path:
    directory = tmp_path / "tiny-llama"
    tiny_model().save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def converting(tmp_path, cache, monkeypatch, tiny_model, tiny_tokenizer) -> list[Path]:
    """Conversions done, of a made-up file into a tiny model."""
    source = tmp_path / "model.gguf"
    source.write_bytes(b"gguf")
    done: list[Path] = []

    def convert(file: Path, target: Path) -> None:
        done.append(file)
        tiny_model().save_pretrained(target)
        tiny_tokenizer.save_pretrained(target)

    monkeypatch.setattr(assets, "fetch", lambda asset: source)
    monkeypatch.setattr(conversion, "_convert", convert)
    return done


def test_a_local_directory(checkpoint, tiny_model):
    model = HubModel(str(checkpoint))
    loaded = model.load("cpu")
    assert model.name == "tiny-llama"
    assert not loaded.model.training
    ids = torch.arange(12)[None]
    assert torch.equal(loaded.model(ids).logits, tiny_model()(ids).logits)
    assert len(loaded.tokenizer) == 300


def test_the_content_hash_follows_weights_and_precision(checkpoint, tiny_model):
    first = HubModel(str(checkpoint)).load().content_hash
    assert HubModel(str(checkpoint)).load().content_hash == first
    assert HubModel(str(checkpoint), dtype="bfloat16").load().content_hash != first
    tiny_model(seed=1).save_pretrained(checkpoint)
    assert HubModel(str(checkpoint)).load().content_hash != first


def test_an_asset_is_converted_once(converting, cache):
    model = AssetModel("smollm2_135m", "smollm2_135m")
    first = model.load()
    second = model.load()
    assert len(converting) == 1
    assert first.content_hash == second.content_hash
    assert first.model.dtype == torch.float32


def test_a_conversion_that_broke_off_is_done_again(converting, cache, monkeypatch):
    convert = conversion._convert

    def broken(source: Path, target: Path) -> None:
        convert(source, target)
        (target / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    model = AssetModel("smollm2_135m", "smollm2_135m")
    monkeypatch.setattr(conversion, "_convert", broken)
    with pytest.raises(KeyboardInterrupt):
        model.load()
    monkeypatch.setattr(conversion, "_convert", convert)
    assert model.load().model.dtype == torch.float32


def test_bars_of_transformers_come_back(checkpoint, capfd):
    from transformers.utils import logging

    HubModel(str(checkpoint)).load()
    assert logging.is_progress_bar_enabled()
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"path": "x/y", "dtype": "float23"}, "did you mean 'float32'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HubModel(**arguments)


def test_directories_without_a_checkpoint(checkpoint):
    with pytest.raises(ValueError, match=r"no such directory; did you mean '.*tiny-llama'"):
        HubModel(str(checkpoint.with_name("tiny-lama"))).check()
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor .*other formats"):
        HubModel(str(checkpoint)).skeleton()
    (checkpoint / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        HubModel(str(checkpoint)).check()


def test_a_hub_that_does_not_answer(monkeypatch, cache):
    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(ValueError, match="can't be reached") as caught:
        HubModel("owner/name").check()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "config.json")
    HubModel("owner/name").check()


def test_an_unknown_asset():
    with pytest.raises(ValueError, match="did you mean"):
        AssetModel("x", "smollm2").check()


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_file_builds(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"+model={name}", *(["model.path=owner/name"] if name == "hf" else [])]
        model = instantiate(compose(overrides=overrides).model)
    assert model.name == name or name == "hf"


@pytest.mark.slow
def test_the_default_model():
    loaded = AssetModel("smollm2_135m", "smollm2_135m").load()
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert loaded.tokenizer.decode(loaded.tokenizer("A river.")["input_ids"]) == "A river."
