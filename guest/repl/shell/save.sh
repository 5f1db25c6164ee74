# Sourced by exit.sh on the top level: replies, and writes everything that makes the session, as commands. Its variables
# are seen in the new bash, which drops them.

__sbx_flags=$- __sbx_options=${ builtin set +o; } __sbx_int=${ builtin trap -p INT; }
# Not ignored: a bash cannot undo what it was started with.
builtin trap : INT
[[ $__sbx_int != *"': 130'"* ]] || __sbx_int='. /run/sbx/interrupt.sh'
builtin set +eux
# A substitution never inherits -e.
[[ $__sbx_flags != *e* ]] || __sbx_options+=$'\nset -e'
if [[ ! ${__sbx_idle-} ]]; then
  __sbx_idle=$__sbx_last
  if builtin shopt -q mailwarn; then
    . /run/sbx/after.sh leaving
  else
    builtin echo "$__sbx_idle" >|/run/sbx/reply
  fi
fi
[[ ! ${FUNCNAME-} ]] || . /run/sbx/locals.sh
# Says so to after.sh.
__sbx_first=1
{
  builtin shopt -p
  builtin declare -f
  builtin declare -F
  builtin alias -p
  builtin trap -p
  builtin printf '%s\n' "$__sbx_int"
  builtin declare -p
  builtin printf 'set --'
  # A function's are not the session's.
  [[ ${FUNCNAME-} ]] || builtin printf ' %q' "$@"
  builtin printf '\n%s\n' "$__sbx_options"
} >|/run/sbx/state/session || builtin exit 1
builtin shopt -s execfail
