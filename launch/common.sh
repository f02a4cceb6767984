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
      --workdir=/*) printf '%s\n' "${word#--workdir=}" && return ;;
    esac
  done
  die "the cadc command needs --workdir=/..., a folder that all machines share"
}
