# Sourced wherever SIGINT gets its meaning. Once: another one would end the EXIT trap, and the session with it. So would one that bash deals
# with before the first command of that trap: then, and before the first command of the code, the command is the loop's own; and amid the
# loop the streams are not the code's. The agent sends it again to code that has just begun.

builtin trap '[[ ${__sbx_idle-}${__sbx_last-} || $BASH_COMMAND == @("builtin eval \"\$(<"*|"builtin unset -v __sbx_idle"*|": bash") ]] || { builtin trap ": 130" INT; builtin exit 130; }' INT
