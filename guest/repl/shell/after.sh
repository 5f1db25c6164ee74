# Sourced at the end of an execution for which something was noted, and by a bash that has just started. $1 is `staying` or, for a bash that
# ends, `leaving`.

__sbx_traps= __sbx_stdin= __sbx_restore= __sbx_final= __sbx_trap=
. /run/sbx/state/after
if [[ ${__sbx_first-} ]]; then
  # Nobody waits for a reply.
  builtin unset -v __sbx_first
else
  builtin printf %s "${__sbx_traps:+__sbx_traps=1$'\n'}" >|/run/sbx/state/after
  # Their EXIT trap runs now, once, as the code, and does not change the status unless it exits; ours come back.
  if [[ $__sbx_traps && $1 == staying ]]; then
    [[ ${ builtin trap -p INT; } ]] || . /run/sbx/interrupt.sh
    __sbx_trap=${ builtin trap -p EXIT; }
    builtin trap '__sbx_last=$?; . /run/sbx/exit.sh' EXIT
    [[ $__sbx_trap != *'. /run/sbx/exit.sh'* && ! $__sbx_final ]] || __sbx_trap=
  fi
  if [[ $__sbx_trap ]]; then
    builtin printf '__sbx_%s=%q\n' restore "$__sbx_restore" stdin "$__sbx_stdin" final "$__sbx_idle" >>/run/sbx/state/after
    builtin eval "__sbx_trap=($__sbx_trap)"
    builtin printf '%s\n' "${__sbx_trap[2]}" >|/run/sbx/state/trap
    __sbx_file=/run/sbx/state/trap __sbx_status=$__sbx_idle
  else
    # Commands of special.sh's.
    builtin eval "$__sbx_restore"
    [[ ! $__sbx_stdin || ! /dev/fd/0 -ef /run/sbx/stdin ]] || exec </dev/null
    [[ ! $__sbx_final || $1 == leaving ]] || __sbx_idle=$__sbx_final
    builtin echo "$__sbx_idle" >|/run/sbx/reply
  fi
fi
[[ $__sbx_traps || $__sbx_trap ]] || builtin shopt -u mailwarn
builtin unset -v __sbx_traps __sbx_stdin __sbx_restore __sbx_final __sbx_trap
