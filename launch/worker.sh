#!/usr/bin/env bash
# Runs a command on one of several machines, and tells 'finished' from 'told to stop'.
#
#   worker.sh [--forward] COMMAND [ARGUMENT...]
#
# At SIGTERM cadc saves and exits with 0, as it does when it has finished. Launchers have to tell the
# two apart: this script exits with 75 (temporary failure: run it again) if there was a SIGTERM, and
# with the command's own exit code otherwise.
#
# Slurm and a machine that shuts down signal all processes. Kubernetes signals only the first process
# of a container: --forward passes the signal on. It is an option because cadc ends at once, without
# saving, at a second SIGTERM.
set -u

forward=
if [[ ${1:-} == --forward ]]; then
  forward=1
  shift
fi
if (($# == 0)); then
  echo "worker.sh: error: no command to run" >&2
  exit 2
fi

pass_on() {
  if [[ $forward && $child ]]; then kill -TERM "$child" 2>/dev/null; fi
}

child=
stopped=
trap '' HUP # it follows SIGTERM when a session ends, and would interrupt the saving
trap 'stopped=1; pass_on' TERM
"$@" &
child=$!
if [[ $stopped ]]; then pass_on; fi # the signal came before the child was there
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` early
  wait "$child"
  status=$?
done

if [[ $stopped ]]; then exit 75; fi
exit "$status"
