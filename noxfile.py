"""One wheel, every torch: ``nox`` builds it once and runs the operators' tests under the oldest and the newest torch.

Each session downloads a whole torch. The CUDA library is loaded where torch has CUDA; no GPU is needed.
"""

import sys

import nox

nox.options.default_venv_backend = "venv"
TORCH = ("2.10.0", "2.15.0")


@nox.session
@nox.parametrize("torch", TORCH)
def one_wheel(session: nox.Session, torch: str) -> None:
    """Installs the wheel that the first session builds, without building again, and runs tests/ops."""
    wheels = session.cache_dir / "wheel"
    if torch == TORCH[0]:
        # Against the torch of the environment that runs nox: its headers give the stable ABI, whatever its version.
        build = {"MEDNEXT_OPS_BUILD": "cuda"}  # both libraries, or an error
        session.run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(wheels), ".", env=build, external=True)
    (wheel,) = wheels.glob("mednext_ops-*.whl")
    session.install(f"torch=={torch}", "numpy", "monai", "pytest", "pytest-xdist", "hypothesis")
    session.install("--no-deps", "--force-reinstall", str(wheel))
    with session.chdir(session.create_tmp()):  # not this folder, whose packages were not installed
        session.run("python", "-m", "mednext_ops.info")
    session.run("pytest", "-n", "2", "tests/ops", env={"MEDNEXT_OPS_TEST_INSTALLED": "1", "OMP_WAIT_POLICY": "passive"})
