"""The official network on the emulated kernels: outputs and every gradient, against float64."""

from __future__ import annotations

import pytest

from ..mednext.golden_errors import assert_no_worse, autocast_errors, golden_autocast_errors, golden_errors


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", ["k3", "k5"])
def test_float32_gives_the_official_results(name):
    assert_no_worse(golden_errors(name, "emulated"))


@pytest.mark.usefixtures("emulated")
def test_bfloat16_autocast_is_no_worse_than_pytorch_on_the_official_results_too():
    assert_no_worse(golden_autocast_errors("emulated"))


@pytest.mark.usefixtures("emulated")
def test_bfloat16_autocast_is_no_worse_than_pytorch_with_kernels_of_5():
    assert_no_worse(autocast_errors(5, "emulated"))
