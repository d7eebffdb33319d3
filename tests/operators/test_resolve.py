"""From layouts and overrides to operators, and what is said when that fails."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipjax
from lipjax import AmbiguousLeafError, Dense, Diagonal, LayoutError
from lipjax.operators.resolve import resolve_operators


def struct(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def offered(layout, path, shape):
  """The overrides that a layout's error offers, evaluated as a user would paste them."""
  with pytest.raises(AmbiguousLeafError) as caught:
    layout(path, struct(*shape))
  text = str(caught.value)
  assert path in text
  assert str(shape) in text
  (pattern,) = re.findall(r"layout_overrides=\{r'(.*?)': …\}", text)
  assert all(choice in text for choice in caught.value.choices)
  choices = [eval(choice, dict(vars(lipjax))) for choice in caught.value.choices]
  return pattern, choices


AMBIGUOUS = [
  (lipjax.flax_layout, "DenseGeneral_0/kernel", (32, 8, 4)),
  (lipjax.flax_layout, "block-0.a/kernel", (3, 3, 4, 8)),
  (lipjax.flax_layout, "kernel", (3, 3, 3, 4, 8)),
  (lipjax.flax_layout, "ScanBlock_0/DenseGeneral_0/kernel", (3, 32, 8, 4)),
  (lipjax.flax_layout, "attn/query/kernel", (32, 8, 8)),
  (lipjax.flax_layout, "norm/scale", (3, 8)),
  (lipjax.flax_layout, "custom/w", (3, 8)),
  (lipjax.flax_layout, "Dense_0/kernel", (8,)),
  (lipjax.haiku_layout, "mlp/w", (3, 8, 8)),
  (lipjax.haiku_layout, "gru/w_other", (8, 24)),
  (lipjax.equinox_layout, "layers/0/weight", (3, 8, 8)),
  (lipjax.equinox_layout, "custom/matrix", (3, 8)),
]


@pytest.mark.parametrize(("layout", "path", "shape"), AMBIGUOUS)
def test_pasting_an_offered_override_settles_the_leaf(layout, path, shape):
  pattern, choices = offered(layout, path, shape)
  params = {path: struct(*shape)}
  with pytest.raises(LayoutError, match=re.escape(repr(path))):
    resolve_operators(params, layout)
  fitting = 0
  for choice in choices:
    try:
      found = resolve_operators(params, layout, {pattern: choice})
    except LayoutError:  # "Dense()" is offered without knowing the leaf's rank
      continue
    assert found == ({} if choice is None else {path: choice})
    fitting += choice is not None
  assert fitting >= 1
  assert None in choices


def test_every_bad_leaf_is_listed_at_once():
  params = {
    "good": {"kernel": struct(2, 3)},
    "one": {"kernel": struct(2, 3, 4)},
    "two": {"kernel": struct(3, 3, 2, 2)},
    "three": {"strange": struct(2, 2)},
  }
  with pytest.raises(LayoutError) as caught:
    lipjax.spectral_norms(params, layout_overrides={"nowhere": Dense()})
  text = str(caught.value)
  for name in ("'one/kernel'", "'two/kernel'", "'three/strange'", "'nowhere'"):
    assert name in text
  assert text.count("\n  - ") == 4
  assert "lipjax.describe(params)" in text


def test_a_regex_must_match_a_whole_path_and_some_leaf():
  params = {"a": {"kernel": struct(2, 3)}}
  with pytest.raises(LayoutError, match=r"matches no leaf.*'a/kernel'"):
    resolve_operators(params, layout_overrides={"kernel": Dense()})
  assert resolve_operators(params, layout_overrides={".*kernel": None}) == {}


def test_the_first_matching_override_decides():
  params = {"a": {"kernel": struct(2, 3)}, "b": {"kernel": struct(2, 3)}}
  found = resolve_operators(params, layout_overrides={"a/.*": None, ".*": Diagonal()})
  assert found == {"b/kernel": Diagonal()}


def test_an_override_wins_over_a_layout_and_a_bias_may_become_a_matrix():
  params = {"a": {"bias": struct(2, 3), "kernel": struct(2, 3)}}
  found = resolve_operators(params, layout_overrides={"a/bias": Dense()})
  assert found == {"a/bias": Dense(), "a/kernel": Dense()}


def test_a_dictionary_names_every_operator():
  params = {"a": {"kernel": struct(2, 3)}, "b": {"kernel": struct(2, 3, 4)}}
  assert resolve_operators(params, {"a/kernel": Dense()}) == {"a/kernel": Dense()}
  with pytest.raises(LayoutError, match=r"'c/kernel'\] names no leaf.*'a/kernel'"):
    resolve_operators(params, {"c/kernel": Dense()})


def test_an_operator_that_does_not_fit_raises_with_the_shape():
  with pytest.raises(LayoutError, match=r"'a'.*\(2, 3, 4\)"):
    resolve_operators({"a": struct(2, 3, 4)}, {"a": Dense()})


@pytest.mark.parametrize("wrong", [Dense, "dense", (0, 1)])
def test_what_is_no_operator_raises(wrong):
  with pytest.raises(LayoutError, match="expected a lipjax operator"):
    resolve_operators({"kernel": struct(2, 3)}, {"kernel": wrong})
  with pytest.raises(LayoutError, match="expected a lipjax operator"):
    resolve_operators({"kernel": struct(2, 3)}, layout_overrides={"kernel": wrong})


@pytest.mark.parametrize("layout", [lipjax.flax_layout, lipjax.haiku_layout, lipjax.equinox_layout])
def test_a_bare_array_raises_and_says_what_to_pass(layout):
  with pytest.raises(LayoutError, match=r"bare array.*\{\"kernel\": W\}"):
    lipjax.spectral_norms(np.ones((2, 3), np.float32), layout=layout)


def test_a_flattened_tree_raises():
  with pytest.raises(LayoutError, match=r"optax\.flatten"):
    lipjax.spectral_norms(np.ones(6, np.float32))


def test_a_tree_without_leaves_has_no_operators():
  assert resolve_operators({}, None, {"a": Dense()}) == {}
  assert lipjax.spectral_norms({}) == {}
