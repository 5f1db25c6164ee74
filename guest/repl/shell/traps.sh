# Sourced by start.sh and resume.sh: what stands in `trap`, as commands that a reader understands.

builtin unset -v BASH_EXECUTION_STRING
# bash runs the EXIT trap also when a signal ends it; then it shall end indeed.
builtin trap 'builtin trap - EXIT HUP; builtin kill -HUP $$' HUP
builtin trap 'builtin trap - EXIT TERM; builtin kill -TERM $$' TERM
builtin trap 'builtin trap - EXIT ALRM; builtin kill -ALRM $$' ALRM
builtin trap 'builtin trap - EXIT USR1; builtin kill -USR1 $$' USR1
builtin trap 'builtin trap - EXIT USR2; builtin kill -USR2 $$' USR2
builtin trap 'builtin trap - EXIT ILL; builtin kill -ILL $$' ILL
builtin trap 'builtin trap - EXIT TRAP; builtin kill -TRAP $$' TRAP
builtin trap 'builtin trap - EXIT ABRT; builtin kill -ABRT $$' ABRT
builtin trap 'builtin trap - EXIT BUS; builtin kill -BUS $$' BUS
builtin trap 'builtin trap - EXIT FPE; builtin kill -FPE $$' FPE
builtin trap 'builtin trap - EXIT SEGV; builtin kill -SEGV $$' SEGV
builtin trap 'builtin trap - EXIT PIPE; builtin kill -PIPE $$' PIPE
builtin trap 'builtin trap - EXIT XCPU; builtin kill -XCPU $$' XCPU
builtin trap 'builtin trap - EXIT XFSZ; builtin kill -XFSZ $$' XFSZ
builtin trap 'builtin trap - EXIT VTALRM; builtin kill -VTALRM $$' VTALRM
builtin trap 'builtin trap - EXIT SYS; builtin kill -SYS $$' SYS
. /run/sbx/interrupt.sh
builtin trap '__sbx_last=$?; . /run/sbx/exit.sh' EXIT
