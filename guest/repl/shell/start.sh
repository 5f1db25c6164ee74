# Sourced once, on the top level, by a new bash.

. /run/sbx/traps.sh
>|/run/sbx/state/after
builtin printf R >|/run/sbx/reply
__sbx_idle=1 __sbx_status=0
