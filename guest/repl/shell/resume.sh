# Sourced once, on the top level, by a bash that goes on with a session.

. /run/sbx/traps.sh
builtin source /run/sbx/state/session >/dev/null 2>&1
# Those of save.sh, all but `first`.
builtin unset -v __sbx_flags __sbx_options __sbx_int __sbx_idle __sbx_file __sbx_status __sbx_last
builtin shopt -s mailwarn
