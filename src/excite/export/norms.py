"""Fold the batch norms of a traced network into the convolutions before them.

Networks of excite are folded before tracing (:func:`excite.models.fold`); for others only the graph is known.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONV, _NORM = torch.ops.aten.conv2d.default, torch.ops.aten.batch_norm.default
#: Argument positions: a convolution's bias, and a norm's flag ``training``.
_BIAS, _TRAINING = 2, 5


def fold_norms(program: ExportedProgram) -> int:
    """Fold batch norms into convolutions, in place; the result of the network does not change.

    A norm is kept if it does not follow a convolution, or if its weights or inputs have other uses.

    Returns:
        The number of norms folded.
    """
    signature = program.graph_signature
    names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    folded = 0
    for norm in list(program.graph.nodes):
        if _fits(norm, names):
            _fold(norm, names, program.state_dict)
            folded += 1
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return folded


def _fits(norm: Node, names: Mapping[str, str]) -> bool:
    if norm.target is not _NORM or norm.args[_TRAINING]:
        return False
    conv, *tensors = norm.args[:_TRAINING]
    if not isinstance(conv, Node) or conv.target is not _CONV or len(conv.users) > 1:
        return False
    # The tensors to be changed (the convolution's weight, the norm's bias) must have no other use.
    weight, bias = conv.args[1], tensors[1]
    written = all(isinstance(node, Node) and len(node.users) == 1 for node in (weight, bias))
    known = [weight, *tensors, *([] if _bias(conv) is None else [_bias(conv)])]
    return written and all(isinstance(node, Node) and node.name in names for node in known)


def _bias(conv: Node) -> Any:
    return conv.args[_BIAS] if len(conv.args) > _BIAS else None


def _fold(norm: Node, names: Mapping[str, str], state: dict[str, Any]) -> None:
    conv: Any = norm.args[0]
    tensors: list[Any] = list(norm.args[1:_TRAINING])
    scale, shift, mean, variance = (state[names[node.name]] for node in tensors)
    bias = None if _bias(conv) is None else state[names[_bias(conv).name]]
    weight, bias = fuse_conv_bn_weights(
        state[names[conv.args[1].name]], bias, mean, variance, cast(float, norm.args[7]), scale, shift
    )
    state[names[conv.args[1].name]] = nn.Parameter(weight.detach(), requires_grad=False)
    state[names[tensors[1].name]] = nn.Parameter(bias.detach(), requires_grad=False)
    conv.args = (*conv.args[:_BIAS], tensors[1], *conv.args[_BIAS + 1 :])
    norm.replace_all_uses_with(conv)
    norm.graph.erase_node(norm)
