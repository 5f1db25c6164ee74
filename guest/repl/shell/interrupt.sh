# Sourced wherever SIGINT gets its meaning. Once: another one would end the EXIT trap, and the session with it.

builtin trap '[[ ${__sbx_idle-} ]] || { builtin trap ": 130" INT; builtin exit 130; }' INT
