"""The XLA options of the tests: what is given stays, what this XLA does not know is left out, and they are in force."""

import os

import jax
import quick_compilation


def test_given_options_stay_and_unknown_ones_are_left_out(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true --xla_force_host_platform_device_count=2")
    flags = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_enable_fast_math": "false", "xla_is_not_a_flag": "1"}
    monkeypatch.setattr(quick_compilation, "_FLAGS", flags)
    quick_compilation.compile_quickly()
    assert os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_cpu_use_fusion_emitters=true",
        "--xla_force_host_platform_device_count=2",
        "--xla_cpu_enable_fast_math=false",
    ]


def test_the_tests_run_with_the_options_of_their_environment():
    asked = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() in ("1", "true", "yes", "on", "y", "t")
    assert jax.config.read("jax_disable_most_optimizations") == asked
