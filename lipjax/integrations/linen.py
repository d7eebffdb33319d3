"""Spectral normalization for Flax linen modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipjax.integrations.convolutions import check_stored
from lipjax.integrations.linen_modules import modules_by_path, read_module
from lipjax.integrations.module_layout import module_operators
from lipjax.integrations.normalization import (
  ConvolutionMode,
  Vectors,
  advance,
  check_options,
  initial_gain,
  measure,
  normalize,
  require_update_stats,
  top_vectors,
)
from lipjax.measure.block import SingularBlock
from lipjax.measure.options import check_steps
from lipjax.measure.refresh import TOL
from lipjax.operators.base import LinearOperator
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides


class SpectralNorm(nn.Module):
  r"""A layer that computes with its kernels divided by their spectral norms.

  Takes the place of `flax.linen.SpectralNorm`. For every kernel :math:`W` of the layer

  ==========  =====================================  =========================================
  `mode`      the layer computes with                its norm
  ==========  =====================================  =========================================
  ``target``  :math:`c\,W/\hat\sigma`                :math:`c`
  ``cap``     :math:`W/\max(1, \hat\sigma/c)`        at most :math:`c`
  ``gain``    :math:`\gamma\,W/\hat\sigma`           :math:`\gamma`, learned, at first :math:`c`
  ==========  =====================================  =========================================

  with :math:`\hat\sigma = \|W v\|`. With ``update_stats=True`` a forward first brings the
  block of singular vectors that :math:`v` is found in up to date, as
  `lipjax.update_singular_vectors` does; with False it leaves it, and writes nothing.
  ``params`` holds the weights as the layer's initializer made them, under the same paths as
  with Flax's wrapper, and no forward changes them; their gradient is
  :math:`\frac{c}{\hat\sigma}(G - \langle G, W/\hat\sigma\rangle\,uv^T)`.

  Which axes of a kernel are inputs and outputs is read off the class and attributes of
  the module that owns it: `nn.Dense`, `nn.DenseGeneral` (and so attention), `nn.Embed`
  and convolutions, nested at any depth, and stacks of them made by `nn.scan` or `nn.vmap`
  inside the layer. Biases of any rank and scales of normalization layers stay as they
  are. What is divided by for a convolution is said by `convolution`:

  =============  ==================================================================
  `convolution`  :math:`\hat\sigma` is
  =============  ==================================================================
  ``reshaped``   the norm of the kernel reshaped to a matrix (`lipjax.ReshapedKernel`),
                 as in Flax and in Miyato et al.: **not** the convolution's norm,
                 which can be several times larger or smaller
  ``operator``   the norm of the convolution (`lipjax.Convolution`) with its
                 padding, strides and dilations, for the input sizes of this call
  =============  ==================================================================

  The vectors of ``operator`` have the shapes of one input and one output of the
  convolution, a step costs about as much as two convolutions of 2k examples, and another
  input size raises until `remeasure` has measured at it.

  Guarantee: an estimate. :math:`v` is measured to convergence by ``init`` and by
  `remeasure`, which gives norms within about 1e-6 of the target (float32). In training
  the block that it is found in follows the weights, and the true norm is the target or, by
  as much as it lags, above it: by less than 1 % as a rule (2.1 % in the worst update of all
  trainings tried; true norms of a small CNN at a constant Adam rate of 1e-3: 0.5 %). Every
  forward takes the best vector of the block for the weights as they are.
  Variables without the collection (a checkpoint of a model that had no spectral
  normalization) are measured to convergence in every forward: right, and slow.

  Attributes:
    layer_instance: the layer. Make the modules that it takes as fields with
      ``parent=None``, so that they are its own.
    n_steps: steps of block power iteration with ``update_stats=True``, at least.
    epsilon: no effect; accepted because Flax's takes it. Nothing is added to a norm
      here, and a zero kernel stays zero.
    dtype: of the normalized kernels that the layer sees; their own when None.
    param_dtype: of the learned gains. Vectors are float32 or wider in any case.
    error_on_non_matrix: raise for kernels of more than two axes.
    collection_name: the collection of the vectors.
    target: :math:`c`, a positive number.
    mode: ``"target"``, ``"cap"`` or ``"gain"``.
    layout_overrides: ``{regex: operator or None}`` on the layer's paths, such as
      ``{"query/kernel": None}``.
    convolution: ``"reshaped"`` or ``"operator"``.
    tol: estimated relative error of a norm at which the steps of a forward end; None for
      `n_steps` and no more.
    k: singular vectors that are followed, as in `lipjax.init_singular_vectors` when None.

  Raises:
    LayoutError: a kernel that its module does not explain (an `nn.Einsum`; with
      ``convolution="operator"`` a convolution called with inputs of two sizes), with
      the override to write.
    ValueError: an unknown mode, a target that is not positive, no steps, no
      `update_stats`; a convolution whose input has another size than its vectors.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> import flax.linen as nn
    >>> from lipjax.integrations import linen as llinen
    >>> model = llinen.SpectralNorm(nn.Dense(3))
    >>> x = jnp.ones((2, 4))
    >>> variables = model.init(jax.random.key(0), x, update_stats=False)
    >>> y, new = model.apply(variables, x, update_stats=True, mutable=["batch_stats"])
    >>> evaluate = lambda x: model.apply(variables | new, x, update_stats=False)
    >>> round(float(jnp.linalg.norm(evaluate(jnp.eye(4)) - evaluate(jnp.zeros(4)), 2)), 3)
    1.0
    >>> sorted(new["batch_stats"])
    ['layer_instance/kernel/sigma', 'layer_instance/kernel/u', 'layer_instance/kernel/v']

  Reference:
    Miyato et al. (2018), arXiv:1802.05957, equations 8 and 12 and Algorithm 1; Gouk et
    al. (2021), arXiv:1804.04368, section 4 (cap).
  """

  layer_instance: nn.Module
  n_steps: int = 1
  epsilon: float = 1e-12
  dtype: Any = None
  param_dtype: Any = jnp.float32
  error_on_non_matrix: bool = False
  collection_name: str = "batch_stats"
  target: float = 1.0
  mode: str = "target"
  layout_overrides: Overrides | None = None
  convolution: ConvolutionMode = "reshaped"
  tol: float | None = TOL
  k: int | None = None

  @nn.compact
  def __call__(self, *args: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
    """The layer's output with normalized kernels.

    Args:
      *args: arguments of the layer.
      update_stats: whether the vectors move on first, which needs
        ``mutable=[collection_name]``.
      **kwargs: further arguments of the layer.

    Returns:
      What the layer returns.

    Raises:
      ValueError: `update_stats` is missing.
    """
    check_options(self.mode, self.target, self.convolution)
    check_steps(self.n_steps, self.tol)
    update_stats = require_update_stats(update_stats)
    layer = self.layer_instance
    forward = lambda layer: layer(*args, **kwargs)
    if self.is_initializing():
      forward(layer)  # makes the params, which stay as they are
    raw = layer.variables.get("params", {})
    rngs = self.scope.rngs if self.scope else {}
    modules, sizes = modules_by_path(layer, rngs, args, kwargs)
    operators = module_operators(
      raw,
      modules,
      read_module,
      self.layout_overrides,
      error_on_non_matrix=self.error_on_non_matrix,
      sizes=sizes if self.convolution == "operator" else None,
    )
    leaves = float_leaves(raw)
    vectors = self._vectors(raw, operators, update_stats=update_stats)
    gains = {
      path: self.param(
        f"{layer.name}/{path}/gain",
        lambda _, operator=operator, path=path: initial_gain(
          operator, leaves[path].shape, self.target, self.param_dtype
        ),
      )
      for path, operator in operators.items()
      if self.mode == "gain"
    }
    normalized = normalize(
      raw,
      top_vectors(raw, vectors, operators),
      operators,
      target=self.target,
      mode=self.mode,
      gains=gains,
      dtype=self.dtype,
    )

    def replaced(variables):
      params = variables.get("params", {})
      _check_own(params, raw, layer)
      return {"params": normalized} if params else variables

    return nn.map_variables(forward, "params", trans_in_fn=replaced)(layer)

  def _vectors(
    self, params: Any, operators: Mapping[str, LinearOperator], *, update_stats: bool
  ) -> Vectors | None:
    """The stored vectors, made or moved on where that is asked; None if there are none."""
    collection, prefix = self.collection_name, self.layer_instance.name
    names = {path: [f"{prefix}/{path}/{x}" for x in SingularBlock._fields] for path in operators}
    absent = [p for p, n in names.items() if not all(self.has_variable(collection, x) for x in n)]
    writable = self.is_mutable_collection(collection)
    if absent and not writable:
      return None
    found = measure(params, operators, self.k) if absent else {}
    vectors = {
      path: SingularBlock(*(self.get_variable(collection, name) for name in names[path]))
      for path in operators
      if path not in absent
    }
    check_stored(operators, vectors, {path: w.shape for path, w in float_leaves(params).items()})
    vectors |= {path: found[path] for path in absent}
    if update_stats and not self.is_initializing():
      vectors = advance(params, vectors, operators, self.n_steps, self.tol)
    if absent or update_stats:
      for path, triplet in vectors.items():
        for name, value in zip(names[path], triplet, strict=True):
          self.put_variable(collection, name, value)
    return vectors


def remeasure(module: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> Any:
  """The variables with every `SpectralNorm`'s vectors measured anew, to convergence.

  For weights that were replaced or loaded, when the stored vectors belong to others, and
  for convolutions with ``convolution="operator"`` whose inputs have a new size.

  Args:
    module: a model with `SpectralNorm` layers anywhere in it.
    variables: its variables, with vectors in them.
    *args: arguments of an evaluation forward of `module`: other state that it moves
      (a batch norm's in training) comes back moved.
    **kwargs: further arguments, such as ``update_stats=False``.

  Returns:
    `variables` with new vectors; everything else as it was.

  Raises:
    ValueError: the variables hold no vectors.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import flax.linen as nn
    >>> from lipjax.integrations import linen as llinen
    >>> model = llinen.SpectralNorm(nn.Dense(2, use_bias=False))
    >>> x = jnp.eye(2)
    >>> variables = model.init(jax.random.key(0), x, update_stats=False)
    >>> kernel = jnp.array([[0.0, 4.0], [1.0, 0.0]])
    >>> variables = variables | {"params": {"layer_instance": {"kernel": kernel}}}
    >>> variables = llinen.remeasure(model, variables, x, update_stats=False)
    >>> model.apply(variables, x, update_stats=False).round(4).tolist()
    [[0.0, 1.0], [0.25, 0.0]]
  """
  stripped, collections = _without_vectors(variables)
  if not collections:
    msg = "These variables hold no vectors of SpectralNorm; make them with init, then measure."
    raise ValueError(msg)
  _, measured = module.apply(stripped, *args, mutable=collections, **kwargs)
  return {**variables, **measured}


def _without_vectors(variables: Any) -> tuple[dict[str, Any], list[str]]:
  """The variables without our vectors, and the collections that had any."""

  def strip(tree):
    kept = {}
    for name, value in tree.items():
      prefix = name.rpartition("/")[0]
      if prefix and all(f"{prefix}/{field}" in tree for field in SingularBlock._fields):
        continue
      kept[name] = strip(value) if isinstance(value, Mapping) else value
    return kept

  stripped = {name: strip(tree) for name, tree in variables.items()}
  count = lambda tree: len(jax.tree.leaves(tree))
  return stripped, [name for name in variables if count(stripped[name]) < count(variables[name])]


def _check_own(params: Any, raw: Any, layer: nn.Module) -> None:
  """Raises where the params in use are not those under the layer's own path."""
  ours = {id(leaf) for leaf in jax.tree.leaves(raw)}
  foreign = [path for path, leaf in float_leaves(params).items() if id(leaf) not in ours]
  if foreign:
    msg = (
      f"The layer {layer.name!r} uses params {foreign} of modules made inside another module."
      " Make them with parent=None, as in nn.Sequential([nn.Dense(4, parent=None)]), or wrap"
      " each of them in SpectralNorm."
    )
    raise ValueError(msg)
