"""Norms over training, drawn."""

import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lipjax.integrations.plot import plot_norms

HISTORY = [
  {"a": 0.0, "b": np.zeros(2), "n/largest": 0.0},
  {"a": 2.0, "b": np.array([1.0, 3.0]), "n/largest": 3.0, "late": 5.0},
]


def test_a_curve_for_each_operator():
  figure = plot_norms(HISTORY, steps=[10, 20])
  lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
  assert set(lines) == {"a", "b", "late"}
  np.testing.assert_array_equal(lines["b"], [[10, np.nan], [20, 3]])
  figure.savefig(io.BytesIO())


@pytest.mark.parametrize(("history", "steps"), [([], None), (HISTORY, [1])])
def test_what_does_not_fit(history, steps):
  with pytest.raises(ValueError, match="one step for each entry"):
    plot_norms(history, steps)
