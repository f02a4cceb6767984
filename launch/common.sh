# shellcheck shell=bash
# Functions of all launchers; sourced, not run.

die() { # MESSAGE: exits with code 2 and one line about a wrong argument
  printf '%s: error: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

say() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
}

usage() { # prints the comment at the top of the script
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

quote() { # WORD...: prints them in one line, quoted for a shell
  local word line=
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
        ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

dry_run=
run() { # COMMAND...: runs it; with --dry-run only prints it
  if [[ $dry_run ]]; then quote "$@"; else "$@"; fi
}

note() { # COMMENT: prints it between the commands of a --dry-run
  if [[ $dry_run ]]; then printf '# %s\n' "$1"; fi
}

whole_number() { # OPTION VALUE
  [[ $2 =~ ^[0-9]+$ ]] || die "$1=$2 is not a whole number"
}

# The processes share nothing but the work folder: --workdir must be given, and be the same on all
# machines.
workdir_of() { # CADC ARGUMENT...: prints the value of --workdir
  local word
  for word in "$@"; do
    case $word in
      --workdir=/* | --workdir=gs://?*) printf '%s\n' "${word#--workdir=}" && return ;;
    esac
  done
  die "the cadc command needs --workdir=gs://BUCKET/..., or /..., a folder that all machines share"
}

buckets_of() { # CADC ARGUMENT...: prints the buckets that the arguments name, one a line
  local word
  for word in "$@"; do
    if [[ $word =~ =gs://([^/]+) ]]; then printf '%s\n' "${BASH_REMATCH[1]}"; fi
  done | sort -u
}

# Reading from another region is slow, and every byte is paid for.
compare_regions() { # ZONE CADC ARGUMENT...: says where each bucket is, next to the machines' region
  local region=${1%-*} bucket place near
  shift
  while read -r bucket; do
    [[ $bucket ]] || continue
    local look=(gcloud storage buckets describe "gs://$bucket" "--format=value(location)")
    if [[ $dry_run ]]; then
      note "is the bucket in $region, as the machines are?"
      run "${look[@]}"
    elif ! place=$("${look[@]}" </dev/null); then
      say "cannot see where gs://$bucket is; the machines are in $region"
    else
      place=${place,,}
      case $place in # a bucket of several regions is near all of them
        "$region") near=1 ;;
        us | eu | asia) [[ $region == "${place/#eu/europe}"-* ]] && near=1 || near='' ;;
        *) near='' ;;
      esac
      say "gs://$bucket is in $place, the machines are in $region$(
        [[ $near ]] || echo ': WARNING: reading across regions is slow, and costs money'
      )"
    fi
  done < <(buckets_of "$@")
}
