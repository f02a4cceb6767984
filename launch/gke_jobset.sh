#!/usr/bin/env bash
# Runs cadc on a TPU slice of a GKE cluster: fills in gke_jobset.yaml and applies it.
#
#   launch/gke_jobset.sh --name=NAME --accelerator=ACCELERATOR --topology=TOPOLOGY --image=IMAGE \
#       [OPTION...] -- --config=FILE --workdir=gs://BUCKET/FOLDER [CADC ARGUMENT...]
#   launch/gke_jobset.sh --name=NAME --delete
#
#   --name=NAME          of the JobSet
#   --accelerator=NAME   tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, ...
#   --topology=TOPOLOGY  of the slice, such as 4x4 or 2x2x4; its product is the number of chips
#   --chips-per-host=N   default 4; machine types that end in 8t have 8, those in 1t have 1
#   --image=IMAGE        built from launch/Dockerfile
#   --claim=CLAIM        if --workdir is no bucket: a PersistentVolumeClaim that many machines can
#                        write, such as Filestore
#   --mount=FOLDER       where the claim appears in the pods (default /shared); holds --workdir
#   --namespace=NAME     default: kubectl's own
#   --spot               use spot machines
#   --restarts=N         how often to restart after losing a machine (default 10)
#   --delete             delete the JobSet; the shared folder stays
#   --dry-run            print the filled-in YAML and apply nothing
#
# FILE is a path in the image (configs/criteo.py, ...) or in the shared folder. Follow the run with
# kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
source "$here/common.sh"

name='' accelerator='' topology='' image='' claim='' namespace=''
spot='' delete=''
mount=/shared
per_host=4
restarts=10
arguments=()
while (($#)); do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --accelerator=?*) accelerator=${1#*=} ;;
    --topology=?*) topology=${1#*=} ;;
    --chips-per-host=?*) per_host=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --claim=?*) claim=${1#*=} ;;
    --mount=/?*) mount=${1#*=} ;;
    --namespace=?*) namespace=${1#*=} ;;
    --restarts=?*) restarts=${1#*=} ;;
    --spot) spot=1 ;;
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

[[ $name ]] || die "--name=NAME is missing"
# Pod names have at most 63 letters, some 20 more than the JobSet's name.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] \
  || die "--name=$name: use at most 40 lower-case letters, digits and hyphens"
kubectl=(kubectl)
[[ ! $namespace ]] || kubectl+=("--namespace=$namespace")
if [[ $delete ]]; then
  run "${kubectl[@]}" delete jobset "$name"
  exit
fi

((${#arguments[@]})) || die "no command: give cadc's arguments after --"
[[ $accelerator ]] || die "--accelerator=NAME is missing"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] \
  || die "--topology=$topology is not of the form 4x4 or 2x2x4"
[[ $image ]] || die "--image=IMAGE is missing"
whole_number --chips-per-host "$per_host"
whole_number --restarts "$restarts"
workdir=$(workdir_of "${arguments[@]}")
if [[ $workdir != gs://* ]]; then
  [[ $claim ]] || die "--claim=CLAIM is missing, which a --workdir that is no bucket needs"
  [[ $workdir == "$mount"/* ]] || die "--workdir=$workdir is not inside the shared folder $mount"
fi

slice=$((${topology//x/*}))
((per_host > 0)) || die "--chips-per-host=$per_host is not a positive number"
((slice >= per_host)) || per_host=$slice # the slice is part of a machine
((slice % per_host == 0)) \
  || die "--topology=$topology has $slice chips, which --chips-per-host=$per_host does not divide"

scalar() { # WORD: prints it as a quoted YAML string
  local quoted=\'\'
  printf "'%s'" "${1//\'/$quoted}"
}

words=
for word in "${arguments[@]}"; do
  words+="${words:+, }$(scalar "$word")"
done
yaml=$(<"$here/gke_jobset.yaml")
fill() { # VARIABLE VALUE
  yaml=${yaml//"\${$1}"/"$2"}
}
fill NAME "$(scalar "$name")"
fill RESTARTS "$restarts"
fill HOSTS "$((slice / per_host))"
fill CHIPS "$per_host"
fill ACCELERATOR "$(scalar "$accelerator")"
fill TOPOLOGY "$(scalar "$topology")"
fill IMAGE "$(scalar "$image")"
fill CLAIM "$(scalar "$claim")"
fill MOUNT "$(scalar "$mount")"
fill ARGUMENTS "[$words]"
[[ $spot ]] || yaml=$(grep -v '# only with --spot$' <<<"$yaml")
[[ $claim ]] || yaml=$(grep -v '# only with --claim$' <<<"$yaml")

if [[ $dry_run ]]; then
  printf '%s\n' "$yaml"
else
  "${kubectl[@]}" apply -f - <<<"$yaml"
fi
