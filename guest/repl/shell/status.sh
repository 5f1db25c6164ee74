# Sourced in a function substitution behind the code that it precedes: $? shall be that of the execution before, and our last variables go.

local __sbx_last=$__sbx_status
builtin unset -v __sbx_file __sbx_status
: bash
return "$__sbx_last"
