"""Programs are equal where, and only where, one compiled can stand for the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.sparse.linalg import cg

from lipjax.jaxprs.inline import bind, inline
from lipjax.jaxprs.key import Keyed, with_constants_as_inputs

X = jnp.arange(1.0, 5.0)


def keyed(fn, *args):
  program, constants = with_constants_as_inputs(inline(jax.make_jaxpr(fn)(*(args or (X,)))))
  return Keyed(program), constants


@jax.custom_jvp
def cubed(x):
  return x**3


cubed.defjvp(lambda primals, tangents: (primals[0] ** 3, 100 * tangents[0]))

#: Each makes the function anew, as code that is called again does.
PROGRAMS = {
  "arrays": lambda: lambda x: jnp.ones((3, 4)) @ x + np.arange(3.0),
  "literals": lambda: lambda x: 0.5 * x + 1,
  "jit": lambda: jax.jit(lambda x: jnp.sin(x) + X),
  "rules": lambda: lambda x: jax.nn.relu(cubed(jax.nn.silu(x))),
  "scan": lambda: lambda x: lax.scan(lambda c, w: (jax.nn.relu(c * w), None), x, jnp.eye(4))[0],
  "while": lambda: lambda x: lax.while_loop(lambda c: c[0] < 9, lambda c: c * 2, x),
  "cond": lambda: lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
  "solve": lambda: lambda x: cg(lambda v: 2 * v + jnp.roll(v, 1), x)[0],
  "apply": lambda: lambda x: x.at[0].apply(lambda v: jnp.sin(v) * 3),
  "remat": lambda: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
  "softmax": lambda: lambda x: jax.nn.softmax(x, where=jnp.array([True, True, False, True])),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_two_traces_of_a_program_are_equal(name):
  (one, its), (other, others) = keyed(PROGRAMS[name]()), keyed(PROGRAMS[name]())
  assert one == other
  assert hash(one) == hash(other)
  np.testing.assert_array_equal(one.program.run([*its, X], bind), PROGRAMS[name]()(X)[None])
  assert len(its) == len(others)


def test_all_those_differ():
  programs = [keyed(make())[0] for make in PROGRAMS.values()]
  assert len(set(programs)) == len(PROGRAMS)


def test_arrays_do_not_count_and_go_in():
  make = lambda w: lambda x: (w * x) @ w
  (one, its), (other, others) = keyed(make(X)), keyed(make(X + 1))
  assert one == other
  np.testing.assert_array_equal([*its, *others], [X, X + 1])
  # One array in two places is another program than two arrays.
  assert keyed(lambda x: (X * x) @ (X + 0))[0] != one


@pytest.mark.parametrize(
  ("one", "other"),
  [
    (lambda x: x + 1.0, lambda x: x + 2.0),
    (lambda x: x + 0.0, lambda x: x + -0.0),
    (lambda x: x * 1.0000001, lambda x: x * 1.0000002),
    (lambda x: x**2, lambda x: x**3),
    (lambda x: jnp.sin(x) - jnp.cos(x), lambda x: jnp.cos(x) - jnp.sin(x)),
    (lambda x: x - jnp.sin(x), lambda x: jnp.sin(x) - x),
    (lambda x: (x, jnp.sin(x)), lambda x: (jnp.sin(x), x)),
    (lambda x: jnp.cumsum(x), lambda x: lax.cumsum(x, reverse=True)),
    (lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=3)[0],
     lambda x: lax.scan(lambda c, _: (c * 3, None), x, None, length=3)[0]),
    (lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=3)[0],
     lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=4)[0]),
    (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
     lambda x: lax.cond(x[0] > 0, jnp.cos, jnp.sin, x)),
    (lambda x: x.at[0].apply(lambda v: v * 3), lambda x: x.at[0].apply(lambda v: v * 4)),
    (lambda x: lax.reduce_precision(x, 8, 7), lambda x: lax.reduce_precision(x, 8, 6)),
    (lambda x: x.astype(jnp.bfloat16) * 1, lambda x: x.astype(jnp.float16) * 1),
    (lambda x: jnp.dot(x, x, precision="highest"), lambda x: jnp.dot(x, x, precision="default")),
  ],
)  # fmt: skip
def test_what_differs_in_one_thing_differs(one, other):
  assert keyed(one)[0] != keyed(other)[0]


def test_shapes_and_dtypes_of_inputs_count():
  fn = lambda x: x * 2
  inputs = [X, X[:2], X[None], X.astype(jnp.bfloat16), jnp.float32(1.0), 1.0]
  assert len({keyed(fn, x)[0] for x in inputs}) == len(inputs)


def test_what_cannot_be_compared_equals_itself_alone():
  def fn(x):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

  one, other = keyed(lambda x: fn(x))[0], keyed(lambda x: fn(x))[0]
  assert one == one
  assert one != other
