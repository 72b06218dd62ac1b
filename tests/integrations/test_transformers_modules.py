"""What ``accelerate`` leaves as it was, and what ``restore`` brings back."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import transformers
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fdpp.integrations.transformers import _version, accelerate, restore
from fdpp.integrations.transformers.modules import Accelerated, GatedMlp, Linear, RmsNorm
from tests.integrations.families import error, tokens


def _kinds(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def _accelerated(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, Accelerated)]


def _agree(model: nn.Module, other: nn.Module, tolerance: float = 1e-4) -> bool:
    prompt = tokens(2, 9)
    expected = model(prompt).logits.float()
    return error(other(prompt).logits.float(), expected) < tolerance


def _merged(model: nn.Module) -> bool:
    """Whether gate and up of every layer are one piece of memory."""
    return all(
        layer.mlp.up_proj.weight.data_ptr() == layer.mlp.gate_proj.weight.data_ptr() + layer.mlp.gate_proj.weight.nbytes
        for layer in model.model.layers
    )


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "gpt-oss", "bloom"])
def test_restore_undoes_everything(eager, family):
    model = copy.deepcopy(eager(family))
    kinds, before = _kinds(model), eager(family).state_dict()
    implementation = model.config._attn_implementation
    accelerate(model)
    assert _accelerated(model)
    assert restore(model) is model
    assert _kinds(model) == kinds
    assert model.config._attn_implementation == implementation
    assert model.__dict__.keys() == eager(family).__dict__.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in model.parameters())


def test_what_is_replaced(eager):
    model = accelerate(copy.deepcopy(eager("llama")))
    layer = model.model.layers[0]
    assert all(isinstance(module, Linear) for module in (layer.self_attn.q_proj, layer.mlp.down_proj, model.lm_head))
    assert isinstance(layer.input_layernorm, RmsNorm) and isinstance(layer.mlp, GatedMlp) and _merged(model)
    assert type(model).__name__ == "LlamaForCausalLM" and "fdpp" in repr(layer)


@pytest.mark.parametrize(("option", "kind"), [("linears", Linear), ("norms", RmsNorm), ("mlps", GatedMlp)])
def test_each_option_alone(eager, pair, option, kind):
    options = dict.fromkeys(("linears", "norms", "mlps", "attention", "cache"), False) | {option: True}
    model, accelerated = pair("llama", **options)
    found = _accelerated(accelerated)
    assert found and all(isinstance(module, kind) for module in found)
    assert accelerated.config._attn_implementation == "eager"
    assert _agree(model, accelerated)


def test_the_operators_run(pair, monkeypatch):
    from fdpp.integrations.transformers import modules

    called = []

    class Ops:
        def __getattr__(self, name):
            called.append(name)
            return getattr(torch.ops.fdpp, name)

    _, accelerated = pair("llama")
    monkeypatch.setattr(modules, "ops", Ops())
    accelerated(tokens(1, 1))
    layers = len(accelerated.model.layers)
    assert called.count("linear") == 6 * layers + 1  # q, k, v, o, gate with up, down; and the head
    assert (called.count("rms_norm"), called.count("silu_mul")) == (2 * layers + 1, layers)


def test_hooks_stay(pair):
    _, accelerated = pair("llama")
    seen = []
    mlp = accelerated.model.layers[0].mlp
    for part in (mlp, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        part.register_forward_hook(lambda module, arguments, output: seen.append(module))
    accelerated(tokens(1, 3))
    assert seen == [mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp]


def test_ties_stay(pair):
    model, accelerated = pair("llama-tied")
    assert accelerated.lm_head.weight is accelerated.model.embed_tokens.weight
    assert _agree(model, accelerated)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "phi3", "gemma2"])
def test_saved_and_loaded(pair, tmp_path, family):
    model, accelerated = pair(family)
    accelerated.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="fdpp")
    assert _agree(model, accelerate(loaded))
    accelerated.load_state_dict(model.state_dict())
    accelerated.load_state_dict(model.state_dict(), assign=True)
    assert _agree(model, accelerated)


def test_copied_and_pickled(pair):
    model, accelerated = pair("llama")
    file = io.BytesIO()
    torch.save(accelerated, file)
    file.seek(0)
    for copied in (copy.deepcopy(accelerated), torch.load(file, weights_only=False)):
        assert _kinds(copied) == _kinds(accelerated) and _merged(copied)
        copied.model.layers[0].mlp.up_proj.weight.zero_()
        assert not _agree(accelerated, copied)
        assert _agree(model, accelerated)
        assert not _accelerated(restore(copied)) and copied.config._attn_implementation == "eager"
    assert _accelerated(accelerated)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype(pair, dtype):
    """It is as close to float32 as the original in this dtype, and back in float32 it is what the dtype has left."""
    model, accelerated = pair("llama")
    prompt, narrow = tokens(2, 9), copy.deepcopy(model).to(dtype)
    expected = model(prompt).logits
    got = accelerated.to(dtype)(prompt).logits
    assert got.dtype is dtype and _merged(accelerated)
    assert error(got.float(), expected) < 1.5 * error(narrow(prompt).logits.float(), expected) + 1e-6
    assert _agree(narrow.to(torch.float32), accelerated.to(torch.float32))


def test_autocast(pair):
    model, accelerated = pair("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert _agree(model, accelerated, 0.05)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "phi3"])
def test_training_is_the_originals(eager, family):
    """With the operators out of the way, gradients have the same bits, and so has the model after a step."""
    model = copy.deepcopy(eager(family))
    accelerated = accelerate(copy.deepcopy(model), attention=False)
    with torch.enable_grad():
        for each in (model, accelerated):
            each.train()
            optimizer = torch.optim.SGD(each.parameters(), lr=0.01)
            each(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
            optimizer.step()
    expected = dict(model.named_parameters())
    for name, parameter in accelerated.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad) and torch.equal(parameter, expected[name]), name
    assert _agree(model.eval(), accelerated.eval())


def test_gradients_through_attention(pair, steps):
    for family in ("llama", "gemma2", "gpt-oss", "mistral-window"):
        model, accelerated = (copy.deepcopy(each) for each in pair(family))
        with torch.enable_grad():
            for each in (model, accelerated):
                each(tokens(2, 13), labels=tokens(2, 13)).loss.backward()
        expected = dict(model.named_parameters())
        for name, parameter in accelerated.named_parameters():
            if expected[name].grad.abs().max() > 1e-6:
                assert error(parameter.grad, expected[name].grad) < 1e-3, (family, name)
    assert not steps


def test_only_the_bias_wants_a_gradient():
    linear = accelerate(nn.Linear(8, 4))
    linear.weight.requires_grad_(False)
    with torch.enable_grad():
        linear(torch.randn(2, 8)).sum().backward()
    assert torch.equal(linear.bias.grad, torch.full((4,), 2.0))


def test_twice_and_never(eager):
    model = accelerate(copy.deepcopy(eager("llama")))
    kinds = _kinds(model)
    assert _kinds(accelerate(model)) == kinds
    restore(restore(model))
    assert not _accelerated(model) and model.config._attn_implementation == "eager"
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert restore(plain) is plain and type(plain[0]) is nn.Linear
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        accelerate("SmolLM2")


def test_meta_device(eager):
    config = eager("llama").config
    with torch.device("meta"):
        model = accelerate(transformers.AutoModelForCausalLM.from_config(config))
    assert model(torch.zeros(1, 3, dtype=torch.int64, device="meta")).logits.shape == (1, 3, config.vocab_size)
    model.to_empty(device="cpu").load_state_dict(eager("llama").state_dict())
    model.model.rotary_emb = copy.deepcopy(eager("llama").model.rotary_emb)
    assert _merged(model) and _agree(eager("llama"), model)


class _Quantized(nn.Linear):
    """A product with a weight of its own kind."""


def test_other_products_are_left_alone():
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    quantized = nn.Sequential(_Quantized(4, 4), nn.Bilinear(4, 4, 4), linear)
    kinds = [type(module) for module in quantized]
    accelerate(quantized)
    assert [type(module) for module in quantized][:2] == kinds[:2]
    with pytest.raises(RuntimeError, match="dtype"):  # torch's own error
        linear(torch.ones(2, 4))


def test_norms_that_calculate_something_else():
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + 1

    for norm in (OddRMSNorm(8), GemmaRMSNorm(8), nn.RMSNorm(8)):
        assert not isinstance(accelerate(norm), Accelerated)


def test_inputs_that_the_operators_do_not_take():
    linear, norm = nn.Linear(6, 4), LlamaRMSNorm(6)
    x = torch.randn(6, 3).t()
    for module in (linear, norm):
        expected = module(x)
        accelerate(module)
        assert error(module(x), expected) < 1e-5
        assert module(torch.randn(0, 6)).shape[0] == 0
    assert accelerate(nn.Linear(6, 4))(torch.randn(6)).shape == (4,)


@pytest.mark.parametrize(("installed", "found"), [(None, "it is not installed"), ("4.57.1", "4.57.1 is installed")])
def test_transformers_that_is_missing_or_old(installed, found):
    with pytest.raises(ImportError, match=f"needs transformers 5.23 or later .tested with 5.23.0., and {found}"):
        _version.check(installed)
    _version.check("6.0.0.dev0")
