"""Spectral normalization for Flax nnx modules."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from lipjax.integrations.module_layout import module_operators
from lipjax.integrations.nnx_modules import (
  expected_sizes,
  input_sizes,
  modules_by_path,
  read_module,
  watch,
)
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
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides


class SpectralNorm(nnx.Module):
  r"""A layer that computes with its kernels divided by their spectral norms.

  Takes the place of `flax.nnx.SpectralNorm`. For every kernel :math:`W` of the layer

  ==========  =====================================  =========================================
  `mode`      the layer computes with                its norm
  ==========  =====================================  =========================================
  ``target``  :math:`c\,W/\hat\sigma`                :math:`c`
  ``cap``     :math:`W/\max(1, \hat\sigma/c)`        at most :math:`c`
  ``gain``    :math:`\gamma\,W/\hat\sigma`           :math:`\gamma`, learned, at first :math:`c`
  ==========  =====================================  =========================================

  with :math:`\hat\sigma = \|W v\|`. A training forward first brings the block of singular
  vectors that :math:`v` is found in up to date, as `lipjax.update_singular_vectors` does; an
  evaluation forward leaves it, and writes nothing. The weights themselves belong to the
  optimizer: no forward changes them, and their gradient is
  :math:`\frac{c}{\hat\sigma}(G - \langle G, W/\hat\sigma\rangle\,uv^T)`.

  Which axes of a kernel are inputs and outputs is read off the class and attributes of
  the module that owns it: `nnx.Linear`, `nnx.LinearGeneral` (and so attention),
  `nnx.Embed` and convolutions, nested at any depth. Biases of any rank and scales of
  normalization layers stay as they are. What is divided by for a convolution is said by
  `convolution`:

  =============  ==================================================================
  `convolution`  :math:`\hat\sigma` is
  =============  ==================================================================
  ``reshaped``   the norm of the kernel reshaped to a matrix (`lipjax.ReshapedKernel`),
                 as in Flax and in Miyato et al.: **not** the convolution's norm,
                 which can be several times larger or smaller
  ``operator``   the norm of the convolution (`lipjax.Convolution`) with its
                 padding, strides and dilations, for the input sizes that
                 `example_input` gives
  =============  ==================================================================

  The vectors of ``operator`` have the shapes of one input and one output of the
  convolution, a step costs about as much as two convolutions of 2k examples, and a forward
  in which a convolution gets an input of another size raises.

  Guarantee: an estimate. :math:`v` is measured to convergence at construction and by
  `remeasure`, which gives norms within about 1e-6 of the target (float32). In training
  the block that it is found in follows the weights, and the true norm is the target or, by
  as much as it lags, above it: by less than 1 % as a rule (2.1 % in the worst update of all
  trainings tried; true norms of a small CNN at a constant Adam rate of 1e-3: 0.5 %). Every
  forward takes the best vector of the block for the weights as they are.

  Args:
    layer_instance: the layer. Its state of other kinds (batch statistics, dropout
      keys) works as without the wrapper.
    n_steps: steps of block power iteration in a training forward, at least.
    epsilon: no effect; accepted because Flax's takes it. Nothing is added to a norm
      here, and a zero kernel stays zero.
    dtype: of the normalized kernels that the layer sees; their own when None.
    param_dtype: of the learned gains. Vectors are float32 or wider in any case.
    error_on_non_matrix: raise for kernels of more than two axes.
    update_stats: what a call does that is not told. ``train()`` and ``eval()`` set it;
      None leaves it to them or to the call.
    target: :math:`c`, a positive number.
    mode: ``"target"``, ``"cap"`` or ``"gain"``.
    layout_overrides: ``{regex: operator or None}`` on the layer's paths, such as
      ``{"query/kernel": None}``.
    rngs: its ``params`` stream starts the first measurement; a fixed start when None.
    convolution: ``"reshaped"`` or ``"operator"``.
    tol: estimated relative error of a norm at which the steps of a forward end; None for
      `n_steps` and no more.
    k: singular vectors that are followed, as in `lipjax.init_singular_vectors` when None.
    example_input: for ``convolution="operator"``, an input of the layer, of any batch
      size: an array or a `jax.ShapeDtypeStruct`, or a tuple of the layer's positional
      arguments. Only shapes are read, by an abstract forward of a copy.

  Raises:
    LayoutError: a kernel that its module does not explain (an `nnx.Einsum`; with
      ``convolution="operator"`` a convolution called with inputs of two sizes), with
      the override to write.
    ValueError: an unknown mode, a target that is not positive, `n_steps` or `k` below 1; a
      convolution without `example_input`, or `example_input` that ``"reshaped"`` has no use for.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> from flax import nnx
    >>> from lipjax.integrations import nnx as lnnx
    >>> rngs = nnx.Rngs(0)
    >>> layer = lnnx.SpectralNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs)
    >>> y = layer(jnp.ones((2, 4)))  # a training forward: the vectors move on
    >>> layer.eval()
    >>> jacobian = layer(jnp.eye(4)) - layer(jnp.zeros(4))
    >>> round(float(jnp.linalg.norm(jacobian, 2)), 3)
    1.0
    >>> float(lipjax.spectral_norms(nnx.state(layer, nnx.Param))["layer_instance/kernel"]) > 1.1
    True

  Reference:
    Miyato et al. (2018), arXiv:1802.05957, equations 8 and 12 and Algorithm 1; Gouk et
    al. (2021), arXiv:1804.04368, section 4 (cap).
  """

  def __init__(
    self,
    layer_instance: nnx.Module,
    *,
    n_steps: int = 1,
    epsilon: float = 1e-12,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    error_on_non_matrix: bool = False,
    update_stats: bool | None = True,
    target: float = 1.0,
    mode: str = "target",
    layout_overrides: Overrides | None = None,
    rngs: nnx.Rngs | None = None,
    convolution: ConvolutionMode = "reshaped",
    example_input: Any = None,
    tol: float | None = TOL,
    k: int | None = None,
  ):
    del epsilon
    check_options(mode, target, convolution)
    check_steps(n_steps, tol)
    if convolution == "reshaped" and example_input is not None:
      msg = (
        "example_input has no use with convolution='reshaped'; pass convolution='operator' to"
        " normalize by the norms of the convolutions, or leave example_input out."
      )
      raise ValueError(msg)
    self.layer_instance = layer_instance
    self.n_steps = n_steps
    self.tol = tol
    self.k = k
    self.dtype = dtype
    self.target = target
    self.mode = mode
    # The name that `train` and `eval` of every nnx module set.
    self.use_running_average = None if update_stats is None else not update_stats
    params = nnx.state(layer_instance, nnx.Param)
    by_operator = convolution == "operator"
    sizes = input_sizes(layer_instance, example_input) if by_operator else None
    operators = module_operators(
      params,
      modules_by_path(layer_instance),
      read_module,
      layout_overrides,
      error_on_non_matrix=error_on_non_matrix,
      sizes=sizes,
    )
    self.expected_sizes = nnx.static(expected_sizes(operators, sizes or {}))
    self.operators = nnx.static(tuple(operators.items()))
    vectors = measure(params, operators, k, None if rngs is None else rngs.params())
    self.batch_stats = nnx.data(
      {
        path: {name: nnx.BatchStat(x) for name, x in triplet._asdict().items()}
        for path, triplet in vectors.items()
      }
    )
    leaves = float_leaves(params)
    self.gains = nnx.data(
      {
        path: nnx.Param(initial_gain(operator, leaves[path].shape, target, param_dtype))
        for path, operator in operators.items()
        if mode == "gain"
      }
    )

  def __call__(self, x: Any, *args: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
    """The layer's output with normalized kernels.

    Args:
      x: the layer's input.
      *args: further arguments of the layer.
      update_stats: whether the vectors move on first; when None, what ``train()``,
        ``eval()`` or the constructor said. Only by name, as more of the layer's own
        arguments can follow `x`.
      **kwargs: further arguments of the layer.

    Returns:
      What the layer returns.

    Raises:
      ValueError: nobody said whether to update, or with ``convolution="operator"`` a
        convolution gets an input of another size than in `example_input`.
    """
    if update_stats is None and self.use_running_average is not None:
      update_stats = not self.use_running_average
    graph, params, rest = nnx.split(self.layer_instance, nnx.Param, ...)
    operators = dict(self.operators)
    if require_update_stats(update_stats):
      self._write(advance(params, self._vectors(), operators, self.n_steps, self.tol))
    params = normalize(
      params,
      top_vectors(params, self._vectors(), operators),
      operators,
      target=self.target,
      mode=self.mode,
      gains={path: gain[...] for path, gain in self.gains.items()},
      dtype=self.dtype,
    )
    # A copy computes, so that no forward ever touches a raw weight; what else the
    # layer changed (batch statistics, dropout counters) comes back.
    layer = nnx.merge(graph, params, rest)
    watch(layer, {expected.path: expected for expected in self.expected_sizes})
    y = layer(x, *args, **kwargs)
    nnx.update(self.layer_instance, nnx.state(layer, nnx.Not(nnx.Param)))
    return y

  def remeasure(self) -> None:
    """Measures the vectors anew, to convergence: after weights were replaced or loaded."""
    params = nnx.state(self.layer_instance, nnx.Param)
    self._write(measure(params, dict(self.operators), self.k))

  def _vectors(self) -> Vectors:
    return {
      path: SingularBlock(**{name: stat[...] for name, stat in stats.items()})
      for path, stats in self.batch_stats.items()
    }

  def _write(self, vectors: Vectors) -> None:
    for path, triplet in vectors.items():
      for name, value in triplet._asdict().items():
        self.batch_stats[path][name][...] = value
