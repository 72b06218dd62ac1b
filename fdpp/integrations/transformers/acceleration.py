"""``accelerate``: one line that lets a model of transformers decode with fdpp, and ``restore``, which takes it back."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from fdpp.integrations.transformers.attention import NAME
from fdpp.integrations.transformers.cache import append_in_place
from fdpp.integrations.transformers.modules import (
    Accelerated,
    FusedMlp,
    GatedMlp,
    Linear,
    RmsNorm,
    accelerated_class,
)

Model = TypeVar("Model", bound=nn.Module)

# The option of accelerate that each belongs to. A product is replaced before the MLP that it is part of.
_REPLACEMENTS = (("linears", Linear), ("norms", RmsNorm), ("mlps", GatedMlp), ("mlps", FusedMlp))


class _Generator(Accelerated):
    """A model whose ``generate`` makes caches that append in place."""

    def _prepare_cache_for_generation(
        self, config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        if given is None:
            append_in_place(model_kwargs.get("past_key_values"))


def accelerate(
    model: Model, *, linears: bool = True, norms: bool = True, mlps: bool = True, attention: bool = True,
    cache: bool = True,
) -> Model:  # fmt: skip
    """Let a model of transformers decode with fdpp's operators.

    Names, parameters, hooks, ``state_dict`` and what ``save_pretrained`` writes stay as they are. Where a gradient is
    wanted, or the operators do not take a dtype or device, what ran before runs. A second call changes nothing.

    Args:
        model: **mutated**: any module; ``attention`` and ``cache`` are for models of transformers.
        linears: every nn.Linear. A subclass, such as one of quantised weights, is left alone.
        norms: every RMS norm that calculates what Llama's does.
        mlps: every gated MLP that calculates what Llama's or Phi-3's does, with SiLU: gate and up become one product,
            and their weights views of one storage.
        attention: ``attn_implementation="fdpp"``, where the family's attention can be chosen.
        cache: ``generate`` makes dynamic caches that append in place.

    Returns:
        the model.

    Raises:
        TypeError: it is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    wanted = {"linears": linears, "norms": norms, "mlps": mlps}
    for option, mixin in _REPLACEMENTS:
        for module in model.modules() if wanted[option] else ():
            if mixin.fits(module):
                _become(module, mixin)
    if attention and isinstance(model, PreTrainedModel):
        _choose_attention(model)
    if cache and isinstance(model, GenerationMixin) and not isinstance(model, Accelerated):
        _become(model, _Generator)
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`. A model that was not accelerated stays as it is.

    Args:
        model: **mutated**.

    Returns:
        the model.
    """
    for module in model.modules():
        if isinstance(module, Accelerated):
            module.undo()
            module.__class__ = type(module).original  # type: ignore[assignment]
    for config, implementation in model.__dict__.pop("_fdpp_replaced_attention", ()):
        config._attn_implementation = implementation
    return model


def _become(module: nn.Module, mixin: type[Accelerated]) -> None:
    module.__class__ = accelerated_class(mixin, type(module))
    module.prepare()  # type: ignore[operator]


def _configs(config: Any) -> list[Any]:
    """A config and those in it, outer ones first: to set one sets those in it."""
    inner = (getattr(config, name, None) for name in config.sub_configs)
    return [config, *(found for each in inner if each is not None for found in _configs(each))]


def _choose_attention(model: Any) -> None:
    # Attention weights, where the config asks for them, come from eager attention alone.
    if not model._can_set_attn_implementation() or model.config.output_attentions:
        return
    before = [(config, config._attn_implementation) for config in _configs(model.config)]
    if before[0][1] != NAME:
        model.set_attn_implementation(NAME)
        model.__dict__["_fdpp_replaced_attention"] = before
