"""JAX's global switches: what is refused at the start, and what a run keeps of them."""

import jax
import pytest

from idgenrec_jax.config import MeshConfig
from idgenrec_jax.errors import InputError
from idgenrec_jax.sharding import make_mesh
from idgenrec_jax.switches import check_switches, numeric_switches


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_disable_jit", True),
        ("jax_transfer_guard_host_to_device", "disallow"),
    ],
)
def test_what_no_model_can_run_with_is_one_line_with_a_way_out_that_works(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(InputError, match=rf"^{name.upper()}={value}: expected .*; unset it in") as caught:
            make_mesh(MeshConfig())
        way_out = str(caught.value).partition("call ")[2].removesuffix(" first")
        eval(way_out)
        check_switches()
    finally:
        jax.config.update(name, before)


def test_switches_that_change_numbers_are_kept_as_json_has_them():
    assert numeric_switches() == {
        "jax_default_prng_impl": "threefry2x32",
        "jax_threefry_partitionable": True,
        "jax_default_matmul_precision": None,
    }
