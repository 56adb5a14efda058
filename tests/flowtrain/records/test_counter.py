"""Counter randomness: pure functions of (seed, purpose, epoch, index)."""

import jax
import jax.numpy as jnp
import numpy as np

from flowtrain.records.counter import Purpose, _mix, host_bits, record_keys, sample_keys


def test_the_host_hash_is_splitmix64():
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = gamma * np.arange(1, 4, dtype=np.uint64)
    # The first three outputs of the published generator seeded with 0.
    assert [int(v) for v in _mix(states)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_host_bits_are_distinct_even_and_separated():
    bits = host_bits(0, Purpose.ORDER, 0, np.arange(100_000))
    assert len(np.unique(bits)) == 100_000
    ones = np.unpackbits(bits.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 1e-3
    for other in (
        host_bits(1, Purpose.ORDER, 0, np.arange(1000)),
        host_bits(0, Purpose.FLIP, 0, np.arange(1000)),
        host_bits(0, Purpose.ORDER, 1, np.arange(1000)),
    ):
        assert not np.isin(other, bits).any()


def test_host_bits_of_mixed_epochs_equal_those_of_each():
    epoch, index = np.array([3, 4, 3]), np.array([7, 7, 8])
    mixed = host_bits(5, Purpose.FLIP, epoch, index)
    alone = [
        host_bits(5, Purpose.FLIP, int(e), np.array([i]))[0]
        for e, i in zip(epoch, index, strict=True)
    ]
    np.testing.assert_array_equal(mixed, alone)


def test_record_keys_do_not_depend_on_the_cut():
    key, epoch, index = jax.random.key(3), jnp.array([0, 0, 1, 1]), jnp.array([5, 9, 5, 2])
    whole = jax.random.key_data(record_keys(key, Purpose.NOISE, epoch, index))
    order = np.array([2, 0, 3, 1])
    parts = [
        record_keys(key, Purpose.NOISE, epoch[order[i : i + 2]], index[order[i : i + 2]])
        for i in (0, 2)
    ]
    np.testing.assert_array_equal(
        np.concatenate([jax.random.key_data(part) for part in parts]), whole[order]
    )


def test_every_key_of_every_purpose_differs():
    key, epoch, index = jax.random.key(0), jnp.repeat(jnp.arange(3), 4), jnp.tile(jnp.arange(4), 3)
    keys = [jax.random.key_data(record_keys(key, purpose, epoch, index)) for purpose in Purpose]
    keys.append(jax.random.key_data(sample_keys(key, Purpose.SAMPLE_NOISE, jnp.arange(4))))
    assert len(np.unique(np.concatenate(keys), axis=0)) == 12 * len(Purpose) + 4
