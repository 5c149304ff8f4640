"""A causal model's decoder layers one by one: what flows into the first, and what each makes of what it is given.

The model's own code builds masks and position tables: a layer is called with the arguments that it would get in a whole
pass over rows of the same length. So windows, rotary tables and scalings of every family are right without being known
here.

B rows, L tokens of a row, d width of the residual stream.
"""

from __future__ import annotations

from typing import Any

import torch

from edgegen.errors import UnsupportedError


def decoder_layers(model: Any) -> Any:
    """The list of a model's layers, as many as its configuration says.

    Raises:
        UnsupportedError: there is no such list.
    """
    wanted = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise UnsupportedError(f"a {model.config.model_type!r} model has no list of {wanted} decoder layers")


class _EnoughError(Exception):
    """A pass has got as far as it need."""


class Blocks:
    """The decoder layers of a model that keeps its shape meanwhile.

    Attributes:
        layers: the modules.
    """

    def __init__(self, model: Any) -> None:
        """
        Raises:
            UnsupportedError: the model has no list of layers.
        """
        self._model = model
        self.layers = decoder_layers(model)
        self._arguments: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def entered(self, ids: torch.Tensor) -> torch.Tensor:
        """What flows into the first layer: (B, L, d) float32, without a gradient.

        Args:
            ids: (B, L) int64.
        """
        seen: list[torch.Tensor] = []

        def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _EnoughError

        handle = self.layers[0].register_forward_pre_hook(look, with_kwargs=True)
        try:
            with torch.no_grad():
                self._model(ids.to(self._model.device), use_cache=False)
        except _EnoughError:
            pass
        finally:
            handle.remove()
        return seen[0].float()

    def run(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """A layer's output, (B, L, d) float32; its gradient reaches the layer's parameters and `hidden`.

        Args:
            hidden: (B, L, d): the residual stream before the layer.
        """
        args, kwargs = self._called_with(hidden.shape[1])[layer]
        dtype = next(p.dtype for p in self.layers[layer].parameters())
        out = self.layers[layer](hidden.to(dtype), *args, **kwargs)
        return (out[0] if isinstance(out, tuple) else out).float()

    def _called_with(self, length: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Arguments of each layer besides the residual stream, for rows of this length; they broadcast over rows."""
        if length not in self._arguments:
            seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

            def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

            handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in self.layers]
            try:
                ids = torch.zeros(1, length, dtype=torch.long, device=self._model.device)
                with torch.no_grad():
                    self._model(ids, use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            self._arguments[length] = seen
        return self._arguments[length]
