#!/usr/bin/env bash
# Runs cadc on a TPU slice of a GKE cluster that xpk manages: submits it as an xpk workload.
#
#   launch/xpk.sh --name=NAME --cluster=CLUSTER --zone=ZONE --type=TYPE --image=IMAGE [OPTION...] \
#       -- --config=FILE --workdir=gs://BUCKET/FOLDER [CADC ARGUMENT...]
#   launch/xpk.sh --name=NAME --cluster=CLUSTER --zone=ZONE --delete
#
#   --name=NAME        of the workload
#   --cluster=CLUSTER  made by 'xpk cluster create'
#   --zone=ZONE        of the cluster, such as us-west4-a
#   --type=TYPE        v5litepod-16 (16 chips), v5p-32 (32 cores, 16 chips), v6e-16 (16 chips), ...
#   --image=IMAGE      built from launch/Dockerfile
#   --project=PROJECT  default: gcloud's own
#   --restarts=N       how often to restart after losing a machine (default 10)
#   --xpk-flag=FLAG    another flag of 'xpk workload create', such as --xpk-flag=--priority=high
#   --delete           delete the workload; the bucket stays
#   --dry-run          print the commands and run none
#
# FILE is a path in the image (configs/criteo.py, ...). Pods see no shared folder, so --workdir is in a
# bucket. Run xpk in an environment of its own (pip install xpk).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
source "$here/common.sh"

name='' cluster='' zone='' type='' image='' project='' delete=''
restarts=10
flags=()
arguments=()
while (($#)); do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --cluster=?*) cluster=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --restarts=?*) restarts=${1#*=} ;;
    --xpk-flag=--?*) flags+=("${1#*=}") ;;
    --delete) delete=1 ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage && exit ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) die "unexpected argument '$1'; see --help" ;;
  esac
  shift
done

[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] \
  || die "--name=$name: use at most 40 lower-case letters, digits and hyphens"
[[ $cluster ]] || die "--cluster=CLUSTER is missing"
[[ $zone ]] || die "--zone=ZONE is missing"
where=("--cluster=$cluster" "--zone=$zone")
[[ ! $project ]] || where+=("--project=$project")
if [[ $delete ]]; then
  run xpk workload delete "--workload=$name" "${where[@]}"
  exit
fi

((${#arguments[@]})) || die "no command: give cadc's arguments after --"
[[ $type ]] || die "--type=TYPE is missing"
[[ $image ]] || die "--image=IMAGE is missing"
whole_number --restarts "$restarts"
workdir=$(workdir_of "${arguments[@]}")
[[ $workdir == gs://* ]] || die "--workdir=$workdir: pods share no folder; use gs://BUCKET/FOLDER"

# xpk runs the command in a subshell and signals that; exec puts worker.sh in its place. worker.sh exits
# with 75 after a SIGTERM, and a process that has lost another one with 1: both restart the slice.
command="exec bash launch/worker.sh --forward python -m cadc_jax.main --distributed \
$(quote "${arguments[@]}")"
compare_regions "$zone" "${arguments[@]}"
run xpk workload create "--workload=$name" "${where[@]}" "--tpu-type=$type" \
  "--docker-image=$image" --num-slices=1 "--max-restarts=$restarts" --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 --env=PYTHONUNBUFFERED=1 ${flags[@]+"${flags[@]}"} \
  "--command=$command"
