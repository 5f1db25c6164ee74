# Sourced by save.sh where the code ended amid functions, whose variables bash still has in sight: the session's own come back, and the
# others go. A variable shows an attribute that is given to the session's one only when no function has one of that name; a function that
# unsets a variable of its caller uncovers the one below. What is readonly stays, and so do references: only their targets could be unset.

__sbx_uncover() { builtin unset -v "$1"; }
builtin mapfile -t __sbx_names <<<"${ builtin compgen -v; }"
for __sbx_name in "${__sbx_names[@]}"; do
  case $__sbx_name in
    __sbx_* | BASH* | FUNCNAME | GROUPS | DIRSTACK | LINENO | *RANDOM | SECONDS | EPOCH* | COMP_* | PIPESTATUS | HISTCMD | *UID | PPID | SHELLOPTS | _) continue ;;
  esac
  [[ ${ builtin declare -p "$__sbx_name"; } != "declare -"*([!\ -])n* ]] && builtin declare -g -t "$__sbx_name" || continue
  for __sbx_depth in "${FUNCNAME[@]}"; do
    __sbx_shown=${ builtin declare -p "$__sbx_name"; }
    [[ $__sbx_shown != "declare -"*([!\ -])t* ]] && __sbx_uncover "$__sbx_name" || break
  done
  builtin declare -g +t "$__sbx_name"
  # There is none of the session's.
  [[ ${ builtin declare -p "$__sbx_name"; } != "declare -- $__sbx_name" ]] || builtin unset -v "$__sbx_name"
done
builtin unset -f __sbx_uncover
builtin unset -v __sbx_names __sbx_name __sbx_depth __sbx_shown
