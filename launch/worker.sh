#!/usr/bin/env bash
# Runs a command on one machine of many, and tells 'finished' from 'told to stop'.
#
#   worker.sh [--forward] COMMAND [ARGUMENT...]
#
# cadc saves and exits with 0 at SIGTERM, as it does when it has finished; what started it has to
# know which of the two it was. So this exits with 75 (temporary failure: run it again) if there was
# a SIGTERM, and with the command's own exit code otherwise.
#
# Slurm and a machine that shuts down signal all processes. Kubernetes signals the first one of a
# container only: --forward passes it on. (Not always, as cadc takes a second SIGTERM for 'at once'.)
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
trap '' HUP # follows SIGTERM when a session is ended, and would cut the saving short
trap 'stopped=1; pass_on' TERM
"$@" &
child=$!
if [[ $stopped ]]; then pass_on; fi # it came before there was a child to tell
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` early
  wait "$child"
  status=$?
done

if [[ $stopped ]]; then exit 75; fi
exit "$status"
