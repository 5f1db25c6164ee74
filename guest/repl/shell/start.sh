# Sourced once, on the top level, by a new bash.

. /run/sbx/traps.sh
>|/run/sbx/state/after
builtin printf R >|/run/sbx/reply
builtin shopt -s mailwarn
__sbx_first=0
