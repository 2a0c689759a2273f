#!/usr/bin/env bash
# Everything that a GPU machine must show, in one command that needs no network and no edit:
#
#     bash benchmarks/device_check.sh quick      # correctness, and first timings
#     bash benchmarks/device_check.sh full       # more problems, all sanitizers, more timings
#     bash benchmarks/device_check.sh full build ops networks    # only some steps
#
# Either form ends inside ten minutes: the limits of its steps, of those side by side the longest, add up to less. The
# step `scaling`, which fills them alone, runs only where it is named. A step that fails, or takes too long, never stops
# the next one. Logs, reports and summary.json (each step's exit status, seconds and last words) go to OUT as they grow.
#
#     OUT       where all that is worth keeping goes   (build/device-check)
#     WORK      where the build lives, for the next run (build/device-work)
#     PYTHON    which has torch with CUDA               (python3)
#     GIT_SHA   of the sources, where there is no .git
#     SECONDS_IN_ALL  when to stop starting steps       (570)
#     INSTALLED=1     the package is installed in PYTHON's environment: nothing is built
#     PACK=1          all of OUT but summary.json goes into OUT/device-check.tgz at the end, however that comes
#
# The step `networks` times training steps: ours, MedNeXt-B k3 and L k5 before the others, then those of baselines.
#
#     NETWORKS_VARIANTS      (quick: B L, full: S B M L)
#     NETWORKS_KERNEL_SIZES  (quick: 3 5, full: 3 5 7)
#     NETWORKS_BASELINES     in this order, or empty
#                            (quick: eager eager-checkpoint, full: monai compile eager-channels-last after these)
#     NETWORKS_SECONDS       its limit (quick: 75, full: 110); more where few other steps are wanted
set -uo pipefail

steps=(environment build info cpu tests triton parity memcheck racecheck initcheck synccheck networks ops blocks network
       triton_ops scaling)
form=${1:-quick}
if [[ $form != quick && $form != full ]]; then
    echo "device_check.sh: the form is 'quick' or 'full', got '$form'" >&2
    exit 2
fi
shift || true
for wanted in "$@"; do
    if [[ " ${steps[*]} " != *" $wanted "* ]]; then
        echo "device_check.sh: there is no step '$wanted'; the steps are ${steps[*]}" >&2
        exit 2
    fi
done
only=" $* "

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
absolute() { mkdir -p "$1" && (cd "$1" && pwd); }
OUT=$(absolute "${OUT:-$root/build/device-check}")
WORK=$(absolute "${WORK:-$root/build/device-work}")
PYTHON=${PYTHON:-python3}
deadline=${SECONDS_IN_ALL:-570}
MEDNEXT_OPS_GIT=${GIT_SHA:-$(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null)}
export MEDNEXT_OPS_GIT MEDNEXT_OPS_CUDA_ARCHS=${MEDNEXT_OPS_CUDA_ARCHS:-90a}
export OMP_WAIT_POLICY=passive MPLCONFIGDIR="$WORK/matplotlib" TORCHINDUCTOR_CACHE_DIR="$WORK/inductor"
site=$WORK/site
[[ ${INSTALLED:-0} == 1 ]] || export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
rm -rf "$OUT/steps" "$OUT/logs"
mkdir -p "$OUT/steps" "$OUT/logs"
pack() {
    tar -czf "$OUT/device-check.tgz" -C "$OUT" --exclude ./summary.json --exclude ./device-check.tgz \
        --remove-files . 2>/dev/null
}
[[ ${PACK:-0} == 1 ]] && trap pack EXIT
# What is installed is checked, not what lies in the sources: no step runs in their folder.
cd "$OUT" || exit 2

named() { [[ $only == *" $1 "* ]]; }

# step NAME SECONDS COMMAND...: with a time limit, a log and a record; exit status 3 means that there was nothing to do.
# The command finds in STEP_SECONDS how long it may take.
step() {
    local name=$1 limit=$2 started=$SECONDS status
    shift 2
    [[ $only == "  " ]] || named "$name" || return 0
    local left=$((deadline - SECONDS))
    local -x STEP_SECONDS=$((limit < left ? limit : left))
    if ((left < 5)); then
        echo "not started: the time for all steps was over" >"$OUT/logs/$name.log"
        status=3
    else
        timeout --kill-after=10 "$STEP_SECONDS" "$@" >"$OUT/logs/$name.log" 2>&1 </dev/null
        status=$?
    fi
    printf '%s\n' "$status" "$((SECONDS - started))" "$limit" "$*" >"$OUT/steps/$name"
    printf '%-12s exit %-3s %4ss  %s\n' "$name" "$status" "$((SECONDS - started))" "$(tail -n 1 "$OUT/logs/$name.log")"
}

summarize() { "$PYTHON" "$root/benchmarks/device_summary.py" "$OUT" --form "$form" --seconds "$SECONDS"; }

# alone NAME SECONDS COMMAND...: a step with nothing beside it; the summary is made anew after it.
alone() {
    step "$@"
    summarize >/dev/null
}

environment() {
    nvidia-smi || echo "no GPU: nvidia-smi does not answer"
    nvcc --version || echo "no nvcc on PATH"
    compute-sanitizer --version || echo "no compute-sanitizer on PATH"
    "$PYTHON" -m pip list 2>/dev/null | grep -iE '^(torch|triton|numpy|monai|ninja|pybind11|pytest|hypothesis|nvidia)' ||
        echo "pip does not answer"
    lscpu | head -n 20
    free -g
    "$PYTHON" -c 'import sys, torch
print(sys.version)
print("torch", torch.__version__, "CUDA", torch.version.cuda)
print("GPU:", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees: there is no GPU")'
}

build() {
    if [[ ${INSTALLED:-0} == 1 ]]; then
        echo "nothing was built: the installed package is taken"
        return 3
    fi
    "$PYTHON" "$root/benchmarks/device_build.py" --site "$site" --build "$WORK/native" || return 1
    [[ $form == full ]] || return 0 # who compares nothing with the emulation
    (cd "$root" && PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PATH="$WORK/native/tools:$PATH" \
        "$PYTHON" -m build_tools.emulated) || echo "no emulation to compare with"
}

information() { "$PYTHON" -m mednext_ops.info --json | tee "$OUT/info.json"; }

# The CPU backend's kernels, which no other step runs. After a crash once more under a debugger, for the place.
cpu() {
    local command=("$PYTHON" "$root/benchmarks/parity" --backend cpu --checks random --size tiny --problems 1 --tell
        --output "$OUT/parity-cpu.json")
    "${command[@]}"
    local status=$? debugger
    if ((status >= 128)); then
        debugger=$(command -v gdb || command -v cuda-gdb) && timeout 60 "$debugger" -batch -ex run -ex bt \
            -ex 'x/8i $pc' -ex 'info registers' -ex 'info sharedlibrary mednext' --args "${command[@]}"
    fi
    return "$status"
}

# device_tests REPORT PATH...: those marked `gpu`.
device_tests() {
    local report=$1 status
    shift
    "$PYTHON" -c 'import pytest, sys, torch
torch.cuda.is_available() or sys.exit("there is no GPU for the tests")'
    status=$?
    ((status == 1)) && return 3
    ((status == 0)) || return "$status"
    local workers=()
    # A worker that crashes is replaced twice: more would crash at the same place.
    "$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n "$((($(nproc) + 2) / 3))" --max-worker-restart 2)
    MEDNEXT_OPS_TEST_INSTALLED=1 PYTHONPATH=$root/benchmarks${PYTHONPATH:+:$PYTHONPATH} \
        "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider --continue-on-collection-errors \
        "${workers[@]}" -p tests_so_far --so-far "$OUT/$report" --rootdir "$root" -c "$root/pyproject.toml" "$@"
}

tests() {
    device_tests tests.json "$root/tests/ops" "$root/tests/mednext" "$root/tests/build/test_group_norm_statistics.py"
}

# Kernels are compiled as they are met, so most of the time is the compiler's.
triton() {
    "$PYTHON" -c 'import triton' || return 3
    device_tests triton.json "$root/tests/triton"
}

parity() {
    local emulated=$root/build/emulated/libmednext_ops_emulated.so status=0 backend
    [[ -f $emulated ]] && export MEDNEXT_OPS_EMULATED_LIBRARY=$emulated
    for backend in $("$PYTHON" -c 'from mednext_ops.backends import backend_names as names
print(*(n for n in names() if n in ("cuda", "triton")))'); do
        "$PYTHON" "$root/benchmarks/parity" --backend "$backend" --output "$OUT/parity-$backend.json" "$@" || status=$?
    done
    return "$status"
}

sanitizer() {
    local tool=$1
    command -v compute-sanitizer >/dev/null || {
        echo "compute-sanitizer is not on PATH"
        return 3
    }
    # Our kernels only, with PyTorch's results from the CPU: sanitizers stumble over convolutions of libraries, whatever
    # is filtered. torch's memory pool would hide an access behind the end of a tensor.
    # initcheck must see who writes, torch's fills too.
    local ours=(--kernel-name kernel_substring=mednext_ops)
    [[ $tool == initcheck ]] && ours=()
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" "${ours[@]}" \
        --error-exitcode 99 --print-limit 20 "$PYTHON" "$root/benchmarks/parity" --checks random --size tiny \
        --reference-device cpu --tell --problems "$2" --seconds "$3"
}

networks() {
    local variants kernel_sizes baselines
    read -ra variants <<<"$NETWORKS_VARIANTS"
    read -ra kernel_sizes <<<"$NETWORKS_KERNEL_SIZES"
    read -ra baselines <<<"$NETWORKS_BASELINES"
    "$PYTHON" "$root/benchmarks/gpu_times.py" --only networks --variant "${variants[@]}" \
        --kernel-size "${kernel_sizes[@]}" --baselines "${baselines[@]}" --seconds "$((STEP_SECONDS - 10))" \
        --output "$OUT/networks.json"
}

if [[ $form == quick ]]; then
    : "${NETWORKS_VARIANTS:=B L}" "${NETWORKS_KERNEL_SIZES:=3 5}" "${NETWORKS_SECONDS:=75}"
    : "${NETWORKS_BASELINES=eager eager-checkpoint}"
else
    : "${NETWORKS_VARIANTS:=S B M L}" "${NETWORKS_KERNEL_SIZES:=3 5 7}" "${NETWORKS_SECONDS:=110}"
    : "${NETWORKS_BASELINES=eager eager-checkpoint monai compile eager-channels-last}"
fi
export -f environment build information cpu device_tests tests triton parity sanitizer networks
export root form site OUT WORK PYTHON NETWORKS_VARIANTS NETWORKS_KERNEL_SIZES NETWORKS_BASELINES

# What is not timed runs side by side; timings run alone.
alone environment 30 bash -c environment
alone build 150 bash -c build
alone info 20 bash -c information
if [[ $form == quick ]]; then
    step cpu 80 bash -c cpu &
    step tests 120 bash -c tests &
    step triton 120 bash -c triton &
    step parity 120 bash -c 'parity --problems 15 --seconds 12 --checks random bitwise stream graph' &
    step memcheck 100 bash -c 'sanitizer memcheck 1 60' &
    step racecheck 100 bash -c 'sanitizer racecheck 1 60' &
    wait
    summarize >/dev/null
    alone networks "$NETWORKS_SECONDS" bash -c networks
    alone ops 60 "$PYTHON" -m mednext.bench ops --device cuda --quick --output "$OUT/ops"
    alone network 60 "$PYTHON" -m mednext.bench network --device cuda --quick --output "$OUT/network"
    alone triton_ops 55 "$PYTHON" -m mednext.bench ops --device cuda --quick --backend triton --output "$OUT/triton-ops"
else
    step cpu 80 bash -c cpu &
    step tests 150 bash -c tests &
    step triton 150 bash -c triton &
    step parity 150 bash -c 'parity --problems 300 --seconds 12' &
    step memcheck 150 bash -c 'sanitizer memcheck 3 100' &
    step racecheck 150 bash -c 'sanitizer racecheck 3 100' &
    step initcheck 150 bash -c 'sanitizer initcheck 3 100' &
    step synccheck 150 bash -c 'sanitizer synccheck 3 100' &
    wait
    summarize >/dev/null
    alone networks "$NETWORKS_SECONDS" bash -c networks
    alone ops 40 "$PYTHON" -m mednext.bench ops --device cuda --output "$OUT/ops"
    alone blocks 20 "$PYTHON" -m mednext.bench blocks --device cuda --output "$OUT/blocks"
    alone network 30 "$PYTHON" -m mednext.bench network --device cuda --output "$OUT/network"
    alone triton_ops 20 "$PYTHON" -m mednext.bench ops --device cuda --backend triton --output "$OUT/triton-ops"
fi
named scaling && alone scaling 570 "$PYTHON" -m mednext.bench scaling --device cuda --output "$OUT/scaling"
summarize
