# The shell REPL: sourced by the bash that the agent starts with `-c` and the loop of src/shell.rs. bash >= 5.3.
#
#   . shell.sh; while { __sbx_next; } 2>/dev/null; do if { __sbx_rc; } 2>/dev/null; then eval "$__sbx_code"; else eval "$__sbx_code"; fi; done; exit
#
# The loop stands on the top level, so user code runs there too: no function makes its `declare` local. It is one line, so
# messages count lines from 1 and begin with "bash: line N:". `__sbx_rc` brings back $? of the execution before; both branches
# are the same but for it.
#
# Requests. bash can neither read NUL bytes nor set close-on-exec, so no descriptor of ours stays open: each request is a line of
# 34 characters read from the FIFO `request`: 16 the id as \xNN\xNN\xNN\xNN, then `s` for a #! script or `-`, `e` with environment
# or `-`, `t` when the code may set a trap or `-`, `i` with stdin or `-`, `c` complete, `q` is it complete or `-`, 12 the seed in decimal or blank,
# newline. The code lies in the file `code`, calls of __sbx_env in the file `env`. Replies
# are those of the other languages (u32 id, u32 0, i32 exit code, u32 0xffffffff), written to the FIFO `reply`; "R" once at the start.
#
# Leaving. `exit`, `set -e`, `set -u`, a failed `${x:?}` and SIGINT all end a bash, and nothing can catch them but the EXIT trap. It
# replies, writes variables, functions, options, aliases and traps to a file and executes a fresh bash in the same process, which
# reads them back. Working directory, umask, limits, open descriptors and children stay anyway. The job table is
# lost, and the local variables of functions that were left by `exit` become global.
# An EXIT trap of the user's runs at the end of its execution, as it would at the end of a script; `exit` with such a trap set,
# `exec`, and a signal end this process for good, and the agent starts a new one.

__sbx_dir=/run/sbx
# Empty: idle. Else the id of the running execution.
__sbx_id=
__sbx_code=
__sbx_status=0
# The status to reply with while the user's EXIT trap runs.
__sbx_final=
# Brings back what `env` replaced.
__sbx_saved=
# Not empty: the user's code may have set a trap.
__sbx_traps=

# Ends the execution before, if any, and waits for the next. Its output goes nowhere: `set -x` shows it to nobody.
__sbx_next() {
  local status=$?
  local -
  set +eux
  if [[ $__sbx_id ]]; then
    if [[ $__sbx_traps ]] && __sbx_take_trap; then
      __sbx_status=$status
      __sbx_final=$status
      return 0
    fi
    __sbx_finish "${__sbx_final:-$status}"
  fi
  local line=
  until builtin read -r -N 34 line <"$__sbx_dir/request"; do :; done
  __sbx_id=${line:0:16}
  # Sticky: a function may set the trap later. Asking bash costs a temporary file.
  [[ ${line:18:1} == - ]] || __sbx_traps=maybe
  [[ ${line:21:1} == ' ' ]] || RANDOM=${line:21:12}
  [[ ${line:17:1} == - ]] || builtin source "$__sbx_dir/env"
  if [[ ${line:16:1} == s ]]; then
    __sbx_code=$__sbx_dir/code
  else
    builtin mapfile -d '' -t __sbx_code <"$__sbx_dir/code"
  fi
  return 0
}

# Replies with a status.
__sbx_finish() {
  __sbx_status=$1
  builtin eval "$__sbx_saved"
  __sbx_saved=
  __sbx_code=
  __sbx_final=
  local code
  builtin printf -v code '\\x%02x' "$1"
  builtin printf "$__sbx_id\\0\\0\\0\\0$code\\0\\0\\0\\xff\\xff\\xff\\xff" >|"$__sbx_dir/reply"
  __sbx_id=
}

# An EXIT trap of the user's becomes the code to run now. Our own traps come back.
__sbx_take_trap() {
  local theirs=${ builtin trap -p EXIT; }
  [[ ${ builtin trap -p INT; } ]] || builtin trap 'exit 130' INT
  [[ $theirs != *__sbx_exit* ]] || return 1
  builtin trap '__sbx_exit "$@"' EXIT
  [[ $theirs ]] || return 1
  builtin eval "local -a words=($theirs)"
  __sbx_code=${words[2]}
}

__sbx_rc() { return "$__sbx_status"; }

# Sets a variable for this execution.
__sbx_env() {
  local old=${ builtin declare -p "$1"; }
  __sbx_saved+="builtin unset -v $1"$'\n'
  [[ ! $old ]] || __sbx_saved+="declare -g ${old#declare }"$'\n'
  builtin export "$1=$2"
}

# The EXIT trap: replies, then goes on as the same session in a fresh bash. When that fails the process ends, and the agent tells of
# the loss with the next reply.
__sbx_exit() {
  local status=$?
  {
    # Not ignored: a bash cannot undo what it was started with.
    builtin trap : INT
    # A substitution never inherits -e.
    local flags=$- options=${ builtin set +o; }
    set +eux
    [[ $flags != *e* ]] || options+=$'\nset -e'
    [[ ! $__sbx_id ]] || __sbx_finish "$status"
    __sbx_dump "$@" >|"$__sbx_dir/state/session" || builtin exit "$status"
    builtin shopt -s execfail
  } 2>/dev/null
  # Outside the braces: a redirection there would stay with the new process.
  builtin exec -c -a bash /bin/bash --norc --noprofile -c "$BASH_EXECUTION_STRING" bash "$status"
  builtin exit "$status"
}

# Everything that makes the session, as commands; uses the caller's `options`.
__sbx_dump() {
  builtin shopt -p
  builtin declare -f
  builtin declare -F
  builtin alias -p
  builtin trap -p
  builtin declare -p
  builtin printf 'set --'
  builtin printf ' %q' "$@"
  builtin printf '\n%s\n' "$options"
}

# bash runs the EXIT trap when a signal ends it; then it shall end indeed.
__sbx_die() {
  builtin trap - EXIT "$1"
  builtin kill "-$1" $$
}

for __sbx_signal in HUP TERM ALRM USR1 USR2; do builtin trap "__sbx_die $__sbx_signal" "$__sbx_signal"; done
builtin unset -v __sbx_signal
builtin trap 'exit 130' INT
builtin trap '__sbx_exit "$@"' EXIT
if (($# == 0)); then
  builtin printf R >|"$__sbx_dir/reply"
else
  __sbx_args=$1
  builtin source "$__sbx_dir/state/session" >/dev/null 2>&1
  __sbx_status=$__sbx_args
  builtin unset -v __sbx_args
  builtin trap 'exit 130' INT
fi
