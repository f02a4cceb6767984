# shellcheck shell=bash
# What the launchers share; sourced, not run.

die() { # MESSAGE: ends with one line, as an argument is wrong
  printf '%s: error: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

say() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
}

usage() { # prints the comment at the head of the script
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

quote() { # WORD...: one line that a shell reads back as the same words
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
run() { # COMMAND...: runs it; under --dry-run only prints it
  if [[ $dry_run ]]; then quote "$@"; else "$@"; fi
}

note() { # a comment between the commands that --dry-run prints
  if [[ $dry_run ]]; then printf '# %s\n' "$1"; fi
}

whole_number() { # OPTION VALUE
  [[ $2 =~ ^[0-9]+$ ]] || die "$1=$2 is not a whole number"
}

# The cadc command is given as it would be typed after `cadc`. Processes share nothing but the work
# folder, so that its place has to be named, and to be the same on all of them.
workdir_of() { # CADC ARGUMENT...: prints the value of --workdir
  local word
  for word in "$@"; do
    case $word in
      --workdir=/*) printf '%s\n' "${word#--workdir=}" && return ;;
    esac
  done
  die "the cadc command needs --workdir=/..., a folder that all machines share"
}
