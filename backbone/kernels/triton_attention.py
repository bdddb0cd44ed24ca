"""Manhattan attention on a GPU in Triton, forward and backward; imported at its first use.

Tensors are (B, H, W, n, d). A line is the whole grid, a row or a column of it; an item is one head
of a line, and a program has a tile of an item: M queries or N keys. Its scores, in base 2 because
exp2 is one instruction::

    s = q' k' + rate * (|row - row'| + |column - column'|)

q' and k' were turned by their places, k' is times log2(e) / sqrt(d) (:func:`turn_kernel`). No score
is written. Nothing is summed by atomics: the same inputs give the same bits.

- Sizes and strides are arguments that nothing is compiled anew for. Strides count UNIT channels, 16
  where all are multiples of it, so that the compiler knows which loads are whole vectors.
- Places come from tables that go on with infinities to a multiple of PAD: a key beyond its line is
  infinitely far away and weighs nothing, which saves a comparison a score.
- Whatever enters a product beyond a line is loaded as zero, never as what lies there.
- Channels d that are no power of two are computed as the next one, D, filled up with zeros.
"""

import triton
import triton.language as tl

PAD = 64
"""Every tile divides it; tables of places and rows of sums are multiples of it."""

SIZES = [
    *('length', 'pads', 'heads', 'inner', 'outer', 'across', 'along', 'tokens', 'H', 'W'),
    *(f'{t}_{i}' for t in 'vg' for i in ('outer', 'inner', 'token', 'head')),
    *(f'{t}_{i}' for t in 'qk' for i in ('image', 'row', 'column', 'head')),
]
LN2 = tl.constexpr(0.6931471805599453)

kernel = triton.jit(do_not_specialize=SIZES)
# the interpreter patches all of Triton at each call of another function of its, 4 ms
part = (lambda function: function) if triton.knobs.runtime.interpret else triton.jit

# --- parts ---------------------------------------------------------------------------------------


@part
def _first_token(line, inner, outer, across):
    """The token at which a line of the grid begins; lines are counted image by image."""
    return (line // inner).to(tl.int64) * outer + (line % inner).to(tl.int64) * across


@part
def _offsets(offs, stride, D: tl.constexpr):
    """Of the channels of tokens that are ``stride`` channels apart, (tokens, D)."""
    return offs.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]


@part
def _inside(offs, length, d: tl.constexpr, D: tl.constexpr):
    """Which of (tokens, D) there are."""
    inside = offs[:, None] < length
    if d < D:
        inside = inside & (tl.arange(0, D)[None, :] < d)
    return inside


@part
def _dot(a, b, c, PRECISION: tl.constexpr):
    """``a b + c`` in float32. PRECISION 'exact': the interpreter cannot multiply bfloat16."""
    if PRECISION == 'exact':
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c, input_precision='ieee')
    return tl.dot(a, b, c, input_precision=PRECISION)


@part
def _places(PLACES, offs, pads, WHOLE: tl.constexpr, PAD: tl.constexpr):
    """Row and column of tokens, or twice their place in a line."""
    row = tl.load(PLACES + offs)
    return row, tl.load(PLACES + pads * PAD + offs) if WHOLE else row


@part
def _places_here(PLACES, offs, length, pads, WHOLE: tl.constexpr, PAD: tl.constexpr):
    """The same with zeros beyond the line: infinity less infinity would be no number."""
    row, column = _places(PLACES, offs, pads, WHOLE, PAD)
    return tl.where(offs < length, row, 0.0), tl.where(offs < length, column, 0.0)


@part
def _apart(row, column, row_there, column_there, WHOLE: tl.constexpr):
    """Distances between two sets of places."""
    apart = tl.abs(row[:, None] - row_there[None, :])
    if WHOLE:
        apart += tl.abs(column[:, None] - column_there[None, :])
    return apart


@part
def _turn(x, turns, BACK: tl.constexpr, D: tl.constexpr):
    """Turn adjacent pairs of channels of x by turns, (tokens, D): cosine, sine, cosine, sine ..."""
    a, b = tl.split(tl.reshape(x, (x.shape[0], D // 2, 2)))
    cos, sin = tl.split(tl.reshape(turns, (x.shape[0], D // 2, 2)))
    if BACK:
        sin = -sin
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (x.shape[0], D))


@part
def _store_grad(
    at, grad, inside, TURNS, places, d: tl.constexpr, D: tl.constexpr, ADD: tl.constexpr,
    TURN: tl.constexpr,
):  # fmt: skip
    """Put a gradient of queries or keys, (tokens, D), in its place.

    ADD: to what is there; TURN: back, to the gradient of what came unturned.
    """
    if ADD:
        grad += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if TURN:
        turns = tl.load(TURNS + _offsets(places, d, D), mask=inside, other=0.0)
        grad = _turn(grad, turns, True, D)
    tl.store(at, grad.to(at.dtype.element_ty), mask=inside)


# --- kernels -------------------------------------------------------------------------------------


@kernel
def turn_kernel(
    Q, K, TURNS, TURNED_Q, TURNED_K, scale, tokens, heads, H, W,
    q_image, q_row, q_column, q_head, k_image, k_row, k_column, k_head,
    d: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """q' and k' of a tile of tokens, all heads; the result is contiguous."""
    offs = tl.program_id(0) * M + tl.arange(0, M)
    image, place = offs // (H * W), offs % (H * W)
    row, column = place // W, place % W
    inside = _inside(offs, tokens, d, D)
    turns = tl.load(TURNS + _offsets(place, d, D), mask=inside, other=0.0)
    image, row, column = image.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
    q = Q + ((image * q_image + row * q_row + column * q_column) * UNIT)[:, None]
    k = K + ((image * k_image + row * k_row + column * k_column) * UNIT)[:, None]
    q += tl.arange(0, D)[None, :]
    k += tl.arange(0, D)[None, :]
    to = _offsets(offs, heads * d, D)
    for _ in range(heads):
        a = _turn(tl.load(q, mask=inside, other=0.0).to(tl.float32), turns, False, D)
        b = _turn(tl.load(k, mask=inside, other=0.0).to(tl.float32), turns, False, D) * scale
        tl.store(TURNED_Q + to, a.to(TURNED_Q.dtype.element_ty), mask=inside)
        tl.store(TURNED_K + to, b.to(TURNED_K.dtype.element_ty), mask=inside)
        q += q_head * UNIT
        k += k_head * UNIT
        to += d


@kernel
def forward_kernel(
    Q, K, V, OUT, SUMS, RATES, PLACES, length, pads, heads, inner, outer, across, along,
    v_outer, v_inner, v_token, v_head,
    d: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr, PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """M queries against all keys of their line: the result, and log2 of the softmax's sums."""
    tiles = (length + M - 1) // M
    item, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    line, head = item // heads, item % heads
    token, step = (_first_token(line, inner, outer, across) * heads + head) * d, along * heads * d
    v_line = _first_token(line, inner, v_outer, v_inner) + head.to(tl.int64) * v_head
    offs, offs_n = tile * M + tl.arange(0, M), tl.arange(0, N)
    inside = _inside(offs, length, d, D)
    here = token + _offsets(offs, step, D)
    q = tl.load(Q + here, mask=inside, other=0.0)
    k_at = K + token + _offsets(offs_n, step, D)
    v_at = V + v_line * UNIT + _offsets(offs_n, v_token * UNIT, D)
    rate = tl.load(RATES + head)
    row, column = _places_here(PLACES, offs, length, pads, WHOLE, PAD)

    top = tl.full([M], float('-inf'), tl.float32)
    sums = tl.full([M], 0.0, tl.float32)
    out = tl.full([M, D], 0.0, tl.float32)
    zero = tl.full([M, N], 0.0, tl.float32)
    for start in range(0, length, N):
        there = _inside(offs_n, length - start, d, D)
        k = tl.load(k_at, mask=there, other=0.0)
        v = tl.load(v_at, mask=there, other=0.0)
        row_n, column_n = _places(PLACES, start + offs_n, pads, WHOLE, PAD)
        s = _dot(q, tl.trans(k), zero, PRECISION)
        s += rate * _apart(row, column, row_n, column_n, WHOLE)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.math.exp2(s - higher[:, None])
        shrink = tl.math.exp2(top - higher)
        sums = sums * shrink + tl.sum(p, 1)
        out = _dot(p.to(v.dtype), v, out * shrink[:, None], PRECISION)
        top = higher
        k_at += N * step
        v_at += N * v_token.to(tl.int64) * UNIT
    out /= sums[:, None]
    tl.store(OUT + here, out.to(OUT.dtype.element_ty), mask=inside)
    tl.store(SUMS + item.to(tl.int64) * pads * PAD + offs, top + tl.math.log2(sums))


@kernel
def query_kernel(
    Q, K, V, OUT, SUMS, GRAD, DELTA, GRAD_Q, RATES, PLACES, TURNS,
    length, pads, heads, inner, outer, across, along,
    v_outer, v_inner, v_token, v_head, g_outer, g_inner, g_token, g_head,
    d: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr, PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    ADD: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Gradient of M queries, and each one's ``grad out`` for :func:`key_kernel`."""
    tiles = (length + M - 1) // M
    item, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    line, head = item // heads, item % heads
    token, step = (_first_token(line, inner, outer, across) * heads + head) * d, along * heads * d
    v_line = _first_token(line, inner, v_outer, v_inner) + head.to(tl.int64) * v_head
    g_line = _first_token(line, inner, g_outer, g_inner) + head.to(tl.int64) * g_head
    offs, offs_n = tile * M + tl.arange(0, M), tl.arange(0, N)
    inside = _inside(offs, length, d, D)
    here = token + _offsets(offs, step, D)
    g_here = g_line * UNIT + _offsets(offs, g_token * UNIT, D)
    q = tl.load(Q + here, mask=inside, other=0.0)
    grad = tl.load(GRAD + g_here, mask=inside, other=0.0)
    out = tl.load(OUT + here, mask=inside, other=0.0)
    k_at = K + token + _offsets(offs_n, step, D)
    v_at = V + v_line * UNIT + _offsets(offs_n, v_token * UNIT, D)
    rate = tl.load(RATES + head)
    row, column = _places_here(PLACES, offs, length, pads, WHOLE, PAD)
    sums_at = item.to(tl.int64) * pads * PAD + offs
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + sums_at, delta)
    # products begin with what would be taken off them: a tensor core adds for nothing
    less_sums = tl.broadcast_to(-tl.load(SUMS + sums_at)[:, None], (M, N))
    less_delta = tl.broadcast_to(-delta[:, None], (M, N))

    grad_q = tl.full([M, D], 0.0, tl.float32)
    for start in range(0, length, N):
        there = _inside(offs_n, length - start, d, D)
        k = tl.load(k_at, mask=there, other=0.0)
        v = tl.load(v_at, mask=there, other=0.0)
        row_n, column_n = _places(PLACES, start + offs_n, pads, WHOLE, PAD)
        s = _dot(q, tl.trans(k), less_sums, PRECISION)
        p = tl.math.exp2(s + rate * _apart(row, column, row_n, column_n, WHOLE))
        grad_s = p * _dot(grad, tl.trans(v), less_delta, PRECISION)
        grad_q = _dot(grad_s.to(k.dtype), k, grad_q, PRECISION)
        k_at += N * step
        v_at += N * v_token.to(tl.int64) * UNIT
    places = (line % inner) * across + offs * along
    _store_grad(GRAD_Q + here, grad_q * LN2, inside, TURNS, places, d, D, ADD, TURN)


@kernel
def key_kernel(
    Q, K, V, SUMS, GRAD, DELTA, GRAD_K, GRAD_V, RATES, PLACES, TURNS, scale,
    length, pads, heads, inner, outer, across, along,
    v_outer, v_inner, v_token, v_head, g_outer, g_inner, g_token, g_head,
    d: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr, PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    ADD: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Gradients of N keys and values, over all queries of their line; scores are (N, M) here."""
    tiles = (length + N - 1) // N
    item, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    line, head = item // heads, item % heads
    token, step = (_first_token(line, inner, outer, across) * heads + head) * d, along * heads * d
    v_line = _first_token(line, inner, v_outer, v_inner) + head.to(tl.int64) * v_head
    g_line = _first_token(line, inner, g_outer, g_inner) + head.to(tl.int64) * g_head
    offs, offs_m = tile * N + tl.arange(0, N), tl.arange(0, M)
    inside = _inside(offs, length, d, D)
    here = token + _offsets(offs, step, D)
    v_here = v_line * UNIT + _offsets(offs, v_token * UNIT, D)
    k = tl.load(K + here, mask=inside, other=0.0)
    v = tl.load(V + v_here, mask=inside, other=0.0)
    q_at = Q + token + _offsets(offs_m, step, D)
    grad_at = GRAD + g_line * UNIT + _offsets(offs_m, g_token * UNIT, D)
    sums_at = item.to(tl.int64) * pads * PAD + offs_m
    rate = tl.load(RATES + head)
    row, column = _places_here(PLACES, offs, length, pads, WHOLE, PAD)

    grad_k = tl.full([N, D], 0.0, tl.float32)
    grad_v = tl.full([N, D], 0.0, tl.float32)
    for start in range(0, length, M):
        there = _inside(offs_m, length - start, d, D)
        q = tl.load(q_at, mask=there, other=0.0)
        grad = tl.load(grad_at, mask=there, other=0.0)
        row_m, column_m = _places(PLACES, start + offs_m, pads, WHOLE, PAD)
        less_sums = tl.broadcast_to(-tl.load(SUMS + sums_at + start)[None, :], (N, M))
        less_delta = tl.broadcast_to(-tl.load(DELTA + sums_at + start)[None, :], (N, M))
        s = _dot(k, tl.trans(q), less_sums, PRECISION)
        p = tl.math.exp2(s + rate * _apart(row, column, row_m, column_m, WHOLE))
        grad_v = _dot(p.to(grad.dtype), grad, grad_v, PRECISION)
        grad_s = p * _dot(v, tl.trans(grad), less_delta, PRECISION)
        grad_k = _dot(grad_s.to(q.dtype), q, grad_k, PRECISION)
        q_at += M * step
        grad_at += M * g_token.to(tl.int64) * UNIT
    places = (line % inner) * across + offs * along
    _store_grad(GRAD_K + here, grad_k * scale, inside, TURNS, places, d, D, ADD, TURN)
    tl.store(GRAD_V + here, grad_v.to(GRAD_V.dtype.element_ty), mask=inside)
