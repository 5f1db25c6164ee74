# Sourced by exit.sh on the top level: replies, and writes everything that makes the session, as commands. Its variables
# are seen in the new bash, which drops them.

__sbx_status=$? __sbx_flags=$- __sbx_options=${ builtin set +o; } __sbx_int=${ builtin trap -p INT; }
# Not ignored: a bash cannot undo what it was started with.
builtin trap : INT
builtin set +eux
# A substitution never inherits -e.
[[ $__sbx_flags != *e* ]] || __sbx_options+=$'\nset -e'
if [[ ! ${__sbx_idle-} ]]; then
  [[ ! -s /run/sbx/state/after ]] || . /run/sbx/after.sh leaving
  builtin printf -v __sbx_line '\\x%02x' "$__sbx_status"
  __sbx_idle=1
  builtin printf "\\0\\0\\0\\0\\0\\0\\0\\0$__sbx_line\\0\\0\\0\\xff\\xff\\xff\\xff" >|/run/sbx/reply
fi
{
  builtin shopt -p
  builtin declare -f
  builtin declare -F
  builtin alias -p
  builtin trap -p
  builtin printf '%s\n' "$__sbx_int"
  builtin declare -p
  builtin printf 'set --'
  builtin printf ' %q' "$@"
  builtin printf '\n%s\n' "$__sbx_options"
} >|/run/sbx/state/session || builtin exit 1
builtin shopt -s execfail
