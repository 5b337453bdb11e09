"""Principal directions: what they keep, and that they are the same every time."""

import numpy as np
import pytest

from encoder_service.projection import principal_directions


@pytest.mark.parametrize("count", [1, 3, 8])
def test_directions_are_orthonormal_largest_first_and_of_fixed_sign(count: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.standard_normal((200, 8)) * [8, 7, 6, 5, 4, 3, 2, 1]
    moment = rows.T @ rows / len(rows)
    found = principal_directions(moment, count)
    np.testing.assert_allclose(found @ found.T, np.eye(count), atol=1e-6)
    kept = np.einsum("ij,jk,ik->i", found, moment, found)
    np.testing.assert_allclose(kept, np.linalg.eigvalsh(moment)[::-1][:count], rtol=1e-5)
    largest = found[np.arange(count), np.abs(found).argmax(axis=1)]
    assert (largest > 0).all()
    assert principal_directions(moment, count).tobytes() == found.tobytes()
