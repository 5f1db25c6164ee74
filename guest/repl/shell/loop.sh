# What bash is started with, joined to one line, so that messages count lines from 1: `-c` parses it once. It stands on the top level, so
# that no function makes the user's `declare` local. Its variables exist only between executions. Redirected, so that `set -x` and
# a DEBUG trap show it to nobody.
#
# Replies to the execution before and waits for the next request. `idle` is not empty in between. Each feature of bash that is used here
# for the first time in a clone costs as much as it is large: 50 to 500 blocks of code to translate. Hence `case` alone, `echo` in place of
# `printf`, no function, no arithmetic; what is rarely needed is in files. `mailwarn`, which means nothing to a bash without mail, says that
# something is to be done after the execution.

. /run/sbx/start.sh;
while {
  __sbx_idle=$?;
  case $BASHOPTS in
    *mailwarn*) . /run/sbx/after.sh staying ;;
    *) builtin echo "$__sbx_idle" >|/run/sbx/reply ;;
  esac;
  case ${__sbx_file-} in
    '')
      until builtin read -r -N 19 __sbx_idle </run/sbx/request; do :; done;
      case $__sbx_idle in
        -*) ;;
        [0-9]*) RANDOM=$__sbx_idle ;;
        *) . /run/sbx/special.sh ;;
      esac ;;
  esac;
} &>/dev/null; do
  if { builtin unset -v __sbx_idle ${__sbx_file+!} && : bash; } &>/dev/null; then
    builtin eval "$(</run/sbx/code)";
  else
    builtin eval "$(<"$__sbx_file")${|{ . /run/sbx/status.sh bash || return; } &>/dev/null;}";
  fi;
done;
exit
