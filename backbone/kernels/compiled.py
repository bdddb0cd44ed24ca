"""What PyTorch's compiler needs to take images of any size; without one nothing here acts."""

import torch
import torch.nn.functional as F
from torch import Tensor


def even_sides(x: Tensor) -> Tensor:
    """x (B, C, H, W) for a 3x3 convolution of stride 2: under a compiler with even sides.

    The row and column of zeros are what the convolution's own padding reads there. In a graph for
    any size PyTorch gives the result the side ``(H - 1) // 2 + 1``; a product of such sums is what
    its compiler (2.13) cannot put in order. With an even side it is ``(H + 1) // 2``.
    """
    if not torch.compiler.is_compiling():
        return x
    H, W = x.shape[2:]
    return F.pad(x, (0, 2 * ((W + 1) // 2) - W, 0, 2 * ((H + 1) // 2) - H))


def is_exporting() -> bool:
    """Whether ``torch.export`` traces; torch 2.6 does not tell it from another compiler."""
    tells = getattr(torch.compiler, 'is_exporting', None)
    return tells is not None and tells()


def let_inductor_order_symbols() -> None:
    """Make PyTorch's default backend sort strides by what it knows of their symbols.

    It keeps views for the backward pass and sorts their strides as bare expressions (2.13:
    ``GraphLowering.run_node``), which ends in "cannot determine truth value of Relational". Its own
    function takes what it knows as an argument; it is given that where it fails without.
    """
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    plain = ir.get_stride_order
    if getattr(plain, 'orders_symbols', False):
        return

    def get_stride_order(seq, shape_env=None):
        try:
            return plain(seq, shape_env)
        except TypeError:
            return plain(seq, V.graph.sizevars.shape_env)

    get_stride_order.orders_symbols = True
    ir.get_stride_order = get_stride_order


# called while a compiler traces, not traced: what torch.compiler.assume_constant_result sets
let_inductor_order_symbols._dynamo_marked_constant = True
