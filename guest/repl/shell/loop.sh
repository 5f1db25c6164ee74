# What bash is started with, joined to one line, so that messages count lines from 1: `-c` parses it once. It stands on the top level, so
# that no function makes the user's `declare` local. Its variables exist only between executions: the substitution behind `eval` drops them
# and makes $? that of the execution before. Redirected, so that `set -x` and a DEBUG trap show it to nobody.
#
# Replies to the execution before, if any, and waits for the next request. `idle` is not empty in between.

. /run/sbx/start.sh;
while {
  : "${__sbx_status=$?}";
  if [[ ! ${__sbx_idle-} ]]; then
    if [[ -s /run/sbx/state/after ]]; then . /run/sbx/after.sh staying; fi;
    if [[ ! ${__sbx_code-} ]]; then
      __sbx_idle=1;
      builtin printf -v __sbx_line '\\x%02x' "$__sbx_status";
      builtin printf "\0\0\0\0\0\0\0\0$__sbx_line\0\0\0\xff\xff\xff\xff" >|/run/sbx/reply;
    fi;
  fi;
  if [[ ! ${__sbx_code-} ]]; then
    until builtin read -r -N 16 __sbx_line </run/sbx/request; [[ ${__sbx_line:4:1} == - ]]; do (. /run/sbx/assist.sh); done;
    __sbx_idle=;
    [[ ${__sbx_line:5:1} == ' ' ]] || RANDOM=${__sbx_line:5:10};
    [[ ${__sbx_line:0:4} == ---- ]] || . /run/sbx/special.sh;
    [[ ${__sbx_line:0:1} == s ]] && __sbx_code=/run/sbx/code || builtin mapfile -d '' -t __sbx_code </run/sbx/code;
  fi;
} >/dev/null 2>&1; do
  eval "$__sbx_code${|{ local __sbx_last=$__sbx_status; unset -v __sbx_idle __sbx_line __sbx_code __sbx_status; : bash; return $__sbx_last; } >/dev/null 2>&1;}";
done;
exit
