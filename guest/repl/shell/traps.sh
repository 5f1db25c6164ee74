# Sourced by start.sh and resume.sh: what stands in `trap`, as commands that a reader understands.

builtin unset -v BASH_EXECUTION_STRING
# bash runs the EXIT trap also when a signal ends it; then it shall end indeed.
builtin trap 'builtin trap - EXIT HUP; builtin kill -HUP $$' HUP
builtin trap 'builtin trap - EXIT TERM; builtin kill -TERM $$' TERM
builtin trap 'builtin trap - EXIT ALRM; builtin kill -ALRM $$' ALRM
builtin trap 'builtin trap - EXIT USR1; builtin kill -USR1 $$' USR1
builtin trap 'builtin trap - EXIT USR2; builtin kill -USR2 $$' USR2
builtin trap '[[ ${__sbx_idle-} ]] || builtin exit 130' INT
builtin trap '. /run/sbx/exit.sh' EXIT
