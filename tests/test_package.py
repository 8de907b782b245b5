"""What the package gives by its name."""

import subprocess
import sys

import pytest

import idgenrec_jax
from idgenrec_jax.recommender import Recommender


def test_the_package_has_the_public_api_and_a_version():
    assert idgenrec_jax.Recommender is Recommender
    assert idgenrec_jax.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'Recomender'"):
        _ = idgenrec_jax.Recomender


def test_importing_it_does_not_import_jax():
    code = "import sys, idgenrec_jax; print(idgenrec_jax.__version__, 'jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [idgenrec_jax.__version__, "False"]
