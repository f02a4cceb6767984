#!/usr/bin/env bash
# Runs cadc on a Cloud TPU slice: creates the slice unless it exists, installs cadc on all its
# machines, runs the command on all of them, and resumes the run when a spot slice is lost.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE --type=TYPE --source=SOURCE [OPTION...] \
#       -- --config=FILE --workdir=gs://BUCKET/FOLDER [CADC ARGUMENT...]
#   launch/tpu_vm.sh --name=NAME --zone=ZONE [--queued] --delete
#
#   --name=NAME         of the slice
#   --zone=ZONE         such as us-west4-a
#   --type=TYPE         v5litepod-16 (16 chips), v5p-32 (32 cores, 16 chips), v6e-16 (16 chips), ...
#   --source=SOURCE     cadc to install: git+https://HOST/REPOSITORY@REF, or a local wheel or sdist
#   --project=PROJECT   default: gcloud's own
#   --runtime=VERSION   system image; default: the one for TYPE
#   --queued            wait in the queue for capacity (a queued resource) instead of failing
#   --spot              cheaper, and may be taken away at any moment
#   --create-flag=FLAG  another flag of gcloud's create, such as --create-flag=--network=NET
#   --setup=COMMAND     shell command for every machine before every start, such as mounting a
#                       shared folder, where --workdir is no bucket
#   --restarts=N        how often to restart after losing the slice (default 10)
#   --fetch=DIR         copy results.json, report.md and report.png to DIR at the end
#   --delete            delete the slice at the end; without a command, only delete it
#   --dry-run           print the commands and run none
#
# FILE is copied from here to the machines; all other paths are paths on the machines. Keep this script
# running, for example in tmux. If it is stopped, the same command continues with the same slice.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
source "$here/common.sh"

poll=${CADC_POLL_SECONDS:-30}
name='' zone='' project='' type='' runtime='' source='' setup='' fetch=''
queued='' spot='' delete=''
restarts=10
create_flags=()
arguments=()
while (($#)); do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --runtime=?*) runtime=${1#*=} ;;
    --source=?*) source=${1#*=} ;;
    --setup=?*) setup=${1#*=} ;;
    --fetch=?*) fetch=${1#*=} ;;
    --restarts=?*) restarts=${1#*=} ;;
    --create-flag=--?*) create_flags+=("${1#*=}") ;;
    --queued) queued=1 ;;
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
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "--name=$name: use lower-case letters, digits and hyphens"
[[ $zone ]] || die "--zone=ZONE is missing"
whole_number --restarts "$restarts"
where=("--zone=$zone" --quiet)
[[ ! $project ]] || where+=("--project=$project")
if [[ $queued ]]; then
  kind=queued-resources ready=ACTIVE format='value(state.state)'
else
  kind=tpu-vm ready=READY format='value(state)'
fi
tpus=(gcloud compute tpus)

delete_slice() {
  # --force deletes the node together with its request.
  run "${tpus[@]}" "$kind" delete "$name" ${queued:+--force} "${where[@]}"
}

if ((${#arguments[@]} == 0)); then
  [[ $delete ]] || die "no command: give cadc's arguments after --"
  delete_slice
  exit
fi

workdir=$(workdir_of "${arguments[@]}")
[[ $type ]] || die "--type=TYPE is missing"
if [[ ! $runtime ]]; then
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) die "--type=$type is not known here: give --runtime=VERSION too" ;;
  esac
fi

# Files to copy into ~/cadc on the machines.
files=("$here/worker.sh" "$here"/locks/{build,tpu,uv}.txt)
case $source in
  git+*) package=$source ;;
  *.whl | *.tar.gz)
    [[ -f $source ]] || die "--source=$source: no such file"
    files+=("$source")
    package=./$(basename "$source")
    ;;
  '') die "--source=SOURCE is missing" ;;
  *) die "--source=$source: neither git+https://... nor a .whl or .tar.gz file" ;;
esac
for i in "${!arguments[@]}"; do
  if [[ ${arguments[i]} == --config=* ]]; then
    config=${arguments[i]#--config=}
    [[ -f $config ]] || die "--config=$config: no such file"
    files+=("$config")
    arguments[i]=--config=$(basename "$config")
  fi
done

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
describe=("${tpus[@]}" "$kind" describe "$name" "--format=$format" "${where[@]}")

state() { # prints the state of the slice, or MISSING
  local found attempt
  for attempt in 1 2 3 4 5; do # in days of waiting, the network may fail for a while
    if found=$("${describe[@]}" 2>"$errors"); then
      printf '%s\n' "${found:-UNKNOWN}"
      return
    elif grep -q NOT_FOUND "$errors"; then
      echo MISSING
      return
    fi
    ((attempt == 5)) || sleep "$poll"
  done
  cat "$errors" >&2
  return 1
}

create_slice() {
  local flags=("--accelerator-type=$type")
  if [[ $queued ]]; then
    flags+=("--runtime-version=$runtime" "--node-id=$name")
  else
    flags+=("--version=$runtime")
  fi
  [[ ! $spot ]] || flags+=(--spot)
  run "${tpus[@]}" "$kind" create "$name" "${flags[@]}" \
    ${create_flags[@]+"${create_flags[@]}"} "${where[@]}"
}

spend_restart() { # WHY
  if ((restarts == 0)); then
    say "$1, and no restarts are left"
    exit 1
  fi
  restarts=$((restarts - 1))
  say "$1; starting again ($restarts restarts left)"
}

ensure_slice() { # returns when the slice can be used
  if [[ $dry_run ]]; then
    note "is the slice there?"
    run "${describe[@]}"
    note "if not:"
    create_slice
    note "repeated until it is $ready:"
    run "${describe[@]}"
    return
  fi
  local now last='' created=''
  while :; do
    now=$(state) || exit 1
    [[ $now == "$last" ]] || say "$name is $now"
    last=$now
    case $now in
      "$ready") return ;;
      MISSING)
        create_slice
        created=1
        ;;
      SUSPENDED | FAILED | PREEMPTED | TERMINATED) # it cannot recover, and blocks the name
        [[ ! $created ]] || spend_restart "$name is $now"
        delete_slice
        ;;
      STOPPED)
        say "$name is STOPPED: start it with gcloud, or delete it"
        exit 1
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

on_all() { # COMMAND: runs it in a shell on every machine of the slice
  # Without these messages an idle connection would be cut after some minutes.
  run "${tpus[@]}" tpu-vm ssh "$name" --worker=all "--command=$1" \
    --ssh-flag="-o ServerAliveInterval=30" "${where[@]}"
}

# uv installs Python 3.11, as the Python of the images may be older. pip and uv check every file
# against its hash, and uv the Python against one that it contains.
uv="\$HOME/.local/bin/uv"
pip="$uv pip install --quiet --python venv/bin/python"
install="cd ~/cadc && python3 -m pip install --quiet --user --require-hashes -r uv.txt \
&& $uv venv --quiet --allow-existing --python 3.11 venv \
&& $pip --require-hashes -r build.txt \
&& $pip --no-build-isolation --require-hashes -r tpu.txt \
&& $pip --no-build-isolation --no-deps $(quote "$package")"
train="cd ~/cadc && PYTHONUNBUFFERED=1 bash worker.sh venv/bin/python -m cadc_jax.main \
$(quote "${arguments[@]}") --distributed"

attempt() {
  on_all "mkdir -p ~/cadc" \
    && run "${tpus[@]}" tpu-vm scp "${files[@]}" "$name:cadc/" --worker=all "${where[@]}" \
    && on_all "$install" \
    && { [[ ! $setup ]] || on_all "$setup"; } \
    && on_all "$train"
}

compare_regions "$zone" "${arguments[@]}"
while :; do
  ensure_slice
  status=0
  attempt || status=$?
  ((status)) || break
  sleep "$poll" # the reported state may lag behind
  now=$(state) || exit 1
  # 75: told to stop, and saved. 255: the connection broke.
  if [[ $now == "$ready" && $status != 75 && $status != 255 ]]; then
    say "the command failed with exit code $status; $name is still there"
    exit "$status"
  fi
  spend_restart "the run was interrupted (exit code $status, $name is $now)"
done

if [[ $fetch ]]; then
  run mkdir -p "$fetch"
  reports=("$workdir"/{results.json,report.md,report.png})
  if [[ $workdir == gs://* ]]; then
    run gcloud storage cp "${reports[@]}" "$fetch"
  else
    run "${tpus[@]}" tpu-vm scp "${reports[@]/#/$name:}" "$fetch" --worker=0 "${where[@]}"
  fi
fi
[[ ! $delete ]] || delete_slice
