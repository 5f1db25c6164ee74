# Sourced in a subshell for a request that is no execution: nothing of it stays.

builtin set +eux
builtin shopt -u expand_aliases
case ${__sbx_idle:4:1} in
  c) . /run/sbx/complete.sh ;;
  q) . /run/sbx/is_complete.sh ;;
esac
