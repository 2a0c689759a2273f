#!/usr/bin/env bash
# Counters of one launch of a kernel (Nsight Compute): what it moved, how busy each part of a multiprocessor was, and what
# its warps waited for. Needs a GPU whose counters may be read.
#
#     benchmarks/kernel_counters.sh REGEX COMMAND...        # the second launch whose name matches; SKIP=n: after n
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
kernel=$1
shift
ncu=$(command -v ncu || ls -d /opt/nvidia/nsight-compute/*/ncu /usr/local/cuda/bin/ncu 2>/dev/null | head -1 || true)
if [ -z "$ncu" ]; then
    echo "kernel_counters.sh: ncu is not on the PATH: install Nsight Compute" >&2
    exit 1
fi
stall=smsp__average_warps_issue_stalled
metrics=gpu__time_duration.sum
metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes_read.sum,dram__bytes_write.sum
metrics+=,lts__throughput.avg.pct_of_peak_sustained_elapsed,lts__t_sectors_op_read.sum,lts__t_sectors_op_write.sum
metrics+=,l1tex__throughput.avg.pct_of_peak_sustained_elapsed,l1tex__data_pipe_lsu_wavefronts_mem_shared.sum
metrics+=,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum
metrics+=,sm__inst_executed.sum,sm__inst_executed_pipe_tensor.sum,smsp__inst_executed.avg.per_cycle_active
metrics+=,sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active,sm__warps_active.avg.per_cycle_active
for why in barrier long_scoreboard short_scoreboard wait math_pipe_throttle mio_throttle lg_throttle not_selected \
    dispatch_stall branch_resolve no_instruction membar selected; do
    metrics+=",${stall}_${why}_per_issue_active.ratio"
done
"$ncu" --metrics "$metrics" -k "regex:$kernel" -s "${SKIP:-1}" -c 1 "$@"
