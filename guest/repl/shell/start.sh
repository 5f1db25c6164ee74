# Sourced once, on the top level, by a new bash.

. /run/sbx/traps.sh
>|/run/sbx/state/after
builtin echo "$(/usr/bin/readlink /proc/$$/fd/1) $(/usr/bin/readlink /proc/$$/fd/2)" >|/run/sbx/state/streams
builtin printf R >|/run/sbx/reply
builtin shopt -s mailwarn
__sbx_first=0
