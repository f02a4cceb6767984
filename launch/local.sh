#!/usr/bin/env bash
# Runs cadc in N processes on this machine, as if on N hosts.
#
#   launch/local.sh N [--devices=D] [--port=P] [--logs=DIR] [--dry-run] [--] <arguments of cadc>
#
#   --devices=D  CPU devices of each process; default: what JAX finds
#   --port=P     port of the coordinator; default: a free one
#   --logs=DIR   for the output of processes 1 to N - 1; default: a new folder in /tmp. Process 0
#                writes to this terminal.
#   --dry-run    print the commands, one a line
#
# When a process fails, all end, with the exit code of the first to fail.
# $PYTHON is the Python to use (default: python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
source "$here/common.sh"

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  usage
  exit
fi
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || die "give the number of processes: local.sh N [options] [--] <arguments>"
processes=$1
shift
devices='' port='' logs=''
while (($#)); do
  case $1 in
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --) shift && break ;;
    *) break ;;
  esac
  shift
done
[[ $devices =~ ^([1-9][0-9]*)?$ ]] || die "--devices=$devices: must be a number from 1"
[[ $port =~ ^([1-9][0-9]*)?$ ]] || die "--port=$port: must be a number from 1"

python=${PYTHON:-python3}
if [[ -z $port ]]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
if [[ -n $devices ]]; then
  XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
  export XLA_FLAGS="${XLA_FLAGS# }"
fi
command=("$python" -m cadc_jax.main "$@" "--coordinator=localhost:$port" \
  "--coordinator_bind=127.0.0.1:$port" "--num_processes=$processes")

if [[ -n $dry_run ]]; then
  for ((k = 0; k < processes; k++)); do
    [[ -z $devices ]] || printf 'XLA_FLAGS=%q ' "$XLA_FLAGS"
    printf '%q ' "${command[@]}"
    printf -- '--process_id=%d\n' "$k"
  done
  exit
fi

[[ -n $logs ]] || logs=$(mktemp -d "${TMPDIR:-/tmp}/cadc-logs.XXXXXX")
mkdir -p "$logs"
pids=()

end_all() { # SIGNAL SECONDS: sends the signal (or none) to all, and waits so long for them to end
  local tenths=$(($2 * 10)) pid running
  for pid in "${pids[@]}"; do
    [[ $1 == none ]] || kill "-$1" "$pid" 2>/dev/null || true
  done
  while ((tenths-- > 0)); do
    running=''
    for pid in "${pids[@]}"; do
      kill -0 "$pid" 2>/dev/null && running=yes
    done
    [[ -n $running ]] || return 0
    sleep 0.1
  done
}

stop() {
  trap - INT TERM
  say "interrupted; ending all processes"
  end_all TERM 30
  end_all KILL 5
  exit 130
}
trap stop INT TERM

for ((k = 0; k < processes; k++)); do
  if ((k == 0)); then
    "${command[@]}" "--process_id=$k" &
  else
    "${command[@]}" "--process_id=$k" >"$logs/process-$k.log" 2>&1 &
  fi
  pids+=($!)
done
((processes == 1)) || say "output of the other processes: $logs/process-*.log"

left=("${!pids[@]}")
while ((${#left[@]})); do
  sleep 0.2
  running=()
  for k in "${left[@]}"; do
    if kill -0 "${pids[k]}" 2>/dev/null; then
      running+=("$k")
      continue
    fi
    code=0
    wait "${pids[k]}" || code=$?
    if ((code)); then
      say "process $k ended with exit code $code; ending the others"
      ((k == 0)) || tail -n 5 "$logs/process-$k.log" >&2
      end_all none 10 # most end by themselves, and report why
      end_all TERM 10
      end_all KILL 5
      exit "$code"
    fi
  done
  left=("${running[@]+"${running[@]}"}")
done
