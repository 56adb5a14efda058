import numpy as np

from flowtrain.ema import update_ema


def test_ema_is_the_weighted_sum_and_has_fixed_points():
    decay, values = 0.9, np.random.default_rng(0).standard_normal((50, 3))
    ema = {"a": values[0]}
    for value in values[1:]:
        ema = update_ema(ema, {"a": value}, decay)
    weights = (1 - decay) * decay ** np.arange(49)[::-1]
    expected = decay**49 * values[0] + weights @ values[1:]
    np.testing.assert_allclose(ema["a"], expected, rtol=1e-12)
    np.testing.assert_array_equal(update_ema({"a": values[0]}, {"a": values[0]}, 0.9999)["a"], values[0])
