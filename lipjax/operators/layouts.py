"""Layouts: from a leaf's path and shape to the operator it is.

A layout never guesses. What a path and a shape cannot tell apart raises
`AmbiguousLeafError` with the overrides to choose from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax

from lipjax.operators.base import LinearOperator
from lipjax.operators.dense import Dense, ReshapedKernel
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.product import Product

#: A layout, as a function or as a dictionary of every operator by path.
LayoutFn = Callable[[str, jax.ShapeDtypeStruct], LinearOperator | None]
Layout = LayoutFn | Mapping[str, LinearOperator | None] | Mapping[str, Product]


class AmbiguousLeafError(ValueError):
  """A leaf that could be more than one operator, or that is none we know.

  Args:
    path: the leaf's path.
    shape: its shape.
    reason: what cannot be told apart.
    choices: overrides to write, as source text.
  """

  def __init__(self, path: str, shape: tuple[int, ...], reason: str, choices: tuple[str, ...]):
    self.path, self.shape, self.reason, self.choices = path, shape, reason, choices
    super().__init__(f"{path!r} {shape}: {reason}. {self.advice}")

  @property
  def advice(self) -> str:
    """The override to write."""
    key = re.escape(self.path)
    return "Write layout_overrides={r'%s': …} with one of: %s." % (  # noqa: UP031
      key,
      ", ".join(self.choices),
    )


def flax_layout(path: str, leaf: jax.ShapeDtypeStruct) -> LinearOperator | None:
  """The layout of Flax parameters, linen and nnx.

  ===========================  ========================================================
  leaf                         operator
  ===========================  ========================================================
  ``kernel``, 2-D              ``Dense()``: (in, out)
  attention's ``kernel``, 3-D  ``Dense((0,), (1, 2))`` for query, key and value of shape
                               (D, H, dh) with D = H·dh; ``Dense((0, 1), (2,))`` for out
  ``kernel`` under a ``conv``  `ReshapedKernel`, 1-D and 2-D convolutions
  ``embedding``, 2-D           ``Dense()``: from one-hot tokens to features
  ``lora_a``, ``lora_b``, 2-D  ``Dense()``, each factor by itself
  ``scale``, 1-D               ``Diagonal()``
  ``bias``, ``mean``, ``var``  ``None`` at any rank: not a linear map
  under ``Scan…``, ``Vmap…``   the same with axis 0 as batch axis (linen's lifted modules)
  ===========================  ========================================================

  Everything else raises: a 3-D ``kernel`` can be a ``DenseGeneral``, a stack or
  a convolution under another name, and nothing in the leaf says which.

  Args:
    path: the leaf's path, such as ``"block_0/attn/query/kernel"``.
    leaf: its shape and dtype.

  Returns:
    The operator, or ``None`` for a leaf that is not a linear map.

  Raises:
    AmbiguousLeafError: the operator cannot be told from path and shape.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> lipjax.flax_layout("attn/out/kernel", jax.ShapeDtypeStruct((4, 8, 32), jnp.float32))
    Dense(in_axes=(0, 1), out_axes=(2,), batch_axes=())
  """
  parts = path.split("/")
  stacked = any(re.match(r"(Scan|Vmap)[A-Z]", part) for part in parts)
  shape = leaf.shape[1:] if stacked else leaf.shape
  operator = _flax_slice(path, parts, leaf.shape, shape)
  return _stacked(operator) if stacked and operator is not None else operator


def _flax_slice(path, parts, full_shape, shape):
  """The operator of one slice of a Flax leaf."""
  name, parent = parts[-1], parts[-2] if len(parts) > 1 else ""
  if name in ("bias", "mean", "var"):
    return None
  if name == "scale" and len(shape) == 1:
    return Diagonal()
  if name == "scale":
    raise _scale_error(path, full_shape)
  if name in ("embedding", "lora_a", "lora_b") and len(shape) == 2:
    return Dense()
  if name != "kernel" or len(shape) < 2:
    raise _unknown(path, full_shape)
  if len(shape) == 2:
    return Dense()
  if len(shape) == 3 and parent in ("query", "key", "value"):
    if shape[0] == shape[1] * shape[2]:
      return Dense((0,), (1, 2))
  elif len(shape) == 3 and parent == "out":
    if shape[0] * shape[1] == shape[2]:
      return Dense((0, 1), (2,))
  elif len(shape) in (3, 4) and _mentions_conv(parts):
    return _conv(len(shape))
  raise _kernel_error(path, full_shape)


def haiku_layout(path: str, leaf: jax.ShapeDtypeStruct) -> LinearOperator | None:
  """The layout of Haiku parameters.

  ``w`` is ``Dense()`` in two dimensions, (in, out), and a `ReshapedKernel` under
  a module called ``conv``, with in and out swapped under ``transpose``;
  ``embeddings`` is ``Dense()``; ``scale`` is ``Diagonal()`` at any rank; ``b``
  and ``offset`` are ``None``. Leaves under ``layer_stack`` have axis 0 as batch
  axis. Arguments, result and errors are those of `flax_layout`.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> lipjax.haiku_layout("mlp/~/linear_0/w", jax.ShapeDtypeStruct((8, 4), jnp.float32))
    Dense(in_axes=(0,), out_axes=(1,), batch_axes=())
  """
  parts = path.split("/")
  stacked = any("layer_stack" in part for part in parts)
  shape = leaf.shape[1:] if stacked else leaf.shape
  operator = _haiku_slice(path, parts, leaf.shape, shape)
  return _stacked(operator) if stacked and operator is not None else operator


def _haiku_slice(path, parts, full_shape, shape):
  """The operator of one slice of a Haiku leaf."""
  name = parts[-1]
  if name in ("b", "offset"):
    return None
  if name == "scale":
    return Diagonal()
  if name in ("w", "w_i", "w_h", "embeddings") and len(shape) == 2:
    return Dense()
  if name == "w" and len(shape) in (3, 4, 5) and _mentions_conv(parts):
    transposed = "transpose" in parts[-2]
    return _conv(len(shape), out_axis=len(shape) - 2 if transposed else len(shape) - 1)
  if name == "w" and len(shape) > 2:
    raise _kernel_error(path, full_shape)
  raise _unknown(path, full_shape)


def equinox_layout(path: str, leaf: jax.ShapeDtypeStruct) -> LinearOperator | None:
  """The layout of Equinox modules, whose weights are (out, in).

  ``weight``, ``weight_ih`` and ``weight_hh`` are ``Dense((1,), (0,))`` in two
  dimensions, ``Diagonal()`` in one (a normalization layer's), and a
  `ReshapedKernel` of (out, in, k…) under an attribute called ``conv``; ``bias``
  and ``bias_n`` are ``None`` at any rank. An `equinox.nn.Embedding` is read as
  (out, in) too, which changes neither its norm nor a penalty's gradient.
  Arguments, result and errors are those of `flax_layout`.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> lipjax.equinox_layout("layers/0/weight", jax.ShapeDtypeStruct((4, 8), jnp.float32))
    Dense(in_axes=(1,), out_axes=(0,), batch_axes=())
  """
  parts = path.split("/")
  name, rank = parts[-1], len(leaf.shape)
  if name in ("bias", "bias_n"):
    return None
  if name not in ("weight", "weight_ih", "weight_hh") or rank == 0:
    raise _unknown(path, leaf.shape)
  if rank == 1:
    return Diagonal()
  if rank == 2:
    return Dense((1,), (0,))
  if _mentions_conv(parts):
    return _conv(rank, out_axis=0)
  raise AmbiguousLeafError(
    path,
    leaf.shape,
    "a weight of three or more dimensions can be a convolution (out, in, k…), a"
    " normalization scale or a vmapped stack",
    (
      repr(_conv(rank, out_axis=0)),
      "Diagonal()",
      "Dense((2,), (1,), (0,))",
      "None",
    ),
  )


def torch_layout(path: str, leaf: jax.ShapeDtypeStruct) -> LinearOperator | None:
  """The layout of PyTorch's state dicts, whose weights are (out, in), with slashes for dots.

  ``weight`` is ``Dense((1,), (0,))`` in two dimensions, ``Diagonal()`` in one (a
  normalization layer's), and in four or five, or three under a module called ``conv``, a
  `ReshapedKernel` of (out, in, k…), or (in, out, k…) under ``transpose``. ``weight_ih_l0`` and
  its like and ``in_proj_weight`` are ``Dense((1,), (0,))``: of a recurrent layer's gates, or of
  query, key and value, together. Biases and running statistics are ``None``. An embedding and a
  GPT-2 ``Conv1D`` are read as (out, in) too, which does not change their norms; a transposed
  convolution whose name does not say so is read as (out, in, k…), which does: override it.
  Arguments, result and errors are those of `flax_layout`.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> lipjax.torch_layout(
    ...   "layer1/0/conv1/weight", jax.ShapeDtypeStruct((8, 4, 3, 3), jnp.float32)
    ... )
    ReshapedKernel(in_axes=(1, 2, 3), out_axes=(0,), batch_axes=())
  """
  parts = path.split("/")
  name, rank = parts[-1], len(leaf.shape)
  if re.fullmatch(r"(in_proj_)?bias(_[ih]h_l\d+(_reverse)?|_k|_v)?|beta|running_(mean|var)", name):
    return None
  if rank == 1 and name in ("weight", "gamma"):
    return Diagonal()
  if rank == 2 and re.fullmatch(r"weight|in_proj_weight|weight_[ih]h_l\d+(_reverse)?", name):
    return Dense((1,), (0,))
  transposed = "transpose" in path.lower()
  if name == "weight" and (rank in (4, 5) or (rank == 3 and _mentions_conv(parts))):
    return _conv(rank, out_axis=int(transposed))
  if name == "weight" and rank == 3:
    choices = repr(_conv(3, out_axis=0)), "Dense((2,), (1,), (0,))  # a stack of (out, in)", "None"
    reason = "a weight of three dimensions can be a convolution (out, in, k) or a stack"
    raise AmbiguousLeafError(path, leaf.shape, reason, choices)
  raise _unknown(path, leaf.shape)


def _stacked(operator: Dense | Diagonal) -> LinearOperator:
  """The operator of a leaf whose axis 0 stacks copies of `operator`."""
  if isinstance(operator, Diagonal):
    return Diagonal(batch_axes=(0,))
  shift = lambda axes: tuple(axis + 1 for axis in axes)
  return type(operator)(shift(operator.in_axes), shift(operator.out_axes), (0,))


def _conv(rank: int, *, out_axis: int | None = None) -> ReshapedKernel:
  out_axis = rank - 1 if out_axis is None else out_axis
  return ReshapedKernel(tuple(a for a in range(rank) if a != out_axis), (out_axis,))


def _mentions_conv(parts: list[str]) -> bool:
  """Whether the leaf's own module is called a convolution; ancestors do not count."""
  names = [part for part in parts[:-1] if not part.isdigit()]
  return bool(names) and "conv" in names[-1].lower()


def _kernel_error(path, shape):
  rank = len(shape)
  choices = [f"{_conv(rank)!r}  # a convolution; lipjax.Convolution(size of its input) is its map"]
  if rank == 3:
    choices += [
      "Dense((0,), (1, 2))  # DenseGeneral or query/key/value",
      "Dense((0, 1), (2,))  # DenseGeneral or attention output",
      "Dense((1,), (2,), (0,))  # a stack of matrices",
    ]
  else:
    last, before = rank - 1, rank - 2
    stack = tuple(range(rank - 2))
    choices.append(f"Dense(({before},), ({last},), {stack})  # a stack of matrices")
  return AmbiguousLeafError(
    path,
    shape,
    f"a kernel of {rank} dimensions can be a convolution, a DenseGeneral, an attention"
    " projection or a stack of matrices",
    (*choices, "None  # leave it out"),
  )


def _scale_error(path, shape):
  return AmbiguousLeafError(
    path,
    shape,
    "a scale that is not a vector can be one scaling over several axes or a stack of them",
    ("Diagonal()", "Diagonal(batch_axes=(0,))", "None"),
  )


def _unknown(path, shape):
  if not path:
    return AmbiguousLeafError(
      path,
      shape,
      "this leaf has no name: params is a bare array, or optax.flatten has turned the tree"
      " into one vector, in which no layer's matrix can be found; pass a tree such as"
      ' {"kernel": W} (and keep optax.flatten to elementwise transformations)',
      ("Dense()", "None"),
    )
  return AmbiguousLeafError(
    path,
    shape,
    "no rule of this layout knows a leaf of this name and rank",
    ("Dense()", "Diagonal()", "None  # not a linear map"),
  )
